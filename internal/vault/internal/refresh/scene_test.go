package refresh_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

// scene is a synctest bubble, where time passes at will, with the provider acme and what processes share: a store in memory,
// which can refuse, and a journal in real files.
type scene struct {
	*issuer
	t     *testing.T
	it    store.Item
	store *memory.Store
	dir   string         // of the journal
	key   journal.Sealer // the journal's
	log   *logged        // of all processes, with all details

	// What the configuration has; for processes that are made afterwards.
	providers func(string) (*provider.Provider, bool)
	secret    secret.String
}

// play runs f in a scene of its own.
func play(t *testing.T, o oauthtest.Options, f func(*testing.T, *scene)) {
	t.Helper()
	key, err := file.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, true, o)
		f(t, &scene{
			issuer: i, t: t, it: item("default"), store: memory.New(), dir: filepath.Join(t.TempDir(), "recovery"), key: key,
			log: new(logged), providers: i.acme(),
		})
	})
}

// process is another process with this store and this journal. It ends with the test, if it has not been closed before.
func (s *scene) process() *process {
	s.t.Helper()
	p := &process{raw: s.store, journal: newJournal(s.t, s.dir, s.key, s.log), changed: make(chan store.Item, 1000), log: s.log}
	clientSecret := s.secret
	p.Coordinator = refresh.New(refresh.Options{
		Store: s.store, Journal: p.journal, Client: s.client, Provider: s.providers,
		Logger:  slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Secret:  func(context.Context, *provider.Provider) (secret.String, error) { return clientSecret, nil },
		Changed: func(it store.Item) { p.changed <- it },
	})
	s.t.Cleanup(p.Close)
	return p
}

// begin makes a login and a process, which has read it.
func (s *scene) begin() (*process, *grant.Grant) {
	s.t.Helper()
	p := s.process()
	p.save(s.t, s.it, s.login(s.t))
	return p, p.read(s.t, s.it)
}

// answer is what a caller got, and when.
type answer struct {
	g   *grant.Grant
	err error
	at  time.Time
}

// ask has a goroutine ask for a newer token than seen.
func (s *scene) ask(ctx context.Context, p *process, seen *grant.Grant) <-chan answer {
	c := make(chan answer, 1)
	go func() {
		g, err := p.Refresh(ctx, s.it, seen)
		c <- answer{g, err, time.Now()}
	}()
	return c
}

// renew has p refresh what it reads, which must work, and returns the new token.
func (s *scene) renew(p *process) *grant.Grant {
	s.t.Helper()
	seen := p.read(s.t, s.it)
	g, err := p.Refresh(s.t.Context(), s.it, seen)
	if err != nil {
		s.t.Fatal(err)
	}
	if g.AccessToken.Equal(seen.AccessToken) || !s.Valid(g.AccessToken.Reveal()) {
		s.t.Fatal("the refresh brought no new token that is good")
	}
	return g
}

// asked are the times of all requests for a refresh.
func (s *scene) asked() (times []time.Time) {
	for _, u := range s.RefreshUses() {
		times = append(times, u.Time)
	}
	return times
}

// wantAsked fails the test unless n requests for a refresh came in.
func (s *scene) wantAsked(n int) {
	s.t.Helper()
	if got := len(s.asked()); got != n {
		s.t.Fatalf("the provider was asked %d times, want %d", got, n)
	}
	if s.reused() > 0 {
		s.t.Fatal("a refresh token was used twice")
	}
}

// wantNewest fails the test unless g is the newest token of the newest login.
func (s *scene) wantNewest(g *grant.Grant, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	tokens := s.Issued().AccessTokens
	if got := slices.Index(tokens, g.AccessToken.Reveal()); got != len(tokens)-1 {
		s.t.Fatalf("the token is number %d, and %d is the newest", got, len(tokens)-1)
	}
}

// wantQuiet fails the test if something secret is where it must not be: in the texts of errors, in the log, or readable in
// a file of the journal.
func (s *scene) wantQuiet(errs []error, secrets ...string) {
	s.t.Helper()
	places := map[string]string{"the log": s.log.String()}
	for _, err := range errs {
		for e := err; e != nil; e = errors.Unwrap(e) {
			places["an error"] += textsOf(e)
		}
	}
	files, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.dir, f.Name()))
		if err != nil {
			s.t.Fatal(err)
		}
		places["a file of the journal"] += string(b)
	}
	for _, what := range append(secrets, s.Issued().All()...) {
		for name, text := range places {
			if strings.Contains(text, what) {
				s.t.Errorf("%s has a secret or what a provider sent (%.12s…)", name, what)
			}
		}
	}
}

func (s *scene) remove(p *process) {
	s.t.Helper()
	unlock, err := s.store.Lock(s.t.Context(), s.it)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unlock()
	if err := p.Store().Delete(s.t.Context(), s.it); err != nil {
		s.t.Fatal(err)
	}
}

// dieAt has p refresh, and end at the step as if it were killed there: its locks go, and nothing else is done.
func (s *scene) dieAt(step string, p *process) {
	s.t.Helper()
	seen := p.read(s.t, s.it)
	died := false
	refresh.AtStep(func(at string) {
		if at == step && !died {
			died = true
			runtime.Goexit()
		}
	})
	defer refresh.AtStep(func(string) {})
	if g, err := p.Refresh(s.t.Context(), s.it, seen); !died {
		s.t.Fatalf("it did not come to the step %q: %s", step, outcome(g, err))
	}
}

// needsLogin and limited are the two errors that are for people to act on, or to wait for.
func needsLogin(err error) bool {
	_, ok := errors.AsType[*refresh.LoginNeededError](err)
	return ok
}

// refusedAs reports whether the provider refused the client, or else the login.
func refusedAs(err error, client bool) bool {
	_, ok := errors.AsType[*refresh.ClientRefusedError](err)
	return ok == client && ok != needsLogin(err)
}

func limited(err error) (time.Duration, bool) {
	e, ok := errors.AsType[*refresh.LimitedError](err)
	if !ok {
		return 0, false
	}
	return e.After, true
}
