package bridge

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// maxUnsent bounds what waits for the other end to read. yamux lets each stream send 256 KiB ahead, so an end of ours that is
// only paused stays far below.
const maxUnsent = 64 << 20

var (
	errUnread = errors.New("the other end does not read")
	errPing   = errors.New("the other end sends frames that neither end has a use for")
	errFlood  = errors.New("the other end opens more streams than it may")
)

// yamux's frames: version, type, flags (2), stream (4), length (4).
const (
	frameHead  = 12
	frameData  = 0
	framePing  = 2
	flagSYN    = 1
	flagFIN    = 4
	flagRST    = 8
	spareLimit = 64 << 10 // a buffer that has grown beyond is not kept
)

// What the host reads and has no use for costs the inside next to nothing, and would cost the host a core. It reads so much in this time.
const (
	mostWaste  = 2 << 20
	wasteTime  = 50 * time.Millisecond
	emptyFrame = 4 << 10 // what a frame that carries nothing counts for
)

// secured is a *tls.Conn.
type secured interface {
	net.Conn
	CloseWrite() error
	NetConn() net.Conn // what it is over
}

// line is what yamux writes its frames to and reads them from.
//
// Write never waits: frames are collected, and a goroutine of the line's own sends whatever has come together. So nothing that
// yamux does, with or without a lock of its own, ever waits for an end that is paused; only the window of a stream makes its
// writer wait, and that wait has deadlines. What is collected is bounded and wiped when it is sent.
//
// mu guards what stands below it. Read belongs to yamux's reading goroutine.
type line struct {
	conn    secured
	streams *streams      // told which streams begin and end
	done    chan struct{} // closed when the sending goroutine has ended

	in        [frameHead]byte // the frame header that is arriving
	inN       int             // bytes of it
	ins       uint32          // bytes of the payload that are still to come
	insWasted bool            // nobody will read them
	waste     int             // bytes, since wasteFrom
	wasteFrom time.Time

	mu      sync.Mutex
	changed sync.Cond // out has grown, has been sent, or err is set
	out     []byte    // frames that nobody has sent yet
	torn    bool      // out ends with a header whose payload is about to come
	sending bool
	err     error
}

// newLine starts the sending goroutine. Close ends it.
func newLine(conn secured, streams *streams) *line {
	l := &line{conn: conn, streams: streams, done: make(chan struct{})}
	l.changed.L = &l.mu
	go l.send()
	return l
}

func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && len(l.out)+len(p) > maxUnsent {
		l.failLocked(errUnread)
	}
	if l.err != nil {
		return 0, l.err
	}
	l.out = appendWiping(l.out, p)
	// yamux writes the header of a data frame and then its payload. They go out together.
	l.torn = !l.torn && len(p) == frameHead && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0
	if !l.torn {
		l.changed.Broadcast()
	}
	return len(p), nil
}

// appendWiping is append that leaves no copy behind.
func appendWiping(b, more []byte) []byte {
	if need := len(b) + len(more); need > cap(b) {
		grown := make([]byte, len(b), max(need, 2*cap(b), 1<<10))
		copy(grown, b)
		clear(b)
		b = grown
	}
	return append(b, more...)
}

func (l *line) send() {
	defer close(l.done)
	var spare []byte
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.err == nil && (len(l.out) == 0 || l.torn) {
			l.changed.Wait()
		}
		if l.err != nil {
			clear(l.out)
			l.out = nil
			return
		}
		b := l.out
		l.out, l.sending = spare, true
		l.mu.Unlock()
		_, err := l.conn.Write(b)
		clear(b)
		l.mu.Lock()
		l.sending, spare = false, nil
		if cap(b) <= spareLimit {
			spare = b[:0]
		}
		if err != nil {
			l.failLocked(err)
		}
		l.changed.Broadcast()
	}
}

func (l *line) failLocked(why error) {
	if l.err != nil {
		return
	}
	l.err = why
	l.changed.Broadcast()
	// TLS's own Close would say goodbye first, which may take seconds. yamux's reader sees the end, and ends the session.
	_ = l.conn.NetConn().Close()
}

// drain waits until everything is sent or the line is closed.
func (l *line) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && (len(l.out) > 0 || l.sending) {
		l.changed.Wait()
	}
}

// Read returns what has arrived. yamux acts on it afterwards: a Conn knows that the other end has closed before its reader
// comes to the end of the stream.
func (l *line) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	if bad := l.inspect(p[:n]); bad != nil {
		return 0, bad
	}
	if l.waste >= mostWaste && l.streams.accepts {
		l.rest()
	}
	return n, err
}

// rest waits as long as it takes to have read no faster than is allowed.
func (l *line) rest() {
	timer := time.NewTimer(time.Duration(l.waste)*wasteTime/mostWaste - time.Since(l.wasteFrom))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.done:
	}
	l.waste, l.wasteFrom = 0, time.Now()
}

// inspect looks at the frame headers in b.
func (l *line) inspect(b []byte) error {
	for len(b) > 0 {
		if l.ins > 0 {
			skip := min(uint64(l.ins), uint64(len(b)))
			l.ins -= uint32(skip)
			if l.insWasted {
				l.waste += int(skip)
			}
			b = b[skip:]
			continue
		}
		k := copy(l.in[l.inN:], b)
		b, l.inN = b[k:], l.inN+k
		if l.inN < frameHead {
			continue
		}
		l.inN = 0
		switch l.in[1] {
		case frameData:
			l.ins = binary.BigEndian.Uint32(l.in[8:])
		case framePing: // which neither end sends; yamux would start a goroutine for each
			return errPing
		}
		flags, id := binary.BigEndian.Uint16(l.in[2:]), binary.BigEndian.Uint32(l.in[4:])
		if flags&flagSYN != 0 && !l.streams.opened(id) {
			return errFlood
		}
		// Who reads fast what a stream brings sends an update of its window for every 128 KiB.
		live, ends := l.streams.live(id), flags&(flagFIN|flagRST) != 0
		if l.insWasted = !live; !live || l.ins == 0 && !ends && flags&flagSYN == 0 {
			l.waste += emptyFrame
		}
		if ends {
			l.streams.ended(id)
		}
	}
	return nil
}

// end closes a session and its line such that the other end gets what was written before, if it takes it within drainTime.
func end(session *yamux.Session, l *line) {
	limit := time.AfterFunc(drainTime, func() { _ = l.Close() })
	defer limit.Stop()
	l.drain()
	_ = l.conn.CloseWrite()
	if half, ok := l.conn.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		<-session.CloseChan() // the other end closes too
	}
	_ = session.Close()
	<-l.done
}

// Close closes the connection, without the goodbye of TLS, for which nobody can wait here, and ends the sending goroutine without
// waiting for it. What is not sent yet is lost.
func (l *line) Close() error {
	l.mu.Lock()
	if l.err == nil {
		l.err = net.ErrClosed
		l.changed.Broadcast()
	}
	l.mu.Unlock()
	return l.conn.NetConn().Close()
}
