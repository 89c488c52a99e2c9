package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

// mortal is a process that can be killed at a point: its goroutine ends there, and nothing that it leaves behind gets at the
// store or at the provider any more. Its locks go, as the kernel has it.
type mortal struct {
	*refresh.Coordinator
	*memory.Store
	rt      http.RoundTripper
	journal *journal.Journal
	dead    atomic.Bool
	dies    string // at this point of the next refresh; "" nowhere. The refresh reads it while its caller waits
}

var errDead = errors.New("the process is dead")

// cooldown is the least time between two attempts.
const cooldown = 30 * time.Second

// Points at which a process can die, beside those of the coordinator.
const (
	inTheCall      = "the answer is there and was not read"
	beforeTheWrite = "before the store's write"
	afterTheWrite  = "after the store's write"
)

var points = []string{
	"after the lock", "before the call", inTheCall, "after the answer was read", "after the write ahead", beforeTheWrite, afterTheWrite,
	"after the save", "before the unlock",
}

// at ends the process if this is where it dies.
func (p *mortal) at(point string) {
	if p.dies == point && p.dead.CompareAndSwap(false, true) {
		runtime.Goexit()
	}
}

func (p *mortal) Read(ctx context.Context, it store.Item) (secret.String, error) {
	if p.dead.Load() {
		return secret.String{}, errDead
	}
	return p.Store.Read(ctx, it)
}

func (p *mortal) Write(ctx context.Context, it store.Item, value secret.String) error {
	if p.dead.Load() {
		return errDead
	}
	p.at(beforeTheWrite)
	err := p.Store.Write(ctx, it, value)
	p.at(afterTheWrite)
	return err
}

func (p *mortal) Lock(ctx context.Context, it store.Item) (func(), error) {
	if p.dead.Load() {
		return nil, errDead
	}
	return p.Store.Lock(ctx, it)
}

func (p *mortal) Close() error { return nil }

// RoundTrip implements [http.RoundTripper].
func (p *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.dead.Load() {
		return nil, errDead
	}
	resp, err := p.rt.RoundTrip(r)
	if err == nil && p.dies == inTheCall {
		_ = resp.Body.Close()
		p.at(inTheCall)
	}
	return resp, err
}

// model is what must hold of one login, which three processes share. The provider's tokens and the steps of refreshes tell it
// what was done. One goroutine has it; only what a refresh tells and what another program does meanwhile is under mu.
type model struct {
	mu    sync.Mutex
	t     *testing.T
	i     *issuer
	it    store.Item
	store *memory.Store
	dirs  []string // of the journal
	key   journal.Sealer
	log   *logged
	procs [3]*mortal
	gone  []*mortal // killed

	broken      int  // how many of dirs cannot be used
	noReads     bool // the store refuses reads
	noWrites    bool // or writes
	crashed     bool // a process has died in this step
	saved       []string
	texts       strings.Builder // of all errors
	refreshing  *mortal         // whose refresh a point can end
	attempts    int             // in this step
	usesChecked int

	present   bool
	elsewhere bool            // another program has stored it
	family    int             // of the provider: the login that is stored
	access    string          // the token that is to be served; "" when that is not known
	delivered map[string]bool // refresh tokens that were written ahead, or stored by a login
	spent     map[string]bool // refresh tokens for which an answer was written ahead
	refused   map[string]bool // refresh tokens that the provider has refused for good, which a process has recorded
	maybe     map[string]bool // or may have recorded
	lost      bool            // the newest refresh token may be in some processes' memory alone: store and journal are both out of reach

	last      time.Time // attempt
	lastKnown bool      // it is in the journal
	next      time.Time // nobody is limited longer than that; after a new login, as a rule, nobody is
	wanted    time.Time // by the provider: no attempt before

	seen *grant.Grant // what callers say that they have seen, sometimes later

	bad    error // what did not hold, the first
	proven int   // times that the login was shown to work in the end
}

func (m *model) fail(format string, args ...any) {
	if m.bad == nil {
		m.bad = fmt.Errorf(format, args...)
	}
}

// note has the text of an error searched for secrets in the end.
func (m *model) note(err error) {
	if err != nil {
		m.texts.WriteString(textsOf(err))
	}
}

// start is another process, in place of number n.
func (m *model) start(n int) {
	p := &mortal{Store: m.store, rt: m.i.Client().Transport}
	logger := slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	p.journal, err = journal.New(journal.Options{
		Dirs: m.dirs, Logger: logger, Key: func(context.Context) (journal.Sealer, error) { return m.key, nil },
	})
	if err != nil {
		m.t.Fatal(err)
	}
	p.Coordinator = refresh.New(refresh.Options{
		Store: p, Journal: p.journal, Client: provider.NewClientWith(p), Provider: m.i.acme(), Logger: logger, Changed: func(store.Item) {},
		Secret: func(context.Context, *provider.Provider) (secret.String, error) { return secret.String{}, nil },
	})
	m.procs[n] = p
}

// bury ends what is left of a process that is dead.
func (m *model) bury(n int) {
	m.procs[n].dead.Store(true)
	m.gone = append(m.gone, m.procs[n])
	m.start(n)
}

// view is the login as everybody sees it in a process.
func (m *model) view(p *mortal) (*grant.Grant, error) {
	sealed, err := p.Coordinator.Store().Read(m.t.Context(), m.it)
	if err != nil {
		m.note(err)
		return nil, err
	}
	return grant.Parse(sealed)
}

// inStore is the login that the store itself has, whether it refuses or not; nil: none.
func (m *model) inStore() *grant.Grant {
	synctest.Wait() // nobody else is to see that it does not refuse
	m.store.Refuse(nil, nil)
	defer m.refuse()
	sealed, err := m.store.Read(m.t.Context(), m.it)
	if err != nil {
		return nil
	}
	g, err := grant.Parse(sealed)
	if err != nil {
		m.fail("what is stored is no login: %v", err)
	}
	return g
}

func (m *model) refuse() {
	var reads, writes error
	if m.noReads {
		reads = store.ErrLocked
	}
	if m.noWrites {
		writes = errFull
	}
	m.store.Refuse(reads, writes)
}

// breakDirs makes the first n of the journal's directories unusable, and the others usable.
func (m *model) breakDirs(n int) {
	for i, dir := range m.dirs {
		aside := dir + ".aside"
		var err error
		switch {
		case i < n && i >= m.broken:
			if err = os.Rename(dir, aside); errors.Is(err, os.ErrNotExist) {
				err = os.Mkdir(aside, 0o700)
			}
			err = errors.Join(err, os.WriteFile(dir, nil, 0o600))
		case i >= n && i < m.broken:
			err = errors.Join(os.Remove(dir), os.Rename(aside, dir))
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	if n > m.broken {
		// What is recorded there is not known now, and may be overwritten by what is.
		m.lastKnown = false
		clear(m.refused)
		if raw := m.inStore(); m.present && (raw == nil || raw.RefreshToken.Reveal() != m.newest()) {
			m.lost = true
		}
	}
	m.broken = n
}

func (m *model) noJournal() bool { return m.broken == len(m.dirs) }

// newest is the newest refresh token of the login.
func (m *model) newest() string {
	tokens := m.i.Families()[m.family].RefreshTokens
	return tokens[len(tokens)-1]
}

// sound says that the login has to work: nobody but the provider can prevent it.
func (m *model) sound() bool {
	if m.elsewhere && m.noReads {
		return false // what the journal has may be of the login before that one, and nobody can see that
	}
	return m.present && !m.lost && m.delivered[m.newest()]
}

// stored is a new login, which is in the store.
func (m *model) stored(g *grant.Grant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n, f := range m.i.Families() {
		if f.RefreshTokens[0] == g.RefreshToken.Reveal() {
			m.family = n
		}
	}
	m.present, m.elsewhere, m.lost = true, false, false
	m.access = g.AccessToken.Reveal()
	m.delivered[g.RefreshToken.Reveal()] = true
}

// stepped is called at every step of every refresh.
func (m *model) stepped(step string) {
	m.steppedTo(step)
	if m.refreshing != nil {
		m.refreshing.at(step)
	}
}

func (m *model) steppedTo(step string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch step {
	case "before the call":
		m.attempts++
		now := time.Now()
		// The journal has milliseconds.
		if gap := now.Sub(m.last); m.lastKnown && !m.noJournal() && (gap < cooldown-time.Millisecond || now.Before(m.wanted.Add(-time.Millisecond))) {
			m.fail("the provider is asked again after %v", gap)
		}
		m.last, m.lastKnown, m.next, m.wanted = now, !m.noJournal(), now.Add(cooldown), time.Time{}
	case "after the write ahead":
		uses := m.i.RefreshUses()
		last := uses[len(uses)-1]
		if last.Outcome != oauthtest.Accepted {
			break // the answer is no token
		}
		for number, f := range m.i.Families() {
			n := slices.Index(f.RefreshTokens, last.Token)
			if n < 0 {
				continue
			}
			m.delivered[f.RefreshTokens[n+1]] = true
			if number == m.family {
				m.access = f.AccessTokens[n+1]
			}
		}
		m.spent[last.Token] = !m.noJournal()
	}
}

// look sees whether the newest refresh token is in the store, or may be out of reach.
func (m *model) look() {
	raw := m.inStore()
	if m.present {
		inStore := raw != nil && raw.RefreshToken.Reveal() == m.newest()
		if inStore {
			m.lost = false
			tokens := m.i.Families()[m.family].RefreshTokens
			for _, token := range tokens[:len(tokens)-1] {
				m.spent[token] = true
			}
		} else if m.noJournal() && !m.maybe[m.newest()] {
			m.lost = true
		}
	}
}

// check compares all that can be seen with what must be. It is called when nothing is going on.
func (m *model) check() {
	m.look()
	m.checkUses()
	for n, p := range m.procs {
		g, err := m.view(p)
		switch {
		case m.noReads && errors.Is(err, store.ErrLocked):
		case !m.present && !errors.Is(err, store.ErrNotFound):
			m.fail("process %d: a login that was removed is there: %v", n, err)
		case !m.present || !m.sound():
		case err != nil:
			m.fail("process %d: the login cannot be read: %v", n, err)
		case m.access != "" && g.AccessToken.Reveal() != m.access:
			m.fail("process %d does not serve the newest token", n)
		case g.RefreshToken.Reveal() != m.newest() && !(g.RefreshToken.IsZero() && m.maybe[m.newest()]):
			m.fail("process %d does not have the newest refresh token", n)
		}
	}
}

// checkUses looks at the refresh tokens that came in since the last time.
func (m *model) checkUses() {
	uses := m.i.RefreshUses()
	for _, u := range uses[m.usesChecked:] {
		if m.refused[u.Token] && !m.noJournal() {
			m.fail("a refresh token came again that had been refused for good")
		}
		if u.Outcome == oauthtest.Reused && m.spent[u.Token] && !m.lost {
			m.fail("a refresh token came again whose successor had been written ahead")
		}
	}
	m.usesChecked = len(uses)
}

// refusals remembers which refresh tokens the provider has refused since request number n.
func (m *model) refusals(n int) {
	m.checkUses() // with what was known before
	for _, r := range m.i.Requests(oauthtest.Token)[n:] {
		token := r.Params.Get("refresh_token")
		if r.Status != http.StatusBadRequest || token == "" {
			continue
		}
		m.maybe[token] = true
		if !m.crashed && !m.noJournal() {
			m.refused[token] = true
		}
	}
}

// quiet looks for secrets where none may be.
func (m *model) quiet() {
	m.texts.WriteString(m.log.String())
	for _, dir := range m.dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				m.t.Fatal(err)
			}
			m.texts.Write(b)
		}
	}
	for _, s := range append(m.i.Issued().All(), m.saved...) {
		if strings.Contains(m.texts.String(), s) {
			m.fail("a secret is in an error, in the log or readable in a file")
		}
	}
}
