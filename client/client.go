// Package client reaches the credentials of a host from inside a sandbox, over the credential proxy's Unix socket.
//
// [New] makes a [Client]; [Client.Tokens] and [Client.Keys] are its stores. A program that does not want to know whether
// it runs in a sandbox opens its credentials through the root package instead, and uses the interfaces [Tokens] and
// [Keys].
//
//	c := client.New(client.Options{Socket: os.Getenv("LLXPRT_CREDENTIAL_SOCKET")})
//	defer c.Close()
//	token, err := c.Tokens().Token(ctx, "anthropic", "default") // nil, nil when there is no login
//
// [Client.Login] logs a person in, with a [LoginFace] of the program's own to show what there is to do.
//
// Failures that the proxy reports are [*wire.Error] values, compared by code: errors.Is(err, wire.ErrUnauthorized).
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credproxy/credproxy/wire"
)

const (
	requestTimeout   = 30 * time.Second
	handshakeTimeout = 5 * time.Second // dial and handshake together
	idleTimeout      = 5 * time.Minute

	// maxInFlight leaves room under the server's limit, so that a cancel is read when all requests are slow.
	maxInFlight = wire.MaxInFlight - 8
)

// Errors of a Client, for errors.Is.
var (
	// ErrConnectionLost is the error of every pending and later call once the proxy has gone or has sent what is not
	// the protocol. The Client does not connect again: the logins in progress and what else the proxy knew are lost.
	//lint:ignore ST1005 people and programs know the sentence as it is
	ErrConnectionLost = errors.New("Credential proxy connection lost. Restart the session.")

	// ErrUnreachable means that there was no connection in the first place.
	ErrUnreachable = errors.New("credential proxy cannot be reached")

	// ErrTimeout means that a request had no answer in time. It is a context.DeadlineExceeded too.
	ErrTimeout = fmt.Errorf("the credential proxy did not answer within %v: %w", requestTimeout, context.DeadlineExceeded)

	// ErrClosed means that the Client has been closed.
	ErrClosed = errors.New("credential client is closed")
)

// Options says where the proxy is.
type Options struct {
	Socket string // path of the proxy's Unix socket

	// CapabilityToken returns the token that the proxy demands in the handshake. It is called for each connection;
	// nil when there is none.
	CapabilityToken func(ctx context.Context) (string, error)

	dial func(ctx context.Context) (net.Conn, error) // for tests; nil dials Socket
}

// Client is one connection to the proxy, made when it is first needed. After 5 minutes without a request it is closed,
// and made again by the next one; after a loss it is not. All methods may be called concurrently: requests run in
// parallel on the one connection.
//
// Goroutines: an attempt to connect, then the connection's reader, and rarely one that finishes a write or cancels a
// request. All are counted in wg, and Close waits for them.
type Client struct {
	opts  Options
	ids   atomic.Uint64 // the last request id; none is used twice, whatever the connection
	slots chan struct{} // a place for each request in flight

	mu      sync.Mutex
	conn    *conn          // the connection in use, or nil
	attempt *attempt       // the attempt to make one, or nil
	err     error          // once set, the error of every call: a loss, or ErrClosed
	lastUse time.Time      // when the last request began or ended
	wg      sync.WaitGroup // added to with mu held and err nil, or by a goroutine that it counts
}

// attempt is one try to connect, shared by the calls that wait for it. It does not end with any of them.
type attempt struct {
	stop context.CancelFunc
	done chan struct{} // closed when it has ended; err may be read then
	err  error
}

// New returns a Client. It connects with the first request.
func New(o Options) *Client {
	if o.dial == nil {
		o.dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.Socket)
		}
	}
	return &Client{opts: o, slots: make(chan struct{}, maxInFlight)}
}

// Connect connects unless there is a connection. Requests do so by themselves; it tells a caller early whether the
// proxy is there.
func (c *Client) Connect(ctx context.Context) error {
	_, err := c.connected(ctx, func(*conn) {})
	return err
}

// Close closes the connection. Calls in progress and later ones fail with [ErrClosed].
func (c *Client) Close() error {
	c.mu.Lock()
	c.err = ErrClosed
	if c.attempt != nil {
		c.attempt.stop()
	}
	if c.conn != nil {
		_ = c.conn.Close() // its reader answers the calls that wait
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// connected waits for a connection and calls use with it, with mu held: the connection is in use at that moment.
func (c *Client) connected(ctx context.Context, use func(*conn)) (*conn, error) {
	for {
		c.mu.Lock()
		if c.err != nil || c.conn != nil {
			defer c.mu.Unlock()
			if c.err != nil {
				return nil, c.err
			}
			c.lastUse = time.Now()
			use(c.conn)
			return c.conn, nil
		}
		if c.attempt == nil {
			c.attempt = c.connectLocked()
		}
		a := c.attempt
		c.mu.Unlock()

		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, cause(ctx)
		}
	}
}

// connectLocked starts an attempt to connect. It has a time limit of its own instead of the caller's context, because
// others wait for it too.
func (c *Client) connectLocked() *attempt {
	ctx, stop := context.WithTimeout(context.Background(), handshakeTimeout)
	a := &attempt{stop: stop, done: make(chan struct{})}
	c.wg.Go(func() {
		defer stop()
		conn, err := c.open(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.attempt = nil
		switch {
		case c.err != nil:
			if conn != nil {
				_ = conn.Close()
			}
			err = c.err
		case err == nil:
			c.conn = conn
			c.lastUse = time.Now()
			c.wg.Go(func() { c.read(conn) })
		}
		a.err = err
		close(a.done)
	})
	return a
}

// call sends the request and waits for its answer: at most [requestTimeout], or until ctx is done. A request that is
// given up is cancelled at the server, where the version has that.
func (c *Client) call(ctx context.Context, r *wire.Request) (json.RawMessage, error) {
	return c.callFor(ctx, 0, r)
}

// callFor is call that, once it has cancelled the request, waits so much longer for its answer: what comes then is returned
// besides the error.
func (c *Client) callFor(ctx context.Context, longer time.Duration, r *wire.Request) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, ErrTimeout)
	defer cancel()
	if ctx.Err() != nil { // a select with a free slot, or with an answer that comes at once, might go on all the same
		return nil, cause(ctx)
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, cause(ctx)
	}

	r.ID = strconv.FormatUint(c.ids.Add(1), 10)
	answer := make(chan reply, 1)
	conn, err := c.connected(ctx, func(conn *conn) { conn.pending[r.ID] = answer })
	if err != nil {
		return nil, err
	}
	frame := appendRequest(nil, conn.version, r)
	if n, limit := payloadLen(frame), wire.MaxPayload(conn.version); n > limit {
		c.forget(conn, r.ID)
		return nil, wire.E(wire.CodeInvalidRequest, fmt.Sprintf("the request has %d bytes, the proxy takes %d", n, limit))
	}
	if err := c.send(ctx, conn, frame); err != nil {
		c.forget(conn, r.ID)
		return nil, err
	}
	select {
	case got := <-answer:
		return got.data, got.err
	case <-ctx.Done():
	}
	if longer > 0 {
		c.cancel(conn, r.ID)
		late := time.NewTimer(longer)
		defer late.Stop()
		select {
		case got := <-answer:
			return got.data, cause(ctx)
		case <-late.C:
		}
	}
	if c.forget(conn, r.ID) {
		if longer == 0 {
			c.cancel(conn, r.ID)
		}
		return nil, cause(ctx)
	}
	got := <-answer // it came at the same moment
	return got.data, got.err
}

// cause says why ctx is done, in the words that callers compare with.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); errors.Is(err, ErrTimeout) {
		return err
	}
	return ctx.Err()
}
