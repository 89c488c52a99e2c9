package server

import (
	"slices"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

const (
	batchBytes = 16 << 10 // what the reader answers by itself is sent when it is so much, or when nothing more has arrived
	outBytes   = 64 << 10 // with so much unsent, operations that have ended wait before they encode their answers
)

// buffers holds buffers for answers, so that a connection without any holds none.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 2<<10)) }}

func getBuffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

func putBuffer(b []byte) {
	if cap(b) <= 2*batchBytes {
		buffers.Put(&b)
	}
}

// beginBatch makes sure that the reader has a buffer.
func (c *conn) beginBatch() {
	if c.batch == nil {
		c.batch = getBuffer()
	}
}

// answer appends an answer of the reader's to its batch. It returns the code that the peer gets.
func (c *conn) answer(id string, data wire.Data, e *wire.Error) (code wire.Code) {
	c.beginBatch()
	c.batch, code = appendAnswer(c.batch, c.version, id, data, e)
	if id != unknownID {
		c.batched = append(c.batched, id)
	}
	return code
}

// flush sends the reader's batch. It blocks while the peer does not read, and so does the reader.
func (c *conn) flush() {
	if len(c.batch) == 0 {
		return
	}
	c.mu.Lock()
	for c.writing && c.unsent >= outBytes && c.err == nil {
		c.room.Wait()
	}
	switch {
	case c.err != nil:
	case c.writing:
		if c.out == nil {
			c.out = getBuffer()
		}
		c.out = append(c.out, c.batch...)
		c.unsent += len(c.batch)
	default:
		c.writing = true
		c.writeLocked(c.batch)
		c.drainLocked()
	}
	c.mu.Unlock()
	putBuffer(c.batch)
	clear(c.batched)
	c.batch, c.batched = nil, c.batched[:0]
}

// reply records how an operation ended and sends its answer, unless the call has been answered as cancelled. It waits,
// without having encoded anything, until the peer has read enough. It reports whether data is on its way to the peer.
func (c *conn) reply(k *call, data wire.Data, e *wire.Error) bool {
	ready := time.Now()
	size := sizeOf(data)
	if e == nil && size > wire.MaxPayload(c.version) {
		e = errTooLarge
	}
	if e != nil {
		data, size = nil, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.unsent >= outBytes && c.err == nil && !k.answered {
		c.room.Wait()
	}
	if k.answered || c.err != nil {
		code := codeOf(e)
		if k.answered && !changes(k.req.Op) {
			code = wire.CodeCancelled // of a change, the record tells what became of it
		}
		c.record(new(audit.Event), k.req, data, code, k.begun, ready)
		return false
	}
	if size > heavySize && !c.srv.reserve(size) {
		data, e, size = nil, errBusy, 0
	}
	if c.out == nil {
		c.out = getBuffer()
	}
	start := len(c.out)
	var code wire.Code
	c.out, code = appendAnswer(slices.Grow(c.out, size), c.version, k.req.ID, data, e)
	n := len(c.out) - start
	if size > heavySize {
		c.srv.heavy.Add(int64(n - size))
		c.outHeavy += n
	}
	c.unsent += n
	k.answered = true
	delete(c.calls, k.req.ID)
	// Before mu is given up: another goroutine may send the answer, and who has it should find it in the record.
	c.record(new(audit.Event), k.req, data, code, k.begun, ready)
	if !c.writing {
		c.writing = true
		c.drainLocked()
	}
	return code == ""
}

// drainLocked writes out until it is empty and gives the right to write back.
func (c *conn) drainLocked() {
	for len(c.out) > 0 && c.err == nil {
		buf, heavy := c.out, c.outHeavy
		c.out, c.outHeavy = nil, 0
		c.unsent -= len(buf) // writeLocked counts it again
		c.writeLocked(buf)
		c.srv.heavy.Add(-int64(heavy))
		putBuffer(buf)
	}
	c.writing = false
	c.room.Broadcast()
}

// writeLocked writes b to the connection, with mu released meanwhile. The caller has the right to write.
func (c *conn) writeLocked(b []byte) {
	c.unsent += len(b)
	c.mu.Unlock()
	// A deadline that is moved at most once a second costs next to nothing.
	if now := time.Now(); c.until.Sub(now) < c.srv.times.write {
		c.until = now.Add(c.srv.times.write + time.Second)
		_ = c.nc.SetWriteDeadline(c.until)
	}
	_, err := c.nc.Write(b)
	c.mu.Lock()
	c.unsent -= len(b)
	if err != nil {
		c.failLocked(err)
	}
	c.room.Broadcast()
}

// reserve takes n bytes from what heavy requests and answers may hold together.
func (s *Server) reserve(n int) bool {
	if s.heavy.Add(int64(n)) <= heavyBytes {
		return true
	}
	s.heavy.Add(-int64(n))
	return false
}

var (
	errTooLarge = wire.E(wire.CodeResponseTooLarge, "the answer is longer than a frame of this version may be")
	errBusy     = &wire.Error{Code: wire.CodeRateLimited, Message: "too many long requests and answers at once", RetryAfter: 1}
)

// appendAnswer appends the frame that answers request id: data, or e when that is not nil. It returns the code that
// the peer sees, "" for success.
func appendAnswer(dst []byte, version int, id string, data wire.Data, e *wire.Error) ([]byte, wire.Code) {
	start := len(dst)
	dst = frame.Begin(dst)
	if e == nil {
		dst = wire.AppendResponse(dst, version, id, data)
		if len(dst)-start-frame.HeaderLen > wire.MaxPayload(version) {
			clear(dst[start:])
			dst, e = dst[:start+frame.HeaderLen], errTooLarge
		}
	}
	if e != nil {
		e = e.ForVersion(version)
		dst = wire.AppendError(dst, version, id, e)
	}
	frame.End(dst, start)
	return dst, codeOf(e)
}

func codeOf(e *wire.Error) wire.Code {
	if e == nil {
		return ""
	}
	return e.Code
}

// sizeOf returns about how many bytes the encoded data will have; 0 for data that is always short.
func sizeOf(data wire.Data) (n int) {
	switch d := data.(type) {
	case *wire.Token:
		n = len(d.AccessToken) + len(d.TokenType) + len(d.Scope)
		for _, f := range d.Extra() {
			n += len(f.Name) + len(f.Value) + 4
		}
	case *wire.Session:
		n = len(d.AuthURL) + len(d.VerificationURL) + len(d.VerificationURLComplete) + len(d.UserCode)
	case *wire.Poll:
		if d.Token != nil {
			n = sizeOf(d.Token)
		}
	case wire.APIKey:
		n = len(d)
	case wire.Providers:
		n = sizeOfList(d)
	case wire.Buckets:
		n = sizeOfList(d)
	case wire.APIKeys:
		n = sizeOfList(d)
	}
	return n
}

func sizeOfList(list []string) (n int) {
	for _, s := range list {
		n += len(s) + 3
	}
	return n
}
