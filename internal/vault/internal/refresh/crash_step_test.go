package refresh_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

func TestKilledAtEveryStep(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	killAtEveryStep(t, i, newPlace(t, i))
}

// killAtEveryStep kills a process at each step of a refresh, and looks what the next one has: the table of docs/refresh.md.
func killAtEveryStep(t *testing.T, i *issuer, at place) {
	for _, tt := range []struct {
		step string
		then func(crash, *testing.T)
	}{
		{"after the lock", crash.wantUntouched},
		{"before the call", crash.wantTriedAgain},
		{"after the answer was read", crash.wantLoginNeeded},
		{"after the write ahead", crash.wantServedAndResumed},
		{"after the write ahead", crash.wantServedAndRefreshed},
		{"after the save", crash.wantServedAndResumed},
		{"after the save", crash.wantServedAndRefreshed},
		{"before the unlock", crash.wantServedAndRefreshed},
	} {
		t.Run(tt.step, func(t *testing.T) {
			c := crashAt(t, i, at, tt.step)
			c.wantNoLock(t)
			tt.then(c, t)
		})
	}
}

// crash is what a killed process has left: a login that it was refreshing, and a process that comes after it.
type crash struct {
	i    *issuer
	next *process
	it   store.Item
	old  *grant.Grant // what was stored
	used int          // requests to the token endpoint until then
}

func crashAt(t *testing.T, i *issuer, at place, step string) crash {
	t.Helper()
	bucket := bucketOf(t)
	old := i.login(t)
	before := at.start(t)
	before.save(t, item(bucket), old)
	killed := startChild(t, task{Role: "refresh one after the other", Place: at, Buckets: []string{bucket}, Step: step})
	killed.until(t, bucket+" "+step)
	killed.kill()
	return crash{i, at.start(t), item(bucket), old, i.Calls(oauthtest.Token)}
}

// bucketOf is a bucket for this test alone.
func bucketOf(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" /#", r) {
			return '-'
		}
		return r
	}, t.Name())
}

// wantNoLock: what the killed process had locked, the next one gets at its first try. Takeover of the original client's lock
// takes some moments.
func (c crash) wantNoLock(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	unlock, err := c.next.raw.Lock(ctx, c.it)
	if err != nil {
		t.Fatalf("the killed process is in the way: %v", err)
	}
	unlock()
}

func (c crash) refresh(t *testing.T, seen *grant.Grant) (*grant.Grant, error) {
	t.Helper()
	return c.next.Refresh(t.Context(), c.it, seen)
}

// wantNew checks that a refresh made a token that is good.
func (c crash) wantNew(t *testing.T, seen *grant.Grant) *grant.Grant {
	t.Helper()
	g, err := c.refresh(t, seen)
	if err != nil || g.AccessToken.Equal(seen.AccessToken) || !c.i.Valid(g.AccessToken.Reveal()) {
		t.Fatalf("refresh: %s", outcome(g, err))
	}
	return g
}

// wantUses: the stored refresh token came in so often.
func (c crash) wantUses(t *testing.T, want ...oauthtest.Outcome) {
	t.Helper()
	if got := c.i.uses(c.old.RefreshToken); !slices.Equal(got, want) {
		t.Fatalf("uses of the refresh token that was stored: %q, want %q", got, want)
	}
}

func (c crash) wantCalls(t *testing.T, want int) {
	t.Helper()
	if n := c.i.Calls(oauthtest.Token) - c.used; n != want {
		t.Fatalf("%d requests to the provider since the crash, want %d", n, want)
	}
}

func (c crash) wantUntouched(t *testing.T) {
	c.wantUses(t)
	if h := c.next.History(t.Context(), c.it, c.old); h != (refresh.History{}) {
		t.Errorf("history: %+v", h)
	}
	c.wantNew(t, c.old)
	c.wantUses(t, oauthtest.Accepted)
}

// wantInterrupted: the history says so, and the provider is left alone for a while.
func (c crash) wantInterrupted(t *testing.T) {
	t.Helper()
	h := c.next.History(t.Context(), c.it, c.old)
	if !strings.Contains(h.Detail, "interrupted") || h.Unsaved || h.Refused || !h.Refreshed.IsZero() {
		t.Errorf("history: %+v", h)
	}
	if err := c.next.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if !c.next.log.says("level=WARN", c.it.Account, "interrupted") {
		t.Error("the log does not say that a refresh was interrupted")
	}
	c.next.momentAgo(t, c.it)
	if g, err := c.refresh(t, c.old); err != nil || !g.AccessToken.Equal(c.old.AccessToken) {
		t.Errorf("within the cooldown: %s", outcome(g, err))
	}
	c.wantCalls(t, 0)
	c.next.rest(t, c.it)
}

func (c crash) wantTriedAgain(t *testing.T) {
	c.wantUses(t)
	c.wantInterrupted(t)
	g := c.wantNew(t, c.old)
	c.wantUses(t, oauthtest.Accepted)
	if h := c.next.History(t.Context(), c.it, g); h.Detail != "" || h.Outcome != journal.OK || h.Refreshed.IsZero() {
		t.Errorf("history: %+v", h)
	}
}

// wantLoginNeeded: the answer went with the process. It is tried, once, and then the person told.
func (c crash) wantLoginNeeded(t *testing.T) {
	c.wantUses(t, oauthtest.Accepted)
	c.wantInterrupted(t)
	for range 3 {
		g, err := c.refresh(t, c.old)
		if e, ok := errors.AsType[*refresh.LoginNeededError](err); !ok || !strings.Contains(e.Reason, "interrupted") {
			t.Fatalf("refresh: %s", outcome(g, err))
		}
		c.next.rest(t, c.it)
	}
	c.wantUses(t, oauthtest.Accepted, oauthtest.Reused)
	c.wantCalls(t, 1)
	h := c.next.History(t.Context(), c.it, c.next.read(t, c.it))
	if !h.Refused || !strings.Contains(h.Detail, "interrupted") {
		t.Errorf("history: %+v", h)
	}
	again := c.i.login(t)
	c.next.save(t, c.it, again)
	c.wantNew(t, again)
}

// wantServed: the new token is there at once, without anybody asking for it.
func (c crash) wantServed(t *testing.T) *grant.Grant {
	t.Helper()
	g := c.next.read(t, c.it)
	if g.AccessToken.Equal(c.old.AccessToken) || g.RefreshToken.Equal(c.old.RefreshToken) || !c.i.Valid(g.AccessToken.Reveal()) || !c.i.Valid(g.RefreshToken.Reveal()) {
		t.Fatal("what the provider had answered is not there")
	}
	return g
}

// wantSettled: the store has the token, the journal does not need it any more, and all goes on as if nothing had happened.
func (c crash) wantSettled(t *testing.T, g *grant.Grant) {
	t.Helper()
	if !readFrom(t, c.next.raw, c.it).RefreshToken.Equal(g.RefreshToken) {
		t.Error("the store does not have the new token")
	}
	r := c.next.record(t, c.it)
	if r.Phase != journal.Idle || r.Sealed != nil || r.Outcome != journal.OK || !r.Refreshed.Equal(r.Attempt) || r.Interrupted {
		t.Errorf("record: phase %q, outcome %q, %d sealed bytes", r.Phase, r.Outcome, len(r.Sealed))
	}
	if h := c.next.History(t.Context(), c.it, g); h.Detail != "" || h.Unsaved {
		t.Errorf("history: %+v", h)
	}
	c.wantCalls(t, 0)
	c.next.rest(t, c.it)
	c.wantNew(t, g)
	c.wantUses(t, oauthtest.Accepted)
	if uses := c.i.uses(g.RefreshToken); !slices.Equal(uses, []oauthtest.Outcome{oauthtest.Accepted}) {
		t.Errorf("uses of the new refresh token: %q", uses)
	}
}

func (c crash) wantServedAndResumed(t *testing.T) {
	g := c.wantServed(t)
	if err := c.next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.wantSettled(t, g)
}

func (c crash) wantServedAndRefreshed(t *testing.T) {
	g := c.wantServed(t)
	if again, err := c.refresh(t, c.old); err != nil || !again.AccessToken.Equal(g.AccessToken) {
		t.Fatalf("refresh: %s", outcome(again, err))
	}
	c.wantSettled(t, g)
}

// The provider has rotated, and the process is killed while it waits for the answer. With a token that has expired, nothing can
// be served, and nobody is asked, until the cooldown has passed.
func TestKilledInTheCall(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rotate oauthtest.Rotation
		then   func(*testing.T, crash)
	}{
		{"the old token is revoked", oauthtest.Rotate, func(t *testing.T, c crash) {
			g, err := c.refresh(t, c.old)
			if e, ok := errors.AsType[*refresh.LoginNeededError](err); !ok || !strings.Contains(e.Reason, "interrupted") {
				t.Fatalf("refresh: %s", outcome(g, err))
			}
			c.wantUses(t, oauthtest.Accepted, oauthtest.Reused)
		}},
		{"the old token is good", oauthtest.Keep, func(t *testing.T, c crash) {
			c.wantNew(t, c.old)
			c.wantUses(t, oauthtest.Accepted, oauthtest.Accepted)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := newIssuer(t, false, oauthtest.Options{Rotation: tt.rotate})
			at := newPlace(t, i)
			old := i.login(t)
			old.Expiry = time.Now().Unix() - 60
			before := at.start(t)
			before.save(t, item("a"), old)
			issued, never := make(chan struct{}), make(chan struct{})
			i.Fault(oauthtest.Token, oauthtest.Fault{Edit: func(map[string]any) { close(issued) }, Wait: never}, 1)
			killed := startChild(t, task{Role: "refresh one after the other", Place: at, Buckets: []string{"a"}})
			killed.until(t, "a before the call")
			<-issued
			usual := refresh.SetLookLimit(time.Millisecond)
			if h := before.History(t.Context(), item("a"), old); h.Detail != "a refresh is running" {
				t.Errorf("history: %+v", h)
			}
			refresh.SetLookLimit(usual)
			killed.kill()

			c := crash{i, at.start(t), item("a"), old, i.Calls(oauthtest.Token)}
			c.wantNoLock(t)
			if h := c.next.History(t.Context(), c.it, old); !strings.Contains(h.Detail, "interrupted") {
				t.Errorf("history: %+v", h)
			}
			c.next.momentAgo(t, c.it)
			g, err := c.refresh(t, old)
			if e, ok := errors.AsType[*refresh.LimitedError](err); !ok || e.After <= 0 || e.After > refresh.Cooldown {
				t.Errorf("within the cooldown: %s", outcome(g, err))
			}
			c.wantUses(t, oauthtest.Accepted)
			c.next.rest(t, c.it)
			tt.then(t, c)
		})
	}
}

// Eight wait for one that dies. One of them asks, and all have its answer.
func TestWaitersAfterAKill(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	at := newPlace(t, i)
	old := i.login(t)
	at.start(t).save(t, item("a"), old)
	calls := i.Calls(oauthtest.Token)
	killed := startChild(t, task{Role: "refresh one after the other", Place: at, Buckets: []string{"a"}, Step: "after the lock"})
	killed.until(t, "a after the lock")

	const n = 8
	var waiting, done sync.WaitGroup
	answers := make([]*grant.Grant, n)
	for k := range n {
		w := at.start(t)
		waiting.Add(1)
		told := newProcess(&locking{Store: w.raw, begun: sync.OnceFunc(waiting.Done)}, w.journal, i.client, i.acme(), w.log)
		t.Cleanup(told.Close)
		done.Go(func() {
			var err error
			if answers[k], err = told.Refresh(t.Context(), item("a"), old); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	killed.kill()
	done.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, g := range answers {
		if !g.AccessToken.Equal(answers[0].AccessToken) || g.AccessToken.Equal(old.AccessToken) {
			t.Error("not one new token for all")
		}
	}
	if got := i.Calls(oauthtest.Token) - calls; got != 1 || i.reused() != 0 {
		t.Errorf("%d requests", got)
	}
}

// locking tells when its lock is first asked for.
type locking struct {
	store.Store
	begun func()
}

func (l *locking) Lock(ctx context.Context, it store.Item) (func(), error) {
	l.begun()
	return l.Store.Lock(ctx, it)
}
