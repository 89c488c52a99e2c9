package renew

import (
	"context"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Run renews what is due until ctx has ended and all renewals have returned. It is called once.
func (s *Scheduler) Run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(LookEvery)
	defer timer.Stop()
	for {
		for _, j := range s.look(ctx, timer) {
			workers.Go(func() { s.renew(ctx, j) })
		}
		select {
		case <-ctx.Done():
			s.end()
			return
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// A job is a renewal to run. item and expiry are copies: the entry's fields belong to the lock.
type job struct {
	entry  *entry
	item   store.Item
	expiry time.Time // of the token that is to be renewed
}

// look takes what is due now from the queue, as far as there are workers for it, and sets timer to the next look.
func (s *Scheduler) look(ctx context.Context, timer *time.Timer) []job {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 || ctx.Err() != nil {
		timer.Stop()
		return nil
	}
	now := s.wall()
	switch passed := now.Sub(s.looked); {
	case passed < 0:
		s.clockSetBackLocked(now)
	case passed > jump:
		s.spreadLocked(now)
	}
	s.looked = now

	var jobs []job
	for s.running < Workers && len(s.queue) > 0 && !s.queue[0].due.After(now) {
		e := s.queue[0]
		if time.Since(e.begun) < MinGap {
			s.scheduleLocked(e, now, now) // the clock ran ahead of the timers: at the end of the gap
			continue
		}
		s.queue.remove(e)
		s.running++
		e.running, e.begun = true, time.Now()
		jobs = append(jobs, job{e, e.item, e.expiry})
	}

	switch {
	case len(s.queue) == 0:
		timer.Stop()
	case s.running == Workers:
		timer.Reset(LookEvery) // the next to finish wakes us
	default:
		timer.Reset(min(s.queue[0].due.Sub(now), LookEvery))
	}
	return jobs
}

// spreadLocked gives everything that is overdue a new due time, as the clock has leapt forwards: after a suspend
// thousands of tokens may have become due at once, in every process of the machine, and the network is not up yet.
func (s *Scheduler) spreadLocked(now time.Time) {
	var overdue []*entry
	for len(s.queue) > 0 && !s.queue[0].due.After(now) {
		e := s.queue[0]
		s.queue.remove(e)
		overdue = append(overdue, e)
	}
	for _, e := range overdue {
		s.scheduleLocked(e, now, now.Add(s.jitter()))
	}
}

// clockSetBackLocked sees to it that nothing waits longer, from now, than was decided when it was scheduled. Otherwise
// a clock that was wrong by a year for a minute would put off retries, and tokens issued in that minute, for a year.
func (s *Scheduler) clockSetBackLocked(now time.Time) {
	for _, e := range s.queue {
		if e.due.Sub(now) > e.wait {
			e.due = now.Add(e.wait)
		}
	}
	s.queue.init()
}

// renew runs one renewal in a goroutine that Run waits for.
func (s *Scheduler) renew(ctx context.Context, j job) {
	out := s.opts.Renew(ctx, j.item, j.expiry)
	if ctx.Err() != nil {
		return // nothing comes after it, and it may have failed for that alone
	}
	if s.finish(j.entry, out) && s.opts.GaveUp != nil {
		s.opts.GaveUp(j.item)
	}
}

// finish schedules what comes after a renewal that answered out. It reports whether the item was given up.
func (s *Scheduler) finish(e *entry, out Outcome) (gaveUp bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.wall()
	outdated := e.outdated
	e.running, e.outdated = false, false
	s.running--
	s.wakeRun() // a worker is free

	if !outdated {
		switch {
		case out.Stop:
			e.expiry = time.Time{}
		case out.Err != nil:
			if e.failures++; e.failures == MaxFailures {
				s.dropLocked(e)
				return true
			}
			s.scheduleLocked(e, now, now.Add(max(retryAfter(e.failures), out.After)))
			return false
		default:
			e.expiry, e.failures = out.Expiry.Round(0), 0
		}
	}
	if e.expiry.IsZero() {
		s.dropLocked(e)
		return false
	}
	due := Due(now, e.expiry, s.jitter())
	if after := now.Add(out.After); !outdated && after.After(due) {
		due = after
	}
	s.scheduleLocked(e, now, due)
	return false
}

// scheduleLocked puts e, which has no renewal running, into the queue for due, or for MinGap after the last
// one began if that is later.
func (s *Scheduler) scheduleLocked(e *entry, now, due time.Time) {
	// Measured with the monotonic clock, so that setting the clock neither shortens nor lengthens it.
	if earliest := now.Add(MinGap - time.Since(e.begun)); earliest.After(due) {
		due = earliest
	}
	e.due, e.wait = due, due.Sub(now)
	s.queue.put(e)
	if passed := now.Sub(s.looked); s.queue[0] == e || passed < 0 || passed > jump {
		s.wakeRun() // e is next, or the clock has leapt, which must be noticed before it leaps back
	}
}

// dropLocked removes e, which has no renewal running.
func (s *Scheduler) dropLocked(e *entry) {
	s.queue.remove(e)
	delete(s.entries, e.item)
}

// wakeRun never blocks: one wake-up that is not yet taken is enough.
func (s *Scheduler) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end makes everything that is scheduled go away; what running renewals answer no longer counts.
func (s *Scheduler) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.entries, s.queue = true, nil, nil
}
