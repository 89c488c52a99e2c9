// Package sandbox runs a command where it can reach one credential socket and nothing else of the host's secrets: in a docker
// or podman container, or in namespaces made by bubblewrap.
//
// What to call: [Host.Select] finds an engine, [Engine.Choose] how the socket gets inside, [Prepare] checks what is to be mounted and
// says what is wrong before anything starts, [Sandbox.Run] runs the command and returns its exit status, [Host.Sweep] removes what a
// killed process left behind. The program that is mounted inside calls [Enter] first in its main.
// [Host.Probe] is for a report about all engines, [ParseVolume] and [ParseEnv] read what a person writes on the command line.
//
// The argument lists are made by pure functions from plain data (dockerArgs, podmanArgs, bwrapArgs); everything that asks the
// host something (paths, symlinks, engines) happens before, and everything that starts a process after.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/guest"
)

// SocketEnv names the variable that tells a program inside where its socket is.
const SocketEnv = guest.SocketEnv

// Exit statuses that are not the command's own, as docker(1) has them.
const (
	ExitEngine      = 125 // the engine failed before the command ran
	ExitCannotRun   = 126 // the command was found and could not be executed
	ExitNotFound    = 127 // the command was not found
	exitSignalShift = 128 // plus the number of the signal that ended it
)

// The kinds of failure that a caller may want to tell apart with [errors.Is].
var (
	// ErrNoEngine: no engine works, or the one that was asked for does not.
	ErrNoEngine = errors.New("no engine")
	// ErrRefused: what was asked for would open the sandbox (a mount, an engine argument, a variable).
	ErrRefused = errors.New("refused")
	// ErrImage: the image is not there and cannot be downloaded.
	ErrImage = errors.New("image")
	// ErrTransport: the sandbox runs, and could not be connected to the proxy.
	ErrTransport = errors.New("transport")
	// ErrStart: the container failed before it got to the command; what the engine has printed says why.
	ErrStart = errors.New("start")
)

// Error is a failure that a person can do something about. Its text is "what: why"; the hint is a sentence of its own.
type Error struct {
	kind error
	what string
	why  string
	hint string
}

func (e *Error) Error() string { return e.what + ": " + e.why }

// Hint says what to do, or is empty.
func (e *Error) Hint() string { return e.hint }

// Unwrap returns one of the kinds: ErrNoEngine, ErrRefused, ….
func (e *Error) Unwrap() error { return e.kind }

func refused(what, why, hint string) *Error {
	return &Error{kind: ErrRefused, what: what, why: why, hint: hint}
}

// Spec describes one run. It is data: nothing in it is changed by this package.
type Spec struct {
	Host   Host   // the environment and the directories that helpers must not come from
	Engine Engine // from Host.Select

	Image      string   // docker and podman only
	Command    []string // the program and its arguments; run as it is, the image's entrypoint does not apply
	Socket     string   // the one socket, on the host
	Binary     string   // our own program, put on the PATH inside; empty: the running executable
	Workdir    string   // mounted writable at its own (resolved) path; empty: none
	Volumes    []Volume
	Env        []EnvVar
	EngineArgs []string // options of the engine's own, checked
	UID, GID   int

	Transport Transport        // empty: TransportAuto
	Bridge    *bridge.Listener `json:"-"` // with TransportTLS: what the sandbox is connected to, for this run alone
	Reached   func() bool      `json:"-"` // whether the proxy has heard of the sandbox: our program inside asks it before all else; nil: unknown

	Home string // the user's home directory, which no sandbox sees

	// ProtectedDirs are directories that no sandbox may see or replace: configuration, state, data. The socket's own directory
	// need not be named. ProtectedFiles are files that it may at most read.
	ProtectedDirs  []string
	ProtectedFiles []string

	RunDir   string        // a directory of ours, 0700, for the record of a running container; see Host.Sweep
	Progress io.Writer     // where an image's download is shown; nil: nowhere
	Grace    time.Duration // between a request to stop and SIGKILL; 0: 5 s
}

// Sandbox is a checked Spec, ready to run once.
type Sandbox struct {
	// Warnings are sentences for the log: what could not be had on this machine, and what that means.
	Warnings []string

	plan   plan
	self   string // our program as it runs on this machine; the one inside may be for another
	engine Engine
	host   Host
	grace  time.Duration
	runDir string
	bridge *bridge.Listener // nil: the socket is mounted

	reached func() bool // nil: nobody knows

	pausing pausing
}

// plan is all that the argument lists are made of. Every host path in it is resolved.
type plan struct {
	name    string // of the container
	image   string
	command []string
	socket  string
	binary  string
	workdir string
	mounts  []mount // by target, a parent before what lies below it
	env     []EnvVar
	args    []string
	uid     int // inside
	gid     int

	transport Transport
	userns    string // podman's --userns, if it is ours to say

	stdin    bool // somebody may write to the command's stdin
	terminal bool // stdin and stdout are a terminal that the command may have
	selinux  bool
	engine   Engine

	system []systemDir // bwrap only
	masks  []string    // bwrap only: directories inside a system directory that must look empty
	hidden []string    // bwrap only: files inside a system directory that must not be read
	extra  []string    // bwrap only: single files below /run that the system directories point to
	home   string      // bwrap only
}

type mountKind int

const (
	bind  mountKind = iota
	tmpfs           // an empty directory over what must not be seen
	named           // a volume that the engine manages
)

type mount struct {
	kind           mountKind
	source, target string
	readOnly       bool
}

// Prepare resolves every path, refuses what would open the sandbox, and makes the missing directories that have to be
// covered inside. It may download the image. It starts nothing that lives on.
func Prepare(ctx context.Context, spec Spec) (*Sandbox, error) {
	s := &Sandbox{engine: spec.Engine, host: spec.Host, grace: spec.Grace, runDir: spec.RunDir, bridge: spec.Bridge, reached: spec.Reached}
	if s.grace <= 0 {
		s.grace = 5 * time.Second
	}
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return nil, refused("run", "no command", "name it after --, for example: credproxy run -- bash")
	}
	if err := checkEngineArgs(spec.Engine.Kind, spec.EngineArgs); err != nil {
		return nil, err
	}
	if err := checkEnv(spec.Env); err != nil {
		return nil, err
	}
	nonce := make([]byte, 8)
	rand.Read(nonce)
	p := plan{
		name:    fmt.Sprintf("credproxy-%d-%s", os.Getpid(), hex.EncodeToString(nonce)),
		command: spec.Command, args: spec.EngineArgs, uid: spec.UID, gid: spec.GID, engine: spec.Engine,
	}
	if spec.Transport == "" {
		spec.Transport = TransportAuto
	}
	var err error
	if p.transport, err = spec.Engine.Choose(spec.Transport, spec.EngineArgs); err != nil {
		return nil, err
	}
	if p.transport == TransportTLS && s.bridge == nil {
		return nil, errors.New("transport tls: nobody listens for the sandbox")
	}
	if err := s.paths(ctx, &p, spec); err != nil {
		return nil, err
	}
	if spec.Engine.Kind == Bwrap {
		err = s.prepareBwrap(&p, spec)
	} else {
		err = s.prepareContainer(ctx, &p, spec)
	}
	if err != nil {
		return nil, err
	}
	s.plan = p
	return s, nil
}

// paths resolves the socket, our program and the mounts.
func (s *Sandbox) paths(ctx context.Context, p *plan, spec Spec) error {
	var err error
	if p.socket, err = filepath.EvalSymlinks(spec.Socket); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if spec.Engine.Kind != Bwrap && !utf8.ValidString(p.socket) {
		return refused("socket "+strconv.Quote(p.socket), "its name is not UTF-8, and docker and podman would take it for another", "set TMPDIR to another directory")
	}
	binary := spec.Binary
	if binary == "" {
		if binary, err = os.Executable(); err != nil {
			return fmt.Errorf("own program: %w", err)
		}
		s.self = binary
		if spec.Engine.Kind != Bwrap {
			if binary, err = spec.Host.GuestBinary(spec.Engine, binary); err != nil {
				return err
			}
		}
	}
	if s.self == "" {
		s.self = binary
	}
	if p.binary, err = filepath.EvalSymlinks(binary); err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	g := guard{
		home:  spec.Home,
		dirs:  slices.Concat(spec.ProtectedDirs, []string{filepath.Dir(p.socket)}, socketDirs("/proc/net/unix", spec.UID)),
		files: spec.ProtectedFiles,
		never: neverMounted(spec.UID, spec.Home, spec.Host.Environ),
		inner: []string{p.socket, binaryTarget(spec.Engine.Kind)},
	}
	if spec.Engine.socket != "" {
		g.never = append(g.never, spec.Engine.socket)
	}
	if g.text = spec.Engine.Kind != Bwrap; g.text {
		g.behind = func(name string) ([]string, error) { return spec.Host.behindVolume(ctx, spec.Engine, name) }
	}
	volumes := slices.Clone(spec.Volumes)
	if spec.Workdir != "" {
		if p.workdir, err = filepath.EvalSymlinks(spec.Workdir); err != nil {
			return fmt.Errorf("work directory: %w", err)
		}
		g.workdir = p.workdir
		volumes = append(volumes, Volume{Source: p.workdir, Target: p.workdir})
	}
	p.mounts, err = g.mounts(volumes)
	s.Warnings = append(s.Warnings, g.warnings...)
	return err
}

func (s *Sandbox) prepareContainer(ctx context.Context, p *plan, spec Spec) error {
	if err := checkImage(spec.Image); err != nil {
		return err
	}
	p.image = spec.Image
	if !filepath.IsAbs(spec.RunDir) {
		return fmt.Errorf("run directory %q: not an absolute path", spec.RunDir)
	}
	if Interpreter(p.binary) != "" {
		s.Warnings = append(s.Warnings, "this credproxy is linked dynamically, and nothing starts in an image without the same C library: build it with CGO_ENABLED=0")
	}
	err := s.mapUsers(p, spec)
	if err != nil {
		return err
	}
	if p.transport == TransportTLS {
		if err := checkHealthArgs(spec.EngineArgs); err != nil {
			return err
		}
		if spec.Engine.VM {
			// What holds the socket inside covers the host's directory by itself. See makeCovers for the others.
			p.mounts = slices.DeleteFunc(p.mounts, func(m mount) bool { return m.target == filepath.Dir(p.socket) })
		}
	}
	if p.binary, err = placeGuest(spec.Engine, p.binary, spec.Home, spec.RunDir); err != nil {
		return err
	}
	imageEnv, err := spec.Host.imageEnv(ctx, spec.Engine, spec.Image, spec.Progress)
	if err != nil {
		return err
	}
	p.env = containerEnv(spec.Engine.Kind, spec.Env, imageEnv)
	_, err = os.Stat("/sys/fs/selinux/enforce")
	p.selinux = err == nil
	return nil
}

// mapUsers finds out who the command is inside, and what that means.
func (s *Sandbox) mapUsers(p *plan, spec Spec) error {
	as, err := spec.Engine.users(spec.EngineArgs, spec.UID, spec.GID)
	if err != nil {
		return err
	}
	p.uid, p.gid, p.userns = as.uid, as.gid, as.userns
	if as.foreign == "" {
		return nil
	}
	if info, err := os.Stat(p.binary); err == nil && info.Mode()&0o005 != 0o005 {
		return refused("own program "+p.binary, "only its owner may run it, and "+as.foreign, "chmod 755 "+p.binary)
	}
	if p.workdir != "" && !open(p.workdir) {
		return refused("work directory "+p.workdir, as.foreign+", and others may not enter it",
			"chmod o+rx "+p.workdir+", or --no-workdir, or another --engine")
	}
	if len(p.mounts) > 0 {
		s.Warnings = append(s.Warnings, as.foreign+": what is mounted can be read and written inside only as far as everybody may")
	}
	return nil
}

// open reports whether others may enter a directory, or may be allowed to: a list may name them.
func open(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil || info.Mode()&0o001 != 0 {
		return true
	}
	_, err = unix.Getxattr(dir, "system.posix_acl_access", nil)
	return err == nil
}

func (s *Sandbox) prepareBwrap(p *plan, spec Spec) error {
	if spec.Image != "" {
		return refused("image "+spec.Image, "bwrap has no images", "leave --image out, or choose docker or podman")
	}
	for _, m := range p.mounts {
		if m.kind == named {
			return refused("volume "+m.source, "bwrap has no named volumes", "name a directory: ./"+m.source+":"+m.target)
		}
	}
	p.system = systemDirs("/")
	p.home = spec.Home
	if p.home != "" {
		if home, err := filepath.EvalSymlinks(p.home); err == nil {
			p.home = home
		} else {
			p.home = "" // a home that does not exist cannot be hidden, nor made below a read-only directory
		}
	}
	if p.home == "" || p.home == "/" {
		p.home = "/tmp"
	}
	p.masks = maskedSystem(p.system, spec.ProtectedDirs)
	masks, hidden := privateSystem("/etc")
	p.hidden = hidden
	for _, m := range masks {
		if !slices.Contains(p.masks, m) {
			p.masks = append(p.masks, m)
		}
	}
	p.extra = pointedFiles(p.system)
	p.env = bwrapEnv(spec.Host.Environ, p.home, p.socket, spec.Env)
	if !guest.CanScope() {
		s.Warnings = append(s.Warnings, "this kernel cannot scope abstract Unix sockets (Landlock ABI 6, Linux 6.12), so those of the host (a session bus, X11) stay reachable from the sandbox: use docker or podman, or a newer kernel")
	}
	return nil
}

func checkImage(image string) error {
	switch {
	case image == "":
		return refused("image", "none given", "name one with --image, or image = \"…\" in the profile")
	case strings.HasPrefix(image, "-") || strings.ContainsFunc(image, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return refused("image", "not the name of an image", "names look like registry.example/agent:1")
	}
	return nil
}
