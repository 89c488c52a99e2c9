package bridge

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/credproxy/credproxy/internal/socket"
)

// Session is the inside's end. Its goroutines belong to [Session.Serve], which waits for them.
type Session struct {
	mux     *yamux.Session
	line    *line
	streams streams
	uid     int // of the inside's own user

	mu       sync.Mutex
	listener *net.UnixListener          // Serve's; nil: it has not begun
	outward  map[*net.UnixConn]struct{} // connections that the host has not closed; Serve adds, carry removes
	rounds   int                        // how often Serve had counted whatever it had accepted
}

// Attach makes the session over raw, a connection that leads to the listener h is from. It wipes h's secret, whatever comes of it,
// and closes raw when it returns an error: [ErrPin], [ErrRefused], why ctx ended, or what went wrong on the way. The session
// does not end with ctx.
func Attach(ctx context.Context, raw net.Conn, h *Handover) (*Session, error) {
	defer h.Wipe()
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlive(false) // it would give up on a machine that sleeps
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, err := shake(ctx, raw, h)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("attach to the proxy: %w", err)
	}
	s := &Session{uid: os.Geteuid(), outward: make(map[*net.UnixConn]struct{})}
	s.line = newLine(conn, &s.streams)
	if s.mux, err = yamux.Client(s.line, muxConfig(0)); err != nil {
		panic("bridge: " + err.Error()) // of our own configuration
	}
	return s, nil
}

// shake does TLS and the proof.
func shake(ctx context.Context, raw net.Conn, h *Handover) (*tls.Conn, error) {
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// The key itself is what is checked. There is no name, and a sandbox's clock may be anywhere.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare(sum[:], h.Pin[:]) != 1 {
				return ErrPin
			}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != protocol {
		return nil, errors.New("the listener speaks another protocol")
	}
	proof, err := prove(state, h.Secret[:])
	if err != nil {
		return nil, err
	}
	h.Wipe()
	hello := append(make([]byte, 0, helloLen), version)
	hello = append(hello, proof...)
	if _, err := conn.Write(hello); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, fmt.Errorf("no answer to the proof: %w", err)
	}
	switch answer[0] {
	case answerWelcome:
		return conn, nil
	case answerUsed:
		return nil, fmt.Errorf("%w: another session was let in before", ErrRefused)
	}
	return nil, fmt.Errorf("%w: the proof of the secret is wrong", ErrRefused)
}

// Close ends the session, and with it Serve.
func (s *Session) Close() error {
	end(s.mux, s.line)
	return nil
}

// Finish waits until the host has closed the connections of programs that are gone, and so has heard what they sent, at most for limit:
// a connection that the host has not accepted when the session ends is lost. Those of programs that still live do not count. It is
// to be called before Close where programs may have sent something and ended at once: to a Unix socket of the host's that would not
// have been lost.
func (s *Session) Finish(limit time.Duration) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	over := time.After(limit)
	for said, before := 0, -1; ; {
		unsaid, round := s.look()
		switch {
		case unsaid:
			said = 0
		case round != before:
			// Once is not enough: what had been accepted at the first look was perhaps not counted yet. Since then it was.
			if said++; said == 2 {
				return
			}
		}
		before = round
		select {
		case <-tick.C:
		case <-over:
			return
		case <-s.mux.CloseChan():
			return
		}
	}
}

// look reports whether there is a connection whose program is gone and that has not been carried to its end, and how often Serve has
// come round until now. When there is none, it sends Serve round once more. Before Serve there are none, each time.
func (s *Session) look() (unsaid bool, round int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		s.rounds++
		return false, s.rounds
	}
	if socket.Readable(s.listener) { // somebody has connected, and is not accepted yet
		return true, s.rounds
	}
	for uc := range s.outward {
		if socket.HungUp(uc) {
			return true, s.rounds
		}
	}
	_ = s.listener.SetDeadline(kick)
	return false, s.rounds
}

// Serve carries every connection to ln until the session ends or ln is closed. Then it closes ln, which removes the socket, and
// the session and every connection, waits for its goroutines and returns why: an error that is [ErrLost] when the session
// ended, by Close too.
func (s *Session) Serve(ln *net.UnixListener) error {
	var carried sync.WaitGroup
	defer carried.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	carried.Go(func() {
		<-s.mux.CloseChan()
		_ = ln.Close()
		cancel()
	})
	defer s.Close()
	defer ln.Close()
	s.mu.Lock()
	s.listener = ln
	s.mu.Unlock()

	var pause time.Duration
	for {
		uc, err := s.accept(ln)
		if err == nil {
			pause = 0
			// It waits while the host has not accepted as many as its backlog holds, and others wait in the system's queue then.
			stream, err := s.mux.OpenStream()
			if err != nil {
				s.said(uc)
				_ = uc.Close()
				return s.lost()
			}
			carried.Go(func() { s.carry(ctx, uc, stream) })
			continue
		}
		switch {
		case s.mux.IsClosed():
			return s.lost()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select { // most likely there are no file descriptors left
		case <-s.mux.CloseChan():
		case <-time.After(pause):
		}
	}
}

// accept accepts a connection and counts it. os.ErrDeadlineExceeded is a round for look, and nothing else.
func (s *Session) accept(ln *net.UnixListener) (*net.UnixConn, error) {
	uc, err := ln.AcceptUnix()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rounds++
	switch {
	case err == nil:
		s.outward[uc] = struct{}{}
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = ln.SetDeadline(time.Time{})
	}
	return uc, err
}

// said notes that the host has heard all of a connection, or will not hear more.
func (s *Session) said(uc *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.outward, uc)
}

// lost says why the session has ended.
func (s *Session) lost() error {
	_ = s.mux.Close()
	_, why := s.mux.AcceptStream() // nobody opens any: it tells why it was closed
	return fmt.Errorf("%w: %v", ErrLost, why)
}

// carry is one connection's life: a goroutine for each direction. When ctx ends, so does the session: what has arrived goes to
// the program, if it takes it within a second.
func (s *Session) carry(ctx context.Context, uc *net.UnixConn, stream *yamux.Stream) {
	// When the host closes its end, nothing that the program still sends gets there. What is on its way to the program does.
	c := &Conn{stream: stream, streams: &s.streams, firstN: streamHead, gone: func() { _ = uc.CloseRead() }}
	s.streams.add(c)
	defer c.Close()
	defer uc.Close()
	defer context.AfterFunc(ctx, func() { _ = uc.SetWriteDeadline(time.Now().Add(drainTime)) })()
	first := s.writePeer(socket.Identify(uc))
	_, _ = stream.Write(first[:]) // when it cannot be written, there may still be something to read
	var up sync.WaitGroup
	up.Go(func() { outward(uc, c) })
	inward(uc, c)
	// The host has closed its end, or everything is over.
	s.said(uc)
	_ = uc.Close()
	_ = c.Close()
	up.Wait()
}

// chunk is what is read at once from a program: what a TLS record holds, with its headers.
const chunk = 16<<10 - recordHead - frameHead

// outward carries what the program sends, until it sends no more or the host has closed its end. Unless the program still
// reads it closes the stream then, so that the host learns of it, and leaves the other direction to inward.
func outward(uc *net.UnixConn, c *Conn) {
	buf := make([]byte, chunk)
	for {
		n, err := uc.Read(buf)
		var werr error
		if n > 0 {
			_, werr = c.Write(buf[:n])
			clear(buf[:n])
		}
		switch {
		case err == nil && werr == nil:
			continue
		case err == io.EOF && werr == nil && !socket.HungUp(uc) && c.CloseWrite() == nil:
		default:
			_ = c.stream.Close()
			_ = uc.CloseRead()
			for err == nil { // a program that waits for room is told only when there is some
				n, err = uc.Read(buf)
				clear(buf[:n])
			}
		}
		return
	}
}

// inward carries what the host sends until the host closes its end.
func inward(uc *net.UnixConn, c *Conn) {
	buf := make([]byte, chunk)
	for gone := false; ; {
		n, err := c.Read(buf)
		if n > 0 && !gone {
			if _, werr := uc.Write(buf[:n]); werr != nil {
				// The program does not read any more. What the host still sends is thrown away, so that it gets to read that.
				gone = true
				_ = c.stream.Close()
			}
		}
		clear(buf[:n])
		switch {
		case err == nil:
		case c.half.Load():
			_ = uc.CloseWrite()
			c.awaitHangUp()
			socket.Discard(uc, discardBytes)
			return
		default:
			return
		}
	}
}

// discardBytes is how much unread input a connection may have for its program to see a clean end; see [socket.Discard].
const discardBytes = 256 << 10

// awaitHangUp waits until the other end, which sends no more, has closed altogether.
func (c *Conn) awaitHangUp() {
	c.reading.Lock()
	defer c.reading.Unlock()
	var b [1]byte
	_, _ = c.stream.Read(b[:])
	c.hung.Store(true)
}

const (
	peerOwn     = 0
	peerForeign = 1
	unknownUID  = ^uint32(0)
)

// writePeer returns the first bytes of a stream.
func (s *Session) writePeer(p socket.Peer, err error) (first [streamHead]byte) {
	uid := uint32(p.UID)
	if err != nil {
		uid, p.PID = unknownUID, 0
	}
	if err != nil || p.UID != s.uid {
		first[0] = peerForeign
	}
	binary.BigEndian.PutUint32(first[1:], uid)
	binary.BigEndian.PutUint32(first[5:], uint32(p.PID))
	return first
}

// readPeer is what the host makes of them. A UID of the inside says nothing here, and must not be taken for one of the host's.
func readPeer(first [streamHead]byte, own int, container string) socket.Peer {
	p := socket.Peer{UID: -1, Container: container}
	if pid := binary.BigEndian.Uint32(first[5:]); pid <= 1<<31-1 {
		p.PID = int(pid)
	}
	if first[0] == peerOwn {
		p.UID = own
	}
	return p
}
