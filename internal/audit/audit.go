// Package audit keeps the audit log: one line of JSON for every operation, in a file that several proxies of one user share.
//
// [Open] a [Log], [Log.Record] an [Event] for every operation, [Log.Close] it last. Record puts the line into memory and returns;
// half a second later at most, one goroutine writes what has gathered. Nothing is dropped: what cannot be written waits, and when
// too much waits, Record does. docs/audit-log.md describes the file.
package audit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// flushDelay is how long an event may stay in memory alone, less some time to write it: 500 ms is what is promised.
	flushDelay = 400 * time.Millisecond

	// flushSize is how many bytes are written without waiting for the delay, and the most that one write takes.
	flushSize = 256 << 10

	// maxWaiting is how many bytes may wait for a file that cannot be written. Then Record blocks, and with it the operation that
	// it would record: what cannot be logged is not done.
	maxWaiting = 1 << 20

	// quietSize is how large a buffer may stay while little is recorded.
	quietSize = 64 << 10

	// lineSize is more than a line has: seven names of 64 characters and what stands between them.
	lineSize = 768

	// retryDelay is the time between two attempts at a file that cannot be written.
	retryDelay = time.Second
)

// Options are for Open. The zero value is good.
type Options struct {
	MaxSize int64        // in bytes, of a file before it is rotated; at least 4 KiB; 0: 16 MiB
	Keep    int          // how many rotated files stay; 0: 4
	Logger  *slog.Logger // told when the log cannot be written, and when it can again; nil: slog.Default()
}

// A Log is an open audit log. Its methods may be called from any goroutine.
//
// Two parties share it. Callers of Record append to buf under mu. The writer, one goroutine that Open starts and Close waits for,
// swaps buf for an empty one under mu and writes what it took without it; out and file are the writer's alone.
type Log struct {
	path   string
	proxy  int // our PID, in every line
	logger *slog.Logger

	mu     sync.Mutex
	space  sync.Cond // under mu: taken shrank, or closed was set
	buf    []byte    // whole lines that the writer has not taken
	spare  []byte    // empty: the buf after the next
	taken  int       // bytes in out
	closed bool      // the writer has gone

	wake    chan struct{}        // capacity 1: buf is no longer empty
	full    chan struct{}        // capacity 1: buf has passed flushSize
	closing chan context.Context // capacity 1: Close was called, and has this long
	done    chan struct{}        // closed by the writer when it has gone
	once    sync.Once
	failure error // what Close answers; written by the writer before done is closed

	out      []byte // whole lines that the writer has yet to write
	file     *file
	problem  string // the error that was logged last; empty: none
	overflow bool   // it was logged that callers wait
}

// Open opens the log at path for appending, or makes it (0600), and starts the writer. The directory must exist. A file that is a
// symbolic link, belongs to someone else or is open to others is refused.
func Open(path string, opts Options) (*Log, error) {
	if opts.MaxSize <= 0 {
		opts.MaxSize = 16 << 20
	}
	opts.MaxSize = max(opts.MaxSize, 4<<10) // a line always fits
	if opts.Keep <= 0 {
		opts.Keep = 4
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	l := &Log{
		path: path, proxy: os.Getpid(), logger: opts.Logger,
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1), closing: make(chan context.Context, 1), done: make(chan struct{}),
		file: &file{path: path, max: opts.MaxSize, keep: opts.Keep, logger: opts.Logger},
	}
	l.space.L = &l.mu
	if err := l.file.open(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	go l.run()
	return l, nil
}

// Record adds e to the log and does not keep it. It touches no file; it blocks only while 1 MiB of events wait for a file that cannot be
// written. An event that comes after Close is lost, which is logged as an error.
func (l *Log) Record(e *Event) {
	// Many record at once: what takes time is done before they meet.
	line := appendEvent(make([]byte, 0, lineSize), e, l.proxy)
	l.mu.Lock()
	for l.taken+len(l.buf) >= maxWaiting && !l.closed {
		l.space.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		l.logger.Error("audit event lost: the log is closed", "path", l.path)
		return
	}
	before := len(l.buf)
	l.buf = append(l.buf, line...)
	after := len(l.buf)
	l.mu.Unlock()
	if before == 0 {
		signal(l.wake)
	}
	if before < flushSize && after >= flushSize {
		signal(l.full)
	}
}

// Close writes what waits, syncs the file and stops the writer. If the file cannot be written it tries on until ctx is done, and then
// says how many events are lost. Further calls answer the same.
func (l *Log) Close(ctx context.Context) error {
	l.once.Do(func() { l.closing <- ctx })
	<-l.done // soon after ctx is done: the writer asks it between attempts
	return l.failure
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run is the writer. While buf is empty no timer runs, so an idle proxy does not wake up.
func (l *Log) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	<-timer.C
	for {
		select {
		case ctx := <-l.closing:
			l.drain(ctx, timer)
			return
		case <-l.wake:
		}
		timer.Reset(flushDelay)
		quiet := false
		select {
		case ctx := <-l.closing:
			l.drain(ctx, timer)
			return
		case <-l.full:
		case <-timer.C:
			quiet = true
		}
		for l.flush() != nil {
			timer.Reset(retryDelay)
			select {
			case ctx := <-l.closing:
				l.drain(ctx, timer)
				return
			case <-timer.C:
			}
		}
		if quiet {
			l.shrink()
		}
	}
}

// shrink gives back what load or an outage has grown. Under load, on the other hand, the same two buffers go back and forth, and
// nothing is allocated.
func (l *Log) shrink() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cap(l.spare) > quietSize {
		l.spare = nil
	}
	if len(l.buf) == 0 && cap(l.buf) > quietSize {
		l.buf = nil
	}
}

// drain is the end of run.
func (l *Log) drain(ctx context.Context, timer *time.Timer) {
	err := l.flush()
	for err != nil && ctx.Err() == nil {
		timer.Reset(retryDelay)
		select {
		case <-ctx.Done():
		case <-timer.C:
			err = l.flush()
		}
	}
	l.mu.Lock()
	l.closed = true
	late := l.buf // recorded since the last flush
	l.buf = nil
	l.space.Broadcast()
	l.mu.Unlock()
	l.out = append(l.out, late...)
	if err == nil && len(l.out) > 0 {
		err = l.write()
	}
	if n := bytes.Count(l.out, []byte{'\n'}); n > 0 {
		l.failure = fmt.Errorf("audit log: %d events could not be written: %w", n, err)
	}
	if err := l.file.close(); err != nil && l.failure == nil {
		l.failure = fmt.Errorf("audit log: %w", err)
	}
}

// flush writes what has been recorded until now. Events that come meanwhile wait for the next time, unless they are many: else the
// writer would never rest under load, and write a few lines at a time. What it could not write stays in out.
func (l *Log) flush() error {
	for least := 1; len(l.out) > 0 || l.take(least); least = flushSize {
		if err := l.write(); err != nil {
			l.complain(err)
			return err
		}
		if l.problem != "" {
			l.logger.Warn("audit log can be written again", "path", l.path)
			l.problem, l.overflow = "", false
		}
	}
	return nil
}

// take swaps buf for an empty one if there are at least so many bytes in it, and reports whether it has.
func (l *Log) take(least int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) < least {
		return false
	}
	l.out, l.buf, l.spare = l.buf, l.spare, nil
	l.taken = len(l.out)
	return true
}

// write writes out, and makes room as it goes.
func (l *Log) write() error {
	whole := l.out
	for len(l.out) > 0 {
		n, err := l.file.append(firstLines(l.out, int(min(flushSize, l.file.max))))
		l.out = l.out[n:]
		l.mu.Lock()
		l.taken = len(l.out)
		l.space.Broadcast()
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.spare = whole[:0]
	l.mu.Unlock()
	return nil
}

// complain logs err once for as long as it lasts, and once that callers wait.
func (l *Log) complain(err error) {
	l.mu.Lock()
	waiting := l.taken + len(l.buf)
	l.mu.Unlock()
	if err.Error() != l.problem {
		l.problem = err.Error()
		l.logger.Error("audit log cannot be written; events are kept in memory and tried again every second",
			"path", l.path, "error", err, "bytes_waiting", waiting)
	}
	if waiting >= maxWaiting && !l.overflow {
		l.overflow = true
		l.logger.Error("audit log cannot be written and memory for events is used up; requests wait until it can",
			"path", l.path, "error", err, "bytes_waiting", waiting)
	}
}

// firstLines returns the longest beginning of b that ends with a line and has at most limit bytes. A line is shorter than that.
func firstLines(b []byte, limit int) []byte {
	if len(b) <= limit {
		return b
	}
	return b[:bytes.LastIndexByte(b[:limit], '\n')+1]
}
