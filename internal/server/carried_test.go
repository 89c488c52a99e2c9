package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// carrying has start serve over a bridge: the path that clients dial is a socket of a bridge's inside, which carries its
// connections to the server over TLS and TCP. Tests do not run in parallel.
var carrying bool

// identify is what the daemon has its server ask.
func identify(c net.Conn) (socket.Peer, error) {
	if peer, ok := bridge.Identify(c); ok {
		return peer, nil
	}
	return socket.Identify(c)
}

// longToken makes an answer of 1 MiB, which is more than a stream takes that nobody reads.
var longToken = &wire.Token{AccessToken: strings.Repeat("a", 1<<20), TokenType: "B"}

// container is the short id of the container that bridges of tests lead into.
const container = "c0ffee012345"

// carried is a bridge with both of its ends in this process.
type carried struct {
	*bridge.Listener
	*bridge.Session
	raw   net.Conn
	path  string
	ended chan error // what Serve returned
}

// carry opens a bridge to p and a socket inside. wrap stands between the session and the network.
func (p *proxy) carry(t *testing.T, path string, wrap func(net.Conn) net.Conn) *carried {
	t.Helper()
	l, err := bridge.Listen(bridge.Options{Patience: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	l.SetContainer(container)
	b := &carried{Listener: l, path: path, ended: make(chan error, 1)}
	t.Cleanup(func() { _ = l.Close() })
	if b.raw, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		b.raw = wrap(b.raw)
	}
	if b.Session, err = bridge.Attach(t.Context(), b.raw, l.Handover()); err != nil {
		t.Fatal(err)
	}
	inside, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { b.ended <- b.Serve(inside); close(served) }()
	t.Cleanup(func() {
		_ = l.Close()
		_ = b.Session.Close()
		<-served
	})
	return b
}

func (b *carried) dial() (net.Conn, error) { return net.Dial("unix", b.path) }

// A client cannot tell whether its socket is carried: what holds over the socket itself holds here, by the same tests.
func TestCarried(t *testing.T) {
	carrying = true
	defer func() { carrying = false }()
	for _, tt := range []struct {
		name string
		test func(*testing.T)
	}{
		{"operations", TestOperations},
		{"handshake", TestHandshake},
		{"handshake first", TestHandshakeIsAnsweredFirst},
		{"capability", TestCapability},
		{"scope", TestScope},
		{"invalid requests", TestInvalidRequests},
		{"broken streams end cleanly", TestBrokenStream},
		{"panics", TestPanics},
		{"the record", TestAudit},
		{"long answers", TestTooLarge},
		{"concurrent requests", TestConcurrentRequests},
		{"requests in flight", TestInFlight},
		{"shared slots", TestSharedRunning},
		{"ids", TestDuplicateID},
		{"cancel", TestCancel},
		{"cancel a change", TestCancelAChange},
		{"a client that is gone", TestConnectionLost},
		{"a client that is gone from a refresh", TestRefreshOutlivesItsPeer},
		{"a client that is gone from a login", TestLoginNobodyHearsOf},
		{"a client that is gone from an exchange", TestExchangeOutlivesItsPeer},
		{"half-close", TestHalfClose},
		{"batches", TestBatches},
		{"one connection too many", TestConnectionCap},
		{"silent connections", TestSilentConnections},
		{"announced frames", TestAnnouncedFrames},
		{"peers that never read", TestPeersThatNeverRead},
		{"saves that hang", TestSavesThatHang},
		{"bytes one at a time", TestBytesOneAtATime},
		{"nesting", TestNesting},
		{"garbage", TestGarbage},
		{"shutdown", TestShutdown},
		{"shutdown that cuts off", TestShutdownCutsOff},
	} {
		t.Run(tt.name, tt.test)
	}
}

// Of what a carried socket and the server's own are given together, there is one limit.
func TestCarriedSharesTheLimits(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Connections, cfg.RequestsPerSecond = 0, 5 })
	b := p.carry(t, filepath.Join(t.TempDir(), "s"), nil)
	p.also(t, b)
	inside := &proxy{dial: b.dial}
	var open []*client
	for i := range 64 {
		if i%2 == 0 {
			open = append(open, p.open(t, 1))
		} else {
			open = append(open, inside.open(t, 1))
		}
	}
	for _, from := range []*proxy{p, inside} {
		c := from.connect(t)
		c.send(`{"v":1,"op":"handshake"}`)
		if a := c.answer(); a.Code != "RATE_LIMITED" || a.RetryAfter == nil {
			t.Errorf("the 65th: %+v", a)
		}
		c.ends()
	}
	// All within one second, or the test says nothing: then it is done again.
	systest.Until(t, "five requests of ten are served", func() bool {
		begun, served := time.Now(), 0
		for _, c := range open[:10] {
			c.send(request(1, "x", "get_token", `{"provider":"acme"}`))
		}
		for _, c := range open[:10] {
			if a := c.answer(); a.OK {
				served++
			} else if a.Code != "RATE_LIMITED" {
				t.Fatalf("%+v", a)
			}
		}
		return time.Since(begun) < time.Second && served == 5
	})
}

// also serves a bridge until the test ends.
func (p *proxy) also(t *testing.T, b *carried) {
	served := make(chan error, 1)
	go func() { served <- p.ServeBridge(b.Listener) }()
	t.Cleanup(func() {
		p.close(t)
		_ = b.Listener.Close()
		<-served
	})
}

// The bridge goes, from either side: what is open inside ends, in the middle of a request too; the socket is gone; the
// server's connections end, and what they asked for is cancelled.
func TestCarriedLoss(t *testing.T) {
	for name, lose := range map[string]func(*carried){
		"the host closes":   func(b *carried) { _ = b.Listener.Close() },
		"the inside closes": func(b *carried) { _ = b.Session.Close() },
		"the line is cut":   func(b *carried) { _ = b.raw.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := gated(t)
			b := p.carry(t, filepath.Join(t.TempDir(), "s"), nil)
			p.also(t, b)
			inside := &proxy{dial: b.dial}
			idle, busy, silent := inside.open(t, 1), inside.open(t, 1), inside.connect(t)
			busy.send(request(1, "1", "get_token", `{"provider":"acme"}`))
			systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
			lose(b)
			for _, c := range []*client{idle, busy, silent} {
				c.ends()
			}
			if err := <-b.ended; err == nil {
				t.Error("the inside's end has no reason")
			}
			if _, err := b.dial(); err == nil {
				t.Error("a connection was made after the loss")
			}
			if _, err := os.Lstat(b.path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
			systest.Until(t, "the server's connections have ended", func() bool { n, _, _ := p.counts(); return n == 0 && p.vault.held.Load() == 0 })
			select {
			case <-b.Lost():
			case <-time.After(patience):
				t.Error("the listener does not know")
			}
			c := p.open(t, 1) // by the server's own socket
			p.vault.set(func() { p.vault.cold = false })
			c.served()
		})
	}
}

// frozen is a line whose other end does not take or send anything while it is frozen, as that of a paused container.
type frozen struct {
	net.Conn
	mu   sync.Mutex
	wait chan struct{} // closed: it is not frozen
}

func freezable(c net.Conn) *frozen {
	f := &frozen{Conn: c, wait: make(chan struct{})}
	close(f.wait)
	return f
}

func (f *frozen) freeze() (thaw func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait := make(chan struct{})
	f.wait = wait
	return sync.OnceFunc(func() { close(wait) })
}

func (f *frozen) pass() {
	f.mu.Lock()
	wait := f.wait
	f.mu.Unlock()
	<-wait
}

func (f *frozen) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.pass() // the read that was under way when it froze, too
	return n, err
}

func (f *frozen) Write(b []byte) (int, error) { f.pass(); return f.Conn.Write(b) }

// While the inside stands still, with all that it has asked for and will not take, the server goes on for others, turns
// away whom it has to, and everything goes on where it was when the inside does.
func TestCarriedPause(t *testing.T) {
	gate := make(chan struct{})
	p := start(t, func(cfg *Config, p *proxy) {
		cfg.Connections = 8
		p.vault.gate = gate
		p.vault.tokens[[2]string{"big", "default"}] = longToken
	})
	var line *frozen
	b := p.carry(t, filepath.Join(t.TempDir(), "s"), func(c net.Conn) net.Conn { line = freezable(c); return line })
	p.also(t, b)
	inside := &proxy{dial: b.dial}
	asks, floods := inside.open(t, 1), inside.open(t, 2)
	asks.send(request(1, "1", "list_providers", `{}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
	var silent []*client
	for range minUnfinished - 4 {
		silent = append(silent, inside.connect(t))
	}
	for i := range 4 {
		floods.send(request(2, strconv.Itoa(i), "get_token", `{"provider":"big"}`))
	}
	systest.Until(t, "the connections are there", func() bool { _, n, _ := p.counts(); return n == len(silent) })
	thaw := line.freeze()
	t.Cleanup(thaw)
	close(gate)

	// The server's own socket: served, also when the silent ones have to go for that. It would not be if it waited for the inside.
	c := p.open(t, 1)
	c.served()
	for range minUnfinished {
		p.connect(t)
	}
	p.open(t, 1).served()
	c.served()
	thaw()
	if a := asks.answer(); !a.OK {
		t.Errorf("what was asked before the pause: %+v", a)
	}
	asks.served()
	for _, s := range silent {
		_ = s.Close()
	}
	for range 4 {
		if a := floods.answer(); !a.OK {
			t.Errorf("%.100v", a)
		}
	}
	inside.open(t, 1).served()
}

// A proxy ends although the inside stands still.
func TestCarriedPauseAndShutdown(t *testing.T) {
	p := start(t, func(_ *Config, p *proxy) { p.vault.tokens[[2]string{"big", "default"}] = longToken })
	var line *frozen
	b := p.carry(t, filepath.Join(t.TempDir(), "s"), func(c net.Conn) net.Conn { line = freezable(c); return line })
	p.also(t, b)
	inside := &proxy{dial: b.dial}
	idle, floods := inside.open(t, 1), inside.open(t, 2)
	for i := range 4 {
		floods.send(request(2, strconv.Itoa(i), "get_token", `{"provider":"big"}`))
	}
	floods.answer()
	thaw := line.freeze()
	t.Cleanup(thaw)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_ = p.Shutdown(ctx)
		_ = b.Listener.Close()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the end waits for the inside")
	}
	thaw()
	<-ended
	for {
		if _, err := floods.read(); err != nil {
			break
		}
	}
	idle.ends()
}

// A flood of connections inside: at most so many are open here, memory is bounded, and nothing of it stays.
func TestCarriedFlood(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Audit, cfg.Logger = noAudit{}, nil })
	b := p.carry(t, filepath.Join(t.TempDir(), "s"), nil)
	p.also(t, b)
	inside := &proxy{dial: b.dial}
	bystander, own := inside.open(t, 1), p.open(t, 1)
	bystander.served()
	idle, goroutines := heap(), runtime.NumGoroutine()
	var conns []net.Conn
	for range 1000 {
		c, err := b.dial()
		if err != nil { // as over the server's own: the queue is full, or the descriptors
			continue
		}
		_, _ = c.Write([]byte{0})
		conns = append(conns, c)
	}
	bystander.served()
	own.served()
	if n := heap() - idle; n > hostileBytes {
		t.Errorf("%d connections took %d KiB", len(conns), n>>10)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	bystander.served()
	systest.Until(t, "all have gone", func() bool {
		n, _, _ := p.counts()
		return n == 2 && runtime.NumGoroutine() <= goroutines && heap()-idle < leftBytes
	})
	inside.open(t, 1).served()
}

// The record names the container, and the process by its number there.
func TestCarriedAudit(t *testing.T) {
	p := start(t, nil)
	b := p.carry(t, filepath.Join(t.TempDir(), "s"), nil)
	p.also(t, b)
	(&proxy{dial: b.dial}).open(t, 1).served()
	got := p.audit.all()
	if len(got) != 1 || got[0].UID != os.Geteuid() || got[0].PID != os.Getpid() || got[0].Container != container || got[0].Outcome != audit.OK {
		t.Errorf("audit: %+v", got)
	}
}
