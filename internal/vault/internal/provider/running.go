package provider

import (
	"context"
	"time"
)

const (
	tick = 250 * time.Millisecond // how finely running time is counted
	// spare is what a process has left at least when it wakes from a freeze, to read what arrived meanwhile.
	spare = time.Second
)

// WithRunningTimeout is context.WithTimeout that counts the time during which this process runs: one that was stopped
// (SIGSTOP, docker pause, a paused virtual machine) and goes on has as much time left as before, at least a second.
// A timer would fire at once on waking, and an answer that has arrived meanwhile, with the only copy of a rotated
// refresh token, would be thrown away unread.
//
// The context ends with context.DeadlineExceeded after d, counted in steps of at most 250 ms; with ctx; and with
// cancel, which has to be called and returns when the counting has stopped. It has ctx's deadline, so none if that was
// made here too. Freezes in a row extend d to its double at most.
func WithRunningTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	c := &runningContext{Context: ctx, done: make(chan struct{})}
	switch {
	case ctx.Err() != nil:
		c.end(ctx.Err())
		return c, func() {}
	case d <= 0:
		c.end(context.DeadlineExceeded)
		return c, func() {}
	}
	stop, cancelStop := context.WithCancel(context.Background())
	go c.count(stop, d)
	return c, func() {
		cancelStop()
		<-c.done
	}
}

// runningContext ends by its own counting. Its goroutine, count, is its only writer: err is set before done is closed,
// and read after. The goroutine belongs to whoever has the cancel function, which waits for it.
type runningContext struct {
	context.Context // its values and its deadline
	done            chan struct{}
	err             error
}

func (c *runningContext) Done() <-chan struct{} { return c.done }

func (c *runningContext) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

func (c *runningContext) end(err error) {
	c.err = err
	close(c.done)
}

// count ends c after d. A ticker drops the ticks that nobody took, so a freeze is one tick, however long it was.
func (c *runningContext) count(stop context.Context, d time.Duration) {
	r := newRemaining(d)
	ticker := time.NewTicker(r.step)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ticker.C:
			now := time.Now()
			if r.pass(now.Sub(last)); r.ticks == 0 {
				c.end(context.DeadlineExceeded)
				return
			}
			last = now
		case <-c.Context.Done():
			c.end(c.Context.Err())
			return
		case <-stop.Done():
			c.end(context.Canceled)
			return
		}
	}
}

// remaining is what is left of a limit.
type remaining struct {
	step  time.Duration // of one tick
	ticks int
	spare int // the least that there is after a freeze, in ticks
	extra int // ticks that freezes can still add
}

// newRemaining divides a limit, which is more than 0.
func newRemaining(d time.Duration) *remaining {
	n := int((d + tick - 1) / tick)
	return &remaining{step: d / time.Duration(n), ticks: n, spare: min(n, int(spare/tick)), extra: n}
}

// pass counts a tick that came so long after the one before.
func (r *remaining) pass(after time.Duration) {
	r.ticks--
	if more := min(r.spare-r.ticks, r.extra); more > 0 && after > r.step+tick {
		r.ticks += more
		r.extra -= more
	}
}
