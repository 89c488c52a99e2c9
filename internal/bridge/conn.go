package bridge

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/credproxy/credproxy/internal/socket"
)

const (
	recordHead = 2
	maxRecord  = math.MaxUint16
	backlog    = 64 // streams that nobody has accepted yet
)

// kick is a deadline that has passed: it ends the wait of whoever reads or writes.
var kick = time.Unix(1, 0)

// Conn is one connection of a program inside. It behaves as the host's end of a Unix socket does: Close ends both
// directions and never waits, CloseWrite and CloseRead one; errors are io.EOF, [net.ErrClosed], [os.ErrDeadlineExceeded],
// EPIPE and ECONNRESET. What the other end has sent before it closed can still be read, and writing fails as soon as it is known
// to have closed. Two things a program cannot tell: that its input was not read when its connection was closed (it gets end of
// file, never ECONNRESET), and CloseRead, until Close follows.
//
// reading and writing are held by whoever reads or writes; mu guards what stands below it and is never held while waiting.
type Conn struct {
	stream  *yamux.Stream
	streams *streams
	host    *Listener // nil inside
	gone    func()    // called when the other end has closed; may be nil

	reading sync.Mutex
	first   [streamHead]byte
	firstN  int         // bytes of first that have arrived; inside, all of them
	peer    socket.Peer // what first said; UID -1 until then
	inHead  [recordHead]byte
	inN     int // bytes of inHead that have arrived
	left    int // bytes of the record that are still to come

	writing sync.Mutex
	outHead [recordHead]byte
	lead    int // bytes of outHead that are still to be sent
	owed    int // bytes that the record which has begun is still to have

	half  atomic.Bool // Read has come to where the other end sends no more
	hung  atomic.Bool // Read has come to the end of the stream
	ended atomic.Bool // the other end has closed; there may be something left to read

	mu          sync.Mutex
	isClosed    bool
	readClosed  bool
	writeClosed bool
	readUntil   time.Time
	writeUntil  time.Time
	firstUntil  time.Time // for the first bytes, until they are there
}

// Read reads what the other end has sent.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if err := c.readable(); err != nil {
		return 0, err
	}
	if err := c.readFirst(); err != nil {
		return 0, err
	}
	if c.half.Load() || c.hung.Load() {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for c.left == 0 {
		n, err := c.stream.Read(c.inHead[c.inN:])
		c.inN += n
		if n == 0 && err != nil {
			return 0, c.readError(err)
		}
		if c.inN < recordHead {
			continue
		}
		c.inN = 0
		if c.left = int(binary.BigEndian.Uint16(c.inHead[:])); c.left == 0 {
			c.half.Store(true)
			return 0, io.EOF
		}
	}
	n, err := c.stream.Read(p[:min(len(p), c.left)])
	c.left -= n
	if n == 0 && err != nil {
		return 0, c.readError(err)
	}
	return n, nil
}

// readFirst reads who is there. The caller holds reading.
func (c *Conn) readFirst() error {
	if c.firstN == streamHead || c.hung.Load() {
		return nil
	}
	for c.firstN < streamHead {
		n, err := c.stream.Read(c.first[c.firstN:])
		c.firstN += n
		if n > 0 || err == nil {
			continue
		}
		err = c.readError(err)
		if c.mu.Lock(); past(c.firstUntil) {
			c.hung.Store(true) // nothing that comes later counts
		}
		c.mu.Unlock()
		return err
	}
	c.peer = c.host.peer(c.first)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.firstUntil = time.Time{}
	return c.setReadDeadlineLocked()
}

// Peer returns who has connected: the UID is this process's own for a process of the user that the inside runs as, and
// negative for everybody else and where it is unknown; the PID is the one inside. It waits until the inside has said so, at
// most 5 s from Accept. Any goroutine may call it.
func (c *Conn) Peer() socket.Peer {
	c.reading.Lock()
	defer c.reading.Unlock()
	_ = c.readFirst()
	return c.peer
}

// Identify returns c.Peer of a [Conn], and false for other connections.
func Identify(c net.Conn) (socket.Peer, bool) {
	if c, ok := c.(*Conn); ok {
		return c.Peer(), true
	}
	return socket.Peer{}, false
}

// readable reports why nothing can be read, whatever has arrived.
func (c *Conn) readable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.isClosed:
		return net.ErrClosed
	case !c.readClosed && past(c.readUntil):
		return os.ErrDeadlineExceeded
	}
	return nil
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// readError says what an error of the stream means. The caller holds reading.
func (c *Conn) readError(err error) error {
	switch c.mu.Lock(); {
	case c.isClosed:
		err = net.ErrClosed
	case errors.Is(err, yamux.ErrTimeout) && c.readClosed:
		err = io.EOF
	case errors.Is(err, yamux.ErrTimeout):
		err = os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrConnectionReset):
		c.hung.Store(true)
		err = syscall.ECONNRESET
	default: // the end of the stream or of the session
		c.hung.Store(true)
		err = io.EOF
		if c.inN > 0 || c.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	c.mu.Unlock()
	return err
}

// Write returns when everything is on its way, or waits within the time that SetWriteDeadline gives for the other end to read
// what is. The n bytes of a Write that ran out of time arrive, and whatever is written later arrives behind them.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for err == nil {
		if err := c.writable(); err != nil || len(p) == 0 {
			return n, err
		}
		if c.owed == 0 {
			c.owed, c.lead = min(len(p), maxRecord), recordHead
			binary.BigEndian.PutUint16(c.outHead[:], uint16(c.owed))
		}
		m := min(len(p), c.owed)
		b := takeBuffer(c.lead + m)
		copy(b[copy(b, c.outHead[recordHead-c.lead:]):], p[:m])
		var sent int
		sent, err = c.stream.Write(b)
		giveBuffer(b)
		if sent == 0 && c.lead == recordHead { // nothing has been said of a record
			c.owed, c.lead = 0, 0
			break
		}
		head := min(sent, c.lead)
		sent, c.lead = sent-head, c.lead-head
		n, p, c.owed = n+sent, p[sent:], c.owed-sent
	}
	return n, c.writeError(err)
}

// CloseWrite tells the other end that no more will be sent. As Write does, it waits while the other end does not read. After a
// Write that ran out of time, with nothing written since, only the stream's end can tell: that closes the other
// direction, too.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writable(); err != nil && c.lead == 0 {
		return err
	}
	if c.owed > 0 {
		return c.stream.Close()
	}
	if c.lead == 0 {
		c.lead = recordHead
	}
	var zero [recordHead]byte
	sent, err := c.stream.Write(zero[:c.lead])
	c.lead = (c.lead - sent) % recordHead // what is left of it is for another call
	if err != nil && sent == 0 {
		return c.writeError(err)
	}
	c.mu.Lock()
	c.writeClosed = true
	c.mu.Unlock()
	if err != nil {
		return c.writeError(err)
	}
	return nil
}

// writable reports why nothing can be written. The caller holds writing.
func (c *Conn) writable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.isClosed:
		return net.ErrClosed
	case c.writeClosed, c.hung.Load(), c.ended.Load():
		return syscall.EPIPE
	case past(c.writeUntil):
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *Conn) writeError(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.isClosed:
		return net.ErrClosed
	case errors.Is(err, yamux.ErrTimeout) && !c.ended.Load():
		return os.ErrDeadlineExceeded
	}
	return syscall.EPIPE
}

// CloseRead makes Read return io.EOF once it has returned what has arrived; a Read that waits returns at once.
func (c *Conn) CloseRead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed {
		return net.ErrClosed
	}
	c.readClosed = true
	return c.stream.SetReadDeadline(kick)
}

// Close closes both directions. It does not wait: what has been written arrives all the same.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.isClosed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.isClosed = true
	_ = c.stream.SetDeadline(kick)
	c.mu.Unlock()
	_ = c.stream.Close()
	c.streams.remove(c)
	return nil
}

// otherClosed is told when the other end has closed: nobody will read what is written now. It must not wait.
func (c *Conn) otherClosed() {
	c.mu.Lock()
	c.ended.Store(true)
	_ = c.stream.SetWriteDeadline(kick)
	c.mu.Unlock()
	if c.gone != nil {
		c.gone()
	}
}

// HungUp reports whether the other end has closed altogether, rather than said that it will send no more and still reads. What
// it has sent before can still be read. See [socket.HungUp].
func (c *Conn) HungUp() bool {
	return c.ended.Load() || c.hung.Load() || c.stream.Session().IsClosed()
}

// SetDeadline sets the read and the write deadline; the zero time is none.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets when a Read that waits, or a later one, returns os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed {
		return net.ErrClosed
	}
	c.readUntil = t
	return c.setReadDeadlineLocked()
}

func (c *Conn) setReadDeadlineLocked() error {
	until := c.readUntil
	switch {
	case c.isClosed, c.readClosed:
		until = kick
	case !c.firstUntil.IsZero() && (until.IsZero() || c.firstUntil.Before(until)):
		until = c.firstUntil
	}
	return c.stream.SetReadDeadline(until)
}

// SetWriteDeadline does the same for Write and CloseWrite.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed {
		return net.ErrClosed
	}
	c.writeUntil = t
	if c.ended.Load() {
		return nil
	}
	return c.stream.SetWriteDeadline(t)
}

// LocalAddr returns this end's address of the session.
func (c *Conn) LocalAddr() net.Addr { return c.stream.LocalAddr() }

// RemoteAddr returns the other end's address of the session.
func (c *Conn) RemoteAddr() net.Addr { return c.stream.RemoteAddr() }

// buffers are for records on their way; each is wiped before it is given back.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 4<<10)) }}

func takeBuffer(n int) []byte {
	b := *buffers.Get().(*[]byte)
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

func giveBuffer(b []byte) {
	clear(b)
	b = b[:0]
	buffers.Put(&b)
}
