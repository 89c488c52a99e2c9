package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/backend"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
)

// issuer is the provider acme: with o's zero value it rotates refresh tokens, and revokes a login whose old one comes again.
type issuer struct {
	*oauthtest.Server
	client *provider.Client
}

// newIssuer starts one, reached over TCP, or over pipes for a synctest bubble.
func newIssuer(t testing.TB, pipe bool, o oauthtest.Options) *issuer {
	t.Helper()
	run := oauthtest.Start
	if pipe {
		run = oauthtest.StartPipe
	}
	s, err := run(o)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{s, provider.NewClientWith(s.Client().Transport)}
	t.Cleanup(func() {
		i.client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return i
}

// acme describes the provider whose token endpoint is at tokenURL.
func acme(tokenURL string) func(string) (*provider.Provider, bool) {
	p := provider.FromConfig(&config.Provider{Name: "acme", Dialect: "oauth2", ClientID: "test-client", TokenURL: tokenURL})
	return func(name string) (*provider.Provider, bool) { return p, name == "acme" }
}

func (i *issuer) acme() func(string) (*provider.Provider, bool) {
	return acme(i.EndpointURL(oauthtest.Token))
}

// login is a new login, as a person would make it. Nothing is stored.
func (i *issuer) login(t testing.TB) *grant.Grant {
	t.Helper()
	p, _ := i.acme()("acme")
	p.AuthorizeURL = i.EndpointURL(oauthtest.Authorize)
	a, err := i.client.Authorize(t.Context(), p, "http://127.0.0.1/callback")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := i.Client().Get(a.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := i.client.Exchange(t.Context(), a, back.Query(), secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// uses is what became of a refresh token each time that it came in.
func (i *issuer) uses(token secret.String) (outcomes []oauthtest.Outcome) {
	for _, u := range i.RefreshUses() {
		if u.Token == token.Reveal() {
			outcomes = append(outcomes, u.Outcome)
		}
	}
	return outcomes
}

// reused are the refresh tokens that came in after they had been rotated away.
func (i *issuer) reused() (n int) {
	for _, u := range i.RefreshUses() {
		if u.Outcome == oauthtest.Reused {
			n++
		}
	}
	return n
}

// login is the item of acme's login of this bucket.
func item(bucket string) store.Item {
	return store.Item{Service: store.ServiceLogins, Account: "acme:" + bucket}
}

// process is what one process has open. A test may have several, which share a store's directory and a journal's.
type process struct {
	*refresh.Coordinator
	raw     store.Store // without the coordinator's overlay
	journal *journal.Journal
	changed chan store.Item // what Options.Changed was told; full: no more of it
	log     *logged
}

func newProcess(s store.Store, j *journal.Journal, c *provider.Client, providers func(string) (*provider.Provider, bool), log *logged) *process {
	p := &process{raw: s, journal: j, changed: make(chan store.Item, 1000), log: log}
	p.Coordinator = refresh.New(refresh.Options{
		Store: s, Journal: j, Client: c, Provider: providers, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Secret: func(context.Context, *provider.Provider) (secret.String, error) { return secret.String{}, nil },
		Changed: func(it store.Item) {
			select {
			case p.changed <- it:
			default:
			}
		},
	})
	return p
}

// newJournal is a journal in dir, for a store without a key of its own. It has a new key each time, unless key is given.
func newJournal(t testing.TB, dir string, key journal.Sealer, log *logged) *journal.Journal {
	t.Helper()
	if key == nil {
		var err error
		if key, err = file.NewSealer(); err != nil {
			t.Fatal(err)
		}
	}
	j, err := journal.New(journal.Options{
		Dirs: []string{dir}, Key: func(context.Context) (journal.Sealer, error) { return key, nil },
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// place is where the processes of a user keep what they share. It goes to child processes in JSON.
type place struct {
	Kind     string   // of the store: "file" or "keyring"
	Store    string   // directory
	Recovery []string // directories of the journal
	Bus      string   // of the keyring
	TokenURL string   // the provider's
}

func newPlace(t testing.TB, i *issuer) place {
	t.Helper()
	dir := t.TempDir()
	return place{
		Kind: "file", Store: filepath.Join(dir, "store"), Recovery: []string{filepath.Join(dir, "recovery")},
		TokenURL: i.EndpointURL(oauthtest.Token),
	}
}

// open opens the place as one process does. end closes it, and returns what Close of the journal does.
func (p place) open() (opened *process, end func() error, err error) {
	s, err := backend.Open(context.Background(), backend.Options{
		Kind: p.Kind, Dir: p.Store, LockDir: filepath.Join(p.Store, "locks"), RecoveryDir: p.Recovery[0], Key: string(file.KeyFile), Bus: p.Bus, Limit: time.Minute,
	})
	if err != nil {
		return nil, nil, err
	}
	log := new(logged)
	j, err := journal.New(journal.Options{
		Dirs: p.Recovery, Key: func(ctx context.Context) (journal.Sealer, error) { return s.Sealer(ctx) },
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	client := provider.NewClient()
	opened = newProcess(s, j, client, acme(p.TokenURL), log)
	return opened, sync.OnceValue(func() error {
		opened.Close()
		client.Close()
		return errors.Join(j.Close(), s.Close())
	}), nil
}

// start is open for a test, which ends it.
func (p place) start(t testing.TB) *process {
	t.Helper()
	opened, end, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return opened
}

// save stores a login as everybody does: with the item's lock, and through the overlay.
func (p *process) save(t testing.TB, it store.Item, g *grant.Grant) {
	t.Helper()
	unlock, err := p.raw.Lock(t.Context(), it)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := p.Store().Write(t.Context(), it, g.Seal()); err != nil {
		t.Fatal(err)
	}
}

// read is the login as everybody sees it.
func (p *process) read(t testing.TB, it store.Item) *grant.Grant {
	t.Helper()
	return readFrom(t, p.Store(), it)
}

func readFrom(t testing.TB, s store.Store, it store.Item) *grant.Grant {
	t.Helper()
	sealed, err := s.Read(t.Context(), it)
	if err != nil {
		t.Fatal(err)
	}
	g, err := grant.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// record is what the journal has.
func (p *process) record(t testing.TB, it store.Item) journal.Record {
	t.Helper()
	r, err := p.journal.Read(t.Context(), it)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// waitUntilStored waits until the store itself has something newer than old, and the journal nothing any more: somebody's
// saver is at work. It returns what there is then.
func waitUntilStored(t testing.TB, p *process, it store.Item, old *grant.Grant) *grant.Grant {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute) // it is tried every 30 s in the end
	for {
		sealed, err := p.raw.Read(t.Context(), it)
		if err == nil && !sealed.Equal(old.Seal()) && p.record(t, it).Sealed == nil {
			return readFrom(t, p.raw, it)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new token does not get into the store: %v", err)
		}
		select {
		case <-p.changed:
		case <-time.After(20 * time.Millisecond): // another process's saver
		}
	}
}

// rest is an hour in which nothing happens to the login: its last attempt is that long ago then.
func (p *process) rest(t testing.TB, it store.Item) {
	t.Helper()
	r := p.record(t, it)
	if r.Attempt.IsZero() {
		return
	}
	r.Attempt, r.Next = r.Attempt.Add(-time.Hour), time.Time{}
	if err := p.journal.Write(t.Context(), it, r, 0); err != nil {
		t.Fatal(err)
	}
}

// momentAgo makes this the moment of the login's last attempt, however long the test has taken since: the cooldown begins.
func (p *process) momentAgo(t testing.TB, it store.Item) {
	t.Helper()
	r := p.record(t, it)
	now := time.UnixMilli(time.Now().UnixMilli())
	if !r.Next.IsZero() {
		r.Next = r.Next.Add(now.Sub(r.Attempt))
	}
	r.Attempt = now
	if err := p.journal.Write(t.Context(), it, r, 0); err != nil {
		t.Fatal(err)
	}
}

// logged is a log that can be read while it is written.
type logged struct{ systest.Buffer }

// says reports whether one line of the log has all the words.
func (l *logged) says(words ...string) bool {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

// outcome is a refresh's answer in a word or two, without a secret: for messages.
func outcome(g *grant.Grant, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("a token, %.8s", g.AccessToken.Fingerprint())
}
