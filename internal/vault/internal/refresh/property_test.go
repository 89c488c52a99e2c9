package refresh_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/wire"
)

// step is one thing that happens.
type step struct {
	do    string
	by    int           // number of the process
	point string        // where that dies; "" nowhere
	fault string        // what the provider does; "" what it should
	pass  time.Duration // how long it takes
	n     int           // a variant
}

func (s step) String() string {
	return fmt.Sprintf("{%s by %d; dies %q; fault %q; %v; %d}", s.do, s.by, s.point, s.fault, s.pass, s.n)
}

// failure is a way in which a provider fails.
type failure struct {
	fault oauthtest.Fault
	times int
}

var failures = map[string]failure{
	"500 once":       {oauthtest.ErrorAnswer(500, "server_error"), 1},
	"500":            {oauthtest.ErrorAnswer(500, ""), -1},
	"429":            {oauthtest.RateLimited("45"), -1},
	"reply lost":     {oauthtest.DroppedReply(), 1},
	"no connection":  {oauthtest.Fault{Drop: true}, 2},
	"hangs":          {oauthtest.Fault{Drop: true, Delay: time.Hour}, -1},
	"slow":           {oauthtest.Fault{Delay: 14 * time.Second}, -1},
	"refused":        {oauthtest.ErrorAnswer(400, "invalid_grant"), 1},
	"garbage":        {oauthtest.ErrorAnswer(200, ""), 1},
	"something else": {oauthtest.ErrorAnswer(404, ""), 1},
}

// steps draws what happens. A third of it are refreshes and the time between them.
func steps(t *rapid.T) []step {
	kinds := []string{
		"refresh", "refresh", "refresh", "refresh", "pass", "pass", "pass", "together", "together", "fail", "fail", "crash", "crash", "crash",
		"save", "remove", "remove in the call", "login", "login elsewhere", "login in the call", "restart", "refuse", "refuse", "accept", "break", "mend",
	}
	faults := slices.Sorted(maps.Keys(failures))
	passes := []time.Duration{time.Second, 5 * time.Second, 29 * time.Second, 31 * time.Second, 31 * time.Second, time.Minute, time.Hour + time.Second, 72 * time.Hour}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		s := step{do: rapid.SampledFrom(kinds).Draw(t, "do"), by: rapid.IntRange(0, 2).Draw(t, "by"), n: rapid.IntRange(0, 3).Draw(t, "n")}
		switch s.do {
		case "pass":
			s.pass = rapid.SampledFrom(passes).Draw(t, "pass")
		case "fail":
			s.fault = rapid.SampledFrom(faults).Draw(t, "fault")
		case "crash":
			s.point = rapid.SampledFrom(points).Draw(t, "point")
			if s.n == 0 {
				s.fault = rapid.SampledFrom(faults).Draw(t, "fault")
			}
		}
		return s
	}), 1, 30).Draw(t, "steps")
}

// Whatever happens, in whatever order: no refresh token is used again after its successor was written ahead, no login that was
// removed comes back, one whose newest answer was written ahead is served and works, no provider is asked more often than
// every 30 s, and no secret is said. The model says what that means after each step.
func TestAnySequence(t *testing.T) {
	// The steps are in the output, and -rapid.seed repeats them: no file has to be left in the source tree.
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		t.Fatal(err)
	}
	key, err := file.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	proven := 0
	sequence := func(rt *rapid.T) {
		all := steps(rt)
		var bad error
		synctest.Test(t, func(t *testing.T) {
			dir := quickDir(t)
			m := &model{
				t: t, i: newIssuer(t, true, oauthtest.Options{}), it: item("default"), store: memory.New(), key: key, log: new(logged),
				dirs:      []string{filepath.Join(dir, "first"), filepath.Join(dir, "second")},
				delivered: map[string]bool{}, spent: map[string]bool{}, refused: map[string]bool{}, maybe: map[string]bool{},
			}
			refresh.AtStep(m.stepped)
			defer refresh.AtStep(func(string) {})
			m.play(all)
			bad = m.bad
			proven += m.proven
		})
		if bad != nil {
			rt.Fatalf("%v", bad)
		}
	}
	for range 3 { // of 100 sequences each; more with -rapid.checks
		rapid.Check(t, sequence)
	}
	if proven == 0 {
		t.Error("no login was left at any end: nothing was shown")
	}
	t.Logf("%d logins were shown to work in the end", proven)
}

// quickDir is a temporary directory in memory if this system has such, for what is synced often and needs no disk.
func quickDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "credproxy-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (m *model) play(all []step) {
	for n := range m.procs {
		m.start(n)
	}
	defer func() {
		for _, p := range append(m.gone, m.procs[:]...) {
			p.Coordinator.Close()
		}
	}()
	m.login(m.procs[0])
	for n, s := range all {
		m.attempts, m.crashed = 0, false
		time.Sleep(time.Millisecond) // nothing takes no time
		synctest.Wait()
		m.do(s)
		m.look()
		if !m.crashed || s.n%2 == 0 { // or else the killed process's successor does not look at once
			m.check()
		}
		if m.bad != nil {
			m.bad = fmt.Errorf("after step %d, %v: %w", n, s, m.bad)
			return
		}
	}
	m.prove(len(all)%2 == 0)
	m.quiet()
}

// do does one step.
func (m *model) do(s step) {
	p := m.procs[s.by]
	switch s.do {
	case "pass":
		if m.noWrites {
			s.pass = min(s.pass, 2*time.Hour) // for the saver is at work all the time
		}
		time.Sleep(s.pass)
	case "refresh", "fail":
		m.refresh(s, p)
	case "crash":
		m.crash(s)
	case "together":
		m.together(s)
	case "save":
		m.save(s, p)
	case "remove":
		m.remove(p)
	case "login":
		m.login(p)
	case "login elsewhere":
		m.loginElsewhere(m.i.login(m.t))
	case "remove in the call", "login in the call":
		m.inTheCall(s, p)
	case "restart":
		p.Coordinator.Close()
		m.note(p.journal.Close())
		m.start(s.by)
		m.note(m.procs[s.by].Resume(m.t.Context()))
	case "refuse":
		m.noReads, m.noWrites = s.n == 0, true
		m.refuse()
	case "accept":
		m.noReads, m.noWrites = false, false
		m.refuse()
	case "break":
		m.breakDirs(min(s.n, 1) + s.n/3) // seldom both
	case "mend":
		m.breakDirs(0)
	}
}

// refresh has p ask for a token that is newer than the one it reads, or than one of long ago.
func (m *model) refresh(s step, p *mortal) {
	now, seen := m.reads(s, p)
	requests := m.i.Calls(oauthtest.Token)
	if s.fault != "" {
		m.i.Fault(oauthtest.Token, failures[s.fault].fault, failures[s.fault].times)
		defer m.i.ClearFaults()
	}
	was := m.before(now, seen)
	g, err := p.Refresh(m.t.Context(), m.it, seen)
	m.crashed = m.crashed || p.dead.Load()
	m.refusals(requests)
	if s.fault == "429" && m.attempts > 0 && !m.crashed {
		m.next = m.last.Add(45 * time.Second)
		m.wanted = m.next
	}
	if !m.crashed && m.bad == nil {
		m.judge(s, was, g, err)
	}
}

// before is how things were when a refresh was asked for.
type before struct {
	seen     *grant.Grant
	newest   bool // what was seen
	expired  bool // what was stored
	mustWork bool // the refresh has to bring a token if the provider works and the cooldown is over
	free     bool // it is over for everybody
	known    bool // everybody knows when it is
}

// reads is what p reads, and what the callers of this step say that they have seen.
func (m *model) reads(s step, p *mortal) (now, seen *grant.Grant) {
	now, err := m.view(p)
	if err != nil {
		now = &grant.Grant{}
	}
	if m.seen == nil || s.n < 2 {
		m.seen = now
	}
	return now, m.seen
}

func (m *model) before(stored, seen *grant.Grant) before {
	now := time.Now()
	return before{
		seen: seen, newest: seen.AccessToken.Equal(stored.AccessToken), expired: stored.Expiry != 0 && stored.Expiry <= now.Unix(),
		mustWork: m.sound() && !m.maybe[m.newest()] && m.i.Valid(m.newest()), free: !now.Before(m.next), known: m.lastKnown,
	}
}

// judge compares the result of a refresh with what it must be. A process that does not know of another's attempt may make
// one, after a third has answered what is stored.
func (m *model) judge(s step, was before, g *grant.Grant, err error) {
	m.note(err)
	m.look()
	was.mustWork = was.mustWork && !m.lost
	_, isLimited := limited(err)
	_, isProvider := errors.AsType[*provider.Error](err)
	switch {
	case m.noReads && errors.Is(err, store.ErrLocked):
	case !m.present:
		if !errors.Is(err, store.ErrNotFound) {
			m.fail("the refresh of a login that was removed: %s", outcome(g, err))
		}
	case err == nil:
		if m.sound() && m.access != "" && g.AccessToken.Reveal() != m.access && (was.free || was.known || !g.AccessToken.Equal(was.seen.AccessToken)) {
			m.fail("a refresh answers another token than the newest")
		}
		if was.mustWork && was.free && was.newest && s.fault == "" && m.attempts == 0 && s.do != "together" {
			m.fail("a refresh that could have been made was not")
		}
		if was.mustWork && m.attempts == 0 && was.expired {
			m.fail("an expired token was answered")
		}
	case errors.Is(err, refresh.ErrUnsafe):
		if was.expired || m.broken == 0 {
			m.fail("the provider was not asked though it was safe, or had to be: %v", err)
		}
	case isLimited:
		if was.mustWork && (was.free || !was.expired) && s.fault == "" {
			m.fail("limited without a reason: %v", err)
		}
	case needsLogin(err):
		if was.mustWork && s.fault != "refused" && s.fault != "reply lost" {
			m.fail("the login was to work: %v", err)
		}
	case isProvider:
		if s.fault == "" {
			m.fail("the provider had nothing to complain about: %v", err)
		}
	default:
		m.fail("a refresh: %v", err)
	}
}

// crash is a refresh by a process that is killed in it, if it comes to that point.
func (m *model) crash(s step) {
	p := m.procs[s.by]
	p.dies, m.refreshing = s.point, p
	m.refresh(s, p)
	p.dies, m.refreshing = "", nil
	if !m.crashed {
		return
	}
	m.bury(s.by)
	if s.n%2 == 0 {
		m.note(m.procs[s.by].Resume(m.t.Context()))
	}
}

// together has all processes ask at once, each for two callers who have all seen the same.
func (m *model) together(s step) {
	now, seen := m.reads(s, m.procs[s.by])
	requests := m.i.Calls(oauthtest.Token)
	was := m.before(now, seen)
	results := make([]answer, 2*len(m.procs))
	var wg sync.WaitGroup
	for n := range results {
		wg.Go(func() {
			g, err := m.procs[n%len(m.procs)].Refresh(m.t.Context(), m.it, seen)
			results[n] = answer{g: g, err: err}
		})
	}
	wg.Wait()
	m.refusals(requests)
	if m.attempts > 1 && !m.noJournal() {
		m.fail("%d attempts for callers who came together", m.attempts)
	}
	unsafe := m.noJournal() && m.noWrites && !was.expired // then the provider is left alone, as ErrUnsafe says
	if was.mustWork && was.free && was.newest && m.attempts == 0 && !m.noReads && !unsafe {
		m.fail("nobody asked the provider")
	}
	for _, r := range results {
		m.judge(s, was, r.g, r.err)
	}
}

// underLock does what is to be done with the login's lock, as everybody does.
func (m *model) underLock(f func() error) error {
	unlock, err := m.store.Lock(m.t.Context(), m.it)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unlock()
	err = f()
	m.note(err)
	return err
}

// save stores a token that a client has sent.
func (m *model) save(s step, p *mortal) {
	life := []time.Duration{time.Second, time.Minute, time.Hour, 9 * 365 * 24 * time.Hour}[s.n]
	token := &wire.Token{
		AccessToken: fmt.Sprintf("test-access-token-saved-%d", len(m.saved)), Expiry: time.Now().Add(life).Unix(), TokenType: "Bearer",
	}
	m.saved = append(m.saved, token.AccessToken)
	_ = m.underLock(func() error {
		old, err := m.view(p)
		if err != nil {
			return nil
		}
		if err := p.Coordinator.Store().Write(m.t.Context(), m.it, grant.MergeSaved(old, token).Seal()); err != nil {
			return err
		}
		if m.access = token.AccessToken; m.lost {
			m.access = "" // what is in memory elsewhere is newer, and may come to the store
		}
		return nil
	})
}

func (m *model) remove(p *mortal) {
	if m.underLock(func() error { return p.Coordinator.Store().Delete(m.t.Context(), m.it) }) == nil {
		m.present, m.lastKnown = false, false
	}
}

func (m *model) login(p *mortal) {
	g := m.i.login(m.t)
	if m.underLock(func() error {
		err := p.Coordinator.Store().Write(m.t.Context(), m.it, g.Seal())
		if err == nil {
			p.Begin(m.t.Context(), m.it, g)
		}
		return err
	}) == nil {
		m.stored(g)
		m.lastKnown = false
	}
}

// loginElsewhere is one by another program, which does not know of the journal and takes no lock.
func (m *model) loginElsewhere(g *grant.Grant) {
	if m.store.Write(m.t.Context(), m.it, g.Seal()) == nil {
		m.stored(g)
		m.elsewhere = true // of which a refresh that is running does not ask
	}
}

// inTheCall has p refresh while somebody removes the login or another program replaces it.
func (m *model) inTheCall(s step, p *mortal) {
	seen, err := m.view(p)
	if err != nil {
		return
	}
	g := m.i.login(m.t)
	requests := m.i.Calls(oauthtest.Token)
	m.i.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 1)
	defer m.i.ClearFaults()
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Duration(s.n+1)*2*time.Second)
		defer cancel()
		_, err := p.Refresh(ctx, m.it, seen)
		m.texts.WriteString(fmt.Sprint(err))
	})
	synctest.Wait()
	if s.do == "login in the call" {
		m.loginElsewhere(g)
	}
	wg.Wait()
	if s.do == "remove in the call" {
		m.remove(m.procs[(s.by+1)%len(m.procs)])
	}
	time.Sleep(10 * time.Second)
	m.refusals(requests)
}

// prove shows that the login works, if it has to, when everything works again: by new processes, after the old ones have ended
// or died.
func (m *model) prove(die bool) {
	m.noReads, m.noWrites = false, false
	m.refuse()
	m.breakDirs(0)
	for n, p := range m.procs {
		if die {
			m.bury(n)
			continue
		}
		p.Coordinator.Close()
		m.note(p.journal.Close())
		m.start(n)
	}
	m.check() // with what is in memory alone gone, or stored
	if m.bad != nil || !m.before(&grant.Grant{}, &grant.Grant{}).mustWork {
		return
	}
	m.note(m.procs[0].Resume(m.t.Context()))
	for _, p := range m.procs {
		time.Sleep(time.Hour)
		m.attempts = 0
		m.refresh(step{do: "refresh"}, p)
		m.check()
		if raw := m.inStore(); raw == nil || raw.RefreshToken.Reveal() != m.newest() || !m.i.Valid(m.access) || m.attempts != 1 {
			m.fail("in the end the login does not work")
		}
		if m.bad != nil {
			m.bad = fmt.Errorf("in the end: %w", m.bad)
			return
		}
	}
	m.proven++
}
