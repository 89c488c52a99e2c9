package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/socket"
)

// pipes is a listener whose connections are pipes in memory, which live in a bubble of synctest.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipes) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// inBubble runs f with a server whose time is the bubble's.
func inBubble(t *testing.T, change func(*Config, *proxy), f func(t *testing.T, p *proxy)) {
	synctest.Test(t, func(t *testing.T) {
		p := prepare(func(cfg *Config, p *proxy) {
			cfg.Identify = func(net.Conn) (socket.Peer, error) { return socket.Peer{UID: os.Geteuid()}, nil }
			if change != nil {
				change(cfg, p)
			}
		})
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		p.dial = func() (net.Conn, error) {
			near, far := net.Pipe()
			l.conns <- far
			return near, nil
		}
		p.serve(t, l)
		f(t, p)
	})
}

// lasts returns how long it takes until the server closes the connection; what it sends before is in said.
func lasts(t *testing.T, c *client) (d time.Duration, said string) {
	t.Helper()
	begun := time.Now()
	_ = c.SetReadDeadline(time.Now().Add(time.Hour))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("the server did not close the connection: %v", err)
	}
	return time.Since(begun), string(b)
}

func TestHandshakeTime(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *proxy) {
		// One says nothing; one sends a byte every second, which does not buy more.
		silent, slow := p.connect(t), p.connect(t)
		var writer sync.WaitGroup
		defer writer.Wait()
		writer.Go(func() {
			for _, b := range framed(`{"v":1,"op":"handshake"}`) {
				if _, err := slow.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		for _, c := range []*client{silent, slow} {
			begun := time.Now()
			if d, said := lasts(t, c); c == silent && (d != usualTimes.handshake || said != "") {
				t.Errorf("closed after %v with %q, want %v and nothing", d, said, usualTimes.handshake)
			} else if c == slow && time.Since(begun) != 0 { // the same moment
				t.Errorf("a byte a second bought %v", time.Since(begun))
			}
		}
	})
}

// The handshake's time does not go on after it, and an idle connection stays.
func TestIdle(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *proxy) {
		c := p.open(t, 1)
		time.Sleep(24 * time.Hour)
		c.served()
	})
}

func TestPartialFrame(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *proxy) {
		c := p.open(t, 1)
		time.Sleep(time.Hour)
		if _, err := c.Write(framed(request(1, "1", "list_providers", `{}`))[:10]); err != nil {
			t.Fatal(err)
		}
		d, said := lasts(t, c)
		if d != 5*time.Second || !strings.Contains(said, `"id":"unknown","ok":false,"code":"INVALID_REQUEST"`) {
			t.Errorf("closed after %v with %q, want 5s and an error frame", d, said)
		}
	})
}

// A peer that does not read its answers is closed 10 to 11 s later, and meanwhile others are served at once.
func TestPeerThatDoesNotRead(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *proxy) {
		c, other := p.open(t, 1), p.open(t, 1)
		begun := time.Now()
		var writer sync.WaitGroup
		defer writer.Wait()
		writer.Go(func() {
			for {
				if _, err := c.Write(framed(request(1, "1", "get_token", `{"provider":"acme"}`))); err != nil {
					return
				}
			}
		})
		for range 5 {
			time.Sleep(time.Second)
			other.served()
		}
		for {
			if _, _, n := p.counts(); n == 1 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(begun); d < usualTimes.write-time.Second || d > usualTimes.write+2*time.Second {
			t.Errorf("closed after %v", d)
		}
		other.served()
	})
}

func TestRateLimit(t *testing.T) {
	limited := func(cfg *Config, _ *proxy) { cfg.RequestsPerSecond = 60 }
	inBubble(t, limited, func(t *testing.T, p *proxy) {
		a, b := p.open(t, 1), p.open(t, 1)
		time.Sleep(300 * time.Millisecond) // the window opens with the first request
		for round := range 3 {
			for i := range 80 {
				payload := request(1, "x", "get_token", `{"provider":"acme"}`)
				if i == 7 {
					payload = `{"v":1,"id":"x","op":"nonsense"}` // counts as any other
				}
				a.send(payload)
				got := a.answer()
				switch {
				case i >= 60:
					if got.Code != "RATE_LIMITED" || got.RetryAfter == nil || *got.RetryAfter != 1 || got.ID != "x" {
						t.Fatalf("round %d, request %d: %+v, want RATE_LIMITED", round, i+1, got)
					}
				case i == 7:
					if got.Code != "INVALID_REQUEST" {
						t.Fatalf("round %d, request %d: %+v", round, i+1, got)
					}
				case !got.OK:
					t.Fatalf("round %d, request %d: %+v", round, i+1, got)
				}
			}
			// More connections buy nothing.
			if got := b.ask("get_token", `{"provider":"acme"}`); got.Code != "RATE_LIMITED" {
				t.Fatalf("another connection: %+v, want RATE_LIMITED", got)
			}
			time.Sleep(time.Second - time.Nanosecond)
			if got := b.ask("get_token", `{"provider":"acme"}`); got.Code != "RATE_LIMITED" {
				t.Fatalf("before the second is over: %+v, want RATE_LIMITED", got)
			}
			time.Sleep(time.Nanosecond)
		}
	})
}

// The sandbox's requests are counted over all connections, and what one connection has too many of takes nothing from
// the others.
func TestRateLimitOverConnections(t *testing.T) {
	inBubble(t, func(cfg *Config, _ *proxy) { cfg.RequestsPerSecond = 60 }, func(t *testing.T, p *proxy) {
		var conns []*client
		for range 4 {
			conns = append(conns, p.open(t, 1))
		}
		ok := 0
		for i := range 100 {
			if conns[i%4].ask("get_token", `{"provider":"acme"}`).OK {
				ok++
			}
		}
		if ok != 60 {
			t.Errorf("%d requests were served, want 60", ok)
		}
	})
}

// Refused requests beyond a number are counted rather than recorded one by one.
func TestRefusalsAreBounded(t *testing.T) {
	inBubble(t, func(cfg *Config, _ *proxy) { cfg.RequestsPerSecond = 1 }, func(t *testing.T, p *proxy) {
		c := p.open(t, 1)
		begun := time.Now()
		for range recordedRefusals + 501 {
			c.ask("list_providers", `{}`)
		}
		paused := time.Since(begun)
		if want := (recordedRefusals + 500) / pauseAfter * pauseFor; paused != want {
			t.Errorf("a flood was read with %v of pauses, want %v", paused, want)
		}
		// One more for every interval that the pauses have taken.
		recorded := recordedRefusals + int(paused/refusalInterval)
		if n := len(p.audit.all()); n != recorded+1 {
			t.Errorf("%d events, want one request and %d refusals", n, recorded)
		}
		time.Sleep(time.Second)
		c.ask("list_providers", `{}`)
		c.ask("list_providers", `{}`)
		p.close(t)
		if !strings.Contains(p.log.String(), fmt.Sprintf("not_recorded=%d", recordedRefusals+500-recorded)) {
			t.Error("the log does not say how many are missing")
		}
	})
}

// A flood does not rotate the record of what was done before away: in four minutes a thousand refusals a second would.
func TestRefusalsOfALongFlood(t *testing.T) {
	inBubble(t, func(cfg *Config, _ *proxy) { cfg.RequestsPerSecond = 1 }, func(t *testing.T, p *proxy) {
		c := p.open(t, 1)
		begun := time.Now()
		for time.Since(begun) < time.Minute {
			for range 20 {
				c.ask("list_providers", `{}`)
			}
			time.Sleep(100 * time.Millisecond)
		}
		refused := 0
		for _, e := range p.audit.all() {
			if e.Code == "RATE_LIMITED" {
				refused++
			}
		}
		if most := recordedRefusals + int(time.Minute/refusalInterval) + 1; refused < recordedRefusals || refused > most {
			t.Errorf("%d refusals recorded in a minute, want %d to %d", refused, recordedRefusals, most)
		}
	})
}

// Connections that never finish their handshake make room for newer ones, the oldest first; who has just come stays.
func TestEviction(t *testing.T) {
	inBubble(t, func(cfg *Config, _ *proxy) { cfg.Connections = 8 }, func(t *testing.T, p *proxy) {
		var silent []*client
		for range minUnfinished {
			silent = append(silent, p.connect(t))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if _, n, _ := p.counts(); n != minUnfinished {
			t.Fatalf("%d unfinished", n)
		}
		// 32 ms after the first of them: it goes, and nothing waits.
		begun := time.Now()
		c := p.open(t, 1)
		if d := time.Since(begun); d != 0 {
			t.Errorf("the next waited %v", d)
		}
		c.served()
		if _, err := silent[0].read(); !errors.Is(err, io.EOF) {
			t.Errorf("the oldest was not closed: %v", err)
		}
		// A flood that is younger than the grace waits for it.
		time.Sleep(time.Second)
		begun = time.Now()
		for i := range 3 * minUnfinished {
			near, err := p.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			_ = i
		}
		synctest.Wait()
		if d := time.Since(begun); d != 2*graceTime {
			t.Errorf("96 connections came in within %v, want %v", d, 2*graceTime)
		}
		if _, n, _ := p.counts(); n != minUnfinished {
			t.Errorf("%d unfinished", n)
		}
	})
}

// An error of accept is waited out, longer each time.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := prepare(nil)
		l := &failing{pipes: &pipes{conns: make(chan net.Conn), done: make(chan struct{})}}
		p.serve(t, l)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		// 5, 10, … 640 ms, then every second.
		if n := l.calls; n != 8+8+1 {
			t.Errorf("%d attempts in 10 s", n)
		}
		p.close(t)
	})
	inBubble(t, nil, func(t *testing.T, p *proxy) {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		served := make(chan error)
		go func() { served <- p.Serve(l) }()
		synctest.Wait()
		_ = l.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a listener that somebody else closed: %v", err)
		}
	})
}

type failing struct {
	*pipes
	calls int
}

func (l *failing) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
		l.calls++
		return nil, fmt.Errorf("accept: %w", os.ErrPermission)
	}
}
