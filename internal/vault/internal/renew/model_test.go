package renew

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// A step of a random run: something is done, then time passes.
type step struct {
	do   string        // "watch", "same", "forget", "leap", "pass"
	item int           // for the first three
	by   time.Duration // the life of the token that is watched; how far the wall clock leaps
	pass time.Duration
}

// A reply is what a renewal answers.
type reply struct {
	kind  string // "new", "same", "unknown", "stop", "fail"
	life  time.Duration
	after time.Duration
	takes time.Duration
}

const modelItems = 4

var (
	lives = rapid.SampledFrom([]time.Duration{
		-time.Hour, 0, time.Second, 3 * time.Second, 10 * time.Second, 23 * time.Second, 59 * time.Second, 121 * time.Second, 300 * time.Second,
		301 * time.Second, 310 * time.Second, 335 * time.Second, 400 * time.Second, 10 * time.Minute, time.Hour, 8 * time.Hour,
		30 * day, 10 * 365 * day,
	})
	steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		s := step{
			do:   rapid.SampledFrom([]string{"watch", "watch", "same", "forget", "leap", "pass", "pass"}).Draw(t, "do"),
			item: rapid.IntRange(0, modelItems-1).Draw(t, "item"),
			pass: rapid.SampledFrom([]time.Duration{0, 0, time.Second, 7 * time.Second, 31 * time.Second, 5 * time.Minute, time.Hour}).Draw(t, "pass"),
		}
		if s.do == "leap" {
			s.by = rapid.SampledFrom([]time.Duration{-5 * 365 * day, -day, -time.Minute, -time.Second, time.Second, 15 * time.Second, time.Minute, 2 * time.Hour, 40 * day, 5 * 365 * day}).Draw(t, "leap")
		} else {
			s.by = lives.Draw(t, "life")
		}
		return s
	}), 1, 40)
	replies = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) reply {
		return reply{
			kind:  rapid.SampledFrom([]string{"new", "new", "same", "unknown", "stop", "fail", "fail", "fail", "fail"}).Draw(t, "kind"),
			life:  lives.Draw(t, "life"),
			after: rapid.SampledFrom([]time.Duration{0, 0, -time.Hour, time.Second, 6 * time.Second, 29 * time.Second, 45 * time.Second, time.Hour}).Draw(t, "after"),
			takes: rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, 4 * time.Second, 20 * time.Second, 50 * time.Second}).Draw(t, "takes"),
		}
	}), 1, 20)
)

// The model knows, of every item, in which span of time its next renewal has to begin. Time here is the bubble's, which no
// leap of the wall clock touches. Without leaps the span is one instant: the due time. A leap widens it by what is
// promised after one, since the model does not know when the clock is looked at.
type model struct {
	offset  time.Duration // of the wall clock
	leapt   time.Time     // when it was last set; zero: never
	jitter  time.Duration
	replies []reply
	next    int // reply

	mu     sync.Mutex
	items  [modelItems]modelItem
	gaveUp int
	broken string // the first promise that was
}

type modelItem struct {
	watched  bool
	running  bool
	news     bool      // since the running renewal began
	expiry   time.Time // by the wall clock
	failures int
	begun    time.Time
	lo, hi   time.Time     // the next renewal begins between these
	wait     time.Duration // how long it was to wait when it was scheduled

	unnoticed time.Time // what hi is if the leaps of the last moments cancel each other out before the next look
}

func (m *model) wall() time.Time { return time.Now().Add(m.offset).Round(0) }

func (m *model) breaks(format string, args ...any) {
	if m.broken == "" {
		m.broken = fmt.Sprintf(format, args...)
	}
}

// schedule sets the span to the single instant in d from now, or MinGap after the last one began.
func (m *model) schedule(it *modelItem, d time.Duration) {
	if !it.begun.IsZero() {
		d = max(d, MinGap-time.Since(it.begun))
	}
	it.lo = time.Now().Add(d)
	it.hi, it.wait = it.lo, d
	if m.noticing() {
		it.hi, it.wait = it.hi.Add(LookEvery+MaxJitter), max(d, MaxJitter)
	}
	it.unnoticed = it.hi
}

// noticing is true while a leap may not have been noticed: the next look is still to come.
func (m *model) noticing() bool { return !m.leapt.IsZero() && time.Since(m.leapt) <= LookEvery }

// dueIn says R16.2 and X16.2 in other words than Due.
func (m *model) dueIn(expiry time.Time) time.Duration {
	left := expiry.Sub(m.wall())
	lead := 5 * time.Minute
	if left > 50*time.Minute {
		lead = left / 10
	}
	switch d := left - lead - m.jitter; {
	case d > 0:
		return d
	case left > 0:
		return max(left/2, time.Second)
	default:
		return 30 * time.Second
	}
}

func (m *model) watch(n int, expiry time.Time) {
	it := &m.items[n]
	if it.watched && it.expiry.Equal(expiry) {
		return
	}
	if !it.watched && !it.running {
		*it = modelItem{}
	}
	it.watched, it.expiry, it.failures = true, expiry, 0
	if it.running {
		it.news = true
		return
	}
	m.schedule(it, m.dueIn(expiry))
}

func (m *model) forget(n int) {
	it := &m.items[n]
	it.watched = false
	it.news = it.running
}

// leap moves the wall clock. Forwards: what is overdue then runs within a look and a jitter, or when MinGap has passed.
// Backwards: nothing waits longer than it would have from now on, and a look.
func (m *model) leap(by time.Duration) {
	now, noticing := time.Now(), m.noticing()
	m.offset += by
	m.leapt = now
	for n := range m.items {
		it := &m.items[n]
		if !noticing {
			it.unnoticed = it.hi
		}
		it.unnoticed = it.unnoticed.Add(-by)
		if by < 0 {
			it.hi = earlier(it.hi.Add(-by), later(it.hi, now.Add(it.wait+LookEvery)))
			continue
		}
		it.lo = later(earlier(it.lo, now), it.lo.Add(-by))
		if !it.begun.IsZero() {
			it.lo = later(it.lo, it.begun.Add(MinGap))
		}
		it.hi = later(later(it.hi.Add(-by), it.unnoticed), later(now, it.begun.Add(MinGap))).Add(LookEvery + MaxJitter)
		it.wait = max(it.wait, MaxJitter)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// check compares what the Scheduler says with the model, and looks for items whose span has passed without a renewal.
func (m *model) check(s *Scheduler) {
	for n := range m.items {
		it := &m.items[n]
		m.mu.Unlock()
		due, watched := s.NextDue(item(n))
		m.mu.Lock()
		switch {
		case watched != it.watched:
			m.breaks("item %d: watched is %v", n, watched)
		case !watched || it.running:
		case time.Now().After(it.hi):
			m.breaks("item %d is %v overdue", n, time.Since(it.hi))
		case m.leapt.IsZero() && !due.Equal(it.lo):
			m.breaks("item %d is due %v, want %v", n, due, it.lo)
		}
	}
}

// renew is Options.Renew.
func (m *model) renew(_ context.Context, name store.Item, expiry time.Time) Outcome {
	m.mu.Lock()
	n := 0
	for name != item(n) {
		n++
	}
	it, now := &m.items[n], time.Now()
	switch {
	case !it.watched:
		m.breaks("item %d is renewed, and nobody watches it", n)
	case it.running:
		m.breaks("item %d is renewed twice at a time", n)
	case !it.expiry.Equal(expiry):
		m.breaks("item %d is renewed for a token that expires %v, want %v", n, expiry, it.expiry)
	case !it.begun.IsZero() && now.Sub(it.begun) < MinGap:
		m.breaks("item %d is renewed %v after the last time", n, now.Sub(it.begun))
	case now.Before(it.lo):
		m.breaks("item %d is renewed %v early", n, it.lo.Sub(now))
	case now.After(it.hi):
		m.breaks("item %d is renewed %v late", n, now.Sub(it.hi))
	}
	it.running, it.news, it.begun = true, false, now
	r := m.replies[m.next%len(m.replies)]
	m.next++
	m.mu.Unlock()

	time.Sleep(r.takes)

	m.mu.Lock()
	defer m.mu.Unlock()
	it.running = false
	out := Outcome{After: r.after}
	switch r.kind {
	case "new":
		out.Expiry = m.wall().Add(r.life)
	case "same":
		out.Expiry = expiry
	case "stop":
		out.Stop = true
	case "fail":
		out.Err = errTest
	}
	switch {
	case it.news && it.watched:
		m.schedule(it, m.dueIn(it.expiry))
	case it.news:
	case r.kind == "stop", r.kind == "unknown":
		it.watched = false
	case r.kind == "fail":
		if it.failures++; it.failures == 10 {
			it.watched = false
			m.gaveUp++
			break
		}
		m.schedule(it, max(out.After, min(30*time.Second<<(it.failures-1), 30*time.Minute)))
	default:
		it.expiry, it.failures = out.Expiry, 0
		m.schedule(it, max(out.After, m.dueIn(out.Expiry)))
	}
	return out
}

// Random watches, answers and leaps of the clock: no renewal is early, late, too often, doubled or of an item that
// nobody watches.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{
			jitter:  rapid.SampledFrom([]time.Duration{0, 13 * time.Second, MaxJitter}).Draw(rt, "jitter"),
			replies: replies.Draw(rt, "replies"),
		}
		script := steps.Draw(rt, "steps")
		synctest.Test(t, func(*testing.T) { m.play(script) }) // rapid's own calls stay outside of the bubble
		if m.broken != "" {
			rt.Fatal(m.broken)
		}
	})
}

// play runs script in a bubble. Between its steps everything comes to rest, so both sides see the same order of events.
func (m *model) play(script []step) {
	gaveUp := 0
	s := New(Options{Renew: m.renew, GaveUp: func(store.Item) {
		m.mu.Lock()
		defer m.mu.Unlock()
		gaveUp++
	}})
	s.now = func() time.Time {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.wall()
	}
	s.jitter = func() time.Duration { return m.jitter }
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() { defer close(stopped); s.Run(ctx) }()

	pass := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.check(s)
	}
	for _, step := range script {
		expiry := s.now().Add(step.by)
		m.mu.Lock()
		switch step.do {
		case "same":
			if it := m.items[step.item]; it.watched {
				expiry = it.expiry
			}
			m.watch(step.item, expiry)
		case "watch":
			m.watch(step.item, expiry)
		case "forget":
			m.forget(step.item)
		case "leap":
			m.leap(step.by)
		}
		m.mu.Unlock()
		switch step.do {
		case "watch", "same":
			s.Watch(item(step.item), expiry)
		case "forget":
			s.Forget(item(step.item))
		}
		pass(step.pass)
	}
	for range 60 {
		pass(time.Minute)
	}
	m.mu.Lock()
	if gaveUp != m.gaveUp {
		m.breaks("gave up %d times, want %d", gaveUp, m.gaveUp)
	}
	m.mu.Unlock()
	cancel()
	<-stopped
}
