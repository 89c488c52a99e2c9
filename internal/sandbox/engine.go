package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
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

	// Passed says of engines that are tried before this one, and are installed, why they were passed over: "docker: no answer within 30 s".
	Passed []string

	// HostNames are names that lead from inside to this machine's loopback. Only podman's machine has them, and may not keep the promise.
	HostNames []string

	socket string // what its client connects to on this machine; empty: nothing, or unknown
	filter []byte // bwrap: the system call filter, see terminalFilter
}

// late is the cause of a context that limited has ended.
type late time.Duration

func (l late) Error() string {
	return fmt.Sprintf("no answer within %.0f s", time.Duration(l).Seconds())
}
func (late) Unwrap() error { return context.DeadlineExceeded }

// limited bounds the time for questions to an engine, and names it in their error.
func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, late(limit))
}

// askLimit is for an engine's answer to one question. On a busy machine podman needs seconds to say what it is.
const askLimit = 30 * time.Second

// Status is the answer of Host.Probe for one engine.
type Status struct {
	Kind    Kind
	OK      bool
	Version string
	Detail  string // why it does not work, or what to know about it
	Hint    string // what to do
	Engine  Engine // as Select returns it, if OK
}

// Host is what finding an engine depends on.
type Host struct {
	Environ []string // as os.Environ
	Avoid   []string // directories that no helper program is run from: the project's
	UID     int
}

// Select returns the engine that was asked for, or with Auto the first that works. Containers are only for those who have
// an image. The error is an ErrNoEngine and says for each engine why it did not work, or that of ctx.
func (h Host) Select(ctx context.Context, want Kind, image string) (Engine, error) {
	switch want {
	case Docker, Podman, Bwrap:
		e, st := h.probe(ctx, want)
		switch {
		case st.OK:
			return e, nil
		case ctx.Err() != nil:
			return Engine{}, ctx.Err()
		}
		return Engine{}, &Error{ErrNoEngine, string(want), st.Detail, st.Hint}
	case Auto, "":
	default:
		return Engine{}, refused("engine "+string(want), "unknown", "there are auto, docker, podman and bwrap")
	}
	kinds := []Kind{Docker, Podman, Bwrap}
	var why, passed []string
	if image == "" {
		kinds = []Kind{Bwrap}
		why = append(why, "docker and podman need an image")
	}
	hint, mend := "", false
	for _, k := range kinds {
		if k == Bwrap && image != "" {
			why = append(why, "bwrap has no images")
			continue
		}
		e, st := h.probe(ctx, k)
		switch {
		case st.OK:
			e.Passed = passed
			return e, nil
		case ctx.Err() != nil:
			return Engine{}, ctx.Err()
		}
		why = append(why, string(k)+": "+st.Detail)
		if e.Path != "" && st.Detail != isPodman {
			passed = append(passed, string(k)+": "+st.Detail)
		}
		if installed := e.Path != ""; hint == "" || installed && !mend { // to mend one is less than to install one
			hint, mend = st.Hint, installed
		}
	}
	if image == "" {
		hint = imageHint(runtime.GOOS, hint)
	}
	return Engine{}, &Error{ErrNoEngine, "no engine works", strings.Join(why, "; "), hint}
}

// imageHint adds to a hint about bwrap what helps in any case.
func imageHint(goos, hint string) string {
	const image = "name an image with --image (docker, podman)"
	if goos != "linux" {
		return image
	}
	return hint + ", or " + image
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
	ctx, cancel := limited(ctx, askLimit)
	defer cancel()
	e := Engine{Kind: k}
	fail := func(detail, hint string) (Engine, Status) {
		return e, Status{Kind: k, Version: e.Version, Detail: detail, Hint: hint}
	}
	if k == Bwrap && runtime.GOOS != "linux" {
		return fail("only on Linux", "leave --engine out: docker or podman runs it, from an image")
	}
	e.Path = h.look(string(k))
	if e.Path == "" {
		everywhere := Host{Environ: h.Environ}
		if path := everywhere.look(string(k)); path != "" {
			return fail(path+" lies in the project's directory, which must not bring its own sandbox", "run it from another directory")
		}
		return fail("not found in PATH", installHint(runtime.GOOS, k))
	}
	var v verdict
	switch k {
	case Docker:
		v = h.probeDocker(ctx, &e)
	case Podman:
		v = h.probePodman(ctx, &e)
	case Bwrap:
		v = h.probeBwrap(ctx, &e)
	}
	if v.bad() {
		return fail(v.detail, v.hint)
	}
	return e, Status{Kind: k, OK: true, Version: e.Version, Detail: e.about(), Engine: e}
}

var installHints = map[Kind]string{
	Docker: "install docker (Debian, Ubuntu: apt-get install docker.io; others: docs.docker.com/engine/install)",
	Podman: "install podman (Debian, Ubuntu: apt-get install podman uidmap slirp4netns; Fedora: dnf install podman)",
	Bwrap:  "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap; Arch: pacman -S bubblewrap)",
}

func installHint(goos string, k Kind) string {
	switch {
	case goos == "darwin" && k == Docker:
		return "install Docker Desktop, OrbStack, Colima or Rancher Desktop"
	case goos == "darwin" && k == Podman:
		return "install podman (brew install podman; podman machine init; podman machine start)"
	}
	return installHints[k]
}

// isPodman is the detail of a docker that is none.
const isPodman = "the docker command is podman's"

func (h Host) probeDocker(ctx context.Context, e *Engine) verdict {
	// The context, not only DOCKER_HOST, decides where the client connects. Asking for it reaches out to nothing.
	out, err := h.output(ctx, e.Path, "context", "inspect", "--format", "{{.Name}} {{.Endpoints.docker.Host}}")
	name, endpoint, _ := strings.Cut(out, " ")
	way := dockerWay(h.Environ, name)
	if err != nil {
		if version, _ := h.output(ctx, e.Path, "--version"); strings.Contains(version, "podman") {
			return verdict{isPodman, "use --engine podman"}
		}
		return verdict{err.Error(), way.orElse("check with: docker info")}
	}
	if v := dockerEndpoint(endpoint, way); v.bad() {
		return v
	}
	e.socket = socketPath(endpoint)
	out, err = h.output(ctx, e.Path, "info", "--format", "{{json .}}")
	var info dockerInfo
	if jsonErr := json.Unmarshal([]byte(out), &info); err != nil || jsonErr != nil || info.ServerVersion == "" {
		if len(info.ServerErrors) > 0 {
			err = errors.New(firstLine(info.ServerErrors[0]))
		} else if err == nil {
			err = errors.New("its server does not answer")
		}
		return verdict{err.Error(), startHint(runtime.GOOS, Docker, err.Error(), way)}
	}
	judgeDocker(thisMachine(), endpoint, info, e)
	return verdict{}
}

func (h Host) probePodman(ctx context.Context, e *Engine) verdict {
	at, way := thisMachine(), podmanWay(h.Environ)
	// Without these podman works on this machine, if there is one for it. What is on another is not connected to.
	connected := at.goos != "linux" || way.by != ""
	if connected {
		if v := h.podmanConnected(ctx, e, way); v.bad() {
			return v
		}
	}
	out, err := h.output(ctx, e.Path, "info", "--format", "json")
	if err != nil {
		return verdict{err.Error(), startHint(at.goos, Podman, err.Error(), way)}
	}
	var info podmanInfo
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return verdict{"podman info: " + err.Error(), "check with: podman info"}
	}
	if info.Host.ServiceIsRemote && !connected { // remote = true in containers.conf
		if v := h.podmanConnected(ctx, e, way); v.bad() {
			return v
		}
	}
	return judgePodman(at, info, e)
}

func (h Host) podmanConnected(ctx context.Context, e *Engine, way way) verdict {
	out, err := h.output(ctx, e.Path, "system", "connection", "list", "--format", "json")
	var list []podmanConnection
	if err == nil {
		list, err = parseConnections(out)
	}
	if err != nil {
		return verdict{err.Error(), "check with: podman system connection list"}
	}
	to, err := podmanDestination(h.Environ, list)
	if err != nil {
		return verdict{err.Error(), startHint(runtime.GOOS, Podman, "", way)}
	}
	e.socket = socketPath(to.URI)
	return judgeDestination(to, way)
}

// startHint says how an engine that does not answer is brought to life. Where a person has led its client somewhere, that comes first.
func startHint(goos string, k Kind, why string, way way) string {
	switch {
	case way.by != "" && (goos == "linux" || way.variable):
		return way.back + ", or start the server that " + way.by + " names"
	case k == Docker && goos == "darwin":
		return "start Docker Desktop (or OrbStack, Colima, Rancher Desktop), or choose another server: docker context ls"
	case k == Docker && strings.Contains(why, "permission denied"):
		return "join the docker group, or use podman"
	case k == Docker && strings.Contains(why, "response from daemon"): // it runs
		return "check with: docker info"
	case k == Docker && strings.Contains(why, "no answer"):
		return "its server hangs: systemctl restart docker"
	case k == Docker:
		return "start the server: systemctl start docker"
	case goos != "linux":
		return "make and start its machine: podman machine init; podman machine start"
	}
	return "check with: podman info"
}

func thisMachine() here {
	at := here{goos: runtime.GOOS}
	if at.goos == "linux" {
		var name unix.Utsname
		if unix.Uname(&name) == nil {
			at.kernel = unix.ByteSliceToString(name.Release[:])
		}
	}
	return at
}

func (h Host) probeBwrap(ctx context.Context, e *Engine) verdict {
	out, err := h.output(ctx, e.Path, "--version")
	if err != nil {
		return verdict{err.Error(), installHints[Bwrap]}
	}
	e.Version, e.Arch = strings.TrimPrefix(out, "bubblewrap "), runtime.GOARCH
	e.filter = terminalFilter()
	// Not of the whole root: there, mounts of other programs come and go, and bwrap fails over one that goes meanwhile.
	args := append([]string{"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL"}, systemArgs(systemDirs("/"))...)
	_, err = h.output(ctx, e.Path, append(args,
		"--ro-bind", e.Path, "/bwrap", "--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--tmpfs", "/tmp", "--", "/bwrap", "--version")...)
	if err != nil {
		hint := "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or use docker or podman"
		if b, _ := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); strings.TrimSpace(string(b)) == "1" {
			hint = "AppArmor restricts user namespaces here: give bwrap a profile (Ubuntu: apt-get install apparmor-profiles, then aa-enforce bwrap-userns-restrict), or use docker or podman"
		}
		return verdict{err.Error(), hint}
	}
	return verdict{}
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

// mostOfOutput is what an engine's client may answer to one question.
const mostOfOutput = 8 << 20

// output runs an engine's client to its end. Its error is the first line that the client wrote to stderr, or that it wrote too much.
func (h Host) output(ctx context.Context, program string, args ...string) (string, error) {
	stdout, stderr := boundedBytes{limit: mostOfOutput}, firstBytes{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.engineEnv(), "/", &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if stdout.full {
		err = errTooMuch // not that the client has died of it
	} else if line := firstLine(stderr.String()); err != nil && line != "" {
		err = errors.New(line)
	}
	return strings.TrimSpace(stdout.String()), err
}

var errTooMuch = errors.New("its answer has no end")

// boundedBytes keeps what is written up to a limit; beyond that, writing fails.
type boundedBytes struct {
	kept  bytes.Buffer
	limit int
	full  bool
}

func (b *boundedBytes) Write(p []byte) (int, error) {
	if b.full = b.full || b.kept.Len()+len(p) > b.limit; b.full {
		return 0, errTooMuch
	}
	return b.kept.Write(p)
}

func (b *boundedBytes) String() string { return b.kept.String() }

// printable replaces what could move a terminal's cursor, and drops what could turn the direction of a text or hide in it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Cf, r), r == unicode.ReplacementChar:
			return -1
		case unicode.IsControl(r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			return ' '
		}
		return r
	}, s)
}

// firstLine returns the first line that is not a warning, as printable text.
func firstLine(s string) string {
	first := ""
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(printable(line))
		if line != "" && !strings.Contains(line, "level=warning") {
			return line
		}
		if first == "" {
			first = line
		}
	}
	return first
}
