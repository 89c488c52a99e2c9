package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// stream is a Conn that has no deadline to keep: it counts what is asked of it.
type stream struct {
	io.Reader
	reads, deadlines int
}

func (s *stream) Read(p []byte) (int, error)        { s.reads++; return s.Reader.Read(p) }
func (s *stream) SetReadDeadline(_ time.Time) error { s.deadlines++; return nil }

func frames(payloads ...string) []byte {
	var b []byte
	for _, p := range payloads {
		b = Append(b, []byte(p))
	}
	return b
}

func readAll(t *testing.T, r *Reader) (got []string, err error) {
	t.Helper()
	for {
		p, err := r.Next()
		if err != nil {
			return got, err
		}
		got = append(got, string(p))
	}
}

func long(n int) string { return string(bytes.Repeat([]byte("x"), n)) }

func TestReaderFrames(t *testing.T) {
	payloads := []string{"a", long(1020), "bb", long(1021), long(4092), long(4093), "c", long(70_000), "d", long(1 << 20), "e", "f"}
	data := frames(payloads...)
	for name, from := range map[string]io.Reader{
		"as it comes":      bytes.NewReader(data),
		"a byte at a time": iotest.OneByteReader(bytes.NewReader(data)),
		"in halves":        iotest.HalfReader(bytes.NewReader(data)),
		"error with data":  iotest.DataErrReader(bytes.NewReader(data)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // so that no frame takes too long, on the slowest machine
				got, err := readAll(t, NewReader(&stream{Reader: from}, 4<<20, NewBudget(1<<20)))
				if err != io.EOF {
					t.Errorf("error %v, want EOF", err)
				}
				if !slices.Equal(got, payloads) {
					t.Errorf("%d frames, not the %d written", len(got), len(payloads))
				}
			})
		})
	}
}

func TestReaderOneReadNoDeadline(t *testing.T) {
	s := &stream{Reader: bytes.NewReader(frames("one", "two", "three"))}
	r := NewReader(s, 100, nil)
	for i, more := range []bool{true, true, false} {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if r.Buffered() != more {
			t.Errorf("after frame %d: Buffered() = %v", i, !more)
		}
	}
	if s.reads != 1 || s.deadlines != 0 {
		t.Errorf("%d reads and %d deadlines for frames in one piece, want 1 and 0", s.reads, s.deadlines)
	}
}

func TestReaderErrors(t *testing.T) {
	header := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, c := range []struct {
		name  string
		in    []byte
		want  error
		after int // good frames first
	}{
		{"nothing", nil, io.EOF, 0},
		{"one frame", frames("a"), io.EOF, 1},
		{"half a header", []byte{0, 0}, io.ErrUnexpectedEOF, 0},
		{"header alone", header(5), io.ErrUnexpectedEOF, 0},
		{"half a payload", append(header(5), "ab"...), io.ErrUnexpectedEOF, 0},
		{"empty", header(0), ErrEmpty, 0},
		{"longest", frames(long(100)), io.EOF, 1},
		{"too long by one", frames("a", long(101)), ErrTooLong, 1},
		{"largest header", header(1<<32 - 1), ErrTooLong, 0},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), ErrTooLong, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readAll(t, NewReader(&stream{Reader: bytes.NewReader(c.in)}, 100, nil))
			if err != c.want || len(got) != c.after {
				t.Errorf("%d frames and %v, want %d and %v", len(got), err, c.after, c.want)
			}
		})
	}
}

func TestReaderRefusesBeforeReading(t *testing.T) {
	payload := &stream{Reader: bytes.NewReader(nil)}
	in := io.MultiReader(bytes.NewReader(frames(long(101))[:HeaderLen]), payload)
	r := NewReader(&stream{Reader: in}, 100, nil)
	if _, err := r.Next(); err != ErrTooLong {
		t.Fatalf("error %v, want %v", err, ErrTooLong)
	}
	if payload.reads > 0 {
		t.Error("the payload of a frame that is too long was read")
	}
	if cap(r.buf) > idleBuffer {
		t.Errorf("%d bytes of buffer for a frame that is too long", cap(r.buf))
	}
}

func TestReaderSetMax(t *testing.T) {
	r := NewReader(&stream{Reader: bytes.NewReader(frames("a", long(200)))}, 100, nil)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if r.SetMax(200); !r.Buffered() {
		t.Error("the second frame is not buffered")
	}
	if p, err := r.Next(); err != nil || len(p) != 200 {
		t.Errorf("%d bytes, error %v", len(p), err)
	}
}

// A buffer is never more than twice what has been received, whatever the header announced.
func TestReaderMemoryFollowsBytes(t *testing.T) {
	const n = 4 << 20
	data := frames(long(n))
	received := 0
	r := NewReader(nil, n, NewBudget(n))
	r.conn = &stream{Reader: readerFunc(func(p []byte) (int, error) {
		if len(r.buf) > max(batchBuffer, 2*received) {
			t.Fatalf("%d bytes of buffer after %d bytes", len(r.buf), received)
		}
		got := copy(p[:min(len(p), 1000)], data[received:])
		received += got
		return got, nil
	})}
	if p, err := r.Next(); err != nil || len(p) != n {
		t.Fatalf("%d bytes, error %v", len(p), err)
	}
	if r.held != n+HeaderLen-freeLen {
		t.Errorf("%d bytes held", r.held)
	}
	r.Release()
	if cap(r.buf) > batchBuffer || r.held != 0 {
		t.Errorf("after the frame: %d bytes of buffer, %d held", cap(r.buf), r.held)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// pipe returns a Reader and the peer's end of its connection, for use in a synctest bubble.
func pipe(t *testing.T, budget *Budget) (*Reader, net.Conn) {
	ours, peer := net.Pipe()
	t.Cleanup(func() { _ = ours.Close(); _ = peer.Close() })
	return NewReader(ours, 4<<20, budget), peer
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
}

func TestPartialTimeout(t *testing.T) {
	data := frames("hello, frame")
	for _, c := range []struct {
		name string
		gaps []time.Duration // before each further byte
		want error
	}{
		{"just in time", []time.Duration{4990 * time.Millisecond}, nil},
		{"too late", []time.Duration{5010 * time.Millisecond}, ErrPartialTimeout},
		{"a trickle", slices.Repeat([]time.Duration{time.Second}, 6), ErrPartialTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, peer := pipe(t, nil)
				written := make(chan struct{})
				go func() {
					defer close(written)
					time.Sleep(time.Hour) // waiting for a first byte has no limit
					rest := data
					for _, gap := range c.gaps {
						if _, err := peer.Write(rest[:1]); err != nil {
							return
						}
						rest = rest[1:]
						time.Sleep(gap)
					}
					_, _ = peer.Write(rest)
				}()
				start := time.Now()
				_, err := r.Next()
				if err != c.want {
					t.Errorf("error %v, want %v", err, c.want)
				}
				if took := time.Since(start) - time.Hour; took > PartialTimeout {
					t.Errorf("took %v", took)
				}
				_ = r.conn.(net.Conn).Close()
				<-written
			})
		})
	}
}

func TestPartialTimeoutStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, peer := pipe(t, nil)
		go func() {
			for _, b := range frames("0123456789", "0123456789") {
				write(t, peer, []byte{b})
				time.Sleep(300 * time.Millisecond) // 28 of them: 8.4 s, 4.2 s a frame
			}
			time.Sleep(time.Hour) // the last frame's deadline must not strike now
			write(t, peer, frames("a"))
		}()
		for range 3 {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestOwnersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, peer := pipe(t, nil)
		start := time.Now()
		next := func(want error, at time.Duration) {
			t.Helper()
			if _, err := r.Next(); !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
			if d := time.Since(start); d != at {
				t.Fatalf("after %v, want %v", d, at)
			}
		}
		// A silent peer.
		r.SetDeadline(start.Add(2 * time.Second))
		next(os.ErrDeadlineExceeded, 2*time.Second)

		// One in the middle of a frame: the earlier deadline counts, and the other one afterwards.
		go write(t, peer, frames("hello")[:5])
		r.SetDeadline(start.Add(4 * time.Second))
		next(os.ErrDeadlineExceeded, 4*time.Second)
		r.SetDeadline(start.Add(time.Minute))
		next(ErrPartialTimeout, 7*time.Second)

		// Without either, the rest of the frame may come.
		r.SetDeadline(time.Time{})
		r.partial = time.Time{}
		go write(t, peer, frames("hello")[5:])
		next(nil, 7*time.Second)
	})
}

func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := NewBudget(1 << 20)
		holder, holderPeer := pipe(t, budget)
		waiter, waiterPeer := pipe(t, budget)
		small, smallPeer := pipe(t, budget)
		start := time.Now()

		big := frames(long(1 << 20))
		go write(t, holderPeer, big)
		if _, err := holder.Next(); err != nil {
			t.Fatal(err)
		}

		got := make(chan error)
		go func() {
			_, err := waiter.Next()
			got <- err
		}()
		go func() { _, _ = waiterPeer.Write(big) }()
		synctest.Wait()
		if waiter.w != freeLen {
			t.Errorf("a reader without budget has read %d bytes", waiter.w)
		}

		go write(t, smallPeer, frames(long(1000)))
		if _, err := small.Next(); err != nil || time.Since(start) > 0 {
			t.Errorf("a small frame beside: %v after %v", err, time.Since(start))
		}

		time.Sleep(time.Second)
		holder.Release()
		if err := <-got; err != nil || time.Since(start) != time.Second {
			t.Errorf("the reader that waited: %v after %v", err, time.Since(start))
		}

		// The budget is with the waiter now: the other one's next long frame times out.
		go func() { _, _ = holderPeer.Write(big) }()
		if _, err := holder.Next(); err != ErrPartialTimeout || time.Since(start) != 6*time.Second {
			t.Errorf("no budget: %v after %v", err, time.Since(start))
		}
		holder.Close()
		waiter.Close()
		if !budget.sem.TryAcquire(1 << 20) {
			t.Error("after both were closed the budget is not whole")
		}
	})
}

// A frame larger than the whole budget takes all of it.
func TestBudgetSmallerThanFrame(t *testing.T) {
	r := NewReader(&stream{Reader: bytes.NewReader(frames(long(1 << 20)))}, 1<<20, NewBudget(1000))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if r.held != 1000 {
		t.Errorf("%d bytes held", r.held)
	}
}

func TestCloseInMidFrame(t *testing.T) {
	budget := NewBudget(1 << 20)
	in := frames(long(1 << 20))[:200_000]
	r := NewReader(&stream{Reader: bytes.NewReader(in)}, 1<<20, budget)
	if _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Fatalf("error %v", err)
	}
	r.Close()
	r.Close()
	if !budget.sem.TryAcquire(1 << 20) {
		t.Error("the budget is not whole")
	}
}

func TestBeginEnd(t *testing.T) {
	b := []byte("before")
	start := len(b)
	b = append(Begin(b), "payload"...)
	End(b, start)
	if want := append([]byte("before"), frames("payload")...); !bytes.Equal(b, want) {
		t.Errorf("%q, want %q", b, want)
	}
}

func TestReaderAllocates(t *testing.T) {
	data := bytes.Repeat(frames(long(100)), 20)
	src := bytes.NewReader(data)
	r := NewReader(&stream{Reader: src}, 1000, NewBudget(1000))
	if n := testing.AllocsPerRun(100, func() {
		src.Reset(data)
		for range 20 {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations for 20 frames", n)
	}
}

// Any way to cut a stream into reads gives the same frames and the same end.
func FuzzReader(f *testing.F) {
	f.Add(frames("a", "bb", long(3000)), []byte{1, 5, 0, 200})
	f.Add([]byte{0, 0, 0, 0}, []byte{1})
	f.Add([]byte{0, 0, 0, 9, 1}, []byte{2, 2})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		want, wantErr := readAll(t, NewReader(&stream{Reader: bytes.NewReader(data)}, 5000, nil))
		rest, i := data, 0
		in := readerFunc(func(p []byte) (int, error) {
			if len(rest) == 0 {
				return 0, io.EOF
			}
			n := len(p)
			if len(cuts) > 0 {
				n = int(cuts[i%len(cuts)]) + 1
				i++
			}
			n = copy(p[:min(n, len(p))], rest)
			rest = rest[n:]
			return n, nil
		})
		got, err := readAll(t, NewReader(&stream{Reader: in}, 5000, nil))
		if err != wantErr || !slices.Equal(got, want) {
			t.Errorf("%d frames and %v, whole: %d frames and %v", len(got), err, len(want), wantErr)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	b.ReportAllocs()
	data := bytes.Repeat(frames(long(120)), 16)
	src := bytes.NewReader(data)
	r := NewReader(&stream{Reader: src}, 1000, nil)
	for b.Loop() {
		if src.Len() == 0 && !r.Buffered() {
			src.Reset(data)
		}
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}
