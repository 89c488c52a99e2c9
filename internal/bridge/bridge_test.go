package bridge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/socket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a listener and the inside that has attached to it, with its socket.
type pair struct {
	l       *Listener
	session *Session
	path    string
	served  chan error // gets what Serve returns
}

func newPair(t testing.TB) *pair {
	t.Helper()
	l := listen(t, Options{})
	l.SetContainer("0123456789ab")
	s := attach(t, l)
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

func listen(t testing.TB, o Options) *Listener {
	t.Helper()
	l, err := Listen(o)
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

func attach(t testing.TB, l *Listener) *Session {
	t.Helper()
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tenSeconds(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// connect makes a connection inside and returns it with the host's end of it.
func (p *pair) connect(t testing.TB) (inside *net.UnixConn, host *Conn) {
	t.Helper()
	c, err := net.Dial("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	h, err := p.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	for _, c := range []net.Conn{c, h} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
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
