package bridge

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/credproxy/credproxy/internal/socket"
)

// Options is what a Listener is made of.
type Options struct {
	Logger *slog.Logger // nil: none
	// Refused is told of every connection that is turned away, as the log is: at most some dozens a minute. why is one of this
	// package's errors. nil: nobody is told.
	Refused func(remote string, why error)
	// Patience is how long whoever connects may take to prove himself, and a program inside to say who it is; 0: a few seconds, as
	// befits a listener that anybody can reach. It is for tests, whose machine may stand still for longer.
	Patience time.Duration
}

const (
	maxClosing   = 128                   // streams that the host has closed and the inside has not
	closingPause = 50 * time.Millisecond // between two looks at whether they have become fewer
)

// drainTime is for what has been written when the session is closed. Only tests change it, before they begin.
var drainTime = time.Second

// Listener is the host's end: a TCP listener on loopback that lets in one session, and a net.Listener for the connections which
// that session carries.
//
// Its goroutines are the one that accepts TCP connections, one for each of those and of Dial's until it is let in or refused, and the
// session's. Close ends them and waits. mu guards what stands below it.
type Listener struct {
	times   times
	tcp     net.Listener
	log     *slog.Logger
	refused refusals
	config  *tls.Config
	pin     [sha256.Size]byte

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	running  sync.WaitGroup
	attached chan struct{} // closed once session is set
	lost     chan struct{}
	streams  streams
	left     chan struct{} // capacity 1: waiting has become shorter
	late     bucket        // of handshakes after the session was let in; the accepting goroutine's

	mu        sync.Mutex
	secret    [secretLen]byte
	container string
	waiting   []*candidate
	used      bool
	session   *yamux.Session
	line      *line
	closed    bool
}

// Listen opens a listener on a free port of 127.0.0.1, with a key and a secret that are made for it.
func Listen(o Options) (*Listener, error) {
	limits := usualTimes
	if o.Patience > 0 {
		limits.proof, limits.carried, limits.begun, limits.first = o.Patience, o.Patience, o.Patience, o.Patience
	}
	return listen(o, limits)
}

func listen(o Options, t times) (*Listener, error) {
	l := newListener(o, t)
	if err := l.makeSecrets(); err != nil {
		return nil, err
	}
	// No TCP keepalive: whoever is at the other end is on this machine, where a connection ends with its process. A machine that
	// wakes up should find it.
	tcp, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	l.tcp = tcp
	l.running.Go(l.acceptTCP)
	return l, nil
}

// makeSecrets makes the key and the secret.
func (l *Listener) makeSecrets() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	// Nothing in it is looked at but the key.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<33, 0)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	l.config = &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
	}
	l.pin = sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	_, _ = rand.Read(l.secret[:]) // never fails
	return nil
}

// newListener makes a listener that has nothing to listen on yet.
func newListener(o Options, t times) *Listener {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Listener{
		times:    t,
		log:      log,
		refused:  refusals{log: log, tell: o.Refused},
		attached: make(chan struct{}),
		lost:     make(chan struct{}),
		left:     make(chan struct{}, 1),
		streams:  streams{accepts: true},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Handover returns what the inside must know. addresses are names and ports under which the inside may reach this listener,
// at most 8; without any it speaks through the pipe that brings the handover. The caller wipes it.
func (l *Listener) Handover(addresses ...string) *Handover {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Handover{Pin: l.pin, Secret: l.secret, Addresses: addresses}
}

// Port returns the TCP port.
func (l *Listener) Port() int { return l.tcp.Addr().(*net.TCPAddr).Port }

// Addr returns the TCP address.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// SetContainer says in which container the inside is: the 12-character id, for Conn.Peer. Call it before the handover.
func (l *Listener) SetContainer(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.container = id
}

// Attached returns a channel that is closed once the inside has proved itself.
func (l *Listener) Attached() <-chan struct{} { return l.attached }

// Lost returns a channel that is closed when the session of the inside has ended. There will not be another one.
func (l *Listener) Lost() <-chan struct{} { return l.lost }

// Accept returns the next connection of a program inside, a *Conn. Before there is a session, and after it, it waits for
// Close. Its only error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.attached:
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
	// Until the inside closes a stream that the host has closed, yamux keeps up to a window of what the inside sends. Who lets
	// many of them lie gets no new ones.
	for l.session.NumStreams() > l.streams.open()+backlog+maxClosing {
		select {
		case <-time.After(closingPause):
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
	stream, err := l.session.AcceptStreamWithContext(l.ctx)
	if err != nil {
		<-l.ctx.Done() // the session has ended, and there will be no other
		return nil, net.ErrClosed
	}
	c := &Conn{stream: stream, streams: &l.streams, host: l, firstUntil: time.Now().Add(l.times.first)}
	c.peer.UID = -1
	_ = stream.SetReadDeadline(c.firstUntil)
	l.streams.add(c)
	return c, nil
}

// peer is what the first bytes of a stream say.
func (l *Listener) peer(first [streamHead]byte) socket.Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := readPeer(first, os.Geteuid(), l.container)
	if p.UID < 0 {
		l.log.Debug("a connection of another user of the sandbox", "uid_inside", binary.BigEndian.Uint32(first[1:]), "pid", p.PID)
	}
	return p
}

// Close closes the session and every connection, and waits for the listener's goroutines. What has been written
// is sent before, as far as that takes less than a second.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		l.running.Wait()
		return net.ErrClosed
	}
	l.closed = true
	clear(l.secret[:])
	session, line := l.session, l.line
	l.cancel() // first: whose connection is closed here looks at ctx, to know that he is not refused
	for _, c := range l.waiting {
		_ = c.conn.Close()
	}
	l.mu.Unlock()
	err := l.tcp.Close()
	if session != nil {
		end(session, line)
	}
	l.running.Wait()
	return err
}

// carry is the life of the one session.
func (l *Listener) carry(conn secured, remote string) {
	defer close(l.lost)
	line := newLine(conn, &l.streams)
	session, err := yamux.Server(line, muxConfig(l.times.linger))
	if err != nil {
		panic("bridge: " + err.Error()) // of our own configuration
	}
	l.mu.Lock()
	l.session, l.line = session, line
	closed := l.closed
	l.mu.Unlock()
	close(l.attached)
	l.log.Debug("the sandbox has attached", "remote", remote)
	if closed {
		_ = session.Close()
	}
	<-session.CloseChan()
	_ = session.Close() // waits for its goroutines
	<-line.done
	l.log.Debug("the session of the sandbox has ended", "remote", remote)
}
