package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unicode/utf8"
)

// Volume is something of the host's that is mounted inside.
type Volume struct {
	Source   string // an absolute path, or the name of a volume that the engine manages
	Target   string // an absolute path inside
	ReadOnly bool
}

// volumeName is a name that docker and podman both take; of docker's, podman takes shorter ones, too.
var volumeName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`) })

// ParseVolume reads the value of --volume: SOURCE:TARGET or SOURCE:TARGET:ro. A source with a slash in it, or that begins
// with a dot, is a path, taken from dir when it is relative; any other is the name of a volume that the engine manages, unless
// something of that name is in dir: who wants that would get an empty volume. An empty dir stands for none.
func ParseVolume(value, dir string) (Volume, error) {
	what := "volume " + strconv.Quote(value)
	parts := strings.Split(value, ":")
	switch {
	case len(parts) > 3:
		return Volume{}, refused(what, "not of the form SOURCE:TARGET[:ro]", "a path with a colon in it cannot be mounted")
	case len(parts) < 2 || parts[0] == "" || parts[1] == "":
		return Volume{}, refused(what, "not of the form SOURCE:TARGET[:ro]", "say where it is here and where inside, for example --volume ./models:/models:ro")
	}
	v := Volume{Source: parts[0], Target: filepath.Clean(parts[1])}
	if err := v.place(what, dir); err != nil {
		return Volume{}, err
	}
	if !filepath.IsAbs(parts[1]) || strings.ContainsRune(value, 0) {
		return Volume{}, refused(what, "the place inside is not an absolute path", "for example --volume ./models:/models:ro")
	}
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				v.ReadOnly = true
			case "rw", "z", "Z": // labels are not needed: see containerArgs
			default:
				return Volume{}, refused(what, "unknown option "+strconv.Quote(o), "there are ro and rw")
			}
		}
	}
	return v, nil
}

// place makes the source a clean absolute path, or leaves a name that can be a volume's.
func (v *Volume) place(what, dir string) error {
	isName := !strings.Contains(v.Source, "/") && !strings.HasPrefix(v.Source, ".")
	switch {
	case strings.HasPrefix(v.Source, "~"):
		return refused(what, "~ stands for a home directory only where a shell replaces it", "write $HOME in its place")
	case filepath.IsAbs(v.Source):
		v.Source = filepath.Clean(v.Source)
	case !isName && dir == "":
		return refused(what, "a relative path, and the current directory is gone", "write the whole path, from / on")
	case !isName:
		v.Source = filepath.Join(dir, v.Source)
	case !volumeName().MatchString(v.Source):
		return refused(what, "neither a path nor the name of a volume", "write ./ before a relative path; names have at least two characters, letters, digits and _.-, the first a letter or a digit")
	case dir != "":
		if _, err := os.Lstat(filepath.Join(dir, v.Source)); err == nil {
			return refused(what, "without ./ it is the name of a volume, and something of that name is in the current directory",
				"write ./"+v.Source+":"+v.Target+", or give the volume another name")
		}
	}
	return nil
}

// guard decides what may be mounted. It compares files by identity, not by name: a bind mount or a case-insensitive file
// system gives one directory two names.
type guard struct {
	home     string
	dirs     []string // never visible, never replaceable
	files    []string // at most readable, never replaceable
	never    []string // never mounted, nor anything that holds them
	inner    []string // where something of ours is mounted inside
	text     bool     // names go to the engine in JSON, which has no others than UTF-8
	workdir  string   // resolved; who is refused that has not asked for it by name
	warnings []string

	behind func(volume string) (paths []string, err error) // what of this machine an engine's volume stands for; nil: nothing
}

// instead is a hint for a mount of source that is refused: what to do if it is the work directory, and else.
func (g *guard) instead(source, other string) string {
	if source == g.workdir && source != "" {
		return "run from a directory of its own, or with --no-workdir, which leaves the current one out"
	}
	return other
}

const (
	mountBelow  = "mount a directory of its own below it"
	mountOther  = "mount a directory that holds nothing of it"
	mountNone   = "leave it out: no sandbox gets it"
	mountNamed  = "give it another name"
	mountInside = "choose another place inside, such as /work"
)

// mounts resolves the volumes, refuses those that would show or hand over what the guard protects, and adds the mounts that
// cover it. The result is sorted so that a directory is mounted before what lies below it.
func (g *guard) mounts(volumes []Volume) ([]mount, error) {
	var out []mount
	for _, v := range volumes {
		m := mount{kind: bind, target: filepath.Clean(v.Target), readOnly: v.ReadOnly}
		if err := g.target(v); err != nil {
			return nil, err
		}
		if !filepath.IsAbs(v.Source) {
			m.kind, m.source = named, v.Source
			covers, err := g.volume(m)
			if err != nil {
				return nil, err
			}
			out = append(append(out, m), covers...)
			continue
		}
		var err error
		if m.source, err = filepath.EvalSymlinks(v.Source); err != nil {
			return nil, refused("mount "+v.Source, reason(err), "make it first, or name another")
		}
		if strings.ContainsAny(m.source+m.target, "\r\n") {
			return nil, refused("mount "+strconv.Quote(m.source), "its name has more than one line", g.instead(m.source, mountNamed))
		}
		if g.text && !utf8.ValidString(m.source+m.target) {
			return nil, refused("mount "+strconv.Quote(m.source), "its name is not UTF-8, and docker and podman would take it for another", g.instead(m.source, mountNamed))
		}
		out = append(out, m)
		covers, err := g.source(m)
		if err != nil {
			return nil, err
		}
		out = append(out, covers...)
	}
	slices.SortStableFunc(out, func(a, b mount) int { return strings.Compare(a.target+"/", b.target+"/") })
	for i := 1; i < len(out); i++ {
		if out[i].target == out[i-1].target {
			return nil, refused("mount "+out[i].target, "two things would be mounted there", "")
		}
	}
	return out, nil
}

// target refuses a volume in the place of, or above, something that credproxy mounts itself: the engine would make an empty
// file for the mount in the user's directory, or hide ours.
func (g *guard) target(v Volume) error {
	if v.Target == "/" {
		return refused("mount "+v.Source, "it cannot take the place of /", g.instead(v.Source, mountInside))
	}
	for i, ours := range g.inner {
		same := filepath.Clean(v.Source) == filepath.Clean(v.Target) // then the socket's directory is covered by a mount of its own
		if isBelow(ours, v.Target) && (i > 0 || !same) {
			return refused("mount "+v.Target, "credproxy has to mount "+ours+" there", "choose another place inside")
		}
	}
	return nil
}

// isBelow compares cleaned paths by name.
func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// hostDirs are never mounted writable: as root a sandbox could change the host with them. What lies deeper may be a project.
var hostDirs = []string{
	"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc", "/root", "/run", "/sbin", "/srv",
	"/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local", "/usr/local/bin", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log",
	"/Applications", "/Library", "/System", "/Users", "/private",
}

// source checks one bind mount and returns the mounts that cover what is protected in it.
func (g *guard) source(m mount) ([]mount, error) {
	what := "mount " + m.source
	root, err := os.Stat(m.source)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if m.source == "/" {
		return nil, refused(what, "it is the whole host", g.instead(m.source, mountBelow))
	}
	if g.home != "" && sameDir(root, g.home) {
		return nil, refused(what, "it is your home directory", g.instead(m.source, mountBelow))
	}
	if !m.readOnly && slices.Contains(hostDirs, m.source) {
		return nil, refused(what, "it is a directory of the system, which the sandbox could change", g.instead(m.source, mountBelow+", or it with :ro"))
	}
	type protected struct {
		path string
		kind byte // 'd'irectory, 'f'ile, 'h'ome: what lies in it may be mounted, itself not
		walk []entry
	}
	var all []protected
	add := func(kind byte, paths ...string) error {
		for _, p := range paths {
			if p == "" || p == "/" {
				continue
			}
			walk, err := walkPath(p)
			if err != nil {
				return fmt.Errorf("mount: %w", err)
			}
			all = append(all, protected{p, kind, walk})
		}
		return nil
	}
	if err := errors.Join(add('h', g.home), add('d', g.dirs...), add('f', g.files...)); err != nil {
		return nil, err
	}

	// First what can be covered: what lies directly in the mount. Inside, a mount point can be neither renamed nor removed.
	var covers []mount
	covered := map[string]bool{} // resolved paths on the host
	for _, p := range all {
		if info, err := os.Stat(p.path); err == nil {
			if p.kind != 'h' && contains(info, m.source) {
				return nil, refused(what, "it belongs to credproxy ("+p.path+")", g.instead(m.source, mountNone))
			}
		}
		last := p.walk[len(p.walk)-1]
		name := filepath.Join(last.dir, last.name)
		if !last.object || !sameDir(root, last.dir) || covered[name] {
			continue
		}
		if p.kind == 'f' {
			// A mount over the file would not do: when an editor on the host replaces the file, the mount goes with the old one.
			if !m.readOnly {
				return nil, refused(what, p.path+" lies in it, where the sandbox could change what it may use", "keep it outside of what is mounted, or mount read-only")
			}
			covered[name] = true
			continue
		}
		if err := os.MkdirAll(name, 0o700); err != nil {
			return nil, fmt.Errorf("mount: %w", err)
		}
		cover := mount{kind: tmpfs, target: filepath.Join(m.target, last.name)}
		covered[name] = true
		covers = append(covers, cover)
	}
	isCovered := func(path string) bool {
		for c := range covered {
			if isBelow(path, c) {
				return true
			}
		}
		return false
	}

	// Then the rest. The sandbox could rename any directory, and any symlink, that lies on the way to it, and put another in
	// its place.
	for _, p := range all {
		for _, e := range p.walk {
			if contains(root, e.dir) && !isCovered(filepath.Join(e.dir, e.name)) {
				return nil, refused(what, p.path+" lies deeper in it, where the sandbox could replace it", g.instead(m.source, mountOther))
			}
		}
	}
	for _, p := range g.never {
		info, err := os.Stat(p)
		if err != nil {
			continue
		}
		resolved, err := filepath.EvalSymlinks(p)
		if contains(info, m.source) || err != nil || contains(root, p) && !isCovered(resolved) {
			other := mountOther
			if p == m.source || resolved == m.source {
				other = mountNone
			}
			return nil, refused(what, p+" would be reachable, and through it the host", g.instead(m.source, other))
		}
	}
	return covers, nil
}

// entry is a name that is looked up in a directory on the way to a path.
type entry struct {
	dir    string // resolved
	name   string
	object bool // it is what the path means, or would be made as: not a symlink, not a directory on the way
}

// walkPath returns every name that is looked up when path is opened, symlinks included. The last is the object itself, or
// the first that does not exist.
func walkPath(path string) ([]entry, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: not an absolute path", path)
	}
	var out []entry
	dir, rest := "/", strings.Split(filepath.Clean(path), "/")[1:]
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			dir = filepath.Dir(dir)
			continue
		}
		full := filepath.Join(dir, name)
		info, err := os.Lstat(full)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return append(out, entry{dir, name, len(rest) == 0}), nil
		case err != nil:
			return nil, err
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > 40 {
				return nil, fmt.Errorf("%s: too many symbolic links", path)
			}
			target, err := os.Readlink(full)
			if err != nil {
				return nil, err
			}
			out = append(out, entry{dir, name, false})
			rest = append(strings.Split(target, "/"), rest...)
			if filepath.IsAbs(target) {
				dir = "/"
			}
		default:
			out = append(out, entry{dir, name, len(rest) == 0})
			dir = full
		}
	}
	if len(out) == 0 {
		out = []entry{{"/", ".", true}}
	}
	return out, nil
}

// reason is the last cause of an error about a path, without the path that it happened at.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func sameDir(info fs.FileInfo, dir string) bool {
	other, err := os.Stat(dir)
	return err == nil && os.SameFile(info, other)
}

// contains reports whether path, once resolved, is dir or lies below it.
func contains(dir fs.FileInfo, path string) bool {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		resolved = filepath.Clean(path)
	}
	for {
		if sameDir(dir, resolved) {
			return true
		}
		if resolved == "/" || resolved == "." {
			return false
		}
		resolved = filepath.Dir(resolved)
	}
}

var proxySocket = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^llxprt-cred-[0-9]+-[0-9a-f]{8,}\.sock$`) })

// socketDirs returns the directories in which other proxies of this user listen: with another TMPDIR they have another, and
// another profile. The file at table is as proc_net_unix(5) has it; where there is none, nothing is known.
func socketDirs(table string, uid int) []string {
	b, _ := os.ReadFile(table)
	var dirs []string
	for line := range strings.Lines(string(b)) {
		_, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " /")
		dir, name := filepath.Split("/" + path)
		dir = filepath.Clean(dir)
		if !ok || !proxySocket().MatchString(name) || slices.Contains(dirs, dir) {
			continue
		}
		// Others' directories do not matter, for their proxies turn us away, and may not be looked into.
		if info, err := os.Stat(dir); err == nil && owner(info) == uid {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// neverMounted lists what a sandbox could reach the rest of the host through: the kernel's views of other processes, and the
// sockets of container engines, session managers, keyrings, agents and whatever else runs commands for who can reach it.
func neverMounted(uid int, home string, environ []string) []string {
	list := []string{
		"/proc", "/sys", "/dev", "/run/docker.sock", "/run/containerd", "/run/podman", "/run/systemd/private",
		"/run/dbus/system_bus_socket", "/run/crio/crio.sock", "/run/k3s", "/run/buildkit", "/run/libvirt", "/run/screen", "/tmp/.X11-unix",
	}
	// A terminal multiplexer or an editor with a server runs what its socket is told to.
	for _, dir := range []string{"/tmp", "/var/tmp", os.TempDir()} {
		list = append(list, filepath.Join(dir, "tmux-"+strconv.Itoa(uid)), filepath.Join(dir, "emacs"+strconv.Itoa(uid)))
	}
	sessions := []string{"/run/user/" + strconv.Itoa(uid)}
	if dir, ok := lookup(environ, "XDG_RUNTIME_DIR"); ok && filepath.IsAbs(dir) {
		sessions = append(sessions, dir)
	}
	for _, dir := range sessions {
		for _, name := range []string{"bus", "dbus-1", "keyring", "systemd", "podman", "docker.sock", "containerd", "gnupg", "gcr", "emacs"} {
			list = append(list, filepath.Join(dir, name))
		}
	}
	if home != "" {
		list = append(list, filepath.Join(home, ".local/share/keyrings"), filepath.Join(home, "Library/Keychains"))
		// Engines in virtual machines: their sockets, which some of them let through, and the keys to the machines.
		for _, name := range []string{
			".docker/run", ".docker/desktop", ".orbstack", ".colima", ".config/colima", ".rd", ".lima", ".local/share/containers/podman/machine",
		} {
			list = append(list, filepath.Join(home, name))
		}
	}
	list = append(list, "/var/run/docker.sock") // of macOS, where it is a link to one of those
	if runtime.GOOS != "linux" {
		list = append(list, filepath.Join(os.TempDir(), "podman")) // the sockets of podman's machines
	}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		// SSH_AUTH_SOCK, TMUX, NVIM, SWAYSOCK, VSCODE_IPC_HOOK_CLI, …: to name a socket is what they have in common.
		path, _, _ := strings.Cut(value, ",")
		path = strings.TrimPrefix(path, "unix:")
		if info, err := os.Stat(path); filepath.IsAbs(path) && err == nil && info.Mode()&fs.ModeSocket != 0 && name != SocketEnv {
			list = append(list, filepath.Clean(path))
		}
	}
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "CONTAINER_HOST"} {
		value, _ := lookup(environ, name)
		for address := range strings.SplitSeq(value, ";") {
			for option := range strings.SplitSeq(strings.TrimPrefix(address, "unix:"), ",") {
				path := strings.TrimPrefix(option, "path=")
				if strings.HasPrefix(address, "unix:") && strings.HasPrefix(path, "/") {
					list = append(list, filepath.Clean(path))
				}
			}
		}
	}
	return list
}
