//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

func framed(payload string) []byte {
	b := append(frame.Begin(nil), payload...)
	frame.End(b, 0)
	return b
}

// idDigits is the length of a request's id. All requests have the same length, and no id is used twice within a million.
const idDigits = 6

// request returns a frame, and where in it the digits of the id begin.
func request(op, data string) (b []byte, at int) {
	begin := `{"v":1,"id":"`
	return framed(begin + fmt.Sprintf("%0*d", idDigits, 0) + `","op":"` + op + `","payload":` + data + `}`), frame.HeaderLen + len(begin)
}

func getToken(bucket string) string { return `{"provider":"acme","bucket":"` + bucket + `"}` }

// conn is a client's connection.
type conn struct {
	net.Conn
	r *bufio.Reader
}

// dial connects, and shakes hands with what wants that.
func (t *target) dial() (*conn, error) {
	nc, err := net.Dial("unix", t.socket)
	if err != nil {
		return nil, err
	}
	c := &conn{nc, bufio.NewReaderSize(nc, 16<<10)}
	if !t.proxy {
		return c, nil
	}
	if _, err = nc.Write(framed(`{"v":1,"op":"handshake"}`)); err == nil {
		_, err = c.skip()
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return c, nil
}

// read returns the next frame's payload.
func (c *conn) read() ([]byte, error) {
	head, err := c.r.Peek(frame.HeaderLen)
	if err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head)+frame.HeaderLen)
	for n := 0; n < len(b); {
		got, err := c.r.Read(b[n:])
		if err != nil {
			return nil, err
		}
		n += got
	}
	return b[frame.HeaderLen:], nil
}

// skip reads the next frame and returns its length, with the header.
func (c *conn) skip() (int, error) {
	head, err := c.r.Peek(frame.HeaderLen)
	if err != nil {
		return 0, err
	}
	return c.r.Discard(frame.HeaderLen + int(binary.BigEndian.Uint32(head)))
}

// ask sends one request and returns the answer's payload. An answer that is an error is one.
func (c *conn) ask(op, data string) ([]byte, error) {
	b, _ := request(op, data)
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	payload, err := c.read()
	if err != nil {
		return nil, err
	}
	answer, err := wire.DecodeResponse(payload, 1)
	if err == nil && !answer.OK {
		err = answer.Err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return payload, nil
}

// shape is a load: so many connections with so many requests in flight each, for a while.
type shape struct {
	conns, depth int
	length       time.Duration
}

// result is what a load has shown: the median latency, and the server's processor time for one request, both in
// nanoseconds.
type result struct {
	p50, cpu float64
	n        int
}

// load puts a load of get_token on the server. Every answer must have size bytes: an error has not.
func (t *target) load(s shape, size int) (result, error) {
	conns := make([]*conn, 0, s.conns)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range s.conns {
		c, err := t.dial()
		if err != nil {
			return result{}, err
		}
		conns = append(conns, c)
	}
	before, err := t.cpu()
	if err != nil {
		return result{}, err
	}
	var wg sync.WaitGroup
	all, errs := make([][]time.Duration, s.conns), make([]error, s.conns)
	for i, c := range conns {
		wg.Go(func() { all[i], errs[i] = c.pump(s, size) })
	}
	wg.Wait()
	after, err := t.cpu()
	if err := errors.Join(append(errs, err)...); err != nil {
		return result{}, err
	}
	latencies := slices.Concat(all...)
	slices.Sort(latencies)
	n := len(latencies)
	return result{float64(latencies[n/2]), (after - before) / float64(n), n}, nil
}

// pump keeps depth requests in flight. Answers that overtake others in a connection are counted as if they had not:
// that changes whose latency it is and not how much.
func (c *conn) pump(s shape, size int) ([]time.Duration, error) {
	frame, at := request("get_token", getToken("default"))
	var latencies []time.Duration
	var sent []time.Time
	var out []byte
	send := func(now time.Time) {
		for i, n := at+idDigits-1, len(sent); i >= at; i, n = i-1, n/10 {
			frame[i] = byte('0' + n%10)
		}
		out = append(out, frame...)
		sent = append(sent, now)
	}
	now := time.Now()
	end := now.Add(s.length)
	for range s.depth {
		send(now)
	}
	for len(latencies) < len(sent) {
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return nil, err
			}
			out = out[:0]
		}
		for {
			n, err := c.skip()
			if err != nil {
				return nil, err
			}
			if n != size {
				return nil, fmt.Errorf("an answer has %d bytes, not %d", n, size)
			}
			now = time.Now()
			latencies = append(latencies, now.Sub(sent[len(latencies)]))
			if now.Before(end) {
				send(now)
			}
			if c.r.Buffered() == 0 || len(latencies) == len(sent) {
				break
			}
		}
	}
	return latencies, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
