package server

import (
	"log/slog"
	"sync"
	"time"
)

// window admits a number of requests within one second that begins with the first of them. Exactly limit are
// admitted in a window; across the edge of two windows a burst of twice as many is possible within a second. Times
// are since the server's start or any other fixed moment.
type window struct {
	open  bool
	since time.Time
	n     int
}

const windowLength = time.Second

// free reports whether the window has room at now; take uses it.
func (w *window) free(now time.Time, limit int) bool {
	if !w.open || now.Sub(w.since) >= windowLength {
		w.open, w.since, w.n = true, now, 0
	}
	return w.n < limit
}

func (w *window) take() { w.n++ }

// sharedWindow is the window of all connections together. The lock is held for a few instructions.
type sharedWindow struct {
	mu    sync.Mutex
	w     window
	limit int
}

func (s *sharedWindow) take(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.w.free(now, s.limit) {
		return false
	}
	s.w.take()
	return true
}

// A connection that goes on over its limit is read with pauses: at most some 12,000 requests a second are turned away.
const (
	pauseAfter = 64
	pauseFor   = 5 * time.Millisecond
)

// admitted counts one request against the connection's limit and the sandbox's. A request that one of them turns away
// counts against neither.
func (c *conn) admitted(now time.Time) bool {
	if !c.window.free(now, c.srv.limit.limit) || !c.srv.limit.take(now) {
		c.turnedAway++
		return false
	}
	c.window.take()
	return true
}

// Of refused requests so many are recorded one by one, and so many more every second after that. Refusals are not
// limited, so a peer that sends as fast as it can would otherwise fill the disk, or rotate the record of what it did
// before away: a thousand a second take four minutes for that.
const (
	recordedRefusals = 1000
	refusalInterval  = 100 * time.Millisecond
)

// refusals decides which refused requests are recorded.
type refusals struct {
	mu       sync.Mutex
	taken    int       // of recordedRefusals; one is given back every refusalInterval
	from     time.Time // when the last was given back
	missed   int       // since the last report
	reported time.Time
}

// record reports whether a refusal at now is to be recorded. What was not is logged as a number, at most once a second.
func (r *refusals) record(now time.Time, log *slog.Logger) bool {
	r.mu.Lock()
	back := int(min(max(now.Sub(r.from)/refusalInterval, 0), recordedRefusals))
	r.from = r.from.Add(time.Duration(back) * refusalInterval)
	if r.taken -= back; r.taken <= 0 {
		r.taken, r.from = 0, now
	}
	ok := r.taken < recordedRefusals
	missed := 0
	if !ok {
		r.missed++
	} else {
		r.taken++
		if now.Sub(r.reported) >= windowLength {
			missed, r.missed = r.missed, 0
			r.reported = now
		}
	}
	r.mu.Unlock()
	if missed > 0 {
		log.Warn("too many refused requests to record each", "not_recorded", missed)
	}
	return ok
}
