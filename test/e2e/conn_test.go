//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// conn is a client that knows docs/protocol.md and nothing else: not the client package, so that both cannot be wrong
// in the same way.
type conn struct {
	t testing.TB
	net.Conn
	version int
	next    int
}

// answer is a response as it came.
type answer struct {
	V          int            `json:"v"`
	ID         string         `json:"id"`
	Op         string         `json:"op"`
	OK         bool           `json:"ok"`
	Data       map[string]any `json:"data"`
	Code       string         `json:"code"`
	Error      string         `json:"error"`
	RetryAfter float64        `json:"retryAfter"`
}

func (a answer) String() string {
	if a.OK {
		b, _ := json.Marshal(a.Data)
		return string(b)
	}
	return a.Code
}

// connect opens a connection without a handshake.
func connect(t testing.TB, socket string) *conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &conn{t: t, Conn: c}
}

// dial opens a connection that speaks version 2.
func dial(t testing.TB, socket string) *conn {
	t.Helper()
	c := connect(t, socket)
	c.send(`{"v":1,"op":"handshake","payload":{"minVersion":2,"maxVersion":2}}`)
	if a, err := c.recv(patience); err != nil || !a.OK || a.V != 2 {
		t.Fatalf("handshake: %+v, %v", a, err)
	}
	c.version = 2
	return c
}

func framed(payload string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func (c *conn) send(payload string) {
	c.t.Helper()
	if _, err := c.Write(framed(payload)); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

func (c *conn) recv(limit time.Duration) (answer, error) {
	var a answer
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return a, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return a, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > 4<<20 {
		return a, fmt.Errorf("a frame of %d bytes", n)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(c, payload); err != nil {
		return a, err
	}
	return a, json.Unmarshal(payload, &a)
}

// request sends a request and returns its id. Without a payload it has none.
func (c *conn) request(op string, payload m) string {
	c.t.Helper()
	c.next++
	id := fmt.Sprint(c.next)
	request := m{"v": c.version, "id": id, "op": op}
	if payload != nil {
		request["payload"] = payload
	}
	b, err := json.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(string(b))
	return id
}

// call sends a request and waits for its answer. No other may be in flight.
func (c *conn) call(op string, payload m) answer {
	c.t.Helper()
	id := c.request(op, payload)
	a, err := c.recv(patience)
	if err != nil || a.ID != id {
		c.t.Fatalf("%s: answer %+v, %v", op, a, err)
	}
	return a
}

type m = map[string]any

func (c *conn) token(login string) answer {
	c.t.Helper()
	provider, bucket, named := strings.Cut(login, "/")
	payload := m{"provider": provider}
	if named {
		payload["bucket"] = bucket
	}
	return c.call("get_token", payload)
}

func (c *conn) key(name string) answer { c.t.Helper(); return c.call("get_api_key", m{"name": name}) }

// closed waits until the server has closed the connection and returns what it said before.
func (c *conn) closed(limit time.Duration) (last answer) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		a, err := c.recv(time.Until(deadline))
		var timeout net.Error
		switch {
		case err == nil:
			last = a
		case errors.As(err, &timeout) && timeout.Timeout():
			c.t.Fatalf("the connection is open after %v", limit)
		default:
			return last
		}
	}
}
