package renew

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// A provider that issues tokens of one lifetime, over simulated days: every renewal is in time and none is too soon.
func TestLifetimes(t *testing.T) {
	for _, test := range []struct {
		life, over time.Duration
		min, max   int // calls of the provider
	}{
		{time.Second, day, 2879, 2881},
		{2 * time.Second, day, 2879, 2881},
		{10 * time.Second, day, 2879, 2881},
		{59 * time.Second, day, 2879, 2881},
		{121 * time.Second, day, 1400, 1428},
		{300 * time.Second, day, 570, 576},
		{301 * time.Second, day, 560, 720}, // one in thirty at the end of the cooldown, the others at half the life
		{331 * time.Second, day, 2700, 2881},
		{time.Hour, 3 * day, 80, 81},
		{8 * time.Hour, 6 * day, 20, 20},
		{30 * day, 60 * day, 2, 2},
		{10 * 365 * day, 30 * day, 0, 0},
	} {
		t.Run(test.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProvider(test.life)
				b := start(t, p.answer)
				b.jitter = New(Options{}).jitter
				b.Watch(item(0), b.in(test.life))
				time.Sleep(test.over)
				calls, runs := p.calls(b, item(0)), b.ran(item(0))
				if calls < test.min || calls > test.max || len(runs) != calls {
					t.Errorf("%d renewals called the provider %d times in %v, want %d to %d", len(runs), calls, test.over, test.min, test.max)
				}
				for i, r := range runs {
					if test.life >= 40*time.Second && !r.wall.Before(r.expiry) {
						t.Fatalf("renewal %d came %v after the expiry", i, r.wall.Sub(r.expiry))
					}
				}
			})
		})
	}
}

// Whatever Renew answers, and however fast, it is not called again for the item within MinGap.
func TestNoHotLoop(t *testing.T) {
	atOnce := func(b *bed) Outcome { return Outcome{Expiry: b.in(301 * time.Second)} } // due in a second
	for name, answer := range map[string]func(b *bed, expiry time.Time) Outcome{
		"the same":         func(_ *bed, expiry time.Time) Outcome { return Outcome{Expiry: expiry} },
		"expired":          func(b *bed, _ time.Time) Outcome { return Outcome{Expiry: b.in(-time.Hour)} },
		"expiring now":     func(b *bed, _ time.Time) Outcome { return Outcome{Expiry: b.in(0)} },
		"expiring soon":    func(b *bed, _ time.Time) Outcome { return Outcome{Expiry: b.in(time.Millisecond)} },
		"expired in 1970":  func(b *bed, _ time.Time) Outcome { return Outcome{Expiry: time.Unix(0, 0)} },
		"after, past":      func(b *bed, _ time.Time) Outcome { return Outcome{Expiry: b.in(time.Millisecond), After: -time.Hour} },
		"due at once":      func(b *bed, _ time.Time) Outcome { return atOnce(b) },
		"after, very soon": func(b *bed, _ time.Time) Outcome { o := atOnce(b); o.After = time.Millisecond; return o },
		"slow":             func(b *bed, _ time.Time) Outcome { time.Sleep(4 * time.Second); return atOnce(b) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, func(b *bed, _ store.Item, expiry time.Time) Outcome { return answer(b, expiry) })
				b.Watch(item(0), b.in(301*time.Second))
				time.Sleep(time.Hour)
				runs := b.ran(item(0))
				if len(runs) < 2 || len(runs) > 720 {
					t.Errorf("%d renewals in an hour", len(runs))
				}
				for i := range runs[1:] {
					if apart := runs[i+1].real.Sub(runs[i].real); apart < MinGap {
						t.Fatalf("two renewals %v apart", apart)
					}
				}
			})
		})
	}
}

// A client that keeps storing tokens, each with another expiry, brings neither Renew nor the provider out of step.
func TestNoHotLoopOfWatches(t *testing.T) {
	for _, takes := range []time.Duration{0, 4 * time.Second, 14 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := newProvider(301 * time.Second)
			p.takes = takes
			b := start(t, p.answer)
			for n := range 3600 {
				p.watch(b, item(0), 300*time.Second+time.Duration(n%5)*200*time.Millisecond) // most are due before the next
				time.Sleep(time.Second)
			}
			if n := p.calls(b, item(0)); n < 2 || n > 120 {
				t.Errorf("the provider was asked %d times in an hour", n)
			}
		})
	}
}

// A token is served for the first time shortly before it expires, and nobody has asked the provider: nothing is waited for.
func TestServedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(time.Hour)
		b := start(t, p.answer)
		begin := time.Now()
		b.Watch(item(0), b.in(23*time.Second))
		time.Sleep(50 * time.Minute)
		b.wantRuns(item(0), begin, 11500*time.Millisecond)
		b.wantDue(item(0), 54*time.Minute-50*time.Minute+11500*time.Millisecond)
	})
}

// Somebody else refreshed after the token was scheduled. The renewal finds that out when the provider may be asked again,
// and does not begin another cooldown.
func TestRefreshedByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(60 * time.Second)
		b := start(t, p.answer)
		begin := time.Now()
		b.Watch(item(0), b.in(60*time.Second))
		time.Sleep(time.Second)
		p.refresh(b, item(0)) // lives from 1 to 61
		time.Sleep(59 * time.Second)
		// At 30 nothing but the other expiry is found. Half of what is left of it is over at 45.5.
		b.wantRuns(item(0), begin, 30*time.Second, 45500*time.Millisecond)
		b.wantDue(item(0), 15500*time.Millisecond) // 30 after the last
		if n := p.calls(b, item(0)); n != 2 {
			t.Errorf("the provider was asked %d times, by others once", n)
		}
	})
}

// The provider was asked a moment ago: the renewal comes when it may be asked again.
func TestCooldownOfTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(40 * time.Second)
		b := start(t, p.answer)
		begin := time.Now()
		expiry, _ := p.refresh(b, item(0))
		b.Watch(item(0), expiry)
		time.Sleep(95 * time.Second)
		// At 20 the provider is not asked, and then again and again as soon as that is possible, without a look in vain.
		b.wantRuns(item(0), begin, 20*time.Second, 30*time.Second, 60*time.Second, 90*time.Second)
		if n := p.calls(b, item(0)); n != 4 {
			t.Errorf("the provider was asked %d times", n)
		}
	})
}

// With lifetimes of 40 s and more a token in use never expires, if the provider answers at once: with whatever life left it
// is first served (10 s at least, if the provider may be asked), and whenever others refresh it too.
func TestNeverExpiresInUse(t *testing.T) {
	second := time.Second
	for _, life := range []time.Duration{40 * second, 41 * second, 45 * second, 59 * second, 60 * second, 61 * second,
		90 * second, 121 * second, 299 * second, 300 * second, 301 * second, 310 * second, 330 * second, 335 * second, 400 * second, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			for _, left := range []time.Duration{10 * second, 11 * second, 17 * second, 23 * second, 29 * second, 30 * second, 31 * second,
				39500 * time.Millisecond, life} {
				for _, others := range []time.Duration{0, 31 * second, 37 * second, 44 * second, 101 * second} { // refresh so often; 0: never
					synctest.Test(t, func(t *testing.T) { neverExpires(t, life, left, others) })
				}
			}
		})
	}
}

func neverExpires(t *testing.T, life, left, others time.Duration) {
	p := newProvider(life)
	b := start(t, p.answer)
	b.jitter = New(Options{}).jitter
	over := 6 * life
	p.watch(b, item(0), left)
	if others == 0 {
		time.Sleep(over)
	}
	for passed := time.Duration(0); others > 0 && passed < over; passed += others {
		time.Sleep(others)
		synctest.Wait()
		p.refresh(b, item(0))
	}
	if n := p.calls(b, item(0)); n < 5 {
		t.Errorf("served with %v left, others refreshing every %v: %d calls in %v", left, others, n, over)
	}
	if !b.wallClock().Before(p.stored[item(0)]) || p.late > 0 {
		t.Errorf("served with %v left, others refreshing every %v: late %d times", left, others, p.late)
	}
}
