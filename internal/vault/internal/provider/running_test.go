package provider

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func TestRunningTimeout(t *testing.T) {
	for _, d := range []time.Duration{15 * time.Second, 28 * time.Second, 300 * time.Millisecond, 100 * time.Millisecond, time.Nanosecond, 0, -1} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			ctx, cancel := WithRunningTimeout(t.Context(), d)
			if _, ok := ctx.Deadline(); ok || d > 0 && ctx.Err() != nil {
				t.Errorf("%v: a deadline by the clock, or an error %v", d, ctx.Err())
			}
			child, cancelChild := context.WithCancel(ctx)
			<-child.Done()
			if took := time.Since(began); took != max(d, 0) {
				t.Errorf("%v: it ended after %v", d, took)
			}
			for _, err := range []error{ctx.Err(), child.Err(), context.Cause(ctx), context.Cause(child)} {
				if err != context.DeadlineExceeded {
					t.Errorf("%v: it ended with %v", d, err)
				}
			}
			cancel()
			cancel()
			cancelChild()
			if ctx.Err() != context.DeadlineExceeded {
				t.Errorf("%v: cancelled afterwards it is %v", d, ctx.Err())
			}
		})
	}
}

func TestRunningTimeoutEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		parent, cancelParent := context.WithTimeout(context.WithValue(t.Context(), key{}, "v"), time.Second)
		defer cancelParent()
		outer, cancelOuter := WithRunningTimeout(parent, time.Minute)
		defer cancelOuter()
		ctx, cancel := WithRunningTimeout(outer, time.Minute)
		cancel()
		if ctx.Err() != context.Canceled || outer.Err() != nil {
			t.Errorf("cancelled: %v, its parent %v", ctx.Err(), outer.Err())
		}
		ctx, cancel = WithRunningTimeout(outer, time.Minute)
		defer cancel()
		if _, ok := ctx.Deadline(); !ok || ctx.Value(key{}) != "v" {
			t.Error("it has not its parent's deadline or values")
		}
		<-ctx.Done()
		synctest.Wait()
		if ctx.Err() != context.DeadlineExceeded || outer.Err() != context.DeadlineExceeded {
			t.Errorf("with the parent: %v, %v", ctx.Err(), outer.Err())
		}
		late, cancelLate := WithRunningTimeout(ctx, time.Minute)
		defer cancelLate()
		if late.Err() != context.DeadlineExceeded {
			t.Errorf("of an ended parent: %v", late.Err())
		}
	})
}

func TestRemaining(t *testing.T) {
	for name, c := range map[string]struct {
		d     time.Duration
		every int // a freeze instead of each so many ticks, and only from the tick from on; 0: none
		from  int
		want  int // ticks until it is over
	}{
		"no freeze":                   {15 * time.Second, 0, 0, 60},
		"one at the beginning":        {15 * time.Second, 1000, 0, 60},
		"one at the end":              {15 * time.Second, 1000, 59, 60 + 4},
		"one that leaves half of it":  {15 * time.Second, 1000, 57, 58 + 4},
		"nothing but freezes":         {15 * time.Second, 1, 0, 56 + 60 + 4},
		"a limit of one tick, frozen": {100 * time.Millisecond, 1, 0, 2},
		"a short limit, frozen":       {500 * time.Millisecond, 1000, 1, 4},
	} {
		r, ticks := newRemaining(c.d), 0
		for r.ticks > 0 && ticks < 1000 {
			after := r.step + tick/2 // a busy machine
			if c.every > 0 && ticks >= c.from && (ticks-c.from)%c.every == 0 {
				after = 17 * time.Second
			}
			r.pass(after)
			ticks++
		}
		if ticks != c.want {
			t.Errorf("%s: over after %d ticks, want %d", name, ticks, c.want)
		}
	}
}

// An answer that arrives while the process is stopped, for longer than the limit, is read when it goes on.
func TestFrozenProcess(t *testing.T) {
	const child = "CREDPROXY_TEST_FROZEN_CHILD"
	if address := os.Getenv(child); address != "" {
		c := NewClient()
		c.limit = 10 * time.Second // of which a busy machine may spend most on what comes before and after
		received := 0
		g, err := c.Refresh(t.Context(), &Provider{Name: "acme", TokenURL: address}, stored(), secret.String{}, func(Answer) { received++ })
		if err != nil || received != 1 || g.RefreshToken.Reveal() != "test-refresh-token-2" {
			t.Errorf("the answer was lost: %v", err)
		}
		return
	}
	const body = `{"access_token":"test-access-token-2","refresh_token":"test-refresh-token-2"}`
	answer := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
	for name, c := range map[string]struct{ before, frozen int }{ // bytes of the answer; the rest comes after waking
		"before the answer": {0, len(answer)},
		"in its header":     {20, len(answer) - 20},
		"in its body":       {len(answer) - 30, 30},
		"slow afterwards":   {0, 0}, // as a paused machine's peer that sends again
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFrozenProcess$")
			command.Env = append(os.Environ(), child+"=http://"+l.Addr().String())
			var out bytes.Buffer
			command.Stdout, command.Stderr = &out, &out
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			ended := sync.OnceValue(command.Wait)
			defer func() { _ = command.Process.Kill(); _ = ended() }()
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)) // for a child that fails at once
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(conn, answer[:c.before])
			signal := func(s syscall.Signal) {
				if err := command.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			signal(syscall.SIGSTOP)
			var state syscall.WaitStatus
			if _, err := syscall.Wait4(command.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
				t.Fatalf("it did not stop: %v, %v", state, err)
			}
			_, _ = io.WriteString(conn, answer[c.before:c.before+c.frozen])
			<-time.After(11 * time.Second) // the freeze itself, not something to wait for
			signal(syscall.SIGCONT)
			<-time.After(300 * time.Millisecond) // of running time that it has at least
			_, _ = io.WriteString(conn, answer[c.before+c.frozen:])
			if err := ended(); err != nil {
				t.Errorf("%v\n%s", err, &out)
			}
		})
	}
}

// The limit of a request is its only one: another would fire at once after a freeze.
func TestNoOtherLimit(t *testing.T) {
	rt, c := newTransport(), NewClient()
	if rt.ResponseHeaderTimeout != 0 || rt.TLSHandshakeTimeout != 0 || c.http.Timeout != 0 || c.limit != 15*time.Second {
		t.Error("there is a limit by the clock")
	}
	ctx, cancel := WithRunningTimeout(context.Background(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	if err := networkError(ctx.Err()); !errors.Is(err, context.DeadlineExceeded) || err != errTimeout {
		t.Errorf("it reads %v", err)
	}
}
