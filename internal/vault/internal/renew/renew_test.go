package renew

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

var errTest = errors.New("the provider does not answer")

// While nothing is scheduled nothing runs: no timer ticks and the clock is not read, for a year.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(*bed, store.Item, time.Time) Outcome { return Outcome{Stop: true} })
		time.Sleep(365 * day)
		if n := b.looks.Load(); n != 0 {
			t.Errorf("looked at the clock %d times with nothing scheduled", n)
		}
		b.Watch(item(0), b.in(time.Hour))
		synctest.Wait()
		before := b.looks.Load()
		time.Sleep(50 * time.Minute)
		if n := b.looks.Load() - before; n < 149 || n > 151 {
			t.Errorf("looked at the clock %d times in 50 minutes, want one every %v", n, LookEvery)
		}
		time.Sleep(5 * time.Minute) // renewed, and stopped
		b.wantDue(item(0), -1)
		before = b.looks.Load()
		time.Sleep(365 * day)
		if n := b.looks.Load() - before; n != 0 {
			t.Errorf("looked at the clock %d times after the last item was gone", n)
		}
	})
}

func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(*bed, store.Item, time.Time) Outcome { return Outcome{Err: errTest} })
		begin, expiry := time.Now(), b.in(time.Hour)
		b.Watch(item(0), expiry)
		ladder := []time.Duration{54 * time.Minute}
		for _, wait := range []time.Duration{30, 60, 120, 240, 480, 960, 1800, 1800, 1800} {
			ladder = append(ladder, ladder[len(ladder)-1]+wait*time.Second)
		}
		for range 24 * 60 {
			b.Watch(item(0), expiry) // the same token is served all the time; that changes nothing
			time.Sleep(time.Minute)
		}
		// The watch that followed the tenth failure began anew, with an expired token.
		first := ladder[9].Truncate(time.Minute) + time.Minute + 30*time.Second
		all := b.ran(item(0))
		if len(all) < 11 {
			t.Fatalf("%d renewals", len(all))
		}
		for i, want := range append(ladder, first) {
			if got := all[i].real.Sub(begin); got != want {
				t.Errorf("renewal %d after %v, want %v", i, got, want)
			}
		}
		if b.gaveUp[0] != item(0) {
			t.Errorf("gave up %v", b.gaveUp)
		}
	})
}

func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, func(*bed, store.Item, time.Time) Outcome { return Outcome{Err: errTest} })
		expiry := b.in(time.Hour)
		b.Watch(item(0), expiry)
		time.Sleep(10 * day)
		if n := len(b.ran(item(0))); n != MaxFailures || len(b.gaveUp) != 1 {
			t.Fatalf("%d renewals, gave up %d times; want %d and once", n, len(b.gaveUp), MaxFailures)
		}
		b.wantDue(item(0), -1)
		b.Watch(item(0), expiry)
		b.wantDue(item(0), Cooldown)
		time.Sleep(10 * day)
		if n := len(b.ran(item(0))); n != 2*MaxFailures || len(b.gaveUp) != 2 {
			t.Errorf("%d renewals, gave up %d times after a second watch", n, len(b.gaveUp))
		}
	})
}

// A success, or another token, ends a row of failures.
func TestFailuresAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Bool
		fail.Store(true)
		b := start(t, func(b *bed, _ store.Item, _ time.Time) Outcome {
			if fail.Load() {
				return Outcome{Err: errTest}
			}
			return Outcome{Expiry: b.in(time.Hour)}
		})
		begin := time.Now()
		at := func(d time.Duration) { time.Sleep(time.Until(begin.Add(d))); synctest.Wait() }
		b.Watch(item(0), b.in(10*time.Minute))
		at(5*time.Minute + 100*time.Second) // failed at 5:00, 5:30 and 6:30
		b.wantDue(item(0), 110*time.Second)
		fail.Store(false)
		at(9 * time.Minute) // renewed at 8:30
		b.wantDue(item(0), 53*time.Minute+30*time.Second)
		fail.Store(true)
		at(62*time.Minute + 30*time.Second)
		b.wantDue(item(0), 30*time.Second)
		b.Watch(item(0), b.in(2*time.Hour)) // somebody logged in
		b.wantDue(item(0), 108*time.Minute)
		at(170*time.Minute + 30*time.Second)
		b.wantDue(item(0), 30*time.Second)
	})
}

func TestOutcomes(t *testing.T) {
	for _, test := range []struct {
		name string
		out  func(b *bed) Outcome
		want time.Duration // next due, from the renewal; negative: forgotten
	}{
		{"new token", func(b *bed) Outcome { return Outcome{Expiry: b.in(time.Hour)} }, 54 * time.Minute},
		{"no expiry known", func(b *bed) Outcome { return Outcome{} }, -1},
		{"no expiry but later", func(b *bed) Outcome { return Outcome{After: time.Hour} }, -1},
		{"stop", func(b *bed) Outcome { return Outcome{Stop: true, Expiry: b.in(time.Hour)} }, -1},
		{"stop and an error", func(b *bed) Outcome { return Outcome{Stop: true, Err: errTest} }, -1},
		{"not before", func(b *bed) Outcome { return Outcome{Expiry: b.in(5 * time.Minute), After: 4 * time.Minute} }, 4 * time.Minute},
		{"not before the cooldown ends", func(b *bed) Outcome { return Outcome{Expiry: b.in(40 * time.Second), After: 30 * time.Second} }, 30 * time.Second},
		{"not before the half is over", func(b *bed) Outcome { return Outcome{Expiry: b.in(40 * time.Second), After: 10 * time.Second} }, 20 * time.Second},
		{"not before, with little left", func(b *bed) Outcome { return Outcome{Expiry: b.in(6 * time.Second), After: time.Second} }, MinGap},
		{"little left", func(b *bed) Outcome { return Outcome{Expiry: b.in(6 * time.Second)} }, MinGap},
		{"due at once", func(b *bed) Outcome { return Outcome{Expiry: b.in(301 * time.Second)} }, MinGap},
		{"after a negative time", func(b *bed) Outcome { return Outcome{Expiry: b.in(20 * time.Second), After: -time.Hour} }, 10 * time.Second},
		{"not before, which is no matter", func(b *bed) Outcome { return Outcome{Expiry: b.in(time.Hour), After: time.Minute} }, 54 * time.Minute},
		{"failed, not before", func(b *bed) Outcome { return Outcome{Err: errTest, After: 7 * time.Minute} }, 7 * time.Minute},
		{"failed, which is later", func(b *bed) Outcome { return Outcome{Err: errTest, After: 7 * time.Second} }, 30 * time.Second},
		{"failed with an expiry", func(b *bed) Outcome { return Outcome{Err: errTest, Expiry: b.in(time.Hour)} }, 30 * time.Second},
		{"failed, after a negative time", func(b *bed) Outcome { return Outcome{Err: errTest, After: -time.Hour} }, 30 * time.Second},
		{"failed, not for 200 years", func(b *bed) Outcome { return Outcome{Err: errTest, After: 200 * 365 * day} }, 200 * 365 * day},
		{"an expired token", func(b *bed) Outcome { return Outcome{Expiry: b.in(-time.Hour)} }, 30 * time.Second},
		{"an expired token, not before", func(b *bed) Outcome { return Outcome{Expiry: b.in(-time.Hour), After: 10 * time.Second} }, 30 * time.Second},
		{"an expired token, not for long", func(b *bed) Outcome { return Outcome{Expiry: b.in(-time.Hour), After: time.Minute} }, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, func(b *bed, _ store.Item, _ time.Time) Outcome { return test.out(b) })
				b.Watch(item(0), b.in(time.Hour))
				time.Sleep(54 * time.Minute)
				b.wantDue(item(0), test.want)
				if n := len(b.ran(item(0))); n != 1 {
					t.Errorf("%d renewals", n)
				}
			})
		})
	}
}

func TestWatchAndForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, fresh(time.Hour))
		begin, expiry := time.Now(), b.in(time.Hour)
		jittered := time.Duration(0)
		b.jitter = func() time.Duration { jittered += time.Second; return jittered }
		b.Watch(item(0), time.Time{})
		b.wantDue(item(0), -1)
		b.Watch(item(0), expiry)
		b.wantDue(item(0), 54*time.Minute-time.Second)
		b.Watch(item(0), expiry.Round(0).UTC()) // the same instant
		b.wantDue(item(0), 54*time.Minute-time.Second)
		b.Watch(item(0), expiry.Add(time.Hour))
		b.wantDue(item(0), 108*time.Minute-2*time.Second)
		b.Watch(item(0), b.in(20*time.Minute)) // and sooner
		b.wantDue(item(0), 15*time.Minute-3*time.Second)
		b.Watch(item(0), time.Time{}) // another one, whose expiry nobody knows
		b.wantDue(item(0), -1)
		b.Forget(item(0))
		b.Forget(item(1))
		b.Watch(item(0), expiry)
		b.Watch(item(1), expiry)
		b.Forget(item(0))
		time.Sleep(time.Hour)
		b.wantRuns(item(0), begin)
		b.wantRuns(item(1), begin, 54*time.Minute-5*time.Second)
	})
}

// What a renewal answers counts only if nobody watched the item anew or forgot it while it ran. Meanwhile no second one runs.
func TestNewsDuringARenewal(t *testing.T) {
	for _, test := range []struct {
		name string
		news func(b *bed, expiry time.Time)
		out  func(b *bed) Outcome
		want time.Duration // next due, from the end of the renewal, which takes 10 s; negative: forgotten
	}{
		{"forget", func(b *bed, _ time.Time) { b.Forget(item(0)) }, func(b *bed) Outcome { return fresh(time.Hour)(b, item(0), time.Time{}) }, -1},
		{"forget, failed", func(b *bed, _ time.Time) { b.Forget(item(0)) }, func(*bed) Outcome { return Outcome{Err: errTest} }, -1},
		{"the same", func(b *bed, expiry time.Time) { b.Watch(item(0), expiry) }, func(b *bed) Outcome { return Outcome{Err: errTest} }, 30 * time.Second},
		{"another", func(b *bed, _ time.Time) { b.Watch(item(0), b.in(time.Hour+10*time.Second)) }, func(*bed) Outcome { return Outcome{Err: errTest, After: 2 * time.Hour} }, 54 * time.Minute},
		{"another, stop", func(b *bed, _ time.Time) { b.Watch(item(0), b.in(time.Hour+10*time.Second)) }, func(*bed) Outcome { return Outcome{Stop: true} }, 54 * time.Minute},
		{"another, then forget", func(b *bed, expiry time.Time) { b.Watch(item(0), b.in(time.Hour)); b.Forget(item(0)) }, func(b *bed) Outcome { return Outcome{Expiry: b.in(time.Hour)} }, -1},
		{"forget, then the same", func(b *bed, expiry time.Time) { b.Forget(item(0)); b.Watch(item(0), expiry) }, func(*bed) Outcome { return Outcome{Stop: true} }, 145 * time.Second},
		{"almost expired", func(b *bed, _ time.Time) { b.Watch(item(0), b.in(time.Second)) }, func(*bed) Outcome { return Outcome{Stop: true} }, 30 * time.Second},
		{"due at once", func(b *bed, _ time.Time) { b.Watch(item(0), b.in(311*time.Second)) }, func(*bed) Outcome { return Outcome{Stop: true} }, time.Second},
		{"another, not before", func(b *bed, _ time.Time) { b.Watch(item(0), b.in(40*time.Second)) }, func(b *bed) Outcome { return Outcome{Expiry: b.in(time.Hour), After: time.Minute} }, 15 * time.Second},
		{"unknown expiry", func(b *bed, _ time.Time) { b.Watch(item(0), time.Time{}) }, func(b *bed) Outcome { return Outcome{Expiry: b.in(time.Hour)} }, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, func(b *bed, _ store.Item, expiry time.Time) Outcome {
					time.Sleep(10 * time.Second)
					return test.out(b)
				})
				expiry := b.in(10 * time.Minute)
				b.Watch(item(0), expiry)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				b.wantDue(item(0), 0) // running
				test.news(b, expiry)
				time.Sleep(10 * time.Second)
				b.wantDue(item(0), test.want)
				if n := len(b.ran(item(0))); n != 1 || len(b.entries) > 1 || b.running != 0 {
					t.Errorf("%d renewals, %d entries, %d running", n, len(b.entries), b.running)
				}
			})
		})
	}
}

// The callbacks may call the Scheduler, as a coordinator does that watches what it stored.
func TestCallbacksMayCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Scheduler
		renewed := 0
		s = New(Options{
			Renew: func(_ context.Context, it store.Item, _ time.Time) Outcome {
				renewed++
				if renewed <= MaxFailures {
					return Outcome{Err: errTest}
				}
				s.Watch(it, time.Now().Add(time.Hour))
				return Outcome{Expiry: time.Now().Add(time.Hour)}
			},
			GaveUp: func(it store.Item) { s.Watch(it, time.Now()) },
		})
		s.Watch(item(0), time.Now().Add(time.Hour)) // before Run
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		time.Sleep(day)
		synctest.Wait()
		if renewed < 20 {
			t.Errorf("%d renewals", renewed)
		}
		cancel()
	})
}

// Run returns when its context has ended and the running renewals have returned; from then on nothing is scheduled.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan Outcome)
		b := start(t, func(*bed, store.Item, time.Time) Outcome { return <-release })
		b.Watch(item(0), b.in(time.Hour))
		b.Watch(item(1), b.in(2*time.Hour))
		time.Sleep(54 * time.Minute)
		synctest.Wait() // item 0 is being renewed
		b.cancel()
		synctest.Wait()
		select {
		case <-b.stopped:
			t.Error("Run returned while a renewal was running")
		default:
		}
		b.Watch(item(2), b.in(time.Hour))
		b.wantDue(item(0), -1)
		b.wantDue(item(1), -1)
		b.wantDue(item(2), -1)
		b.Forget(item(0))
		release <- Outcome{Err: errTest}
		<-b.stopped
		time.Sleep(day)
		b.wantDue(item(0), -1)
		if len(b.runs) != 1 || len(b.gaveUp) != 0 {
			t.Errorf("after the end: ran %v, gave up %v", b.runs, b.gaveUp)
		}
	})
}

// A renewal sees the end of Run through its context, and to have failed for that is no reason to give up.
func TestEndReachesRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := 0
		s := New(Options{
			Renew: func(ctx context.Context, _ store.Item, _ time.Time) Outcome {
				if failed++; failed == MaxFailures {
					<-ctx.Done()
				}
				return Outcome{Err: errTest}
			},
			GaveUp: func(store.Item) { t.Error("gave up at the end") },
		})
		ctx, cancel := context.WithCancel(t.Context())
		s.Watch(item(0), time.Now())
		time.AfterFunc(day, cancel)
		s.Run(ctx)
		if failed != MaxFailures {
			t.Errorf("failed %d times", failed)
		}
	})
}
