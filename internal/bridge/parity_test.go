package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
)

// hostEnd is what the server uses of a connection.
type hostEnd interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
}

// ends are the two ends of a connection that a program has made to its socket.
type ends struct {
	*testing.T
	program *net.UnixConn
	host    hostEnd
}

// overBoth runs a test over a Unix socket alone, which is right by definition, and over one that is carried.
func overBoth(t *testing.T, test func(e *ends)) {
	t.Run("unix", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		program, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		host, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		for _, c := range []net.Conn{program, host} {
			_ = c.SetDeadline(time.Now().Add(patience))
		}
		test(&ends{t, program.(*net.UnixConn), host.(*net.UnixConn)})
	})
	t.Run("carried", func(t *testing.T) {
		program, host := newPair(t).connect(t)
		test(&ends{t, program, host})
	})
}

func (e *ends) send(c net.Conn, s string) {
	e.Helper()
	if n, err := c.Write([]byte(s)); err != nil || n != len(s) {
		e.Fatalf("write %q: %d, %v", s, n, err)
	}
}

// recv expects s to arrive, and whatever comes after to be for later.
func (e *ends) recv(c net.Conn, s string) {
	e.Helper()
	b := make([]byte, len(s))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != s {
		e.Fatalf("read %q, %v; want %q", b[:n], err, s)
	}
}

// recvEnd expects the end of the input.
func (e *ends) recvEnd(c net.Conn) {
	e.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		e.Fatalf("read %d bytes, %v; want end of file", n, err)
	}
}

// broken expects that c is told soon, when it writes, that nobody reads.
func (e *ends) broken(c net.Conn) {
	e.Helper()
	systest.Until(e, "a write fails", func() bool {
		_, err := c.Write([]byte("x"))
		if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			e.Fatalf("write: %v, want EPIPE", err)
		}
		return err != nil
	})
}

func (e *ends) hungUp(want bool) {
	e.Helper()
	if got := socket.HungUp(e.host); got != want {
		e.Errorf("HungUp: %v, want %v", got, want)
	}
}

func TestProgramSendsNoMore(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.program, "question")
		_ = e.program.CloseWrite()
		e.recv(e.host, "question")
		e.recvEnd(e.host)
		e.hungUp(false)
		e.recvEnd(e.host)
		e.send(e.host, "answer")
		e.recv(e.program, "answer")
		e.hungUp(false)
		_ = e.host.Close()
		e.recvEnd(e.program)
	})
}

func TestProgramCloses(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.program, "question")
		_ = e.program.Close()
		e.recv(e.host, "question")
		e.recvEnd(e.host)
		e.hungUp(true)
		e.broken(e.host)
	})
}

// Nothing was said, and nobody reads what the host has sent.
func TestProgramClosesUnread(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.host, "answer")
		for b := make([]byte, 1); ; { // it has arrived
			if n, _, err := recvPeek(e.program, b); n == 1 && err == nil {
				break
			}
		}
		_ = e.program.Close()
		if n, err := e.host.Read(make([]byte, 1)); n != 0 || err == nil {
			e.Errorf("read %d, %v", n, err)
		}
		e.hungUp(true)
		e.broken(e.host)
	})
}

func recvPeek(c *net.UnixConn, b []byte) (n int, from syscall.Sockaddr, err error) {
	raw, rerr := c.SyscallConn()
	if rerr != nil {
		return 0, nil, rerr
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, from, err = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	return n, from, err
}

// The program is gone although the host has much to read from it: who writes learns it first.
func TestProgramClosesWhileMuchIsUnread(t *testing.T) {
	overBoth(t, func(e *ends) {
		for range 100 {
			e.send(e.program, "question")
		}
		e.recv(e.host, "question")
		_ = e.program.Close()
		systest.Until(e, "it has hung up", func() bool { return socket.HungUp(e.host) })
		e.broken(e.host)
		for range 99 {
			e.recv(e.host, "question")
		}
		e.recvEnd(e.host)
	})
}

// A program that does not read stops the host's writer. When it goes, the writer is told.
func TestProgramClosesOnABlockedWriter(t *testing.T) {
	overBoth(t, func(e *ends) {
		writes := make(chan error, 1)
		go func() {
			_, err := e.host.Write(make([]byte, 16<<20))
			writes <- err
		}()
		e.recv(e.program, "\x00")
		_ = e.program.Close()
		if err := <-writes; !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			e.Errorf("write: %v, want EPIPE", err)
		}
	})
}

func TestProgramReadsNoMore(t *testing.T) {
	overBoth(t, func(e *ends) {
		_ = e.program.CloseRead()
		e.broken(e.host)
	})
}

func TestHostSendsNoMore(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.host, "greeting")
		if err := e.host.CloseWrite(); err != nil {
			e.Error(err)
		}
		if _, err := e.host.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			e.Errorf("write after CloseWrite: %v", err)
		}
		e.recv(e.program, "greeting")
		e.recvEnd(e.program)
		e.send(e.program, "still here")
		e.recv(e.host, "still here")
		_ = e.program.CloseWrite()
		e.recvEnd(e.host)
		_ = e.host.Close()
		e.broken(e.program)
	})
}

func TestHostCloses(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.host, "farewell")
		if err := e.host.Close(); err != nil {
			e.Error(err)
		}
		e.recv(e.program, "farewell")
		e.recvEnd(e.program)
		e.broken(e.program)
		for what, err := range map[string]error{
			"read": func() error { _, err := e.host.Read(make([]byte, 1)); return err }(), "write": func() error { _, err := e.host.Write(nil); return err }(),
			"close": e.host.Close(), "close read": e.host.CloseRead(), "close write": e.host.CloseWrite(), "deadline": e.host.SetDeadline(time.Now()),
		} {
			if what == "write" { // of nothing: the two differ, and nobody does it
				continue
			}
			if !errors.Is(err, net.ErrClosed) {
				e.Errorf("%s after Close: %v, want net.ErrClosed", what, err)
			}
		}
	})
}

// The host closes on a program that neither reads nor stops sending.
func TestHostClosesOnABlockedProgram(t *testing.T) {
	overBoth(t, func(e *ends) {
		fill(e, e.host)
		fill(e, e.program)
		_ = e.program.SetWriteDeadline(time.Now().Add(patience))
		writes := make(chan error, 1)
		go func() {
			_, err := e.program.Write(make([]byte, 16<<20))
			writes <- err
		}()
		_ = e.host.Close()
		if err := <-writes; !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			e.Errorf("write: %v, want EPIPE", err)
		}
	})
}

// fill writes until nothing goes for a while; a little may go later.
func fill(e *ends, c net.Conn) (n int) {
	e.Helper()
	b := make([]byte, 16<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		m, err := c.Write(b)
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n
		}
		if err != nil {
			e.Fatal(err)
		}
	}
}

func TestCloseReadEndsTheReader(t *testing.T) {
	overBoth(t, func(e *ends) {
		e.send(e.program, "before")
		e.recv(e.host, "bef")
		_ = e.host.SetReadDeadline(time.Time{})
		if err := e.host.CloseRead(); err != nil {
			e.Error(err)
		}
		e.recv(e.host, "ore")
		_ = e.host.SetReadDeadline(time.Now().Add(patience))
		e.recvEnd(e.host)
		e.hungUp(false)
		e.send(e.host, "answer")
		e.recv(e.program, "answer")
		_ = e.host.Close()
		e.recvEnd(e.program)
	})
}

// CloseRead and Close end a Read that waits, CloseRead with the end of the input; Close ends a Write that waits.
func TestCloseEndsWhoWaits(t *testing.T) {
	overBoth(t, func(e *ends) {
		read := func() <-chan error {
			got := make(chan error, 1)
			begun := make(chan struct{})
			go func() { close(begun); _, err := e.host.Read(make([]byte, 1)); got <- err }()
			<-begun
			return got
		}
		got := read()
		_ = e.host.CloseRead()
		if err := <-got; err != io.EOF {
			e.Errorf("read: %v, want end of file", err)
		}
	})
	overBoth(t, func(e *ends) {
		got := make(chan error, 2)
		go func() { _, err := e.host.Read(make([]byte, 1)); got <- err }()
		go func() { _, err := e.host.Write(make([]byte, 16<<20)); got <- err }() // there is no room for all of it
		e.recv(e.program, "\x00")                                                // it has begun
		_ = e.host.Close()
		for range 2 {
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				e.Errorf("%v, want net.ErrClosed", err)
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	overBoth(t, func(e *ends) {
		b := make([]byte, 8)
		_ = e.host.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		var timeout net.Error
		if _, err := e.host.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			e.Errorf("read: %v, want os.ErrDeadlineExceeded", err)
		}
		e.send(e.program, "late")
		if _, err := e.host.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			e.Errorf("read: %v, want os.ErrDeadlineExceeded until there is a new one", err)
		}
		_ = e.host.SetReadDeadline(time.Time{})
		e.recv(e.host, "late")

		// One that is set while a Read waits counts.
		got := make(chan error, 1)
		go func() { _, err := e.host.Read(b); got <- err }()
		_ = e.host.SetReadDeadline(time.Now())
		if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
			e.Errorf("read: %v, want os.ErrDeadlineExceeded", err)
		}

		// What a Write says it has written arrives, just that, and what is written later comes after it.
		n := fill(e, e.host)
		if _, err := e.host.Write(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			e.Errorf("write: %v, want os.ErrDeadlineExceeded", err)
		}
		_ = e.host.SetDeadline(time.Now().Add(patience))
		sent := make(chan error, 1)
		go func() {
			_, err := e.host.Write([]byte("the end"))
			sent <- errors.Join(err, e.host.Close())
		}()
		all, err := io.ReadAll(e.program)
		if want := append(make([]byte, n), "the end"...); err != nil || !bytes.Equal(all, want) {
			e.Errorf("%d bytes arrived, %v; %d were written", len(all), err, len(want))
		}
		if err := <-sent; err != nil {
			e.Error(err)
		}
	})
}

// Writers and readers of one connection, all at once: nothing is torn, and nothing of it races.
func TestManyWriters(t *testing.T) {
	overBoth(t, func(e *ends) {
		const writers, each = 8, 200
		line := []byte("0123456789abcdef\n")
		done := make(chan error, writers)
		for range writers {
			go func() {
				var err error
				for range each {
					if _, werr := e.host.Write(line); werr != nil {
						err = werr
					}
				}
				done <- err
			}()
		}
		for range writers * each {
			e.recv(e.program, string(line))
		}
		for range writers {
			if err := <-done; err != nil {
				e.Error(err)
			}
		}
	})
}
