//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prompt is how soon another client is answered: in less time than hostile ones are put up with, so that it has not waited for
// their end, and in as much as that allows to a machine that is busy.
const prompt = 4 * time.Second

// headroom is how far above idle a hostile peer may drive the proxy's memory.
const headroom = 60 << 20

// hostileHost has a proxy for a hostile sandbox and one for somebody else's. They are two sandboxes of one user, so what
// the one does must not reach the other.
func hostileHost(t *testing.T, config string) (p *proxy, idle int) {
	t.Helper()
	h := newHost(t)
	h.configure(config)
	h.mustWith(testKey, "key", "set", "openai")
	p = h.serve()
	if a := dial(t, p.socket).key("openai"); !a.OK {
		t.Fatal(a)
	}
	return p, p.rss()
}

// stillServes asks for a key over a connection that exists and over a new one, and expects it at once.
func (p *proxy) stillServes(t *testing.T, old *conn) {
	t.Helper()
	for _, c := range []*conn{old, dial(t, p.socket)} {
		begun := time.Now()
		if a := c.key("openai"); !a.OK {
			t.Errorf("another client got %v", a)
		}
		if took := time.Since(begun); took > prompt {
			t.Errorf("another client waited %v", took)
		}
		if c != old {
			c.Close()
		}
	}
}

func (p *proxy) within(t *testing.T, idle int, what string) {
	t.Helper()
	if rss := p.rss(); rss > idle+headroom {
		t.Errorf("%s: %d MiB resident, %d when idle", what, rss>>20, idle>>20)
	}
}

// trickle writes data for as long as the peer takes it, at most for a time, and reports how much that was.
func trickle(c net.Conn, data []byte, limit time.Duration) int {
	_ = c.SetWriteDeadline(time.Now().Add(limit))
	n, _ := c.Write(data)
	return n
}

func TestHostileSilentConnections(t *testing.T) {
	p, idle := hostileHost(t, "")
	good := dial(t, p.socket)
	var silent []*conn
	for range 400 {
		silent = append(silent, connect(t, p.socket))
	}
	p.within(t, idle, "400 silent connections")
	// Those that the proxy keeps are gone after five seconds, and then there is room for others.
	for _, c := range silent {
		c.closed(patience)
	}
	p.stillServes(t, good)
	p.within(t, idle, "after 400 silent connections")
}

// Also while they are there, when there is room for another connection at all.
func TestHostileSilentConnectionsDelayNobody(t *testing.T) {
	p, idle := hostileHost(t, "[limits]\nrequests_per_second = 1000\nconnections = 500\n")
	good := dial(t, p.socket)
	for range 400 {
		connect(t, p.socket)
	}
	p.stillServes(t, good)
	p.within(t, idle, "400 silent connections with room for 500")
}

func TestHostileAnnouncedFrames(t *testing.T) {
	p, idle := hostileHost(t, "[limits]\nrequests_per_second = 1000\nconnections = 100\n")
	good := dial(t, p.socket)
	head := binary.BigEndian.AppendUint32(nil, 4<<20)
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"and nothing more", nil},
		{"and a byte", []byte("{")},
		{"and 64 KiB of white space", bytes.Repeat([]byte(" "), 64<<10)},
		{"and all but the last byte", bytes.Repeat([]byte(" "), 4<<20-1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var conns []*conn
			for range 40 {
				h := dial(t, p.socket)
				if _, err := h.Write(head); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, h)
			}
			begun := time.Now()
			for len(c.body) > 0 && time.Since(begun) < 2*time.Second {
				// All of them, a piece at a time, so that they grow together.
				sent := 0
				for _, h := range conns {
					if piece := c.body[:min(len(c.body), 64<<10)]; trickle(h, piece, 20*time.Millisecond) == len(piece) {
						sent++
					}
				}
				c.body = c.body[min(len(c.body), 64<<10):]
				p.within(t, idle, "40 announced frames of 4 MiB")
				if t.Failed() || sent == 0 {
					break
				}
			}
			p.stillServes(t, good)
			p.within(t, idle, "40 announced frames of 4 MiB")
			for _, h := range conns {
				h.Close()
			}
		})
	}
}

// A peer that asks and never reads is not read any more, and is closed.
func TestHostilePeerThatNeverReads(t *testing.T) {
	save := m{"provider": "large", "token": m{"access_token": "test-large", "expiry": 1, "token_type": "Bearer", "note": strings.Repeat("x", 900<<10)}}
	for _, c := range []struct {
		name, request string
	}{
		{"small answers", `{"v":2,"id":"1","op":"get_api_key","payload":{"name":"openai"}}`},
		{"answers of 900 KiB", `{"v":2,"id":"%d","op":"get_token","payload":{"provider":"large"}}`},
		{"errors", `{"v":2,"id":"1","op":"nonsense"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, idle := hostileHost(t, "[limits]\nrequests_per_second = 1000000\nconnections = 100\n")
			good := dial(t, p.socket)
			if a := good.call("save_token", save); !a.OK {
				t.Fatal(a)
			}
			var conns []*conn
			for range 20 {
				conns = append(conns, dial(t, p.socket))
			}
			var batch []byte
			for i := range 200 {
				request := c.request
				if strings.Contains(request, "%d") {
					request = fmt.Sprintf(request, i)
				}
				batch = append(batch, framed(request)...)
			}
			// Until nobody takes any more.
			for stuck := 0; stuck < len(conns); {
				stuck = 0
				for _, h := range conns {
					if trickle(h, batch, 50*time.Millisecond) < len(batch) {
						stuck++
					}
				}
				p.within(t, idle, "20 peers that do not read")
				if t.Failed() {
					return
				}
			}
			p.stillServes(t, good)
			// The proxy gives up on them, and a write then fails.
			for _, h := range conns {
				eventually(t, 2*patience, "a peer that never reads is closed", func() bool {
					_ = h.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
					_, err := h.Write([]byte{0})
					return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
				})
			}
			p.within(t, idle, "after peers that did not read")
		})
	}
}

func TestHostileBytesOneAtATime(t *testing.T) {
	p, idle := hostileHost(t, "[limits]\nrequests_per_second = 1000\nconnections = 100\n")
	good := dial(t, p.socket)
	var conns []*conn
	for range 50 {
		conns = append(conns, dial(t, p.socket))
	}
	frame := framed(`{"v":2,"id":"1","op":"get_api_key","payload":{"name":"openai"}}`)
	for i := range frame {
		for _, c := range conns {
			if _, err := c.Write(frame[i : i+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range conns {
		if a, err := c.recv(patience); err != nil || !a.OK {
			t.Errorf("a request that came a byte at a time: %+v, %v", a, err)
		}
	}
	p.stillServes(t, good)
	p.within(t, idle, "bytes one at a time")
}

func TestHostileNesting(t *testing.T) {
	p, idle := hostileHost(t, "[limits]\nrequests_per_second = 100000\nconnections = 100\n")
	good := dial(t, p.socket)
	for _, open := range []string{"[", `{"a":`} {
		for _, levels := range []int{10_000, (4<<20 - 200) / len(open)} {
			for _, frame := range []string{
				strings.Repeat(open, levels),
				`{"v":2,"id":"1","op":"list_providers","x":` + strings.Repeat(open, levels),
			} {
				c := dial(t, p.socket)
				c.send(frame)
				c.closed(patience)
				p.within(t, idle, fmt.Sprintf("%d levels of %s", levels, open))
			}
		}
	}
	// Whole, it is a request like others, and refused.
	for range 20 {
		good.send(`{"v":2,"id":"1","op":"list_providers","x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + "}")
		if a, err := good.recv(patience); err != nil || a.Code != "INVALID_REQUEST" {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	p.stillServes(t, good)
	p.within(t, idle, "10,000 levels")
}

// Many connections that ask as fast as they can, and one client who wants one thing.
func TestHostileFloodDelaysNobodyElse(t *testing.T) {
	h := newHost(t)
	h.mustWith(testKey, "key", "set", "openai")
	hostile, other := h.serve(), h.serve()
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := net.Dial("unix", hostile.socket)
		if err != nil {
			return
		}
		defer c.Close()
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_, _ = c.Write(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`))
		frame := bytes.Repeat(framed(`{"v":1,"id":"1","op":"get_api_key","payload":{"name":"openai"}}`), 100)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := c.Write(frame); err != nil {
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-ended }()
	c := dial(t, other.socket)
	for range 50 {
		begun := time.Now()
		if a := c.key("openai"); !a.OK || time.Since(begun) > prompt {
			t.Errorf("%v after %v, while another sandbox floods its own proxy", a, time.Since(begun))
		}
	}
}

// Connections over the limit are refused and do not end the server, nor does running out of descriptors.
func TestHostileTooManyConnections(t *testing.T) {
	h := newHost(t)
	h.configure("[limits]\nconnections = 8\nrequests_per_second = 1000\n")
	h.mustWith(testKey, "key", "set", "openai")
	p := h.serve()
	var conns []*conn
	for range 8 {
		conns = append(conns, dial(t, p.socket))
	}
	over := connect(t, p.socket)
	over.send(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`)
	if a := over.closed(patience); a.OK {
		t.Errorf("the ninth of 8 connections was served: %+v", a)
	}
	for _, c := range conns {
		if a := c.key("openai"); !a.OK {
			t.Error(a)
		}
		c.Close()
	}
	eventually(t, patience, "there is room again", func() bool {
		c := connect(t, p.socket)
		defer c.Close()
		c.send(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`)
		a, err := c.recv(patience)
		return err == nil && a.OK
	})

	few := h.program("/bin/sh", "-c", `ulimit -n 24; exec "$0" serve --json`, credproxy)
	h.configure("[limits]\nconnections = 1000\nrequests_per_second = 1000\n")
	starved := h.serving(few)
	good := dial(t, starved.socket)
	var greedy []*conn
	for range 100 {
		greedy = append(greedy, connect(t, starved.socket))
	}
	if a := good.key("openai"); !a.OK && a.Code != "INTERNAL_ERROR" {
		t.Errorf("without a descriptor to spare for the store: %v", a)
	}
	for _, c := range greedy {
		c.Close()
	}
	eventually(t, patience, "once there are descriptors, old and new clients are served", func() bool {
		c := connect(t, starved.socket)
		defer c.Close()
		if _, err := c.Write(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`)); err != nil {
			return false
		}
		a, err := c.recv(time.Second)
		return err == nil && a.OK && good.key("openai").OK
	})
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", starved.Process.Pid)); err != nil {
		t.Error("the server ended")
	}
}
