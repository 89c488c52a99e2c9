package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/sandbox"
)

// runFlags are the flags of run.
type runFlags struct {
	engine     string
	image      string
	profile    string
	volumes    []string
	env        []string
	engineArgs []string
	noWorkdir  bool
	transport  string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Run a command in a sandbox that may use credentials",
		Long: `Start the proxy, run COMMAND in a sandbox that can reach it, and clean up. The
sandbox gets the current directory, writable, at the same path; the socket; and
this program, so that "credproxy token …" works inside. It does not get your home
directory, the stores or any secret in its environment.

Engines: docker and podman need an image (--image, or image in the profile);
bwrap uses the programs of this machine. Terminal, signals and the exit status
are those of COMMAND; 125 means that the sandbox could not be run, 126 that
COMMAND could not be executed, 127 that it was not found. --engine-arg passes
options of the engine's own on that cannot open the sandbox: docs/commands.md
lists them.

The socket inside is this proxy's own, mounted, or, where a mounted socket leads
nowhere (an engine in a virtual machine, users that are mapped to others), one
that this program opens inside and carries here over TLS. --transport auto
chooses; COMMAND starts once the proxy has answered through it, or not at all.

When you sit at a terminal and the sandbox wants to log in, COMMAND stands still
and you are asked, unless the profile says otherwise (login = "allow", "deny").

The proxy's log would spoil the screen of COMMAND: it goes to proxy.log in the
state directory (0600, at most 1 MiB and one older file), with --verbose to
stderr.`,
		Example: `  credproxy run -- bash
  credproxy run --profile work --image registry.example/agent:1 -- agent --resume
  credproxy run --engine bwrap --volume ~/models:/models:ro -- python3 train.py`,
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "":
				return usage("COMMAND is missing").about(c)
			case a.verbose && c.ArgsLenAtDash() < 0 && volumeForm().MatchString(args[0]):
				return usage("-v is --verbose; what is mounted is given with --volume SOURCE:TARGET").about(c)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if inside() {
				return hostOnly("run", "this is a sandbox already")
			}
			if !isEngine(f.engine) {
				return notOneOf(engineRule, f.engine, engines).about(c)
			}
			if !slices.Contains(transports, f.transport) {
				return notOneOf(transportRule, f.transport, transports).about(c)
			}
			status, err := a.run(c.Context(), f, args)
			if err != nil {
				return failed("run", err)
			}
			return exitStatus(status)
		},
	}
	flags := c.Flags()
	flags.SetInterspersed(false) // flags after COMMAND are COMMAND's
	flags.StringVar(&f.engine, "engine", string(sandbox.Auto), "auto (the first that works), docker, podman or bwrap")
	flags.StringVar(&f.image, "image", "", "image for docker and podman (default: the profile's)")
	flags.StringVar(&f.profile, "profile", config.DefaultProfile, "what the sandbox may use")
	flags.StringArrayVar(&f.volumes, "volume", nil, "SOURCE:TARGET[:ro] to mount; ./x is a directory, x a volume of the engine's (may be repeated)")
	flags.StringArrayVar(&f.env, "env", nil, "NAME=VALUE, or NAME to pass it on (may be repeated)")
	flags.StringArrayVar(&f.engineArgs, "engine-arg", nil, "an option for the engine itself, with its value: --engine-arg --memory=64m (may be repeated)")
	flags.BoolVar(&f.noWorkdir, "no-workdir", false, "do not mount the current directory")
	flags.StringVar(&f.transport, "transport", string(sandbox.TransportAuto), "how the socket gets inside: auto, unix (mounted) or tls (carried)")
	_ = c.RegisterFlagCompletionFunc("profile", completeProfiles)
	_ = c.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engines, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions(transports, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// run returns COMMAND's exit status. Once COMMAND runs, signals are its own: ctx, which they end, counts only before.
func (a *app) run(ctx context.Context, f runFlags, command []string) (status int, err error) {
	defer func() { err = asEngineFailure(err) }()
	spec, err := a.spec(f, command)
	if err != nil {
		return 0, err
	}
	log, closeLog, err := a.runLog()
	if err != nil {
		return 0, err
	}
	defer closeLog()

	defer keepSmall()()
	asked := &consent{log: log, mustPause: true}
	o := proxyOptions{profile: f.profile, log: log, ask: asked.ask, askByDefault: isTerminal(a.stdin) || isTerminal(a.stderr)}
	if isTerminal(a.stderr) && !a.verbose { // else the log is there
		o.notice = asked.notice
	}
	p, c, dirs, err := a.startProxy(ctx, o)
	if err != nil {
		return 0, err
	}
	defer func() {
		defer a.waiting(wait{what: "a provider's answer before the proxy ends (or a login could be lost)", limit: drainTime + answerLimit, soon: true})()
		if closeErr := a.stopProxy(p, log); err == nil {
			err = closeErr
		}
	}()
	spec.Socket = p.Socket()
	spec.RunDir = runDir(dirs)
	spec.ProtectedDirs = append(spec.ProtectedDirs, dirs.Config, dirs.State, dirs.Data)
	spec.ProtectedDirs = slices.Concat(spec.ProtectedDirs, dirs.Recovery("file"), dirs.Recovery("keyring"))
	spec.ProtectedFiles = append(spec.ProtectedFiles, c.Path)
	if removed, err := spec.Host.Sweep(ctx, spec.RunDir); err != nil || len(removed) > 0 {
		log.Info("removed what killed runs had left behind", "containers", removed, "error", err)
	}
	if profile, err := c.Profile(f.profile); err == nil && spec.Image == "" && f.engine != string(sandbox.Bwrap) {
		spec.Image = profile.Image
	}
	if spec.Image == "" && f.engine == string(sandbox.Auto) && f.transport == string(sandbox.TransportTLS) {
		return 0, &failure{err: errors.New("transport tls: it is docker's and podman's, and they need an image"), status: exitUsage,
			hint: "name one with --image, or image = \"…\" in the profile; or leave --transport out"}
	}
	if spec.Engine, err = spec.Host.Select(ctx, sandbox.Kind(f.engine), spec.Image); err != nil {
		return 0, err
	}
	for _, why := range spec.Engine.Passed {
		a.note("%s; using %s", why, spec.Engine.Kind)
		log.Warn("an engine does not work: another is used", "why", why, "engine", spec.Engine.Kind)
	}
	if spec.Transport, err = spec.Engine.Choose(sandbox.Transport(f.transport), spec.EngineArgs); err != nil {
		return 0, err
	}
	if spec.Transport == sandbox.TransportTLS {
		if spec.Bridge, err = p.Bridge(); err != nil {
			return 0, err
		}
	}
	spec.Reached = p.Reached
	s, err := sandbox.Prepare(ctx, spec)
	if err != nil {
		return 0, err
	}
	for _, w := range s.Warnings {
		log.Warn(w)
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	asked.runs(s)
	log.Info("running a command", "engine", spec.Engine.Kind, "transport", spec.Transport, "why", whyTransport(f.transport, spec),
		"profile", f.profile, "socket", spec.Socket)
	if spec.Bridge != nil {
		defer noticeLoss(log, spec.Bridge.Lost())()
	}
	status, err = s.Run(context.WithoutCancel(ctx), sandbox.Stdio{In: a.stdin, Out: a.stdout, Err: a.stderr})
	select {
	case failure := <-p.Failed():
		log.Error("the proxy ended before the command", "error", failure)
	default:
	}
	return status, err
}

var engines = []string{string(sandbox.Auto), string(sandbox.Docker), string(sandbox.Podman), string(sandbox.Bwrap)}

const (
	engineRule    = "--engine is auto, docker, podman or bwrap"
	transportRule = "--transport is auto, unix or tls"
)

// notOneOf is the failure of a value that is none of a few. It is not repeated: it may be a secret in the wrong place.
func notOneOf(rule, value string, values []string) *failure {
	if near := nearest(value, values); near != "" {
		return usage("%s; did you mean %s?", rule, near)
	}
	return usage("%s", rule)
}

// volumeForm is what docker's -v takes, and hardly anybody's command.
var volumeForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[^:]+:/[^:/][^:]*(:(ro|rw|z|Z))?$`) })

func isEngine(name string) bool { return slices.Contains(engines, name) }

var transports = []string{string(sandbox.TransportAuto), string(sandbox.TransportUnix), string(sandbox.TransportTLS)}

// whyTransport says in the log why the transport is what it is.
func whyTransport(asked string, s sandbox.Spec) string {
	switch {
	case asked != string(sandbox.TransportAuto):
		return "asked for"
	case s.Transport == sandbox.TransportUnix:
		return "a mounted socket works with this engine"
	case s.Engine.VM:
		return "the engine runs containers in a virtual machine"
	}
	return "the sandbox has other user ids than this host"
}

// lossTime is how long an engine's client may take to end after its container has.
const lossTime = 5 * time.Second

// noticeLoss logs it when a sandbox loses its connection and goes on. Nobody else would hear of it on this side. The function
// that it returns ends it.
func noticeLoss(log *slog.Logger, lost <-chan struct{}) (end func()) {
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-lost:
		case <-over:
			return
		}
		select {
		case <-time.After(lossTime):
			log.Warn("the sandbox has lost its connection to this proxy and goes on without credentials: it has to be started anew")
		case <-over:
		}
	})
	return func() {
		close(over)
		watching.Wait()
	}
}

// asEngineFailure gives failures before COMMAND ran docker's status 125, so that they are not taken for COMMAND's own.
// Wrong usage, an unknown profile and an engine that is not there keep theirs.
func asEngineFailure(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sandbox.ErrRefused) {
		return &failure{err: err, status: exitUsage}
	}
	if status, _ := judge(err); status != exitFailed {
		return err
	}
	return &failure{err: err, status: sandbox.ExitEngine}
}

// runDir is where the records of running containers are.
func runDir(d config.Dirs) string { return filepath.Join(d.State, "runs") }

func proxyLogPath(d config.Dirs) string { return filepath.Join(d.State, "proxy.log") }

// runLog is stderr with --verbose, else the file in the state directory.
func (a *app) runLog() (_ *slog.Logger, closeLog func(), err error) {
	if a.verbose {
		return a.log, func() {}, nil
	}
	dirs, err := directories()
	if err != nil {
		return nil, nil, err
	}
	if err := makeState(dirs); err != nil {
		return nil, nil, err
	}
	l, err := openLogFile(proxyLogPath(dirs))
	if err != nil {
		return nil, nil, failed("the proxy's log", err)
	}
	return slog.New(slog.NewTextHandler(l, nil)).With("proxy", os.Getpid()), func() { _ = l.Close() }, nil
}

// spec is what the flags and this process say about the sandbox.
func (a *app) spec(f runFlags, command []string) (sandbox.Spec, error) {
	s := sandbox.Spec{
		Image: f.image, Command: command, EngineArgs: f.engineArgs, UID: os.Geteuid(), GID: os.Getegid(), Progress: a.stderr,
	}
	s.Host = sandbox.Host{Environ: os.Environ(), UID: s.UID}
	dir, err := os.Getwd()
	switch {
	case err == nil:
		s.Host.Avoid = []string{dir}
		if !f.noWorkdir {
			s.Workdir = dir
		}
	case !f.noWorkdir:
		return s, &failure{what: "the current directory", err: bare(err), hint: "go to one that exists, or leave it out with --no-workdir"}
	}
	s.Home, _ = os.UserHomeDir() // without one there is nothing to hide
	for _, v := range f.volumes {
		volume, err := sandbox.ParseVolume(v, dir)
		if err != nil {
			return s, err
		}
		s.Volumes = append(s.Volumes, volume)
	}
	if s.Env, err = sandbox.ParseEnv(f.env, s.Host.Environ); err != nil {
		return s, err
	}
	return s, hidePassphrase(&s)
}

// hidePassphrase keeps the file with the store's passphrase out of the sandbox. It may lie anywhere: its directory is
// hidden where that takes nothing else away, and it must not lie in what is mounted.
func hidePassphrase(s *sandbox.Spec) error {
	path := os.Getenv(passphraseFile)
	if path == "" {
		return nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if resolved, err := filepath.EvalSymlinks(abs); err == nil {
		abs = resolved
	}
	mounted := []string{s.Workdir}
	for _, v := range s.Volumes {
		mounted = append(mounted, v.Source)
	}
	hide := true
	dir := filepath.Dir(abs)
	for _, m := range append(mounted, s.Home, os.TempDir()) {
		if m == "" || !filepath.IsAbs(m) {
			continue
		}
		if resolved, err := filepath.EvalSymlinks(m); err == nil {
			m = resolved
		}
		if below(m, dir) {
			hide = false // what is mounted lies in the file's directory
		}
	}
	for _, m := range mounted {
		if resolved, err := filepath.EvalSymlinks(m); err == nil && m != "" && below(abs, resolved) {
			return &failure{err: errors.New("the file with the store's passphrase (" + passphraseFile + ") lies in " + m + ", which the sandbox would see"),
				status: exitUsage, hint: "keep it elsewhere, or run from another directory"}
		}
	}
	if hide && strings.Count(dir, "/") > 1 { // never a top-level directory such as /etc
		s.ProtectedDirs = append(s.ProtectedDirs, dir)
	}
	return nil
}

// below reports whether path is dir or lies below it; both are clean and absolute.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
