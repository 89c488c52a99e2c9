package renew

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

// item returns the nth of as many names as needed.
func item(n int) store.Item {
	return store.Item{Service: store.ServiceLogins, Account: fmt.Sprintf("provider-%d:default", n)}
}

// A bed is a Scheduler at work in a bubble of synctest, with a wall clock that can be set and a record of all that ran.
type bed struct {
	*Scheduler
	t       *testing.T
	offset  atomic.Int64 // of the wall clock, against the bubble's
	looks   atomic.Int64 // at the wall clock
	cancel  context.CancelFunc
	stopped chan struct{}

	mu     sync.Mutex
	runs   map[store.Item][]run
	gaveUp []store.Item
}

// A run is a renewal that began.
type run struct {
	real   time.Time // by the bubble's clock, which goes on whatever is done to the wall clock
	wall   time.Time
	expiry time.Time // that Renew was called with
}

// start runs a Scheduler until the test ends. answer is called once a renewal is recorded. Jitter is 0 unless set.
func start(t *testing.T, answer func(b *bed, it store.Item, expiry time.Time) Outcome) *bed {
	b := &bed{t: t, runs: map[store.Item][]run{}, stopped: make(chan struct{})}
	b.Scheduler = New(Options{
		Renew: func(_ context.Context, it store.Item, expiry time.Time) Outcome {
			b.mu.Lock()
			b.runs[it] = append(b.runs[it], run{time.Now(), b.wallClock(), expiry})
			b.mu.Unlock()
			return answer(b, it, expiry)
		},
		GaveUp: func(it store.Item) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.gaveUp = append(b.gaveUp, it)
		},
	})
	b.now = func() time.Time { b.looks.Add(1); return b.wallClock() }
	b.jitter = func() time.Duration { return 0 }
	ctx, cancel := context.WithCancel(t.Context())
	b.cancel = cancel
	go func() { defer close(b.stopped); b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-b.stopped })
	return b
}

func (b *bed) wallClock() time.Time { return time.Now().Add(time.Duration(b.offset.Load())) }

// setClock moves the wall clock. Timers do not notice, as in a suspend.
func (b *bed) setClock(by time.Duration) { b.offset.Add(int64(by)) }

// in returns the wall clock time after d.
func (b *bed) in(d time.Duration) time.Time { return b.wallClock().Add(d) }

// ran returns the renewals of it that have begun, once nothing is left to do at this instant.
func (b *bed) ran(it store.Item) []run {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]run(nil), b.runs[it]...)
}

// wantRuns checks when renewals of it began, in time since from, by the clock that cannot be set.
func (b *bed) wantRuns(it store.Item, from time.Time, want ...time.Duration) {
	b.t.Helper()
	var got []time.Duration
	for _, r := range b.ran(it) {
		got = append(got, r.real.Sub(from))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("renewals began after %v, want %v", got, want)
	}
}

// wantDue checks what NextDue says, in time from now; a negative time stands for "not watched".
func (b *bed) wantDue(it store.Item, want time.Duration) {
	b.t.Helper()
	synctest.Wait()
	switch due, ok := b.NextDue(it); {
	case ok != (want >= 0):
		b.t.Errorf("NextDue: watched is %v", ok)
	case ok && !due.Equal(b.in(want)):
		b.t.Errorf("next due in %v, want %v", due.Sub(b.wallClock()), want)
	}
}

// fresh answers a renewal with a new token of that lifetime.
func fresh(life time.Duration) func(*bed, store.Item, time.Time) Outcome {
	return func(b *bed, _ store.Item, _ time.Time) Outcome { return Outcome{Expiry: b.in(life)} }
}

// A provider issues tokens of one lifetime, and must not be asked again within 30 s of the last time. It stands for the
// caller's record of that, too, which others share: they may refresh at any time.
type provider struct {
	life  time.Duration
	takes time.Duration // to answer

	mu     sync.Mutex
	stored map[store.Item]time.Time   // expiries; of an item that is not here, it is the one that is watched
	asked  map[store.Item][]time.Time // by the bubble's clock
	late   int                        // how often the stored token had expired when a new one came
}

func newProvider(life time.Duration) *provider {
	return &provider{
		life:   life,
		stored: map[store.Item]time.Time{},
		asked:  map[store.Item][]time.Time{},
	}
}

// answer is for start.
func (p *provider) answer(b *bed, it store.Item, expiry time.Time) Outcome {
	p.mu.Lock()
	stored, known := p.stored[it]
	p.mu.Unlock()
	if !known || stored.Equal(expiry) {
		if now, ok := p.refresh(b, it); ok {
			stored = now
		} else {
			stored = expiry
		}
	}
	return Outcome{Expiry: stored, After: p.wait(it)}
}

// watch stores a token as a new login would, and serves it.
func (p *provider) watch(b *bed, it store.Item, life time.Duration) {
	p.mu.Lock()
	p.stored[it] = b.in(life)
	p.mu.Unlock()
	b.Watch(it, b.in(life))
}

// refresh stores a new token and returns its expiry, unless the provider is not to be asked.
func (p *provider) refresh(b *bed, it store.Item) (time.Time, bool) {
	if p.wait(it) > 0 {
		return time.Time{}, false
	}
	p.mu.Lock()
	p.asked[it] = append(p.asked[it], time.Now())
	p.mu.Unlock()
	time.Sleep(p.takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	if expiry, known := p.stored[it]; known && !b.wallClock().Before(expiry) {
		p.late++
	}
	p.stored[it] = b.in(p.life)
	return p.stored[it], true
}

// wait is how long the provider is not to be asked, from now.
func (p *provider) wait(it store.Item) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.asked[it]); n > 0 {
		return max(30*time.Second-time.Since(p.asked[it][n-1]), 0)
	}
	return 0
}

// calls returns how often the provider was asked, after a check that it was not too often, and neither was Renew.
func (p *provider) calls(b *bed, it store.Item) int {
	b.t.Helper()
	runs := b.ran(it)
	for i := 1; i < len(runs); i++ {
		if apart := runs[i].real.Sub(runs[i-1].real); apart < MinGap {
			b.t.Fatalf("renewal %d came %v after the one before", i, apart)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, asked := range p.asked[it][:max(len(p.asked[it]), 1)-1] {
		if apart := p.asked[it][i+1].Sub(asked); apart < 30*time.Second {
			b.t.Fatalf("the provider was asked twice within %v", apart)
		}
	}
	return len(p.asked[it])
}
