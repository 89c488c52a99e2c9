package bridge

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
)

const (
	frameWindow = 1
	frameGoAway = 3
)

// frame is one of yamux's. length counts only where there is no payload.
func frame(kind byte, flags uint16, id, length uint32, payload ...byte) []byte {
	if len(payload) > 0 {
		length = uint32(len(payload))
	}
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, payload...)
}

func open(id uint32) []byte { return frame(frameWindow, flagSYN, id, 0) }

var ownHead = make([]byte, streamHead)

// intruder is an inside that has proved itself and then does as it likes.
type intruder struct {
	*testing.T
	*Listener
	tls *tls.Conn
}

func intrude(t *testing.T, limits times) *intruder {
	t.Helper()
	l := start(t, Options{}, limits)
	i := &intruder{t, l, attachRaw(t, l)}
	<-l.Attached()
	return i
}

func (i *intruder) write(frames ...[]byte) {
	i.Helper()
	if _, err := i.tls.Write(bytes.Join(frames, nil)); err != nil {
		i.Fatal(err)
	}
}

func (i *intruder) accept() *Conn {
	i.Helper()
	c, err := i.Accept()
	if err != nil {
		i.Fatal(err)
	}
	i.Cleanup(func() { _ = c.Close() })
	return c.(*Conn)
}

// ends expects the session to end by itself.
func (i *intruder) ends() {
	i.Helper()
	select {
	case <-i.Lost():
	case <-time.After(patience):
		i.Error("the session goes on")
	}
}

func TestBadFramesEndTheSession(t *testing.T) {
	flood := func(n int) (b []byte) {
		for i := range n {
			b = append(b, open(uint32(2*i+1))...)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"garbage":                  []byte(strings.Repeat("garbage ", 100)),
		"another version":          {1, frameWindow, 0, flagSYN, 0, 0, 0, 1, 0, 0, 0, 0},
		"no such type":             frame(4, 0, 0, 0),
		"a ping":                   frame(framePing, flagSYN, 0, 7),
		"an answer to a ping":      frame(framePing, 2, 0, 7),
		"going away in error":      frame(frameGoAway, 0, 0, 1),
		"a stream twice":           append(open(1), open(1)...),
		"an end twice":             append(open(1), append(frame(frameData, flagFIN, 1, 0), frame(frameData, flagFIN, 1, 0)...)...),
		"more than the window":     append(open(1), frame(frameData, 0, 1, 1<<20)...),
		"streams without end":      flood(10_000),
		"more streams than may be": flood(2*backlog + 1),
	} {
		t.Run(name, func(t *testing.T) {
			i := intrude(t, patientTimes())
			_, _ = i.tls.Write(b) // it may end before all is written
			i.ends()
		})
	}
}

// Frames about streams that are not there change nothing.
func TestFramesOfNoStream(t *testing.T) {
	i := intrude(t, patientTimes())
	i.write(
		frame(frameData, 0, 99, 0, make([]byte, 100<<10)...), frame(frameWindow, 0, 98, 1<<31), frame(frameData, flagFIN, 97, 0),
		frame(frameWindow, flagRST, 96, 0), frame(frameWindow, flagSYN, 2, 0), frame(frameData, flagSYN|flagFIN, 1, 0),
		open(3), frame(frameData, 0, 3, 0, ownHead...), frame(frameData, 2, 3, 0, 0, 2, 'o', 'k'))
	for _, want := range []string{"", "", "ok"} {
		c := i.accept()
		if want == "" {
			continue
		}
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Errorf("read %q, %v; want %q", b, err, want)
		}
	}
}

func TestFirstBytes(t *testing.T) {
	head := func(kind byte, uid, pid uint32) []byte {
		b := binary.BigEndian.AppendUint32([]byte{kind}, uid)
		return binary.BigEndian.AppendUint32(b, pid)
	}
	foreign := socket.Peer{UID: -1, PID: 7, Container: "0123456789ab"}
	nobody := socket.Peer{UID: -1}
	for _, tt := range []struct {
		name string
		sent []byte
		want socket.Peer
	}{
		{"own", head(peerOwn, 33, 7), socket.Peer{UID: os.Geteuid(), PID: 7, Container: "0123456789ab"}},
		{"foreign", head(peerForeign, 33, 7), foreign},
		{"foreign, with our UID", head(peerForeign, uint32(os.Geteuid()), 7), foreign},
		{"unknown", head(peerForeign, unknownUID, 0), socket.Peer{UID: -1, Container: "0123456789ab"}},
		{"no such kind", head(9, 0, 7), foreign},
		{"no such PID", head(peerOwn, 0, 1<<31), socket.Peer{UID: os.Geteuid(), Container: "0123456789ab"}},
		{"nothing", nil, nobody},
		{"not all", head(peerOwn, 0, 7)[:streamHead-1], nobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limits := patientTimes()
			if tt.want == nobody { // it is waited for in vain
				limits.first = 100 * time.Millisecond
			}
			i := intrude(t, limits)
			i.SetContainer("0123456789ab")
			i.write(open(1))
			if tt.sent != nil {
				i.write(frame(frameData, 0, 1, 0, tt.sent...))
			}
			c := i.accept()
			if got, ok := Identify(c); !ok || got != tt.want {
				t.Errorf("%+v, %v; want %+v", got, ok, tt.want)
			}
			if tt.want != nobody {
				return
			}
			i.write(frame(frameData, 0, 1, 0, append(ownHead, 0, 2, 'o', 'k')...)) // too late
			if n, err := c.Read(make([]byte, 8)); n != 0 || err != io.EOF || !c.HungUp() {
				t.Errorf("read %d, %v; want the end", n, err)
			}
			if got := c.Peer(); got != nobody {
				t.Errorf("then %+v", got)
			}
		})
	}
	if _, ok := Identify(&net.UnixConn{}); ok {
		t.Error("a Unix socket is said to be carried")
	}
}

// A stream whose first bytes do not come is closed by its owner at any time.
func TestCloseEndsIdentify(t *testing.T) {
	i := intrude(t, patientTimes())
	i.write(open(1))
	c := i.accept()
	got := make(chan socket.Peer, 1)
	go func() { got <- c.Peer() }()
	_ = c.Close()
	if p := <-got; p.UID != -1 {
		t.Errorf("%+v", p)
	}
}

func TestBadRecords(t *testing.T) {
	// By itself, as an end of ours has it: of a frame with both, yamux heeds the end before the data.
	end := frame(frameWindow, flagFIN, 1, 0)
	for _, tt := range []struct {
		name string
		sent [][]byte
		want string
		err  error
	}{
		{"an end in a length", [][]byte{frame(frameData, 0, 1, 0, 0), end}, "", io.ErrUnexpectedEOF},
		{"an end in a record", [][]byte{frame(frameData, 0, 1, 0, 0, 3, 'o', 'k'), end}, "ok", io.ErrUnexpectedEOF},
		{"more after no more", [][]byte{frame(frameData, 0, 1, 0, 0, 2, 'o', 'k', 0, 0, 0, 1, 'x')}, "ok", io.EOF},
		{"a reset", [][]byte{frame(frameWindow, flagRST, 1, 0)}, "", syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := intrude(t, patientTimes())
			i.write(open(1), frame(frameData, 0, 1, 0, ownHead...))
			c := i.accept()
			if p := c.Peer(); p.UID != os.Geteuid() {
				t.Fatal(p)
			}
			i.write(tt.sent...)
			var all []byte
			for b := make([]byte, 8); ; {
				n, err := c.Read(b)
				all = append(all, b[:n]...)
				if err == nil {
					continue
				}
				if err != tt.err || string(all) != tt.want {
					t.Errorf("%q, %v; want %q, %v", all, err, tt.want, tt.err)
				}
				break
			}
			if got, want := c.HungUp(), tt.err != io.EOF; got != want {
				t.Errorf("HungUp: %v, want %v", got, want)
			}
		})
	}
}

// An inside that never closes a stream, and fills each to the brim, takes a bounded part of memory; what the host
// has closed is forgotten after a while.
func TestStreamsThatAreNeverClosed(t *testing.T) {
	limits := patientTimes()
	limits.linger = 200 * time.Millisecond
	i := intrude(t, limits)
	before := heap()
	go func() { _, _ = io.Copy(io.Discard, i.tls) }()
	full := frame(frameData, 0, 0, 0, make([]byte, 256<<10)...)
	const streams = 2 * maxClosing
	waiting := make(chan struct{}, backlog) // it opens no more at once than it may
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for n := range uint32(streams) {
			waiting <- struct{}{}
			binary.BigEndian.PutUint32(full[4:], 2*n+1)
			if _, err := i.tls.Write(append(open(2*n+1), full...)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	most := 0
	for range streams {
		c, err := i.Accept()
		if err != nil {
			t.Fatal(err)
		}
		<-waiting
		_ = c.Close()
		most = max(most, i.session.NumStreams())
	}
	<-sent
	if most > maxClosing+2*backlog+1 {
		t.Errorf("%d streams at once", most)
	}
	if n := heap() - before; n > (maxClosing+2*backlog)*(768<<10) {
		t.Errorf("they took %d KiB", n>>10)
	}
	systest.Until(t, "they are forgotten", func() bool { return i.session.NumStreams() == 0 })
	systest.Until(t, "memory is back", func() bool { return heap()-before < 8<<20 })
	i.write(open(9999), frame(frameData, 0, 9999, 0, ownHead...))
	if p := i.accept().Peer(); p.UID != os.Geteuid() {
		t.Errorf("then %+v", p)
	}
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// An inside that grants itself everything and reads nothing is cut off before it has cost much.
func TestNeverReads(t *testing.T) {
	i := intrude(t, patientTimes())
	i.write(open(1), frame(frameWindow, 0, 1, 1<<31), frame(frameData, 0, 1, 0, ownHead...))
	c := i.accept()
	if p := c.Peer(); p.UID != os.Geteuid() {
		t.Fatal(p)
	}
	b := make([]byte, 1<<20)
	n := 0
	for {
		m, err := c.Write(b)
		n += m
		if err != nil {
			if !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write: %v, want EPIPE", err)
			}
			break
		}
	}
	if n > 2*maxUnsent {
		t.Errorf("%d MiB were written", n>>20)
	}
	i.ends()
}

// pausable is an inside's way to the host, on which nothing moves while it is paused.
type pausable struct {
	net.Conn
	gate chan struct{} // holds a token while it is not paused
}

func (p *pausable) pass() { <-p.gate; p.gate <- struct{}{} }

func (p *pausable) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.pass()
	return n, err
}

func (p *pausable) Write(b []byte) (int, error) { p.pass(); return p.Conn.Write(b) }

// A paused inside finds its session again, however long it was away: longer than streams linger, here. What was written to a
// connection that stays open is there; the host was not held up meanwhile.
func TestPause(t *testing.T) {
	limits := patientTimes()
	limits.linger = 50 * time.Millisecond
	way := &pausable{gate: make(chan struct{}, 1)}
	way.gate <- struct{}{}
	p := newPairOver(t, limits, func(c net.Conn) net.Conn { way.Conn = c; return way })
	inside, host := p.connect(t)
	_, closed := p.connect(t)
	<-way.gate
	// None of this would ever come back if it waited for the inside.
	answer := bytes.Repeat([]byte("x"), 128<<10)
	if _, err := host.Write(answer); err != nil {
		t.Error(err)
	}
	_ = closed.Close()
	n := fill(&ends{T: t}, host) // the rest of its window
	systest.Until(t, "the closed stream is forgotten", func() bool { return p.l.session.NumStreams() == 1 })
	way.gate <- struct{}{}
	if got, err := io.ReadAll(io.LimitReader(inside, int64(len(answer)+n))); err != nil || !bytes.HasPrefix(got, answer) || len(got) != len(answer)+n {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(answer)+n)
	}
	_ = host.SetDeadline(time.Time{})
	again, there := p.connect(t)
	e := &ends{t, again, there}
	e.send(again, "question")
	e.recv(there, "question")
}

// Whatever an inside sends once it has proved itself, the host neither panics nor hangs.
func FuzzFrames(f *testing.F) {
	f.Add(open(1))
	f.Add(bytes.Join([][]byte{open(1), frame(frameData, 0, 1, 0, append(ownHead, 0, 1, 'x', 0, 0)...), frame(frameData, flagFIN, 1, 0)}, nil))
	f.Add(bytes.Join([][]byte{open(1), frame(frameData, flagFIN, 1, 0, 0, 0, 0), frame(frameWindow, flagRST, 1, 0)}, nil))
	f.Add(frame(frameGoAway, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newListener(Options{}, times{first: 10 * time.Millisecond, linger: 10 * time.Millisecond})
		mine, theirs := net.Pipe()
		go l.carry(plain{theirs}, "a pipe")
		accepting := make(chan struct{})
		go func() {
			defer close(accepting)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.SetDeadline(time.Now().Add(10 * time.Millisecond))
				Identify(c)
				_, _ = io.Copy(io.Discard, c)
				_, _ = c.Write([]byte("answer"))
				_ = c.Close()
			}
		}()
		read := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, mine); close(read) }()
		_, _ = mine.Write(b)
		_ = mine.Close()
		<-read
		<-l.Lost()
		l.cancel()
		<-accepting
	})
}

// plain has no TLS.
type plain struct{ net.Conn }

func (p plain) NetConn() net.Conn { return p.Conn }
func (p plain) CloseWrite() error { return nil }
