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
	left := int((d + tick - 1) / tick)
	step := d / time.Duration(left)
	atLeast := min(left, int(spare/tick)) // after a freeze
	extra := left                         // ticks that freezes can add
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	last := time.Now()
	for left > 0 {
		select {
		case <-ticker.C:
		case <-c.Context.Done():
			c.end(c.Context.Err())
			return
		case <-stop.Done():
			c.end(context.Canceled)
			return
		}
		left--
		now := time.Now()
		if more := min(atLeast-left, extra); more > 0 && now.Sub(last) > step+tick {
			left, extra = left+more, extra-more
		}
		last = now
	}
	c.end(context.DeadlineExceeded)
}
