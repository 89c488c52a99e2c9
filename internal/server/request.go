package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/wire"
)

const (
	unknownID         = "unknown"         // of an answer to a request that has no usable id
	opInvalid wire.Op = "invalid_request" // in the audit record, of a request that is none
)

var (
	errRate      = &wire.Error{Code: wire.CodeRateLimited, Message: "too many requests", RetryAfter: 1}
	errInFlight  = wire.E(wire.CodeInvalidRequest, "a request with this id is in flight")
	errCancelled = wire.E(wire.CodeCancelled, "cancelled")
)

// call is one operation in a goroutine of its own. answered is guarded by the connection's mu.
type call struct {
	req      *wire.Request
	begun    time.Time
	cancel   context.CancelFunc // nil when the operation changes something
	answered bool
}

// handle deals with one request; payload is valid until it returns. It reports false when the stream cannot be
// trusted any more; the error frame is in the batch then.
func (c *conn) handle(payload []byte) bool {
	begun := c.clock
	if begun.IsZero() {
		begun = time.Now()
	}
	req, err := wire.DecodeRequest(payload, c.version)
	if err != nil {
		id := req.ID
		if id == "" {
			id = unknownID
		}
		e := wire.E(wire.CodeInvalidRequest, err.Error())
		_, fatal := errors.AsType[*wire.SyntaxError](err)
		if !fatal && !c.admitted(begun) {
			e = errRate
		}
		req.Op = opInvalid
		c.done(&req, c.answer(id, nil, e), begun)
		return !fatal
	}
	switch e := c.check(&req, begun); {
	case e != nil:
		c.done(&req, c.answer(req.ID, nil, e), begun)
	case req.Op == wire.OpCancel:
		c.cancelCall(req.TargetID)
		c.done(&req, c.answer(req.ID, wire.Empty{}, nil), begun)
	default:
		data, err := c.srv.fromMemory(&req)
		if data == nil && err == nil || sizeOf(data) > heavySize {
			c.start(req, len(payload), begun)
			break
		}
		var e *wire.Error
		if err != nil {
			e = c.srv.failure(context.Background(), &req, err)
		}
		c.done(&req, c.answer(req.ID, data, e), begun)
	}
	return true
}

// check says why a request is refused before anything is asked for it.
func (c *conn) check(req *wire.Request, now time.Time) *wire.Error {
	if !c.admitted(now) {
		return errRate
	}
	if slices.Contains(c.batched, req.ID) { // answered, but not sent yet
		return errInFlight
	}
	c.mu.Lock()
	_, inFlight := c.calls[req.ID]
	c.mu.Unlock()
	if inFlight {
		return errInFlight
	}
	if ofSession(req.Op) {
		return nil // yet
	}
	return allowed(c.srv.cfg.Scope(), req)
}

// start runs a request's operation in a goroutine of its own, when there is room for one. size is that of the request.
func (c *conn) start(req wire.Request, size int, begun time.Time) {
	if size <= heavySize {
		size = 0
	} else if !c.srv.reserve(size) {
		c.done(&req, c.answer(req.ID, nil, errBusy), begun)
		return
	}
	c.clock = time.Time{}
	shared, ok := c.slot()
	if !ok {
		c.srv.heavy.Add(-int64(size))
		return
	}
	k := &call{req: &req, begun: begun}
	c.mu.Lock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancel(c.srv.ctx)
		if c.err != nil {
			c.cancel()
		}
	}
	parent := c.ctx
	if changes(req.Op) {
		// A change that has begun is carried through although the peer has gone: what is stored and what the peer, or
		// whoever asks next, believes to be stored should not depend on when a connection broke. It still ends with its
		// own deadline, and with the server.
		parent = c.srv.ctx
	}
	limit, _ := c.srv.times.patience(req.Op)
	ctx, cancel := context.WithTimeout(parent, limit)
	if !changes(req.Op) {
		k.cancel = cancel
	}
	if c.calls == nil {
		c.calls = make(map[string]*call)
	}
	c.calls[req.ID] = k
	c.running++
	c.mu.Unlock()
	c.srv.running.Add(1)
	go c.perform(ctx, cancel, k, size, shared)
}

// slot waits until one more operation may run: at most 64 of a connection, and beyond the first of each connection
// only sharedRunning in all. So operations that hang in one connection take nothing from the next but its share in
// running several at once. It reports false when the connection is over.
func (c *conn) slot() (shared, ok bool) {
	for {
		c.mu.Lock()
		running, err := c.running, c.err
		c.mu.Unlock()
		if err != nil {
			return false, false
		}
		slots := c.srv.slots
		if running < wire.MaxInFlight {
			select {
			case slots <- struct{}{}:
				return true, true
			default:
			}
			if running == 0 {
				return false, true
			}
		} else {
			slots = nil
		}
		c.flush() // nobody should wait for an answer that is there
		select {
		case slots <- struct{}{}:
			return true, true
		case <-c.progress:
		}
	}
}

// perform is the goroutine of an operation.
func (c *conn) perform(ctx context.Context, cancel context.CancelFunc, k *call, size int, shared bool) {
	defer c.srv.running.Done()
	defer func() {
		if v := recover(); v != nil { // half an answer may be in the buffer
			c.srv.logPanic(string(k.req.Op), v)
			c.fail(errPanic)
		}
		cancel()
		c.srv.heavy.Add(-int64(size))
		if shared {
			<-c.srv.slots
		}
		c.mu.Lock()
		c.running--
		c.signal()
		c.mu.Unlock()
	}()
	data, err := c.srv.ask(ctx, k.req, c.peer)
	var e *wire.Error
	if err != nil {
		e = c.srv.failure(ctx, k.req, err)
	}
	told := c.reply(k, data, e)
	if session, ok := data.(*wire.Session); ok && err == nil && !told {
		c.srv.abandon(c.peer.UID, session.ID)
	}
}

// cancelCall answers the operation of the request id, if there is one, as cancelled. It answers in any case: an
// operation that has answered already cannot be told from one that never was.
func (c *conn) cancelCall(id string) {
	c.mu.Lock()
	k := c.calls[id]
	if k != nil {
		k.answered = true
		delete(c.calls, id)
		c.room.Broadcast()
	}
	c.mu.Unlock()
	if k == nil {
		return
	}
	if k.cancel != nil {
		k.cancel()
	}
	c.answer(id, nil, errCancelled)
}

// done records a request that the reader has answered.
func (c *conn) done(req *wire.Request, code wire.Code, begun time.Time) {
	c.clock = begun.Add(time.Since(begun)) // time.Now, for half its price; the next one, if it has arrived, begins now
	c.record(&c.event, req, nil, code, begun, c.clock)
}

// record writes the audit event and the log line of one request into e and hands them on. data is what was answered.
func (c *conn) record(e *audit.Event, req *wire.Request, data wire.Data, code wire.Code, begun, ready time.Time) {
	routine := false
	if code == "" {
		code, routine = recorded(data)
	}
	if code == wire.CodeRateLimited && !c.srv.refused.record(begun, c.srv.log) {
		return
	}
	bucket := req.Bucket
	if req.Provider == "" {
		bucket = ""
	}
	*e = audit.Event{
		Time: begun, Profile: c.srv.cfg.Profile,
		Op: string(req.Op), Provider: req.Provider, Bucket: bucket, Key: req.Name,
		Outcome: outcome(code), Code: string(code), Duration: ready.Sub(begun),
		UID: c.peer.UID, PID: c.peer.PID, Container: c.peer.Container,
	}
	if !routine {
		c.srv.cfg.Audit.Record(e)
	}
	if !c.srv.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	session := ""
	if req.Provider != "" { // else it is whatever the peer has written there
		session = shortID(req.SessionID)
	}
	c.srv.log.LogAttrs(context.Background(), slog.LevelDebug, "request",
		slog.String("op", e.Op), slog.String("provider", e.Provider), slog.String("bucket", e.Bucket), slog.String("key", e.Key),
		slog.String("session", session), slog.String("outcome", e.Outcome.String()), slog.String("code", e.Code),
		slog.Duration("duration", e.Duration), slog.Int("pid", e.PID))
}

// refusal records a connection that is turned away, and reports whether it did.
func (c *conn) refusal(op wire.Op, code wire.Code) bool {
	now := time.Now()
	if !c.srv.refused.record(now, c.srv.log) {
		return false
	}
	c.srv.cfg.Audit.Record(&audit.Event{
		Time: c.accepted, Profile: c.srv.cfg.Profile, Op: string(op),
		Outcome: outcome(code), Code: string(code), Duration: now.Sub(c.accepted),
		UID: c.peer.UID, PID: c.peer.PID, Container: c.peer.Container,
	})
	return true
}

func outcome(code wire.Code) audit.Outcome {
	switch code {
	case "":
		return audit.OK
	case wire.CodeUnauthorized, wire.CodeRateLimited:
		return audit.Denied
	}
	return audit.Error
}
