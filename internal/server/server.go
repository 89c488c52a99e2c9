// Package server answers one sandbox: it accepts connections, makes sure who they are from, and serves their requests
// from a [Vault], within a [Scope] and within limits.
//
// [New] makes a [Server], [Server.Serve] runs it on a listener until [Server.Shutdown]. The server speaks wire types
// only: it has no access to anything that outlives a sandbox.
//
// Each connection has one goroutine, which reads. What the vault has in memory it answers by itself; every other
// operation gets a goroutine that lives until it has answered. There is no goroutine that only writes: whoever has an
// answer and finds nobody writing writes, for the others too. A connection has a lock of its own, the server has one
// for its lists of connections, and neither is held during I/O or a call of the vault.
package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/socket"
)

// Config is what a Server is made of. Vault, Scope, Identify and Audit are required.
type Config struct {
	Vault    Vault
	Scope    func() Scope                        // asked for every request; nil from it allows nothing
	Identify func(net.Conn) (socket.Peer, error) // asked before the first byte of a connection is read
	Audit    interface{ Record(e *audit.Event) } // gets one event an operation
	Logger   *slog.Logger                        // nil: none
	// Login is asked before a login begins, once the scope allows it; a *wire.Error from it is the answer. nil: nobody is
	// asked.
	Login   func(ctx context.Context, r LoginRequest) error
	Profile string // for the audit record

	OwnUID     int    // peers of this UID may connect
	AllowUIDs  []int  // and these
	Capability []byte // what every handshake must present; nil: nothing

	RequestsPerSecond int // of one connection, and of all connections together; 0: 60
	Connections       int // that have finished their handshake; 0: 64
}

// times are the limits of a Server that are times. None is configured.
type times struct {
	handshake time.Duration // from accept to the last byte of the handshake
	partial   time.Duration // for a frame that has begun
	operation time.Duration // for what the vault does for one request that only reads
	refresh   time.Duration // for refresh_token, with everything that the provider is given time for
	login     time.Duration // for a login that begins and for a code that is exchanged: the provider is asked too
	// For a change, which waits for a refresh of the same token. Clients give up after 30 s, counted from a moment that
	// is a little earlier: with all of the 30 s they would never learn that it was not done.
	change time.Duration
	write  time.Duration // a peer that reads nothing for so long is closed
}

var usualTimes = times{
	handshake: 5 * time.Second, partial: frame.PartialTimeout, operation: 15 * time.Second, refresh: 29 * time.Second,
	login: 29 * time.Second, change: 29*time.Second + 500*time.Millisecond, write: 10 * time.Second,
}

// Limits that are not configured, either.
const (
	minUnfinished = 32                    // handshakes that may be unfinished, however few connections may be open
	graceTime     = 25 * time.Millisecond // that a new connection has before it can be evicted for a newer one

	sharedRunning = 256      // operations that may run at once in all connections, beside one in each
	heavySize     = 64 << 10 // bytes of a request or an answer that count as heavy
	heavyBytes    = 16 << 20 // heavy requests and answers of all connections together
	frameBytes    = 16 << 20 // what all connections may hold of frames that they are receiving, beyond small ones
)

// ErrClosed is what Serve returns after Shutdown.
var ErrClosed = errors.New("server: shut down")

// Server serves one sandbox.
//
// mu guards the lists. A connection is in conns from accept until its last goroutine has ended, and in the list of
// unfinished ones until its handshake is done; established counts the rest.
type Server struct {
	cfg        Config
	times      times
	log        *slog.Logger
	capability *[sha256.Size]byte // hashed, so that comparing does not tell the length; nil: none

	ctx     context.Context // ends when Shutdown gives up on requests in flight
	cancel  context.CancelFunc
	quit    chan struct{}  // closed when Shutdown begins
	running sync.WaitGroup // every goroutine, and every call of Serve, but not of ServeBridge

	budget  *frame.Budget
	slots   chan struct{} // holds a value for each operation that runs on a shared slot
	heavy   atomic.Int64  // bytes in use of heavyBytes
	limit   sharedWindow
	refused refusals
	noPeer  sync.Once // warns that this system does not identify peers

	mu          sync.Mutex
	closing     bool
	listeners   map[net.Listener]struct{}
	conns       map[*conn]struct{}
	unfinished  queue
	established int
	left        chan struct{} // capacity 1: the list of unfinished handshakes has become shorter
}

// New returns a server. It panics when a required part of cfg is missing.
func New(cfg Config) *Server {
	if cfg.Vault == nil || cfg.Scope == nil || cfg.Identify == nil || cfg.Audit == nil {
		panic("server: Config lacks Vault, Scope, Identify or Audit")
	}
	if cfg.RequestsPerSecond <= 0 {
		cfg.RequestsPerSecond = 60
	}
	if cfg.Connections <= 0 {
		cfg.Connections = 64
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:       cfg,
		times:     usualTimes,
		log:       log,
		quit:      make(chan struct{}),
		budget:    frame.NewBudget(frameBytes),
		slots:     make(chan struct{}, sharedRunning),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
		left:      make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Capability != nil {
		s.capability = new(sha256.Sum256(cfg.Capability))
	}
	s.limit.limit = cfg.RequestsPerSecond
	return s
}

// Serve accepts connections until Shutdown, and then returns [ErrClosed]; or until somebody else closes ln. Any other
// error of ln, such as too many open files, is logged and tried again.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = ln.Close()
		return ErrClosed
	}
	s.listeners[ln] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	return s.accept(ln)
}

// ServeBridge is Serve for a listener whose connections end when it is closed. Shutdown leaves it open, so that they get
// their answers; whoever connects meanwhile is turned away. The caller closes ln after that, and then ServeBridge returns.
func (s *Server) ServeBridge(ln net.Listener) error { return s.accept(ln) }

func (s *Server) accept(ln net.Listener) error {
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.enter(nc)
			continue
		case s.isClosing():
			return ErrClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("cannot accept a connection; trying again", "error", err, "after", pause)
		// It is most likely file descriptors that are short: those who have not even said what they want go first.
		s.evictOldest()
		select {
		case <-s.quit:
		case <-time.After(pause):
		}
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Shutdown stops accepting and reading, gives requests in flight until ctx ends to be answered, closes every
// connection and waits for every goroutine. The operations that still run when ctx ends are cancelled, those that
// change something too; Shutdown then returns why ctx ended.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		close(s.quit)
	}
	listeners, conns := s.listeners, make([]*conn, 0, len(s.conns))
	s.listeners = nil
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for ln := range listeners {
		_ = ln.Close()
	}
	for _, c := range conns {
		c.stopReading()
	}

	done := make(chan struct{})
	go func() { // ends before Shutdown does
		s.running.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("requests in flight were cut off: %w", context.Cause(ctx))
		s.cancel()
		for _, c := range conns {
			c.fail(ErrClosed)
		}
		<-done
	}
	s.cancel()
	return err
}
