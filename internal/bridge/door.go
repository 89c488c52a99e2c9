package bridge

import (
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxUnfinished = 64 // TCP connections that have not proved themselves

	// Once the session is let in, whoever comes is a stranger, and a handshake is work: so many are made at once, and one more
	// as times.late says. The others are closed, not faster than one every latePause.
	lateHandshakes = 10
	latePause      = time.Millisecond
)

// candidate is a connection that has not proved itself yet.
type candidate struct {
	conn     net.Conn
	remote   string // for the log
	accepted time.Time
	own      bool // of Dial: it is not one of the crowd

	// guarded by the listener's mu
	safe    time.Time // until when it is not evicted
	evicted bool
}

// Dial returns a connection from this process to the listener, for the pipe through which an engine lets a sandbox speak. It has to
// prove itself as every other does; but however many others connect to the port, it neither waits for them nor gives
// way to them. The error is net.ErrClosed after Close, or that there are no file descriptors left.
func (l *Listener) Dial() (net.Conn, error) {
	theirs, ours, err := socketPair()
	if err != nil {
		return nil, err
	}
	c := &candidate{conn: ours, remote: "the engine's exec", accepted: time.Now(), own: true}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_, _ = theirs.Close(), ours.Close()
		return nil, net.ErrClosed
	}
	l.waiting = append(l.waiting, c)
	l.running.Go(func() { l.examine(c) })
	return theirs, nil
}

func socketPair() (a, b net.Conn, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		defer f.Close() // FileConn has a copy
		if err == nil {
			conns[i], err = net.FileConn(f)
		}
	}
	if err != nil && conns[0] != nil {
		_ = conns[0].Close()
	}
	return conns[0], conns[1], err
}

// acceptTCP accepts connections until Close.
func (l *Listener) acceptTCP() {
	var pause time.Duration
	for {
		conn, err := l.tcp.Accept()
		switch {
		case err == nil:
			pause = 0
			l.enter(conn)
			continue
		case l.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		l.log.Warn("cannot accept a connection of a sandbox; trying again", "error", err, "after", pause)
		l.pause(pause)
	}
}

// pause waits, but not for longer than until Close.
func (l *Listener) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-l.ctx.Done():
	case <-timer.C:
	}
}

// enter starts the goroutine of an accepted connection. When too many wait, one of them goes, if there is one that is not safe any more;
// else the new one waits, and others in the system's queue behind it. A connection that has begun as ours do is safe for longer
// than one that says nothing, so a silent crowd makes way for the sandbox.
func (l *Listener) enter(conn net.Conn) {
	now := time.Now()
	c := &candidate{conn: conn, remote: conn.RemoteAddr().String(), accepted: now, safe: now.Add(l.times.silent)}
	if l.isUsed() && !l.late.take(now, lateHandshakes, l.times.late) {
		_ = conn.Close()
		l.refused.note(c.remote, ErrLate)
		l.pause(latePause)
		return
	}
	for {
		l.mu.Lock()
		first, n := l.crowd()
		var wait time.Duration
		switch {
		case l.closed:
			l.mu.Unlock()
			_ = conn.Close()
			return
		case n < maxUnfinished:
			l.waiting = append(l.waiting, c)
			l.mu.Unlock()
			l.running.Go(func() { l.examine(c) })
			return
		default:
			if wait = time.Until(first.safe); wait <= 0 {
				first.evicted = true
				l.forget(first)
				_ = first.conn.Close()
			}
		}
		l.mu.Unlock()
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-l.left:
			case <-l.ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		}
	}
}

func (l *Listener) isUsed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

// crowd returns how many TCP connections wait, and the one that is the first not to be safe. The caller holds mu.
func (l *Listener) crowd() (first *candidate, n int) {
	for _, c := range l.waiting {
		if c.own {
			continue
		}
		if n++; first == nil || c.safe.Before(first.safe) {
			first = c
		}
	}
	return first, n
}

// forget takes c off the list: nobody evicts or closes it any more. The caller holds mu.
func (l *Listener) forget(c *candidate) {
	if i := slices.Index(l.waiting, c); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
	select {
	case l.left <- struct{}{}:
	default:
	}
}

// leave takes c off the list and reports whether it was evicted before.
func (l *Listener) leave(c *candidate) (evicted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(c)
	return c.evicted
}

// examine is a connection's life until it is let in or refused; with the session, until that ends.
func (l *Listener) examine(c *candidate) {
	conn, err := l.admit(c)
	evicted := l.leave(c)
	if err == nil {
		l.carry(conn, c.remote)
		return
	}
	_ = c.conn.Close()
	if l.ctx.Err() != nil {
		return
	}
	if evicted {
		err = ErrCrowded
	}
	l.refused.note(c.remote, err)
}

// admit makes the TLS session of c and lets it in, or says why not.
func (l *Listener) admit(c *candidate) (*tls.Conn, error) {
	limit := l.times.proof
	if c.own {
		limit = l.times.carried
	}
	_ = c.conn.SetDeadline(c.accepted.Add(limit))
	config := l.config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, protocol) && slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			l.begun(c)
		}
		return nil, nil // as it is
	}
	conn := tls.Server(c.conn, config)
	err := conn.HandshakeContext(l.ctx)
	state := conn.ConnectionState()
	if err == nil && state.NegotiatedProtocol != protocol {
		err = errors.New("it asks for no application protocol")
	}
	if err != nil {
		return nil, unfinished(err)
	}
	var hello [helloLen]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return nil, unfinished(err)
	}
	answer, err := l.judge(c, state, hello[:])
	if _, werr := conn.Write([]byte{answer}); werr != nil && err == nil {
		l.takeBack()
		err = unfinished(werr)
	}
	if err != nil {
		_ = conn.CloseWrite()
		return nil, err
	}
	return conn, c.conn.SetDeadline(time.Time{})
}

// begun notes that c has begun as ours do.
func (l *Listener) begun(c *candidate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.safe = c.accepted.Add(l.times.begun)
}

// unfinished tells a connection that was too slow or has ended from one that spoke something else. What it said is not repeated.
func unfinished(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ErrUnfinished
	}
	return ErrNotOurs
}

// judge decides on a hello. Whoever is let in is not evicted any more.
func (l *Listener) judge(c *candidate, state tls.ConnectionState, hello []byte) (answer byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	proof, err := prove(state, l.secret[:])
	switch {
	case err != nil:
		return answerWrong, err
	case l.closed, hello[0] != version, !hmac.Equal(proof, hello[1:]):
		return answerWrong, ErrWrongProof
	case l.used:
		return answerUsed, ErrSecondSession
	case c.evicted: // it does not hear the answer, and comes again in another way
		return answerWrong, ErrCrowded
	}
	l.used = true
	l.forget(c)
	return answerWelcome, nil
}

// takeBack is for a session that was let in and could not be told so: there is none, and the sandbox may come again in another way.
func (l *Listener) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = false
}
