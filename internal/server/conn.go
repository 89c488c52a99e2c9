package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

// Why a connection ended.
var (
	errEvicted = errors.New("evicted before its handshake was done")
	errEnded   = errors.New("ended")
)

// discardBytes is how much unread input a connection may have for its peer to see a clean end.
const discardBytes = 256 << 10

// conn is one connection.
//
// Its reader is the goroutine of run. It owns what stands under "the reader's", and it is the only one that starts
// operations. mu guards what stands under "shared"; writing is the right to write to nc, which passes from goroutine
// to goroutine. Whoever sees err set leaves the connection alone.
type conn struct {
	srv      *Server
	nc       net.Conn
	accepted time.Time

	// Guarded by the server's mu.
	older, newer *conn
	queued       bool
	established  bool

	// The reader's. peer and version are set before the first operation starts and stay.
	peer       socket.Peer
	version    int
	r          *frame.Reader
	window     window
	turnedAway int       // requests over the rate limit since the last pause
	batch      []byte    // frames that answer what was read last
	batched    []string  // the ids in it
	clock      time.Time // when the last request was done, if nothing was waited for since; or zero
	event      audit.Event

	// Shared.
	mu       sync.Mutex
	room     sync.Cond // for mu: unsent has shrunk, a call was cancelled, or err is set
	out      []byte    // frames that wait for the goroutine that is writing
	outHeavy int       // bytes of them that count in the server's heavy
	unsent   int       // bytes in out and on their way
	writing  bool
	calls    map[string]*call // the operations that have not answered yet, by request id
	running  int              // goroutines of operations
	err      error            // why the connection is over
	ctx      context.Context  // of operations that only read; made with the first
	cancel   context.CancelFunc
	progress chan struct{} // capacity 1, for the reader: running has shrunk, or err is set

	until time.Time // nc's write deadline; belongs to whoever is writing
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, accepted: time.Now(), progress: make(chan struct{}, 1)}
	c.room.L = &c.mu
	c.r = frame.NewReader(nc, wire.MaxPayload(wire.MinVersion), s.budget)
	c.r.SetPartialTimeout(s.times.partial)
	return c
}

// run is the connection's life.
func (c *conn) run() {
	defer c.srv.running.Done()
	defer c.srv.leave(c)
	defer c.end()
	defer func() {
		if v := recover(); v != nil {
			c.srv.logPanic("connection", v)
		}
	}()
	if c.identify() && c.handshake() {
		c.serve()
	}
}

// end closes the connection and waits for its operations, which hold on to it as long as they run.
func (c *conn) end() {
	c.fail(errEnded)
	c.r.Close()
	c.awaitRunning(0)
}

// fail ends the connection at once, for whatever reason comes first. Any goroutine may call it.
func (c *conn) fail(why error) {
	c.mu.Lock()
	c.failLocked(why)
	c.mu.Unlock()
}

func (c *conn) failLocked(why error) {
	if c.err != nil {
		return
	}
	c.err = why
	c.srv.heavy.Add(-int64(c.outHeavy))
	c.unsent -= len(c.out)
	c.out, c.outHeavy = nil, 0
	if c.cancel != nil {
		c.cancel()
	}
	_ = c.nc.Close()
	c.room.Broadcast()
	c.signal()
}

func (c *conn) signal() {
	select {
	case c.progress <- struct{}{}:
	default:
	}
}

func (c *conn) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// awaitRunning waits until at most n operations run. The reader calls it.
func (c *conn) awaitRunning(n int) {
	for {
		c.mu.Lock()
		running := c.running
		c.mu.Unlock()
		if running <= n {
			return
		}
		<-c.progress
	}
}

// stopReading makes the reader see the end of its input; answers can still go out. Where a connection cannot be closed
// by halves, it ends.
func (c *conn) stopReading() {
	half, ok := c.nc.(interface{ CloseRead() error })
	if !ok || half.CloseRead() != nil {
		c.fail(ErrClosed)
	}
}

// identify asks the kernel who is there. A foreign peer gets no answer.
func (c *conn) identify() bool {
	peer, err := c.srv.cfg.Identify(c.nc)
	switch {
	case errors.Is(err, socket.ErrNoPeerIdentity):
		c.srv.noPeer.Do(func() {
			c.srv.log.Warn("peers are not identified: the socket's permissions and its name are the defence", "error", err)
		})
		c.peer.UID = -1
		return true
	case err != nil:
		peer.UID = -1
	default:
		err = socket.Authorize(peer, c.srv.cfg.OwnUID, c.srv.cfg.AllowUIDs)
	}
	c.peer = peer
	if err == nil {
		return true
	}
	if !c.failed() && c.refusal("connect", wire.CodeUnauthorized) {
		c.srv.log.Warn("connection refused", "error", err, "uid", peer.UID, "pid", peer.PID)
	}
	return false
}

// handshake reads the first frame and answers it.
func (c *conn) handshake() bool {
	c.r.SetDeadline(c.accepted.Add(c.srv.times.handshake))
	payload, err := c.r.Next()
	if err != nil {
		if e := frameError(err); e != nil {
			c.refuse(e)
		} else {
			c.srv.log.Debug("connection ended before its handshake", "error", err, "uid", c.peer.UID, "pid", c.peer.PID)
		}
		return false
	}
	h, err := wire.DecodeHandshake(payload)
	var broken *wire.Error
	switch {
	case err == nil, errors.As(err, &broken): // the latter has a capability token all the same
	default:
		c.refuse(wire.E(wire.CodeInvalidRequest, err.Error()))
		return false
	}
	if !c.srv.presents(h.CapabilityToken) {
		c.refuse(errCapability)
		return false
	}
	version, ok := h.Negotiate()
	switch {
	case broken != nil:
		c.refuse(broken)
		return false
	case !ok:
		c.refuse(errVersion)
		return false
	}
	switch c.srv.establish(c) {
	case gone:
		return false
	case full:
		c.refuse(errConnections)
		return false
	}
	c.version = version
	c.r.SetMax(wire.MaxPayload(version))
	c.r.SetDeadline(time.Time{})
	c.beginBatch()
	start := len(c.batch)
	c.batch = wire.AppendHandshake(frame.Begin(c.batch), version)
	frame.End(c.batch, start)
	if c.r.Buffered() { // before an operation can answer: the first frame is the handshake's
		c.flush()
	}
	return true
}

var (
	errCapability  = wire.E(wire.CodeUnauthorized, "the capability token is missing or wrong")
	errVersion     = wire.E(wire.CodeUnknownVersion, "this proxy speaks the versions 1 to 2")
	errConnections = &wire.Error{Code: wire.CodeRateLimited, Message: "too many connections are open", RetryAfter: 1}
)

// presents reports whether the token is the one that the server demands, if it does.
func (s *Server) presents(token string) bool {
	if s.capability == nil {
		return true
	}
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], s.capability[:]) == 1
}

// refuse answers the handshake with e and ends the connection.
func (c *conn) refuse(e *wire.Error) {
	if c.refusal(wire.OpHandshake, e.Code) {
		c.srv.log.Warn("handshake refused", "code", string(e.Code), "reason", e.Message, "uid", c.peer.UID, "pid", c.peer.PID)
	}
	c.beginBatch()
	start := len(c.batch)
	c.batch = wire.AppendHandshakeError(frame.Begin(c.batch), wire.MinVersion, e)
	frame.End(c.batch, start)
	c.goodbye()
}

// goodbye sends what there is to send and ends the connection such that the peer sees that, then end of file.
func (c *conn) goodbye() {
	c.flush()
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && !c.failed() {
		_ = half.CloseWrite()
		_ = c.nc.SetReadDeadline(time.Time{})
		socket.Discard(c.nc, discardBytes)
	}
	c.fail(errEnded)
}

// serve reads requests until there are no more.
func (c *conn) serve() {
	for {
		if !c.r.Buffered() {
			c.flush()
			c.clock = time.Time{}
		}
		payload, err := c.r.Next()
		if err != nil {
			c.over(err)
			return
		}
		select {
		case <-c.srv.quit:
			c.over(io.EOF)
			return
		default:
		}
		if !c.handle(payload) {
			c.goodbye()
			return
		}
		if len(c.batch) >= batchBytes || len(c.batched) >= wire.MaxInFlight {
			c.flush()
		}
		if c.turnedAway >= pauseAfter {
			c.turnedAway = 0
			c.flush()
			select { // whoever asks on although nothing is answered pays with time, not the host with a core
			case <-time.After(pauseFor):
			case <-c.srv.quit:
			}
		}
	}
}

// over ends a connection that cannot be read any more.
func (c *conn) over(err error) {
	switch e := frameError(err); {
	case e != nil:
		c.done(&wire.Request{Op: opInvalid}, e.Code, time.Now())
		c.answer(unknownID, nil, e)
		c.goodbye()
	case (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && !socket.HungUp(c.nc):
		// The peer has said all it wants to say, or the server is shutting down: answers are still due.
		c.flush()
		c.awaitRunning(0)
		c.goodbye()
	}
}

// frameError returns what the peer is told about a frame that cannot be read, or nil when there is nothing to tell.
func frameError(err error) *wire.Error {
	switch {
	case errors.Is(err, frame.ErrTooLong), errors.Is(err, frame.ErrEmpty), errors.Is(err, frame.ErrPartialTimeout):
		return wire.E(wire.CodeInvalidRequest, err.Error())
	}
	return nil
}
