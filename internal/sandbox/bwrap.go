package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// bwrapBinary is where our program is inside. Not /usr/local/bin: /usr is the host's and read-only, so nothing can be added.
const bwrapBinary = "/run/credproxy/bin/credproxy"

// binaryTarget is where our program is in the sandbox of an engine.
func binaryTarget(k Kind) string {
	if k == Bwrap {
		return bwrapBinary
	}
	return containerBinary
}

// Files that Run hands down to bwrap, by number.
const (
	bwrapArgsFD    = 3
	bwrapStatusFD  = 4
	bwrapSeccompFD = 5
)

// systemDir is a directory of the host that is shown read-only, or a symlink in its place.
type systemDir struct{ path, link string }

// bwrapArgs returns what bwrap(1) reads from bwrapArgsFD. The command and the environment are part of it: an argument
// list can be read by every process of the host.
//
// A terminal is handed in as it is, so that job control and Ctrl-C work; the system call filter denies TIOCSTI and TIOCLINUX,
// with which a program could type into the shell that credproxy was started from. Without a terminal the command gets a session
// of its own and no controlling terminal.
func bwrapArgs(p plan) []string {
	fd := strconv.Itoa
	args := []string{
		"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--uid", fd(p.uid), "--gid", fd(p.gid), "--cap-drop", "ALL", "--die-with-parent",
		"--json-status-fd", fd(bwrapStatusFD),
	}
	if len(p.engine.filter) > 0 {
		args = append(args, "--seccomp", fd(bwrapSeccompFD))
	}
	if !p.terminal {
		args = append(args, "--new-session")
	}
	args = append(args, systemArgs(p.system)...)
	args = append(args,
		// Root's own UID may write system settings without any capability, and core_pattern names a program that the kernel runs
		// as root outside of every sandbox. bwrap 0.8 leaves them open: it asks whether the directory can be written.
		"--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev",
		"--perms", "1777", "--tmpfs", "/tmp",
		"--perms", "0755", "--tmpfs", "/run",
		"--perms", "1777", "--tmpfs", "/var/tmp", "--symlink", "../run", "/var/run",
	)
	if p.home != "/tmp" {
		args = append(args, "--perms", "0700", "--tmpfs", p.home)
	}
	for _, m := range p.masks {
		args = append(args, "--perms", "0755", "--tmpfs", m)
	}
	for _, f := range p.hidden {
		args = append(args, "--ro-bind", os.DevNull, f)
	}
	for _, f := range p.extra {
		args = append(args, "--ro-bind", f, f)
	}
	for _, m := range p.mounts {
		switch {
		case m.kind == tmpfs:
			args = append(args, "--perms", "0755", "--tmpfs", m.target)
		case m.readOnly:
			args = append(args, "--ro-bind", m.source, m.target)
		default:
			args = append(args, "--bind", m.source, m.target)
		}
	}
	args = append(args, p.args...)
	args = append(args,
		"--perms", "0755", "--tmpfs", filepath.Dir(p.socket), "--bind", p.socket, p.socket,
		"--ro-bind", p.binary, bwrapBinary, "--remount-ro", "/")
	if !slices.Contains(p.args, "--chdir") {
		dir := p.workdir
		if dir == "" {
			dir = p.home
		}
		args = append(args, "--chdir", dir)
	}
	for _, v := range p.env {
		args = append(args, "--setenv", v.Name, v.Value)
	}
	return args
}

// systemDirs lists what programs need of the host to run, as far as it exists. Everything else is not there at all: no home
// directories, no /var (package databases, other services' data), no /run (sockets), no /sys.
func systemDirs(root string) []systemDir {
	var dirs []systemDir
	for _, path := range []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store",
		"/var/lib/ca-certificates", "/run/current-system", "/run/opengl-driver",
	} {
		info, err := os.Lstat(filepath.Join(root, path))
		switch {
		case err != nil:
		case info.Mode()&os.ModeSymlink != 0 && strings.Count(path, "/") == 1:
			if link, err := os.Readlink(filepath.Join(root, path)); err == nil {
				dirs = append(dirs, systemDir{path, link})
			}
		default:
			dirs = append(dirs, systemDir{path: path})
		}
	}
	return dirs
}

// systemArgs are the options with which bwrap has these directories.
func systemArgs(dirs []systemDir) []string {
	var args []string
	for _, d := range dirs {
		if d.link != "" {
			args = append(args, "--symlink", d.link, d.path)
		} else {
			args = append(args, "--ro-bind", d.path, d.path)
		}
	}
	return args
}

// maskedSystem returns those of the protected directories that lie in a system directory, and would be visible. They are made
// if need be: one that appears later would appear inside too.
func maskedSystem(system []systemDir, protected []string) []string {
	var masks []string
	for _, p := range protected {
		for _, d := range system {
			info, err := os.Stat(d.path)
			if err != nil || d.link != "" || p == "" || !contains(info, p) {
				continue
			}
			_ = os.MkdirAll(p, 0o700) // where we may not, we could not store anything either
			if resolved, err := filepath.EvalSymlinks(p); err == nil && !slices.Contains(masks, resolved) {
				masks = append(masks, resolved)
			}
		}
	}
	slices.Sort(masks)
	return masks
}

// privateSystem returns the directories and files below root that we can read and not everybody can: passwords and private
// keys, for root or by a group. A sandbox sees no more of the system's configuration than any user of the machine.
func privateSystem(root string) (dirs, files []string) {
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // what we cannot look into, the sandbox cannot either
		}
		info, err := e.Info()
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return nil
		}
		switch perm := info.Mode().Perm(); {
		case info.IsDir() && perm&0o005 != 0o005:
			if path != root && canRead(path) {
				dirs = append(dirs, path)
			}
			return fs.SkipDir
		case !info.IsDir() && perm&0o004 == 0 && canRead(path):
			files = append(files, path)
		}
		return nil
	})
	return dirs, files
}

// pointedFiles returns files outside of the system directories that name resolution needs: on many systems /etc/resolv.conf
// is a symlink to below /run.
func pointedFiles(system []systemDir) []string {
	var files []string
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/localtime"} {
		resolved, err := filepath.EvalSymlinks(f)
		if err == nil && !slices.ContainsFunc(system, func(d systemDir) bool { return isBelow(resolved, d.path) }) {
			files = append(files, resolved)
		}
	}
	return files
}
