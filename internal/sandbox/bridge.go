package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/bridge"
)

const (
	connectLimit = 30 * time.Second      // from the moment the container runs
	runningPoll  = 50 * time.Millisecond // between two questions whether it does
	endingLimit  = 3 * time.Second       // in which a container that has failed to connect says why itself, and ends
	carryBuffer  = 32 << 10
)

// connect connects the container to the proxy, over TLS, while its client (r.proc) runs. Where that fails it removes the container.
// The caller calls the function that it returns once the client has ended: that ends what connect has started, and returns why
// there was no connection. It is nil when there was one, and when the container has ended by itself, for which the container has
// its own words.
func (r *run) connect(ctx context.Context) (disconnect func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.carry(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// carry runs until ctx ends.
func (r *run) carry(ctx context.Context) error {
	id := r.waitRunning(ctx)
	if id == "" {
		return nil
	}
	listener := r.sandbox.bridge
	listener.SetContainer(id)
	c, err := r.startCarrier(listener)
	if err == nil {
		defer c.end()
		err = r.attached(ctx, c, listener.Attached())
	}
	if err == nil {
		<-ctx.Done()
		return nil
	}
	// The reason for the one failure may be that the other end has failed before.
	select {
	case <-r.proc.done:
		return nil
	case <-ctx.Done():
		return nil
	case <-time.After(endingLimit):
	}
	e := r.sandbox.engine
	_, _ = r.sandbox.host.remove(context.WithoutCancel(ctx), e, r.plan.name)
	hint := "this is done by `" + string(e.Kind) + " exec`: see whether that works in a container of this image"
	if needed, err := e.Choose(TransportAuto, r.plan.args); err == nil && needed == TransportUnix {
		hint += ", or leave --transport out"
	}
	return &Error{ErrTransport, "the sandbox could not be connected to the proxy over TLS", err.Error(), hint}
}

// waitRunning returns the container's short id once it runs, or nothing: its client has ended.
func (r *run) waitRunning(ctx context.Context) string {
	e := r.sandbox.engine
	slow := time.NewTimer(slowStart)
	defer slow.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, askLimit)
		out, err := r.sandbox.host.output(asking, e.Path, "container", "inspect", "--format", "{{.State.Running}} {{.Id}}", r.plan.name)
		cancel()
		if id, running := strings.CutPrefix(out, "true "); err == nil && running {
			return id[:min(len(id), 12)]
		}
		select {
		case <-time.After(runningPoll):
		case <-slow.C:
			r.tellWaiting()
		case <-r.proc.done:
			return ""
		case <-ctx.Done():
			return ""
		}
	}
}

// attached waits until the sandbox has proved itself to the proxy. The error says why it will not.
func (r *run) attached(ctx context.Context, c *carrier, attached <-chan struct{}) error {
	limit := time.NewTimer(connectLimit)
	defer limit.Stop()
	ended := c.proc.done
	for {
		select {
		case <-attached:
			return nil
		case <-ended:
			select {
			case <-attached:
				return nil
			default:
			}
			if c.proc.err != nil || !c.mayDial {
				return c.failure()
			}
			ended = nil // it has nothing to carry: the sandbox dials by itself
		case <-r.proc.done:
			return nil
		case <-ctx.Done():
			return nil
		case <-limit.C:
			return fmt.Errorf("it has not connected for %v", connectLimit)
		}
	}
}

// carrier is our program run once more in the container, and what carries between it and the proxy's listener.
type carrier struct {
	proc   *process
	stderr *firstBytes // to be read when proc has ended

	mayDial bool // the sandbox was told addresses, and may not need the pipe

	in, out *os.File // of the program: written and read here
	workers sync.WaitGroup
	mu      sync.Mutex
	conn    net.Conn // to the listener, once the sandbox has said something
	ended   bool
}

// startCarrier starts the program and tells it the handover. Two goroutines carry; end waits for them.
func (r *run) startCarrier(listener *bridge.Listener) (*carrier, error) {
	e := r.sandbox.engine
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer theirOut.Close()
	c := &carrier{stderr: &firstBytes{}, in: in, out: out}
	cmd := exec.Command(e.Path, execArgs(r.plan)...)
	cmd.Env, cmd.Dir = r.sandbox.host.engineEnv(), "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirIn, theirOut, c.stderr
	cmd.WaitDelay = time.Second
	// Of a terminal's Ctrl-C only the command is to know.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.proc, err = start(cmd, syscall.SIGKILL); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("%s exec: %w", e.Kind, err)
	}
	handover := listener.Handover(e.addresses(r.plan.args, listener.Port())...)
	defer handover.Wipe()
	c.mayDial = len(handover.Addresses) > 0
	c.workers.Go(func() { c.fromSandbox(listener) })
	if _, err := handover.WriteTo(bridge.QuoteTo(in)); err != nil {
		c.close() // the program has ended, and says why
	}
	return c, nil
}

// fromSandbox connects to the listener once the sandbox speaks through the pipe, and carries what it says. It does not go through
// the listener's port, which every user of this machine may crowd.
func (c *carrier) fromSandbox(listener *bridge.Listener) {
	defer c.close()
	buf := make([]byte, carryBuffer)
	n, err := c.out.Read(buf)
	if n == 0 || err != nil {
		return
	}
	conn, err := listener.Dial()
	if err != nil {
		return
	}
	c.mu.Lock()
	c.conn = conn
	if c.ended {
		conn.Close()
	}
	c.mu.Unlock()
	c.workers.Go(func() {
		defer c.close()
		_, _ = io.Copy(bridge.QuoteTo(c.in), conn)
	})
	if _, err := conn.Write(buf[:n]); err == nil {
		_, _ = io.Copy(conn, c.out)
	}
}

// close ends what is carried, whichever side has ended: half a session is none.
func (c *carrier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	_ = c.in.Close()
	_ = c.out.Close()
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// end ends everything and waits for it.
func (c *carrier) end() {
	c.close()
	select {
	case <-c.proc.done: // it hears of the end through its pipe
	case <-time.After(time.Second):
		_ = c.proc.Kill()
		<-c.proc.done
	}
	c.workers.Wait()
}

// failure is what the program said, or how it ended. It has ended.
func (c *carrier) failure() error {
	if line := firstLine(c.stderr.String()); line != "" {
		return errors.New(strings.TrimPrefix(line, "credproxy: "))
	}
	if c.proc.err == nil {
		return errors.New("what carries it has ended without a word")
	}
	return c.proc.err
}

// firstBytes keeps the first few of what is written. It has no other way to write: io.Copy would take Buffer's ReadFrom.
type firstBytes struct{ kept bytes.Buffer }

func (b *firstBytes) Write(p []byte) (int, error) {
	const most = 4 << 10
	if room := most - b.kept.Len(); room > 0 {
		b.kept.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (b *firstBytes) String() string { return b.kept.String() }
