package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind names an engine.
type Kind string

// The engines, in the order in which Auto tries them.
const (
	Auto   Kind = "auto"
	Docker Kind = "docker"
	Podman Kind = "podman"
	Bwrap  Kind = "bwrap"
)

// Engine is an engine that works, as Host.Select found it.
type Engine struct {
	Kind     Kind
	Path     string // of its client program
	Version  string
	Product  string // what people call it where that is not the Kind: "Docker Desktop", "podman machine"
	Arch     string // of the machine that containers run on, as GOARCH; empty: unknown
	Rootless bool   // root inside is somebody else outside: who runs podman or the docker server
	Remapped bool   // docker's server has userns-remap: nobody inside is who they are outside, unless the container has --userns=host
	VM       bool   // containers run in a virtual machine: no Unix socket of this machine works in them, and /proc, /sys are not theirs
	Service  bool   // podman's client only talks to a service, as it always does to a machine; it takes fewer options then
	Init     string // empty: it has no init to offer; defaultInit; or the path of one (podman)

	// HostNames are names that lead from inside to this machine's loopback. Only a VM has them, and may not keep the promise.
	HostNames []string

	filter []byte // bwrap: the system call filter, see terminalFilter
}

const defaultInit = "default"

// Status is the answer of Host.Probe for one engine.
type Status struct {
	Kind    Kind
	OK      bool
	Version string
	Detail  string // why it does not work, or what to know about it
	Hint    string // what to do
}

// Host is what finding an engine depends on.
type Host struct {
	Environ []string // as os.Environ
	Avoid   []string // directories that no helper program is run from: the project's
	UID     int
}

// Select returns the engine that was asked for, or with Auto the first that works. Containers are only for those who have
// an image. The error is an ErrNoEngine and says for each engine why it did not work.
func (h Host) Select(ctx context.Context, want Kind, image string) (Engine, error) {
	switch want {
	case Docker, Podman, Bwrap:
		e, st := h.probe(ctx, want)
		if !st.OK {
			return Engine{}, &Error{ErrNoEngine, string(want), st.Detail, st.Hint}
		}
		return e, nil
	case Auto, "":
	default:
		return Engine{}, refused("engine "+string(want), "unknown", "there are auto, docker, podman and bwrap")
	}
	kinds := []Kind{Docker, Podman, Bwrap}
	var why []string
	if image == "" {
		kinds = []Kind{Bwrap}
		why = append(why, "docker and podman need an image")
	}
	hint := ""
	for _, k := range kinds {
		if k == Bwrap && image != "" {
			why = append(why, "bwrap has no images")
			continue
		}
		e, st := h.probe(ctx, k)
		if st.OK {
			return e, nil
		}
		why = append(why, string(k)+": "+st.Detail)
		hint = st.Hint
	}
	if image == "" {
		hint += ", or name an image with --image"
	}
	return Engine{}, &Error{ErrNoEngine, "no engine works", strings.Join(why, "; "), hint}
}

// Probe asks every engine whether it works.
func (h Host) Probe(ctx context.Context) []Status {
	kinds := []Kind{Docker, Podman, Bwrap}
	out := make([]Status, len(kinds))
	var wg sync.WaitGroup
	for i, k := range kinds {
		wg.Go(func() { _, out[i] = h.probe(ctx, k) })
	}
	wg.Wait()
	return out
}

func (h Host) probe(ctx context.Context, k Kind) (Engine, Status) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	e := Engine{Kind: k}
	fail := func(detail, hint string) (Engine, Status) {
		return e, Status{Kind: k, Version: e.Version, Detail: detail, Hint: hint}
	}
	if runtime.GOOS != "linux" {
		if k == Bwrap {
			return fail("only on Linux", "use docker or podman")
		}
		return fail("containers run in a virtual machine here, which Unix sockets do not cross", "run credproxy on Linux")
	}
	e.Path = h.look(string(k))
	if e.Path == "" {
		everywhere := Host{Environ: h.Environ}
		if path := everywhere.look(string(k)); path != "" {
			return fail(path+" lies in the project's directory, which must not bring its own sandbox", "run it from another directory")
		}
		return fail("not found in PATH", installHints[k])
	}
	var detail, hint string
	switch k {
	case Docker:
		detail, hint = h.probeDocker(ctx, &e)
	case Podman:
		detail, hint = h.probePodman(ctx, &e)
	case Bwrap:
		detail, hint = h.probeBwrap(ctx, &e)
	}
	if detail != "" {
		return fail(detail, hint)
	}
	st := Status{Kind: k, OK: true, Version: e.Version}
	if e.Rootless {
		st.Detail = "rootless"
	}
	return e, st
}

var installHints = map[Kind]string{
	Docker: "install docker (Debian, Ubuntu: apt-get install docker.io; others: docs.docker.com/engine/install)",
	Podman: "install podman (Debian, Ubuntu: apt-get install podman uidmap slirp4netns; Fedora: dnf install podman)",
	Bwrap:  "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap; Arch: pacman -S bubblewrap)",
}

func (h Host) probeDocker(ctx context.Context, e *Engine) (detail, hint string) {
	// The context, not only DOCKER_HOST, decides where the client connects.
	endpoint, err := h.output(ctx, e.Path, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
	if err != nil {
		if version, _ := h.output(ctx, e.Path, "--version"); strings.Contains(version, "podman") {
			return "the docker command is podman's", "use --engine podman"
		}
		return err.Error(), "check with: docker info"
	}
	if endpoint != "" && !strings.HasPrefix(endpoint, "unix://") {
		return "it is on another machine (" + endpoint + "), where our socket is not", "unset DOCKER_HOST, or: docker context use default"
	}
	out, err := h.output(ctx, e.Path, "info", "--format", "{{json .}}")
	var info struct {
		ServerVersion, OperatingSystem string
		SecurityOptions, ServerErrors  []string
		InitBinary                     string
		InitCommit                     struct{ ID string }
	}
	if jsonErr := json.Unmarshal([]byte(out), &info); err != nil || jsonErr != nil || info.ServerVersion == "" {
		if len(info.ServerErrors) > 0 {
			err = errors.New(firstLine(info.ServerErrors[0]))
		} else if err == nil {
			err = errors.New("its server does not answer")
		}
		if strings.Contains(err.Error(), "permission denied") {
			return err.Error(), "join the docker group, or use podman"
		}
		return err.Error(), "start the server: systemctl start docker"
	}
	e.Version = info.ServerVersion
	for _, o := range info.SecurityOptions {
		switch {
		case strings.HasPrefix(o, "name=rootless"):
			return "the server runs rootless and cannot keep our UID", "use --engine podman"
		case strings.HasPrefix(o, "name=userns"):
			return "the server remaps users and cannot keep our UID", "use --engine podman"
		}
	}
	if info.OperatingSystem == "Docker Desktop" {
		return "Docker Desktop runs containers in a virtual machine, which Unix sockets do not cross", "docker context use default, or use --engine podman"
	}
	if info.InitBinary != "" && info.InitCommit.ID != "N/A" {
		e.Init = defaultInit
	}
	return "", ""
}

func (h Host) probePodman(ctx context.Context, e *Engine) (detail, hint string) {
	out, err := h.output(ctx, e.Path, "info", "--format", "json")
	if err != nil {
		return err.Error(), "check with: podman info"
	}
	var info struct {
		Host struct {
			ServiceIsRemote bool
			IDMappings      struct{ UIDMap []struct{ Size int } }
			Security        struct{ Rootless bool }
		}
		Version struct{ Version string }
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return "podman info: " + err.Error(), "check with: podman info"
	}
	e.Version, e.Rootless = info.Version.Version, info.Host.Security.Rootless
	if info.Host.ServiceIsRemote {
		return "it is on another machine, where our socket is not", "unset CONTAINER_HOST"
	}
	if e.Rootless && len(info.Host.IDMappings.UIDMap) < 2 {
		return "no subordinate UIDs are given to you", "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER; podman system migrate"
	}
	e.Init = podmanInit()
	return "", ""
}

// podmanInit returns defaultInit where podman's own init is installed, else the path of another that needs nothing of the
// image, or nothing.
func podmanInit() string {
	for _, dir := range []string{"/usr/libexec/podman", "/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/lib/podman", "/usr/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "catatonit")); err == nil {
			return defaultInit
		}
	}
	for _, path := range []string{"/usr/bin/tini-static", "/usr/bin/docker-init", "/usr/libexec/docker/docker-init"} {
		if _, err := os.Stat(path); err == nil && Interpreter(path) == "" {
			return path
		}
	}
	return ""
}

func (h Host) probeBwrap(ctx context.Context, e *Engine) (detail, hint string) {
	out, err := h.output(ctx, e.Path, "--version")
	if err != nil {
		return err.Error(), installHints[Bwrap]
	}
	e.Version = strings.TrimPrefix(out, "bubblewrap ")
	e.filter = terminalFilter()
	_, err = h.output(ctx, e.Path, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL",
		"--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--tmpfs", "/tmp", "--", e.Path, "--version")
	if err != nil {
		hint = "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or use docker or podman"
		if b, _ := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); strings.TrimSpace(string(b)) == "1" {
			hint = "AppArmor restricts user namespaces here: give bwrap a profile (Ubuntu: apt-get install apparmor-profiles, then aa-enforce bwrap-userns-restrict), or use docker or podman"
		}
		return err.Error(), hint
	}
	return "", ""
}

// look finds a program by the absolute entries of PATH that do not lie in a directory to avoid: a project must not bring
// the program that is to lock it in. A symlink is followed before it is judged.
func (h Host) look(name string) string {
	for _, dir := range h.path() {
		full := filepath.Join(dir, name)
		info, err := os.Stat(full)
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		if resolved, err := filepath.EvalSymlinks(full); err == nil && !h.avoided(resolved) {
			return full
		}
	}
	return ""
}

// path returns the entries of PATH that a helper may be run from.
func (h Host) path() []string {
	value, _ := lookup(h.Environ, "PATH")
	return slices.DeleteFunc(filepath.SplitList(value), func(dir string) bool {
		return !filepath.IsAbs(dir) || h.avoided(dir)
	})
}

func (h Host) avoided(path string) bool {
	return slices.ContainsFunc(h.Avoid, func(avoid string) bool {
		info, err := os.Stat(avoid)
		return err == nil && avoid != "" && avoid != "/" && contains(info, path) // all programs are below /: it is no project
	})
}

// output runs an engine's client to its end. Its error is the first line that the client wrote to stderr.
func (h Host) output(ctx context.Context, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.engineEnv(), "/", &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer: %w", ctx.Err())
	} else if line := firstLine(stderr.String()); err != nil && line != "" {
		err = errors.New(line)
	}
	return strings.TrimSpace(stdout.String()), err
}

// firstLine returns the first line that is not a warning, without what could move a terminal's cursor.
func firstLine(s string) string {
	first := ""
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, line))
		if line != "" && !strings.Contains(line, "level=warning") {
			return line
		}
		if first == "" {
			first = line
		}
	}
	return first
}

// imagePath returns the PATH that an image sets, or nothing. An image that is not there is downloaded.
func (h Host) imagePath(ctx context.Context, e Engine, image string, progress io.Writer) (string, error) {
	inspect := []string{"image", "inspect", "--format", "{{json .Config.Env}}", image}
	out, err := h.output(ctx, e.Path, inspect...)
	if err != nil {
		var stderr bytes.Buffer
		if progress == nil {
			progress = io.Discard
		}
		cmd := exec.CommandContext(ctx, e.Path, "pull", image)
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.engineEnv(), "/", progress, io.MultiWriter(progress, &stderr)
		cmd.WaitDelay = time.Second
		if err := cmd.Run(); err != nil {
			lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
			return "", &Error{ErrImage, "image " + image, firstLine(lines[len(lines)-1]), "check its name with: " + string(e.Kind) + " pull " + image}
		}
		if out, err = h.output(ctx, e.Path, inspect...); err != nil {
			return "", &Error{ErrImage, "image " + image, err.Error(), ""}
		}
	}
	var env []string
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		return "", fmt.Errorf("image %s: %s image inspect: %w", image, e.Kind, err)
	}
	path, _ := lookup(env, "PATH")
	return path, nil
}
