package frame

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"time"
)

// Conn is what a Reader reads from.
type Conn interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

const (
	idleBuffer  = 1 << 10 // what a quiet connection holds
	batchBuffer = 4 << 10 // what one that sends many frames at once holds
)

// Reader reads frames. One goroutine at a time may use it; [Reader.SetDeadline] is part of that.
//
// The Reader owns the connection's read deadline: it is the earlier of the owner's ([Reader.SetDeadline]) and the end
// of the time for the frame that has begun. Nobody else may set it. To stop a blocked Next from another goroutine,
// close the connection or its reading side.
//
// Memory follows the bytes received: the buffer begins small, doubles when it is full, whatever the header announced,
// and is small again after a long frame.
type Reader struct {
	conn   Conn
	max    int
	within time.Duration // a frame that has begun is complete
	budget *Budget
	held   int64 // bytes taken from the budget for the current frame

	buf     []byte // buf[r:w] has been read and not yet given out
	r, w    int
	given   int  // length of the frame, with its header, that the last Next returned; it still stands at buf[r:]
	crowded bool // a read has filled the buffer: the peer sends more at once than fits

	owner   time.Time // the owner's deadline, or zero
	partial time.Time // when the incomplete frame at buf[r:] must be complete; zero while there is none
	set     time.Time // the deadline that the connection has now
}

// NewReader returns a Reader of conn for payloads of up to max bytes. budget may be shared by many Readers, and nil.
func NewReader(conn Conn, max int, budget *Budget) *Reader {
	return &Reader{conn: conn, max: max, within: PartialTimeout, budget: budget}
}

// SetMax sets the largest payload, from the next frame on.
func (r *Reader) SetMax(n int) { r.max = n }

// SetPartialTimeout sets how long a frame that has begun may take, from the next frame on; without it that is [PartialTimeout].
func (r *Reader) SetPartialTimeout(d time.Duration) { r.within = d }

// SetDeadline sets the time at which Next gives up with [os.ErrDeadlineExceeded], whatever has arrived by then; the
// zero time is never. After that error the Reader can be used on: nothing that was read is lost.
func (r *Reader) SetDeadline(t time.Time) { r.owner = t }

// Next returns the payload of the next frame. It is valid until the next call of Next, Release or Close.
//
// The error is io.EOF when the peer closed between two frames, and io.ErrUnexpectedEOF within one; [ErrTooLong] or
// [ErrEmpty] when the header says so, before anything of the payload is read or room is made for it;
// [ErrPartialTimeout]; or what the connection returned.
func (r *Reader) Next() ([]byte, error) {
	r.Release()
	for {
		n, ok, err := r.header(r.r)
		if err != nil {
			return nil, err
		}
		if ok && r.w-r.r >= n {
			r.partial = time.Time{}
			r.given = n
			return r.buf[r.r+HeaderLen : r.r+n], nil
		}
		if r.w > r.r && r.partial.IsZero() {
			r.partial = time.Now().Add(r.within)
		}
		if err := r.fill(n); err != nil {
			return nil, r.fault(err)
		}
	}
}

// Buffered reports whether Next would return without reading: the next frame, or a bad header, has arrived already.
func (r *Reader) Buffered() bool {
	at := r.r + r.given
	n, ok, err := r.header(at)
	return err != nil || ok && r.w-at >= n
}

// Release gives the last payload up, with what it took from the budget. Next does so by itself: call it when Next will
// not be called soon.
func (r *Reader) Release() {
	if r.given == 0 {
		return
	}
	r.r += r.given
	r.given = 0
	if len(r.buf) > batchBuffer {
		// It was grown for this frame, to its exact length: nothing follows it.
		r.Close()
	}
}

// Close gives up everything that the Reader holds. The connection is its owner's to close.
func (r *Reader) Close() {
	r.buf, r.r, r.w, r.given = nil, 0, 0, 0
	r.budget.release(r.held)
	r.held = 0
}

// header returns the length of the frame at buf[at:], with its header. ok is false when the header is incomplete.
func (r *Reader) header(at int) (n int, ok bool, err error) {
	if r.w-at < HeaderLen {
		return HeaderLen, false, nil
	}
	length := binary.BigEndian.Uint32(r.buf[at:])
	switch {
	case length == 0:
		return 0, true, ErrEmpty
	case uint64(length) > uint64(r.max):
		return 0, true, ErrTooLong
	}
	return HeaderLen + int(length), true, nil
}

// fill reads once; the frame at buf[r:] is n bytes long, as far as is known.
func (r *Reader) fill(n int) error {
	if err := r.makeRoom(n); err != nil {
		return err
	}
	until := r.owner
	if until.IsZero() || !r.partial.IsZero() && r.partial.Before(until) {
		until = r.partial
	}
	if until != r.set {
		if err := r.conn.SetReadDeadline(until); err != nil {
			return err
		}
		r.set = until
	}
	got, err := r.conn.Read(r.buf[r.w:])
	r.w += got
	r.crowded = r.crowded || r.w == len(r.buf)
	if got > 0 {
		return nil // an error will come again
	}
	return err
}

// makeRoom makes buf[w:] non-empty.
func (r *Reader) makeRoom(n int) error {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	size := idleBuffer
	if r.crowded {
		size = batchBuffer
	}
	if len(r.buf) >= size {
		if r.w < len(r.buf) {
			return nil
		}
		// The frame is longer than the buffer.
		size = max(batchBuffer, min(2*len(r.buf), n))
		if size > freeLen && r.held == 0 {
			if err := r.reserve(n - freeLen); err != nil {
				return err
			}
		}
	}
	r.buf = append(make([]byte, 0, size), r.buf[:r.w]...)[:size]
	return nil
}

// reserve takes n bytes from the budget; waiting for them is a part of the frame's time.
func (r *Reader) reserve(n int) (err error) {
	until := r.partial
	if !r.owner.IsZero() && r.owner.Before(until) {
		until = r.owner
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	held, err := r.budget.acquire(ctx, n)
	if err != nil {
		return os.ErrDeadlineExceeded
	}
	r.held = held
	return nil
}

// fault says what err means in the middle of a frame.
func (r *Reader) fault(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		// Of the two deadlines, the earlier one has struck.
		if !r.partial.IsZero() && (r.owner.IsZero() || !r.owner.Before(r.partial)) {
			return ErrPartialTimeout
		}
	case errors.Is(err, io.EOF) && r.w > r.r:
		return io.ErrUnexpectedEOF
	}
	return err
}
