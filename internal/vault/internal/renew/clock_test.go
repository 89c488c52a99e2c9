package renew

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// After a suspend everything that is overdue runs within a minute of waking, and not all at once; what is not, is not touched.
func TestSuspend(t *testing.T) {
	for _, asleep := range []time.Duration{2 * time.Hour, 30 * day} {
		t.Run(asleep.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const overdue = 500
				b := start(t, func(b *bed, _ store.Item, _ time.Time) Outcome {
					time.Sleep(time.Second)
					return Outcome{Expiry: b.in(time.Hour)}
				})
				b.jitter = New(Options{}).jitter
				for n := range overdue {
					b.Watch(item(n), b.in(time.Hour))
				}
				b.Watch(item(overdue), b.in(2*asleep+day))
				time.Sleep(7 * time.Second) // not at a look
				b.setClock(asleep)
				woke := time.Now()
				time.Sleep(time.Minute)

				seconds := map[time.Duration]int{}
				for n := range overdue {
					runs := b.ran(item(n))
					if len(runs) != 1 {
						t.Fatalf("item %d was renewed %d times in the minute after waking", n, len(runs))
					}
					seconds[runs[0].real.Sub(woke).Truncate(time.Second)]++
				}
				if len(seconds) < 25 {
					t.Errorf("%d renewals within %d seconds: %v", overdue, len(seconds), seconds)
				}
				for at, n := range seconds {
					if n > 60 {
						t.Errorf("%d of %d renewals began %v after waking", n, overdue, at)
					}
				}
				b.wantRuns(item(overdue), woke)
			})
		})
	}
}

// A machine that sleeps again and again renews in the minutes when it is awake.
func TestSuspendOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, fresh(time.Hour))
		b.jitter = New(Options{}).jitter
		b.Watch(item(0), b.in(time.Hour))
		for range 48 {
			b.setClock(time.Hour)
			time.Sleep(time.Minute)
		}
		if n := len(b.ran(item(0))); n != 48 {
			t.Errorf("%d renewals, slept 48 times for an hour", n)
		}
	})
}

// A failing renewal goes on where it was, and the gap between two is kept, however the clock leaps.
func TestLeapsWhileFailing(t *testing.T) {
	for _, leap := range []time.Duration{-100 * 365 * day, -day, -10 * time.Second, 10 * time.Second, time.Hour, 100 * 365 * day} {
		t.Run(leap.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, func(*bed, store.Item, time.Time) Outcome { return Outcome{Err: errTest} })
				b.Watch(item(0), b.in(10*time.Minute))
				time.Sleep(5*time.Minute + time.Second)
				for range 20 {
					b.setClock(leap)
					time.Sleep(55 * time.Second)
					b.setClock(-leap)
					time.Sleep(55 * time.Second)
				}
				runs := b.ran(item(0))
				if len(runs) < 5 {
					t.Errorf("%d renewals in 40 minutes", len(runs))
				}
				for i := range runs[1:] {
					if apart := runs[i+1].real.Sub(runs[i].real); apart < MinGap {
						t.Errorf("two renewals %v apart", apart)
					}
				}
			})
		})
	}
}

// The clock is set forward by less than what counts as a leap, over a due time, and the end of another renewal makes Run
// look: the gap is kept all the same.
func TestGapWhenTheClockRunsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(b *bed, it store.Item, _ time.Time) Outcome {
			if it == item(1) {
				time.Sleep(2 * time.Second)
			}
			return Outcome{Expiry: b.in(20 * time.Second)}
		})
		begin := time.Now()
		b.Watch(item(0), b.in(20*time.Second)) // due in 10 s, and 10 s after that
		b.Watch(item(1), b.in(20*time.Second))
		time.Sleep(11 * time.Second)
		b.setClock(15 * time.Second)
		time.Sleep(5 * time.Second)
		b.wantRuns(item(0), begin, 10*time.Second, 15*time.Second)
	})
}

// The clock was ten years ahead for some minutes, and tokens were issued meanwhile: they are renewed after their time
// all the same.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, fresh(time.Hour))
		b.setClock(10 * 365 * day)
		begin := time.Now()
		b.Watch(item(0), b.in(time.Hour))
		time.Sleep(10 * time.Minute)
		b.setClock(-10 * 365 * day)
		time.Sleep(2 * time.Hour)
		runs := b.ran(item(0))
		if len(runs) < 2 {
			t.Fatalf("%d renewals in two hours", len(runs))
		}
		if after := runs[0].real.Sub(begin); after > 10*time.Minute+54*time.Minute+LookEvery {
			t.Errorf("renewed after %v", after)
		}
		if apart := runs[1].real.Sub(runs[0].real); apart != 54*time.Minute {
			t.Errorf("then renewed after %v", apart)
		}
	})
}

// The clock was wrong for an instant, in which a token was issued. It is not the next to be renewed, so nothing but the
// leap itself makes anybody look.
func TestClockWrongForAnInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, fresh(time.Hour))
		b.Watch(item(0), b.in(time.Second))
		synctest.Wait()
		b.setClock(10 * 365 * day)
		b.Watch(item(1), b.in(time.Hour))
		synctest.Wait()
		b.setClock(-10 * 365 * day)
		time.Sleep(time.Hour)
		if n := len(b.ran(item(1))); n != 1 {
			t.Errorf("%d renewals in the hour for which the token lived", n)
		}
	})
}

// time.Time compares two readings of the monotonic clock if it can, and those do not tell that the machine slept.
func TestWallClockIsNotMonotonic(t *testing.T) {
	if now := New(Options{}).wall(); now != now.Round(0) {
		t.Errorf("%v has a monotonic reading", now)
	}
}

// The clock is set forward and everything seems due: a renewal that finds a good token answers its expiry.
func TestClockSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(_ *bed, _ store.Item, expiry time.Time) Outcome { return Outcome{Expiry: expiry} })
		begin := time.Now()
		b.Watch(item(0), b.in(2*time.Hour)) // due in 108 minutes
		time.Sleep(time.Minute)
		synctest.Wait()               // after the look at this instant
		b.setClock(110 * time.Minute) // 9 minutes before the expiry
		time.Sleep(3 * time.Minute)
		b.wantRuns(item(0), begin, 80*time.Second)
		b.wantDue(item(0), 60*time.Second) // 300 s before the expiry
	})
}

// At most Workers renewals run at a time, and a provider that hangs holds up only what there is no worker for.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = Workers - 1
		var running, most atomic.Int32
		b := start(t, func(b *bed, it store.Item, _ time.Time) Outcome {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			for n := range slow {
				if it == item(n) {
					time.Sleep(time.Hour)
					return Outcome{Stop: true}
				}
			}
			time.Sleep(time.Second)
			return Outcome{Expiry: b.in(time.Hour)}
		})
		for n := range slow {
			b.Watch(item(n), b.in(10*time.Minute))
		}
		for n := range 100 {
			b.Watch(item(slow+n), b.in(20*time.Minute))
		}
		time.Sleep(15*time.Minute + 100*time.Second)
		for n := range 100 {
			if len(b.ran(item(slow+n))) != 1 {
				t.Fatalf("item %d was not renewed while others hung", n)
			}
		}
		looks := b.looks.Load()
		for n := range 2 * Workers { // now more hang than there are workers
			b.Watch(item(n%slow), b.in(10*time.Minute))
			b.Watch(item(1000+n), b.in(time.Minute))
		}
		time.Sleep(time.Minute)
		if n := b.looks.Load() - looks; n > 2000 {
			t.Errorf("looked at the clock %d times in a minute", n)
		}
		if most.Load() > Workers {
			t.Errorf("%d renewals ran at a time", most.Load())
		}
		time.Sleep(2 * time.Hour)
	})
}

// With every worker busy nothing spins, and the first to be free takes what is due longest.
func TestAllWorkersBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan Outcome)
		b := start(t, func(*bed, store.Item, time.Time) Outcome { return <-release })
		for n := range Workers {
			b.Watch(item(n), b.in(time.Minute))
		}
		b.Watch(item(Workers), b.in(70*time.Second))
		b.Watch(item(Workers+1), b.in(65*time.Second))
		time.Sleep(40 * time.Second)
		synctest.Wait()
		looks := b.looks.Load()
		time.Sleep(10 * time.Minute)
		if n := b.looks.Load() - looks; n > 31 {
			t.Errorf("looked at the clock %d times in 10 minutes with all workers busy", n)
		}
		release <- Outcome{Stop: true}
		if len(b.ran(item(Workers+1))) != 1 || len(b.ran(item(Workers))) != 0 {
			t.Error("the free worker did not take what was due longest")
		}
		release <- Outcome{Stop: true}
		if len(b.ran(item(Workers))) != 1 {
			t.Error("the free worker took nothing")
		}
		for range Workers {
			release <- Outcome{Stop: true}
		}
	})
}

// Many tokens, a day long: each is renewed as often as a single one would be, and none late.
func TestManyItems(t *testing.T) {
	for _, test := range []struct {
		items int
		over  time.Duration
		each  int
	}{{10_000, day / 2, 13}, {100_000, time.Hour, 1}} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			count := map[store.Item]int{}
			late := 0
			s := New(Options{Renew: func(_ context.Context, it store.Item, expiry time.Time) Outcome {
				mu.Lock()
				defer mu.Unlock()
				count[it]++
				if !time.Now().Before(expiry.Add(-MinLead)) {
					late++
				}
				return Outcome{Expiry: time.Now().Add(time.Hour)}
			}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go s.Run(ctx)
			for n := range test.items {
				s.Watch(item(n), time.Now().Add(time.Hour))
			}
			time.Sleep(test.over)
			synctest.Wait()
			if len(count) != test.items || late > 0 {
				t.Errorf("%d of %d items renewed, %d times late", len(count), test.items, late)
			}
			for it, n := range count {
				if n != test.each {
					t.Fatalf("%s was renewed %d times in %v, want %d", it, n, test.over, test.each)
				}
			}
		})
	}
}

// Watch and Forget from many goroutines while everything runs; what the race detector is for.
func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(b *bed, it store.Item, _ time.Time) Outcome {
			b.NextDue(it)
			return Outcome{Expiry: b.in(time.Minute)}
		})
		var callers sync.WaitGroup
		for g := range 8 {
			callers.Go(func() {
				for n := range 1000 {
					it := item((n + g) % 20)
					b.Watch(it, b.in(time.Duration(n%5)*time.Minute))
					b.NextDue(it)
					if n%7 == 0 {
						b.Forget(it)
					}
					time.Sleep(time.Second)
				}
			})
		}
		callers.Wait()
	})
}
