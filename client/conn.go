package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

// writePatience is how long a call waits for its own bytes to be taken. A proxy that is well takes them at once; when it
// does not, a goroutine finishes the frame, and the call waits for its answer and its context alone.
const writePatience = 50 * time.Millisecond

// conn is one connection after its handshake.
//
// The reader goroutine ([Client.read]) owns frames and closes the connection at its end; others close it only to stop
// that goroutine. pending is guarded by the Client's mutex: whoever removes a channel from it is the one who may send
// to it, so each gets one reply at most and, with its capacity of 1, sending never blocks.
type conn struct {
	net.Conn
	frames  *frame.Reader
	version int
	pending map[string]chan reply
	writing chan struct{} // holds a value while somebody writes
}

// reply is the outcome of one request.
type reply struct {
	data json.RawMessage
	err  error
}

// lostError is ErrConnectionLost, to the letter, with the reason inside.
type lostError struct{ reason error }

func (e *lostError) Error() string        { return ErrConnectionLost.Error() }
func (e *lostError) Is(target error) bool { return target == ErrConnectionLost }
func (e *lostError) Unwrap() error        { return e.reason }

// refusedError is the proxy's answer to the handshake, with where.
type refusedError struct {
	socket string
	reason error // a *wire.Error
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("credential proxy at %s refuses the connection: %v", e.socket, e.reason)
}
func (e *refusedError) Unwrap() error { return e.reason }

// Hint says what to do about it; what is advice for a request that was refused does not fit here.
func (e *refusedError) Hint() string {
	switch {
	case errors.Is(e.reason, wire.ErrUnauthorized):
		return "the proxy was started with --capability-file: it serves only clients that send the token in the handshake"
	case errors.Is(e.reason, wire.ErrRateLimited):
		return "close other connections; limits.connections in the configuration of the host says how many there may be"
	}
	return ""
}

// unreachableError is ErrUnreachable with where and why.
type unreachableError struct {
	socket string
	reason error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("credential proxy at %s cannot be reached: %v", e.socket, e.reason)
}
func (e *unreachableError) Is(target error) bool { return target == ErrUnreachable }
func (e *unreachableError) Unwrap() error        { return e.reason }

// open dials and shakes hands.
func (c *Client) open(ctx context.Context) (*conn, error) {
	var capability string
	if c.opts.CapabilityToken != nil {
		var err error
		if capability, err = c.opts.CapabilityToken(ctx); err != nil {
			return nil, fmt.Errorf("capability token: %w", err)
		}
	}
	nc, err := c.opts.dial(ctx)
	if err != nil {
		return nil, &unreachableError{c.opts.Socket, err}
	}
	cn := &conn{
		Conn:    nc,
		frames:  frame.NewReader(nc, wire.MaxPayload(wire.MinVersion), nil),
		pending: make(map[string]chan reply),
		writing: make(chan struct{}, 1),
	}
	interrupt := context.AfterFunc(ctx, func() { _ = nc.Close() })
	cn.version, err = cn.handshake(capability)
	switch {
	case !interrupt():
		err = &unreachableError{c.opts.Socket, fmt.Errorf("no handshake within %v", handshakeTimeout)}
	case err == nil:
		return cn, nil
	default:
		if _, refused := errors.AsType[*wire.Error](err); refused {
			err = &refusedError{c.opts.Socket, err}
		} else {
			err = &unreachableError{c.opts.Socket, fmt.Errorf("handshake: %w", err)}
		}
	}
	_ = nc.Close()
	return nil, err
}

// handshake returns the negotiated version. The time limit is the caller's.
func (cn *conn) handshake(capability string) (version int, err error) {
	buf := frame.Begin(nil)
	buf = wire.AppendHandshakeRequest(buf, wire.MinVersion, wire.MinVersion, wire.MaxVersion, capability)
	frame.End(buf, 0)
	if _, err := cn.Write(buf); err != nil {
		return 0, err
	}
	payload, err := cn.frames.Next()
	if err != nil {
		return 0, err
	}
	version, err = wire.DecodeHandshakeReply(payload)
	if err == nil {
		cn.frames.SetMax(wire.MaxPayload(version))
	}
	return version, err
}

// read is the connection's goroutine: it hands out the answers until the connection ends, for whatever reason.
func (c *Client) read(cn *conn) {
	cn.frames.SetDeadline(time.Now().Add(idleTimeout))
	for {
		payload, err := cn.frames.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if c.retire(cn) {
				break
			}
			continue
		}
		var answer wire.Response
		if err == nil {
			answer, err = wire.DecodeResponse(payload, cn.version)
		}
		if err != nil {
			c.lose(cn, err)
			break
		}
		c.deliver(cn, &answer)
	}
	_ = cn.Close()
	cn.frames.Close()
}

// retire takes an idle connection out of use and reports true; or it sets the time of the next look.
func (c *Client) retire(cn *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	idleSince := c.lastUse
	if len(cn.pending) > 0 {
		idleSince = now
	}
	if now.Sub(idleSince) < idleTimeout {
		cn.frames.SetDeadline(idleSince.Add(idleTimeout))
		return false
	}
	if c.conn == cn {
		c.conn = nil
	}
	return true
}

// lose ends the Client's use: nothing connects again after a loss.
func (c *Client) lose(cn *conn, reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = nil
	if c.err == nil {
		c.err = &lostError{reason}
	}
	for id, answer := range cn.pending {
		delete(cn.pending, id)
		answer <- reply{err: c.err}
	}
}

// deliver hands an answer to the call that waits for it. An answer that nobody waits for belongs to a request that was
// given up, or to none.
func (c *Client) deliver(cn *conn, r *wire.Response) {
	c.mu.Lock()
	answer := cn.pending[r.ID]
	delete(cn.pending, r.ID)
	c.lastUse = time.Now()
	c.mu.Unlock()
	switch {
	case answer == nil:
	case r.OK:
		answer <- reply{data: r.Data}
	default:
		answer <- reply{err: r.Err}
	}
}

// forget gives the request up. It reports false when the answer has been handed out already.
func (c *Client) forget(cn *conn, id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, waiting := cn.pending[id]
	delete(cn.pending, id)
	c.lastUse = time.Now()
	return waiting
}

// background runs f in a goroutine that Close waits for, unless the Client is at its end.
func (c *Client) background(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.wg.Go(f)
	return true
}

// send writes a frame. When the connection breaks it returns nil: the reader will notice and answer all calls alike.
func (c *Client) send(ctx context.Context, cn *conn, frame []byte) error {
	select {
	case cn.writing <- struct{}{}:
	case <-ctx.Done():
		return cause(ctx)
	}
	_ = cn.SetWriteDeadline(time.Now().Add(writePatience))
	n, err := cn.Write(frame)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		finish := func() {
			defer func() { <-cn.writing }()
			_ = cn.SetWriteDeadline(time.Now().Add(requestTimeout))
			if _, err := cn.Write(frame[n:]); err != nil {
				_ = cn.Close()
			}
		}
		if c.background(finish) {
			return nil
		}
	}
	if err != nil {
		_ = cn.Close()
	}
	<-cn.writing
	return nil
}

// cancel tells the server that nobody waits for the request any more, and does not wait for the answer.
func (c *Client) cancel(cn *conn, id string) {
	if cn.version < wire.Version2 {
		return
	}
	r := &wire.Request{ID: strconv.FormatUint(c.ids.Add(1), 10), Op: wire.OpCancel, TargetID: id}
	c.background(func() {
		ctx, stop := context.WithTimeout(context.Background(), handshakeTimeout)
		defer stop()
		_ = c.send(ctx, cn, appendRequest(nil, cn.version, r))
	})
}

// appendRequest appends a whole frame.
func appendRequest(dst []byte, version int, r *wire.Request) []byte {
	start := len(dst)
	dst = wire.AppendRequest(frame.Begin(dst), version, r)
	frame.End(dst, start)
	return dst
}

func payloadLen(f []byte) int { return len(f) - frame.HeaderLen }
