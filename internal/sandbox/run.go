package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/credproxy/credproxy/internal/guest"
)

// Stdio is what the command reads and writes. It is handed on as it is: nothing of the input is read by this process, so
// what the command does not read is left for the next.
type Stdio struct{ In, Out, Err *os.File }

// Run runs the command and returns its exit status: its own, 128 plus the number of the signal that ended it, or
// ExitEngine, ExitCannotRun, ExitNotFound. An error comes with ExitEngine.
//
// While it runs, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are handed to the command, SIGWINCH where there is no terminal, whatever else the caller does with them; ctx
// is a further way to say SIGTERM, so it should not be one that these signals end. After SIGTERM or SIGHUP, or SIGINT where
// nobody sits at a terminal, the command has Spec.Grace to end before it is killed.
//
// If this process is killed, bwrap and all that runs in it die with it. A container's client then gets SIGTERM and hands it
// on; what does not end by that is removed by the next Sweep.
func (s *Sandbox) Run(ctx context.Context, stdio Stdio) (int, error) {
	// Through an open directory the command would reach all that lies beside it.
	for _, f := range []*os.File{stdio.In, stdio.Out, stdio.Err} {
		if f == nil {
			continue
		}
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return ExitEngine, refused("standard input or output", "it is a directory", "give it a file, a pipe or a terminal")
		}
	}
	p := s.plan
	p.terminal = isTerminal(stdio.In) && isTerminal(stdio.Out)
	p.stdin = stdio.In != nil
	if inBackground(stdio.In) {
		// In the background, reading a terminal would stop us, and so would setting its mode.
		null, err := os.Open(os.DevNull)
		if err != nil {
			return ExitEngine, err
		}
		defer null.Close()
		stdio.In, p.terminal, p.stdin = null, false, false
	}
	r := run{sandbox: s, plan: p, stdio: stdio}
	return r.run(ctx)
}

// run is one Run. Its fields belong to the goroutine of Run, except where said.
type run struct {
	sandbox *Sandbox
	plan    plan
	stdio   Stdio
	proc    *process
	heard   bool           // the command in a container has got a signal
	told    syscall.Signal // the client was to end by, in place of the command; 0: none

	// of bwrap; set by the goroutine that reads its status, read after ready or statusDone is closed
	init       handle
	initPID    int
	exit       *int
	ready      chan struct{}
	statusDone chan struct{}
}

func (r *run) run(ctx context.Context) (int, error) {
	signals := make(chan os.Signal, 16)
	wanted := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
	if !r.plan.terminal { // which tells the command its size by itself
		wanted = append(wanted, syscall.SIGWINCH)
	}
	for _, sig := range wanted {
		if !signal.Ignored(sig) { // as nohup(1) has asked for
			signal.Notify(signals, sig)
		}
	}
	defer signal.Stop(signals)

	if r.plan.engine.Kind == Bwrap {
		return r.bwrap(ctx, signals)
	}
	return r.container(ctx, signals)
}

func (r *run) container(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	s := r.sandbox
	rec, err := keep(s.runDir, s.host, s.engine.Kind, r.plan.name)
	if err != nil {
		return ExitEngine, err
	}
	defer rec.close()
	if err := r.makeCovers(rec.covers()); err != nil {
		rec.remove()
		return ExitEngine, fmt.Errorf("covered directory: %w", err)
	}
	status, err = r.create(ctx, signals)
	interrupted := status > exitSignalShift || r.proc != nil && signaled(r.proc.err)
	if status == 0 && err == nil {
		status, err = r.attach(ctx, signals)
	}
	if r.proc == nil {
		rec.remove()
		return status, err
	}
	// The client may have ended without the container, and --rm works in the background. One that died while it made the container
	// may have asked for what is still to come: then the record stays for the next Sweep.
	existed, left := s.host.remove(context.WithoutCancel(ctx), s.engine, r.plan.name)
	if left == nil && (existed || !interrupted) {
		rec.remove()
	}
	if err != nil {
		return status, err
	}
	return r.leaving(status, left)
}

// leaving is the end of a run whose container could not be looked after for the reason left, or nil. A client that has failed as the
// engine went away, or was ended, says nothing of the container, which goes on without credentials.
func (r *run) leaving(status int, left error) (int, error) {
	switch {
	case errors.Is(left, ErrLeft):
		return ExitEngine, left
	case left != nil && (status == ExitEngine || r.told != 0 || signaled(r.proc.err)):
		return ExitEngine, &Error{ErrLeft, "the container " + r.plan.name + " may still run", left.Error(),
			"the next `credproxy run` removes it, once " + string(r.plan.engine.Kind) + " answers"}
	}
	return status, nil
}

// attach starts the container that create has made, and holds the command's input and output until it ends.
func (r *run) attach(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	s := r.sandbox
	cmd := r.command(append([]string{s.engine.Path}, startArgs(r.plan)...))
	cmd.Env = s.host.engineEnv()
	if r.proc, err = start(cmd, syscall.SIGTERM); err != nil {
		return ExitEngine, fmt.Errorf("%s: %w", s.engine.Kind, err)
	}
	disconnect := func() error { return nil }
	if r.plan.transport == TransportTLS {
		disconnect = r.connect(context.WithoutCancel(ctx))
	}
	// With a terminal the client takes every key as it comes, so a signal that we get was sent by somebody. Without one, but
	// in the foreground of one, the client gets Ctrl-C from the terminal, as we do.
	r.supervise(ctx, signals, !r.plan.terminal && foreground(), r.signalContainer, func() {
		_, _ = s.host.remove(context.WithoutCancel(ctx), s.engine, r.plan.name)
	})
	if err := disconnect(); err != nil {
		return ExitEngine, err
	}
	return s.judge(r.clientStatus())
}

// judge tells the command's own status from that of a container that did not get to it: our program inside speaks to the proxy
// before it looks for the command. 125 comes with words of the engine's, or of our program's.
func (s *Sandbox) judge(status int) (int, error) {
	if status == 0 || status == ExitEngine || status > exitSignalShift || s.reached == nil || s.reached() {
		return status, nil
	}
	kind := string(s.engine.Kind)
	hint := "see whether " + kind + " starts any container of this image, or try another --engine"
	if len(s.plan.args) > 0 {
		hint = "leave out what --engine-arg says; or " + hint
	}
	return ExitEngine, &Error{ErrStart, "COMMAND was not started", "the container failed before, and the lines above say why", hint}
}

// makeCovers replaces the directories to cover by empty ones of the host's, below dir, that are mounted over them. An engine's
// own tmpfs would not do: some copy into it what it covers, or its mode and not its owner. What is mounted further below gets
// its mount point.
//
// Over TLS one of them may be where the socket is opened inside, and has to be writable there.
func (r *run) makeCovers(dir string) error {
	r.plan.mounts = slices.Clone(r.plan.mounts)
	socket := mount{source: r.plan.socket, target: r.plan.socket}
	opened := "" // inside
	if r.plan.transport == TransportTLS {
		opened = filepath.Dir(r.plan.socket)
		socket = mount{kind: tmpfs, target: opened}
	}
	for i, m := range r.plan.mounts {
		if m.kind != tmpfs {
			continue
		}
		source := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(source, 0o700); err != nil {
			return err
		}
		for _, below := range append(slices.Clone(r.plan.mounts[i+1:]), socket) {
			if !isBelow(below.target, m.target) {
				continue
			}
			point := filepath.Join(source, strings.TrimPrefix(below.target, m.target))
			parent, isDir := filepath.Dir(point), true
			if info, err := os.Stat(below.source); below.source == r.plan.socket || below.kind == bind && err == nil && !info.IsDir() {
				isDir = false
			}
			if isDir {
				parent = point
			}
			if err := os.MkdirAll(parent, 0o700); err != nil {
				return err
			}
			if !isDir {
				if err := os.WriteFile(point, nil, 0o600); err != nil {
					return err
				}
			} else if below.target == opened && point != source {
				// For whoever the command is: an engine's tmpfs may take this mode over. A cover itself is its user's alone, see package guest.
				if err := os.Chmod(point, 0o777|os.ModeSticky); err != nil {
					return err
				}
			}
		}
		r.plan.mounts[i] = mount{kind: bind, source: source, target: m.target, readOnly: m.target != opened}
	}
	return nil
}

// bringLimit is for an engine to bring a signal. Meanwhile no other is handed on, and the grace period has not begun.
const bringLimit = 15 * time.Second

// signalContainer hands a signal to the command. The client would not do it when there is a terminal.
func (r *run) signalContainer(ctx context.Context, sig syscall.Signal) {
	s := r.sandbox
	ctx, cancel := context.WithTimeout(ctx, bringLimit)
	defer cancel()
	_, err := s.host.output(ctx, s.engine.Path, "kill", fmt.Sprintf("--signal=%d", sig), r.plan.name)
	r.heard = r.heard || err == nil
	if r.heard || ctx.Err() != nil { // also a slow engine may have brought it; the client has to stay for the command's status
		return
	}
	// It is not running yet, or no more.
	if r.proc.Signal(sig) == nil && slices.Contains([]syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}, sig) {
		r.told = sig
	}
}

// clientStatus is the exit status of the client, which has ended: the command's, if it got to that. A podman that is told to end
// itself does so with 0.
func (r *run) clientStatus() int {
	status := exitStatus(r.proc.err)
	if status == 0 && r.told != 0 {
		return exitSignalShift + int(r.told)
	}
	return status
}

func (r *run) bwrap(ctx context.Context, signals <-chan os.Signal) (int, error) {
	// In a session of its own the command gets nothing from the terminal.
	fromTerminal := r.plan.terminal && foreground()
	if err := r.startBwrap(fromTerminal); err != nil {
		return ExitEngine, fmt.Errorf("bwrap: %w", err)
	}
	r.supervise(ctx, signals, fromTerminal, r.signalBwrapped, func() { _ = r.proc.Kill() })
	<-r.statusDone
	if r.init >= 0 {
		r.init.wait(5000) // all processes of the namespace are gone when its init is
		r.init.close()
	}
	if r.exit != nil {
		return *r.exit, nil
	}
	if status := exitStatus(r.proc.err); status > exitSignalShift {
		return status, nil
	}
	return ExitEngine, nil // bwrap has said why on stderr
}

// startBwrap starts bwrap and one goroutine, which reads what bwrap tells and ends (statusDone) when bwrap does.
func (r *run) startBwrap(fromTerminal bool) error {
	words := []string{r.plan.engine.Path, "--args", fmt.Sprint(bwrapArgsFD), "--", bwrapBinary, guest.EnterWord}
	if fromTerminal {
		words = append([]string{r.plan.binary, ignoreWord}, words...)
	}
	cmd := r.command(append(words, r.plan.command...))
	cmd.Env = []string{} // bwrap's own; the command's is in the arguments
	args, err := memoryFile([]byte(strings.Join(bwrapArgs(r.plan), "\x00") + "\x00"))
	if err != nil {
		return err
	}
	defer args.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer statusW.Close()
	cmd.ExtraFiles = []*os.File{args, statusW}
	if len(r.plan.engine.filter) > 0 {
		filter, err := memoryFile(r.plan.engine.filter)
		if err != nil {
			statusR.Close()
			return err
		}
		defer filter.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, filter)
	}
	if r.proc, err = start(cmd, syscall.SIGKILL); err != nil {
		statusR.Close()
		return err
	}
	r.init, r.ready, r.statusDone = -1, make(chan struct{}), make(chan struct{})
	go r.readStatus(statusR)
	return nil
}

func (r *run) readStatus(status *os.File) {
	defer close(r.statusDone)
	defer status.Close()
	ready := sync.OnceFunc(func() { close(r.ready) })
	defer ready()
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		var message struct {
			Child *int `json:"child-pid"`
			Exit  *int `json:"exit-code"`
		}
		if json.Unmarshal(lines.Bytes(), &message) != nil {
			continue
		}
		if message.Child != nil {
			if h, err := openHandle(*message.Child); err == nil {
				r.init, r.initPID = h, *message.Child
			}
			ready()
		}
		if message.Exit != nil {
			r.exit = message.Exit
		}
	}
}

// signalBwrapped hands a signal to the command itself: bwrap would die of it and take the command along.
func (r *run) signalBwrapped(_ context.Context, sig syscall.Signal) {
	select {
	case <-r.ready:
	case <-time.After(time.Second):
		return // it hangs; the grace period goes on
	}
	if r.init < 0 {
		return
	}
	if child, err := openChild(r.init, r.initPID); err == nil {
		_ = child.signal(sig)
		child.close()
	}
}

// supervise hands signals on until the process has ended, and kills it when it does not end after a request to. fromTerminal
// says that the terminal itself delivers SIGINT and SIGQUIT.
func (r *run) supervise(ctx context.Context, signals <-chan os.Signal, fromTerminal bool, forward func(context.Context, syscall.Signal), kill func()) {
	interactive := false
	for _, f := range []*os.File{r.stdio.In, r.stdio.Out, r.stdio.Err} {
		interactive = interactive || isTerminal(f)
	}
	waker := "" // a bwrap is killed when this process is, which also ends what is stopped
	if r.plan.engine.Kind != Bwrap {
		waker = r.sandbox.self
	}
	pausing := &r.sandbox.pausing
	pausing.begin(r.proc, waker)
	defer pausing.goOn(true, resumeLimit)
	detached := context.WithoutCancel(ctx)
	cancelled := ctx.Done()
	var grace <-chan time.Time
	var tries int
	for {
		var sig syscall.Signal
		select {
		case <-r.proc.done:
			return
		case s := <-signals:
			sig = s.(syscall.Signal)
		case <-cancelled:
			cancelled, sig = nil, syscall.SIGTERM
		case <-grace:
			if tries++; tries > 1 {
				_ = r.proc.Kill()
			}
			kill()
			grace = time.After(5 * time.Second)
			continue
		}
		if fromTerminal && (sig == syscall.SIGINT || sig == syscall.SIGQUIT) {
			continue
		}
		stop := sig == syscall.SIGTERM || sig == syscall.SIGHUP || sig == syscall.SIGINT && !interactive
		pausing.goOn(stop, resumeLimit)
		forward(detached, sig)
		if stop && grace == nil { // from when the command has the signal: an engine may take its time to bring it
			grace = time.After(r.sandbox.grace)
		}
	}
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

func (r *run) command(words []string) *exec.Cmd {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = "/"
	// Files, not readers: exec hands them down and starts no goroutine that copies.
	if r.stdio.In != nil {
		cmd.Stdin = r.stdio.In
	}
	if r.stdio.Out != nil {
		cmd.Stdout = r.stdio.Out
	}
	if r.stdio.Err != nil {
		cmd.Stderr = r.stdio.Err
	}
	return cmd
}

// exitStatus is what a shell would make of the way a process ended.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return ExitEngine
	}
	if signaled(err) {
		return exitSignalShift + int(e.Sys().(syscall.WaitStatus).Signal())
	}
	return e.ExitCode()
}

func signaled(err error) bool {
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	ws, ok := e.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled()
}
