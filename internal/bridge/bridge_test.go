package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/socket"
)

// patience is how long a test waits for what has to come: a machine may stand still for seconds.
const patience = time.Minute

// patientTimes are for what is not about time.
func patientTimes() times {
	limits := usualTimes
	limits.proof, limits.carried, limits.begun, limits.first = time.Hour, time.Hour, time.Hour, time.Hour
	limits.silent = 10 * time.Millisecond
	return limits
}

func TestMain(m *testing.M) {
	drainTime = patience
	goleak.VerifyTestMain(m)
}

// pair is a listener and the inside that has attached to it, with its socket.
type pair struct {
	l       *Listener
	session *Session
	path    string
	served  chan error // gets what Serve returns
}

func newPair(t testing.TB) *pair {
	t.Helper()
	return newPairOver(t, patientTimes(), nil)
}

// newPairOver has wrap stand between the inside and the network.
func newPairOver(t testing.TB, limits times, wrap func(net.Conn) net.Conn) *pair {
	t.Helper()
	l := start(t, Options{}, limits)
	l.SetContainer("0123456789ab")
	raw := dialTCP(t, l)
	if wrap != nil {
		raw = wrap(raw)
	}
	s, err := Attach(inTime(t), raw, l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{l: l, session: s, path: filepath.Join(t.TempDir(), "s"), served: make(chan error, 1)}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go func() { p.served <- s.Serve(ln) }()
	t.Cleanup(func() {
		_ = l.Close()
		_ = s.Close()
		if err := <-p.served; !errors.Is(err, ErrLost) {
			t.Errorf("Serve: %v, want ErrLost", err)
		}
		if _, err := os.Lstat(p.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket after the session: %v, want that it is gone", err)
		}
	})
	return p
}

func start(t testing.TB, o Options, limits times) *Listener {
	t.Helper()
	l, err := listen(o, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dialTCP(t testing.TB, l *Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// attachRaw proves itself as an honest inside does, and then leaves its TLS connection to the test.
func attachRaw(t testing.TB, l *Listener) *tls.Conn {
	t.Helper()
	conn, err := shake(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func inTime(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// connect makes a connection inside and returns it with the host's end of it. Both have all the time that a test has patience for.
func (p *pair) connect(t testing.TB) (inside *net.UnixConn, host *Conn) {
	t.Helper()
	inside, host = p.dial(t)
	t.Cleanup(func() { _, _ = inside.Close(), host.Close() })
	for _, c := range []net.Conn{inside, host} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return inside, host
}

func (p *pair) dial(t testing.TB) (inside *net.UnixConn, host *Conn) {
	t.Helper()
	c, err := net.Dial("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn), h.(*Conn)
}

func TestCarriesBothWays(t *testing.T) {
	p := newPair(t)
	inside, host := p.connect(t)
	peer, ok := Identify(host)
	if want := (socket.Peer{UID: os.Geteuid(), PID: os.Getpid(), Container: "0123456789ab"}); !ok || peer != want {
		t.Errorf("Identify: %+v, %v; want %+v", peer, ok, want)
	}
	long := bytes.Repeat([]byte("0123456789"), 100_000) // more than a window
	for _, d := range []struct {
		name     string
		from, to net.Conn
	}{{"out", inside, host}, {"in", host, inside}} {
		done := make(chan error, 1)
		go func() { _, err := d.from.Write(long); done <- err }()
		got := make([]byte, len(long))
		if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, long) {
			t.Errorf("%s: %v, or not what was sent", d.name, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s: write: %v", d.name, err)
		}
	}
}

// The end of the host's side ends everything inside, and what was written before arrives.
func TestCloseDeliversFirst(t *testing.T) {
	p := newPair(t)
	inside, host := p.connect(t)
	last := bytes.Repeat([]byte("x"), 100<<10)
	if _, err := host.Write(last); err != nil {
		t.Fatal(err)
	}
	if err := p.l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if got, err := io.ReadAll(inside); err != nil || !bytes.Equal(got, last) {
		t.Errorf("got %d bytes, %v; want %d and the end", len(got), err, len(last))
	}
	if _, err := p.l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if err := p.l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := host.Read(make([]byte, 1)); err != io.EOF || !host.HungUp() {
		t.Errorf("the host's end: %v, hung up %v; want the end", err, host.HungUp())
	}
}

// What a program has sent before it ended gets to the host, although everything ends with it.
func TestFinishDeliversLastWords(t *testing.T) {
	p := newPair(t)
	living, _ := p.connect(t)
	t.Cleanup(func() { _ = living.Close() }) // a program that goes on keeps nobody waiting
	const programs = 20
	words := bytes.Repeat([]byte("last words "), 5000)
	heard := make(chan []byte, programs)
	var host sync.WaitGroup
	defer host.Wait()
	defer p.l.Close()
	host.Go(func() {
		for range programs {
			c, err := p.l.Accept()
			if err != nil {
				return
			}
			host.Go(func() {
				got, _ := io.ReadAll(c)
				_ = c.Close()
				heard <- got
			})
		}
	})
	for range programs {
		inside, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := inside.Write(words); err != nil {
			t.Fatal(err)
		}
		_ = inside.Close()
	}
	p.session.Finish(patience)
	_ = p.session.Close()
	limit := inTime(t)
	for i := range programs {
		select {
		case got := <-heard:
			if !bytes.Equal(got, words) {
				t.Errorf("program %d: the host heard %d bytes of %d", i, len(got), len(words))
			}
		case <-limit.Done():
			t.Fatalf("the host heard %d programs of %d", i, programs)
		}
	}
}

// What Serve has accepted and not counted yet is not overlooked, however long it takes.
func TestFinishWaitsForServe(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	program, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = program.Close()
	uc, err := ln.AcceptUnix() // as Serve does
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	s.listener = ln
	finished := make(chan struct{})
	go func() { s.Finish(patience); close(finished) }()
	waits := func(why string) {
		t.Helper()
		for range 20 {
			select {
			case <-finished:
				t.Fatalf("Finish has returned although %s", why)
			case <-time.After(time.Millisecond):
			}
		}
	}
	if _, err := ln.AcceptUnix(); !errors.Is(err, os.ErrDeadlineExceeded) { // Finish has looked
		t.Fatal(err)
	}
	waits("a connection was not counted")
	s.mu.Lock()
	s.outward[uc] = struct{}{}
	s.rounds++
	s.mu.Unlock()
	waits("the host has not heard all of it")
	s.said(uc)
	var serve sync.WaitGroup
	serve.Go(func() { // goes on
		for {
			if _, err := s.accept(ln); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	})
	<-finished
	_ = ln.Close()
	serve.Wait()
}

// The inside goes: the host learns it, nobody can attach again, and Accept waits for Close.
func TestLost(t *testing.T) {
	p := newPair(t)
	<-p.l.Attached()
	inside, host := p.connect(t)
	if err := p.session.Close(); err != nil {
		t.Error(err)
	}
	<-p.l.Lost()
	if _, err := inside.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a program's end: %v, want end of file", err)
	}
	if _, err := host.Read(make([]byte, 1)); err != io.EOF || !host.HungUp() {
		t.Errorf("the host's end: %v, hung up %v", err, host.HungUp())
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
	accepted := make(chan error, 1)
	go func() { _, err := p.l.Accept(); accepted <- err }()
	if _, err := Attach(inTime(t), dialTCP(t, p.l), p.l.Handover()); !errors.Is(err, ErrRefused) {
		t.Errorf("to attach again: %v, want ErrRefused", err)
	}
	select {
	case err := <-accepted:
		t.Errorf("Accept returned before Close: %v", err)
	default:
	}
	_ = p.l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// Serve ends when its listener is closed, too.
func TestServeEndsWithItsListener(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	_ = ln.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrLost) {
		t.Errorf("Serve: %v", err)
	}
	<-l.Lost()
}
