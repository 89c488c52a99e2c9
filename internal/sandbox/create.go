package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// slowStart is when a person at a terminal is told that an engine takes its time.
const slowStart = 10 * time.Second

// create makes the container, in which nothing runs yet, and compares it with the plan. Its status is 0 when it can be started;
// else the engine has said why on stderr, a signal came, or the error says it. There may then be a container all the same.
func (r *run) create(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	s := r.sandbox
	args := dockerArgs(r.plan)
	if s.engine.Kind == Podman {
		args = podmanArgs(r.plan)
	}
	cmd := exec.Command(s.engine.Path, args...)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Stdout = &firstBytes{} // the container's id
	said := &firstBytes{}
	cmd.Stderr = said
	if r.stdio.Err != nil {
		cmd.Stderr = io.MultiWriter(r.stdio.Err, said)
	}
	environment, file := splitEnv(s.engine.Kind, r.plan.env)
	cmd.Env = s.host.makerEnv(s.engine.Kind, environment)
	if file != "" {
		f, err := memoryFile([]byte(file))
		if err != nil {
			return ExitEngine, err
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	}
	if r.proc, err = start(cmd, syscall.SIGTERM); err != nil {
		r.proc = nil
		return ExitEngine, fmt.Errorf("%s: %w", s.engine.Kind, err)
	}
	if status := r.wait(ctx, signals); status != 0 {
		return status, nil
	}
	if r.proc.err != nil {
		return ExitEngine, r.notMade(said.String())
	}
	if err := s.inspect(context.WithoutCancel(ctx), r.plan); err != nil {
		return ExitEngine, err
	}
	return 0, nil
}

// notMade is why there is no container, of which the engine has said more.
func (r *run) notMade(said string) error {
	kind, dir := string(r.sandbox.engine.Kind), filepath.Dir(r.plan.socket)
	hint := "see whether " + kind + " makes any container of this image, or try another --engine"
	switch {
	case r.plan.transport == TransportUnix && strings.Contains(said, dir):
		hint = kind + " does not see " + dir + " as it is here (it may have a /tmp of its own, or be another user's): try --transport tls"
	case len(r.plan.args) > 0:
		hint = "leave out what --engine-arg says; or " + hint
	}
	return &Error{ErrStart, "the container could not be made", "the lines above say why", hint}
}

// wait waits until the client that makes the container has ended. A signal ends it, and the run: there is no command yet that it
// could be meant for. The status is then 128 plus the signal's number.
func (r *run) wait(ctx context.Context, signals <-chan os.Signal) (status int) {
	slow := time.NewTimer(slowStart)
	defer slow.Stop()
	cancelled := ctx.Done()
	var grace <-chan time.Time
	for {
		sig := syscall.SIGTERM
		select {
		case <-r.proc.done:
			if status == 0 && r.proc.err != nil {
				select {
				case sig := <-signals: // Ctrl-C, which the client has got, too
					status = exitSignalShift + int(sig.(syscall.Signal))
				default:
				}
			}
			return status
		case <-slow.C:
			r.tellWaiting()
			continue
		case <-grace:
			_ = r.proc.Kill()
			continue
		case s := <-signals:
			sig = s.(syscall.Signal)
		case <-cancelled:
			cancelled = nil
		}
		if status == 0 {
			status = exitSignalShift + int(sig)
			grace = time.After(r.sandbox.grace)
		}
		_ = r.proc.Signal(syscall.SIGTERM) // podman puts what it has open in order first
	}
}

// tellWaiting tells who sits at a terminal what the run waits for.
func (r *run) tellWaiting() {
	if isTerminal(r.stdio.Err) {
		fmt.Fprintf(r.stdio.Err, "credproxy: %s has not started the container yet\r\n", r.sandbox.engine.Kind)
	}
}
