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
// EPIPE and ECONNRESET. What the other end has sent before it closed can still be read.
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
	rest    []byte // of a record that was begun when its time was up: it goes first

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
// what is.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for len(p) > 0 || n == 0 {
		if err := c.writable(); err != nil || len(p) == 0 {
			return n, err
		}
		m := min(len(p), maxRecord)
		record := takeBuffer(recordHead + m)
		binary.BigEndian.PutUint16(record, uint16(m))
		copy(record[recordHead:], p[:m])
		sent, err := c.send(record)
		if sent {
			n, p = n+m, p[m:]
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// CloseWrite tells the other end that no more will be sent. As Write does, it waits while the other end does not read.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writable(); err != nil {
		return err
	}
	taken, err := c.send(takeBuffer(recordHead)) // all zero
	c.mu.Lock()
	c.writeClosed = taken
	c.mu.Unlock()
	return err
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

// send writes a record that takeBuffer has returned, after what is left of the one before. taken is whether the record will be
// sent, even if err says that not all of it is on its way yet. The caller holds writing.
func (c *Conn) send(record []byte) (taken bool, err error) {
	for {
		b := record
		if c.rest != nil {
			b = c.rest
		}
		n, err := c.stream.Write(b)
		switch {
		case err != nil && c.rest != nil:
			c.rest = keepRest(c.rest, n)
			giveBuffer(record)
			return false, c.writeError(err)
		case err != nil && n > 0:
			c.rest = keepRest(record, n)
			return true, c.writeError(err)
		case err != nil:
			giveBuffer(record)
			return false, c.writeError(err)
		}
		giveBuffer(b)
		if c.rest == nil {
			return true, nil
		}
		c.rest = nil
	}
}

// keepRest returns b without its first n bytes, which it wipes.
func keepRest(b []byte, n int) []byte {
	clear(b[:n])
	return b[n:]
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
