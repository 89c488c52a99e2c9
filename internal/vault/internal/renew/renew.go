// Package renew decides when access tokens are renewed before they expire. A [Scheduler] is told which tokens are in use
// ([Scheduler.Watch]) and calls Options.Renew when one is due; what the renewal answers ([Outcome]) decides when the next
// one is. It never sees a token: it knows an item and an expiry.
//
//	s := renew.New(renew.Options{Renew: …, GaveUp: …})
//	go s.Run(ctx)              // the one goroutine; ends with ctx
//	s.Watch(item, tok.Expiry)  // a token was served or stored
//
// Due times are of the wall clock, because expiries are: a timer of the monotonic clock stands still while the machine is
// suspended. So the clock is looked at every [LookEvery]. Nothing is kept on disk: a new process begins anew with the
// first token it serves. Only the host's process has a Scheduler; clients on the socket never renew by themselves.
//
// How often a provider may be asked is not known here: others ask it too, in this process and in others. Whoever keeps
// that record says in [Outcome].After how long the provider is to be left alone. The Scheduler itself only sees to it
// that the calls of Renew for a watched item begin at least [MinGap] apart, whichever way the clock leaps and whatever
// is answered.
package renew

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

const (
	// MinLead and LeadShare: a token is renewed MinLead before it expires, or one LeadShare-th of its remaining life
	// if that is longer.
	MinLead   = 300 * time.Second
	LeadShare = 10

	// MaxJitter: renewals are up to this much earlier than their lead, at random, so that processes which share a
	// login, and tokens issued together, do not come to the provider at the same moment. After the machine was
	// suspended, what became due meanwhile is spread over the same time.
	MaxJitter = 29 * time.Second

	// MinGap: calls of Renew for one item begin at least this far apart. It is no limit for the provider, which is
	// Outcome.After, but keeps answers without one from becoming a loop.
	MinGap = 5 * time.Second

	// Cooldown: a token that has expired is looked at after this. Nobody is served with it, and who asks for it
	// meanwhile renews it, so there is no hurry.
	Cooldown = 30 * time.Second

	// MinRetry, MaxRetry, MaxFailures: a renewal that failed is repeated after MinRetry, twice that, and so on, at
	// most MaxRetry. After MaxFailures in a row the item is given up until it is watched again.
	MinRetry    = 30 * time.Second
	MaxRetry    = 30 * time.Minute
	MaxFailures = 10

	// LookEvery: while anything is scheduled, the wall clock is looked at this often. Together with MaxJitter it stays
	// under the minute within which overdue renewals have to run after a suspend.
	LookEvery = 20 * time.Second

	// Workers: this many renewals run at a time; what else is due waits, oldest first.
	Workers = 64

	// minWait: a token with little life left is renewed no sooner than this from now.
	minWait = time.Second

	// jump: the wall clock advanced this much between two looks, so the machine slept or somebody set the clock.
	jump = 30 * time.Second
)

// Due returns when a token that expires at expiry is to be renewed, seen from now: MinLead or a tenth of the remaining
// life before expiry, and jitter (0 to MaxJitter) before that. If that is not in the future (a short lifetime, or a token
// near its end), it is half the remaining life from now, but no sooner than a second from now. For an expired token it
// is Cooldown from now, for the zero expiry (unknown) the zero time: never.
func Due(now, expiry time.Time, jitter time.Duration) time.Time {
	if expiry.IsZero() {
		return time.Time{}
	}
	now, expiry = now.Round(0), expiry.Round(0)
	left := expiry.Sub(now)
	if due := expiry.Add(-max(MinLead, left/LeadShare) - jitter); due.After(now) {
		return due
	}
	if left <= 0 {
		return now.Add(Cooldown)
	}
	return now.Add(max(left/2, minWait))
}

// retryAfter returns how long to wait after the nth failure in a row, n from 1 to MaxFailures.
func retryAfter(n int) time.Duration { return min(MinRetry<<(n-1), MaxRetry) }

// An Outcome is what a renewal found or did. The next renewal is by the rule of [Due] for Expiry, or by the row of failures
// for Err, but no sooner than After from now.
type Outcome struct {
	Expiry time.Time     // of the token that is stored now, whoever renewed it; zero: none known. Ignored with Err
	After  time.Duration // the provider is not to be asked sooner than this, from now; 0: it may be. Ignored with Stop
	Stop   bool          // nothing to renew (removed, login needed): forget the item until it is watched again
	Err    error         // the renewal failed and may be tried again
}

// Options are what a [Scheduler] calls, from several goroutines and with no lock held, so both may call the Scheduler.
type Options struct {
	// Renew makes sure that the stored token is fresh. expiry is that of the token that was watched: if another one is
	// stored by now, somebody else renewed it and there is nothing to do but to answer its expiry. While the provider
	// is not to be asked, whoever asked it last, Renew does not ask it, and answers with an After; right after a new
	// token came, too, or one with a short life would be looked at in vain. ctx is that of Run. Renew is not called
	// for an item while an earlier call for it has not returned.
	Renew func(ctx context.Context, it store.Item, expiry time.Time) Outcome

	// GaveUp, if not nil, is told that the item failed MaxFailures times in a row and is forgotten until the next Watch.
	GaveUp func(store.Item)
}

// A Scheduler renews tokens before they expire. Its methods may be called concurrently; only Run blocks.
//
// Run's goroutine alone starts renewals. Everybody changes the fields below mu, and nobody does anything slow while
// holding it. Who puts something at the head of the queue, or ends a renewal, wakes Run.
type Scheduler struct {
	opts   Options
	now    func() time.Time     // the wall clock; timers are always time's
	jitter func() time.Duration // 0 to MaxJitter
	wake   chan struct{}        // capacity 1: "look again"

	mu      sync.Mutex
	entries map[store.Item]*entry // all that are watched, and those forgotten while their renewal still runs
	queue   queue                 // of those entries, the ones with no renewal running, next due first
	running int                   // renewals
	looked  time.Time             // what the clock said when the queue was last looked at
	ended   bool                  // Run's ctx is done: nothing is scheduled any more
}

// New returns a Scheduler that does nothing until [Scheduler.Run] is called. What is watched before that is kept.
func New(opts Options) *Scheduler {
	return &Scheduler{
		opts:    opts,
		now:     time.Now,
		jitter:  func() time.Duration { return rand.N(MaxJitter + 1) },
		wake:    make(chan struct{}, 1),
		entries: make(map[store.Item]*entry),
	}
}

// wall is the time that due times are compared with. Without its monotonic reading, or Sub and Before would use that.
func (s *Scheduler) wall() time.Time { return s.now().Round(0) }

// Watch says that a token with this expiry was served or stored. With the expiry that is watched already it changes
// nothing, whether a renewal is scheduled, running or being retried. With another one it starts anew: failures are
// forgotten, and so is what a running renewal, which was for the token before, will answer. The zero expiry (unknown)
// ends the watch, as [Scheduler.Forget] does. Once Run has returned nothing is watched.
func (s *Scheduler) Watch(it store.Item, expiry time.Time) {
	if expiry.IsZero() {
		s.Forget(it)
		return
	}
	expiry = expiry.Round(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[it]
	switch {
	case s.ended || e != nil && e.expiry.Equal(expiry):
		return
	case e == nil:
		e = &entry{item: it, place: notQueued}
		s.entries[it] = e
	}
	e.expiry, e.failures = expiry, 0
	if e.running {
		e.outdated = true
		return
	}
	now := s.wall()
	s.scheduleLocked(e, now, Due(now, expiry, s.jitter()))
}

// Forget ends the watch. A renewal that is running is not stopped, but what it answers is dropped.
func (s *Scheduler) Forget(it store.Item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[it]
	switch {
	case e == nil:
	case e.running:
		e.expiry, e.outdated = time.Time{}, true // finish removes it
	default:
		s.dropLocked(e)
	}
}

// NextDue returns when the item's next renewal is due; if one is running, when that was. It is false for an item that is
// not watched.
func (s *Scheduler) NextDue(it store.Item) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[it]
	if e == nil || e.expiry.IsZero() {
		return time.Time{}, false
	}
	return e.due, true
}
