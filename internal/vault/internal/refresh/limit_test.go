package refresh_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// R13: when the calls of one attempt are made, counted from its beginning, and when it ends.
func TestRetries(t *testing.T) {
	fail := oauthtest.ErrorAnswer
	after := oauthtest.RateLimited
	hang := oauthtest.Fault{Drop: true, Delay: time.Hour}
	slow := fail(http.StatusBadGateway, "server_error")
	slow.Delay = 12 * time.Second
	for name, tt := range map[string]struct {
		faults []oauthtest.Fault
		calls  []float64 // seconds
		end    float64
		works  bool
	}{
		"works":                         {nil, []float64{0}, 0, true},
		"500 once":                      {[]oauthtest.Fault{fail(500, "")}, []float64{0, 1}, 1, true},
		"500 twice":                     {[]oauthtest.Fault{fail(500, ""), fail(503, "temporarily_unavailable")}, []float64{0, 1, 4}, 4, true},
		"500 three times":               {[]oauthtest.Fault{fail(500, ""), fail(502, ""), fail(504, "")}, []float64{0, 1, 4}, 4, false},
		"the connection ends":           {[]oauthtest.Fault{{Drop: true}, {Drop: true}}, []float64{0, 1, 4}, 4, true},
		"429 without a time":            {[]oauthtest.Fault{after("")}, []float64{0, 1}, 1, true},
		"408":                           {[]oauthtest.Fault{fail(408, "")}, []float64{0, 1}, 1, true},
		"429, sooner than we would":     {[]oauthtest.Fault{after("0"), after("1")}, []float64{0, 1, 4}, 4, true},
		"429, later than we would":      {[]oauthtest.Fault{after("2"), after("7")}, []float64{0, 2, 9}, 9, true},
		"429, as a date":                {[]oauthtest.Fault{after(time.Date(2000, 1, 1, 0, 0, 9, 0, time.UTC).Format(http.TimeFormat))}, []float64{0, 9}, 9, true},
		"429, later than we have":       {[]oauthtest.Fault{after("28")}, []float64{0}, 0, false},
		"slow_down with status 200":     {[]oauthtest.Fault{fail(200, "slow_down")}, []float64{0, 1}, 1, true},
		"no answer":                     {[]oauthtest.Fault{hang, hang}, []float64{0, 16}, 28, false},
		"no answer once":                {[]oauthtest.Fault{hang}, []float64{0, 16}, 16, true},
		"slow failures":                 {[]oauthtest.Fault{slow, slow, slow}, []float64{0, 13}, 25, false},
		"401":                           {[]oauthtest.Fault{fail(401, "")}, []float64{0}, 0, false},
		"invalid_grant":                 {[]oauthtest.Fault{fail(400, "invalid_grant")}, []float64{0}, 0, false},
		"invalid_grant with status 200": {[]oauthtest.Fault{fail(200, "invalid_grant")}, []float64{0}, 0, false},
		"invalid_client":                {[]oauthtest.Fault{fail(401, "invalid_client")}, []float64{0}, 0, false},
		"another 4xx":                   {[]oauthtest.Fault{fail(403, "access_denied")}, []float64{0}, 0, false},
		"no token response":             {[]oauthtest.Fault{fail(200, "")}, []float64{0}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				p, seen := s.begin()
				for _, f := range tt.faults {
					s.Fault(oauthtest.Token, f, 1)
				}
				start := time.Now()
				g, err := p.Refresh(t.Context(), s.it, seen)
				if end := time.Since(start).Seconds(); end != tt.end || (err == nil) != tt.works {
					t.Errorf("after %v s: %s", end, outcome(g, err))
				}
				var calls []float64
				for _, at := range s.asked() {
					calls = append(calls, at.Sub(start).Seconds())
				}
				if !slices.Equal(calls, tt.calls) {
					t.Errorf("calls at %v s, want %v s", calls, tt.calls)
				}
			})
		})
	}
}

// R14: one attempt in 30 s, counted from its beginning, for all processes; a token that is valid is answered meanwhile.
func TestCooldown(t *testing.T) {
	play(t, oauthtest.Options{AccessLifetime: 10 * time.Second}, func(t *testing.T, s *scene) {
		a, seen := s.begin()
		b := s.process()
		first := s.renew(a)
		start := time.Now()
		for _, p := range []*process{a, b} {
			s.wantNewest(p.Refresh(t.Context(), s.it, first))
		}
		time.Sleep(12 * time.Second)
		for _, p := range []*process{a, b, s.process()} {
			for _, seen := range []*grant.Grant{seen, first} {
				_, err := p.Refresh(t.Context(), s.it, seen)
				if after, ok := limited(err); !ok || after != 18*time.Second {
					t.Errorf("12 s after the attempt: %v, %v", after, err)
				}
			}
		}
		s.wantAsked(1)
		time.Sleep(18*time.Second - time.Millisecond)
		_, err := b.Refresh(t.Context(), s.it, first)
		if after, ok := limited(err); !ok || after > time.Millisecond || !strings.Contains(err.Error(), "again in 1 s") {
			t.Errorf("a moment before its end: %v", err)
		}
		time.Sleep(time.Millisecond)
		s.wantNewest(b.Refresh(t.Context(), s.it, first))
		if asked := s.asked(); len(asked) != 2 || asked[1].Sub(start) != 30*time.Second {
			t.Errorf("asked at %v", asked)
		}
	})
}

// Failed attempts count as well, and a provider's wish for more time holds for everybody.
func TestCooldownOfFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		fault oauthtest.Fault
		wait  time.Duration // from the beginning of the attempt
	}{
		"4xx":             {oauthtest.ErrorAnswer(403, "access_denied"), 30 * time.Second},
		"garbage":         {oauthtest.ErrorAnswer(200, ""), 30 * time.Second},
		"5xx":             {oauthtest.ErrorAnswer(500, ""), 30 * time.Second},
		"40 s":            {oauthtest.RateLimited("40"), 40 * time.Second},
		"an hour at most": {oauthtest.RateLimited("999999999999999999999"), time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				a, seen := s.begin()
				b := s.process()
				time.Sleep(2 * time.Hour)
				s.Fault(oauthtest.Token, tt.fault, 3)
				start := time.Now()
				if _, err := a.Refresh(t.Context(), s.it, seen); err == nil || needsLogin(err) {
					t.Fatalf("the first: %v", err)
				}
				s.ClearFaults()
				calls := len(s.asked())
				for _, p := range []*process{a, b} {
					_, err := p.Refresh(t.Context(), s.it, seen)
					if after, ok := limited(err); !ok || after != tt.wait-time.Since(start) {
						t.Errorf("%v after the attempt's beginning: %v, %v", time.Since(start), after, err)
					}
				}
				time.Sleep(tt.wait - time.Since(start) - time.Second)
				if _, err := b.Refresh(t.Context(), s.it, seen); err == nil || len(s.asked()) != calls {
					t.Error("the provider was asked too early")
				}
				time.Sleep(time.Second)
				s.wantNewest(b.Refresh(t.Context(), s.it, seen))
			})
		})
	}
}

// A clock that was set back does not lock anybody out; the process that made the attempt knows better than the clock.
func TestCooldownWhenTheClockIsSetBack(t *testing.T) {
	play(t, oauthtest.Options{AccessLifetime: time.Second}, func(t *testing.T, s *scene) {
		a, _ := s.begin()
		b := s.process()
		s.renew(a)
		r := a.record(t, s.it)
		r.Attempt = r.Attempt.Add(time.Hour) // what it looks like when the clock has gone back by an hour
		if err := a.journal.Write(t.Context(), s.it, r, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		_, err := a.Refresh(t.Context(), s.it, a.read(t, s.it))
		if after, ok := limited(err); !ok || after != 20*time.Second {
			t.Errorf("the process that made the attempt: %v, %v", after, err)
		}
		s.renew(b)
		s.wantAsked(2)
	})
}

// A refusal for good is remembered by all processes, until what was refused changes: the refresh token, the client, its
// secret.
func TestRefusalIsRemembered(t *testing.T) {
	const first, second = "test-client-secret-1", "test-client-secret-2"
	confidential := oauthtest.Options{Clients: []oauthtest.Client{{ID: "test-client", Secret: second, RedirectURIs: []string{"http://127.0.0.1/callback"}}}}
	as := func(s *scene, id string) {
		p := provider.FromConfig(&config.Provider{Name: "acme", Dialect: "oauth2", ClientID: id, TokenURL: s.EndpointURL(oauthtest.Token)})
		s.providers = func(string) (*provider.Provider, bool) { return p, true }
	}
	twoClients := oauthtest.Options{Clients: []oauthtest.Client{
		{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}, {ID: "test-client-2", RedirectURIs: []string{"http://127.0.0.1/callback"}},
	}}
	for name, tt := range map[string]struct {
		o      oauthtest.Options
		before func(*scene) // the configuration
		code   string       // of a refusal that the provider makes up; "": it refuses by itself
		mend   func(*testing.T, *scene)
		works  bool
		client bool // it is the client that is refused, and not the login
	}{
		"another refresh token": {code: "invalid_grant", mend: func(t *testing.T, s *scene) {
			s.process().save(t, s.it, s.login(t))
		}, works: true},
		"another client": {o: twoClients, before: func(s *scene) { as(s, "test-client-3") }, mend: func(_ *testing.T, s *scene) {
			as(s, "test-client")
		}, works: true, client: true},
		"another secret": {o: confidential, before: func(s *scene) { s.secret = secret.New(first) }, mend: func(_ *testing.T, s *scene) {
			s.secret = secret.New(second)
		}, works: true, client: true},
		"nothing":             {code: "invalid_scope", mend: func(*testing.T, *scene) {}},
		"another client, not": {code: "invalid_grant", mend: func(_ *testing.T, s *scene) { as(s, "test-client-2") }},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, tt.o, func(t *testing.T, s *scene) {
				if tt.before != nil {
					tt.before(s)
				}
				g := &grant.Grant{AccessToken: secret.New("test-access-token-1"), RefreshToken: secret.New("test-refresh-token-1"), Expiry: 1}
				if len(tt.o.Clients) != 1 {
					g = s.login(t)
				}
				p := s.process()
				p.save(t, s.it, g)
				if tt.code != "" {
					s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(400, tt.code), 1)
				}
				time.Sleep(2 * time.Hour)
				if _, err := p.Refresh(t.Context(), s.it, g); !refusedAs(err, tt.client) {
					t.Fatalf("refused: %v", err)
				}
				calls := s.Calls(oauthtest.Token)
				for _, again := range []*process{p, s.process()} {
					for _, wait := range []time.Duration{time.Second, 30 * 24 * time.Hour} {
						time.Sleep(wait)
						if _, err := again.Refresh(t.Context(), s.it, g); !refusedAs(err, tt.client) {
							t.Errorf("%v later: %v", wait, err)
						}
					}
				}
				if h := p.History(t.Context(), s.it, p.read(t, s.it)); h.Refused != !tt.client || h.Outcome != journal.Refused || h.Detail == "" {
					t.Errorf("history: %+v", h)
				}
				if n := s.Calls(oauthtest.Token); n != calls {
					t.Fatalf("the provider was asked again %d times", n-calls)
				}
				tt.mend(t, s)
				calls = s.Calls(oauthtest.Token)
				mended := s.process()
				_, err := mended.Refresh(t.Context(), s.it, mended.read(t, s.it))
				if asked := s.Calls(oauthtest.Token) > calls; asked != tt.works || needsLogin(err) && tt.code != "" == tt.works {
					t.Errorf("after the change: asked %v, %v", asked, err)
				}
			})
		})
	}
}

// What was refused for another request says nothing about the one that was cut off.
func TestRefusalOfAnEarlierRequestIsNotRememberedForTheNext(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(400, "invalid_grant"), 1)
		if _, err := p.Refresh(t.Context(), s.it, seen); !needsLogin(err) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.save(t, s.it, s.login(t))
		s.dieAt("before the call", p)
		time.Sleep(time.Minute)
		next := s.process()
		if h := next.History(t.Context(), s.it, next.read(t, s.it)); h.Refused {
			t.Errorf("history: %+v", h)
		}
		s.wantNewest(s.renew(next), nil)
	})
}

// R12: a dead refresh token is taken out of the store, but not one that another program has stored meanwhile.
func TestDeadRefreshTokenIsCleared(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		dead := oauthtest.ErrorAnswer(400, "invalid_grant")
		s.Fault(oauthtest.Token, dead, 1)
		if _, err := p.Refresh(t.Context(), s.it, seen); !needsLogin(err) || !strings.Contains(err.Error(), "no longer good") {
			t.Errorf("refused: %v", err)
		}
		got := readFrom(t, s.store, s.it)
		if !got.RefreshToken.IsZero() || !got.AccessToken.Equal(seen.AccessToken) {
			t.Error("not the refresh token alone was removed")
		}
		s.wantAsked(1)

		p.save(t, s.it, s.login(t))
		seen = p.read(t, s.it)
		time.Sleep(time.Minute)
		dead.Delay = 5 * time.Second
		s.Fault(oauthtest.Token, dead, 1)
		waiting := s.ask(t.Context(), p, seen)
		time.Sleep(time.Second)
		newer := s.login(t)
		if err := s.store.Write(t.Context(), s.it, newer.Seal()); err != nil { // a program that takes no lock
			t.Fatal(err)
		}
		got2 := <-waiting
		s.wantNewest(got2.g, got2.err)
		if !readFrom(t, s.store, s.it).RefreshToken.Equal(newer.RefreshToken) {
			t.Error("the newer login is not stored any more")
		}
		time.Sleep(time.Minute)
		s.wantNewest(s.renew(p), nil)
	})
}

// R15: a logout waits for the refresh that is running, and what that brought goes with the rest.
func TestLogoutWins(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		other := s.process()
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 1)
		start := time.Now()
		waiting := s.ask(t.Context(), p, seen)
		synctest.Wait()
		s.remove(other)
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("the logout took %v", took)
		}
		got := <-waiting
		s.wantNewest(got.g, got.err)
		for _, p := range []*process{p, other, s.process()} {
			time.Sleep(time.Hour)
			if _, err := p.Store().Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("after the logout: %v", err)
			}
			if _, err := p.Refresh(t.Context(), s.it, seen); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a refresh after the logout: %v", err)
			}
		}
		if r := p.record(t, s.it); !r.Attempt.IsZero() {
			t.Error("a login that was removed has a history")
		}
	})
}

// A login that is removed, or replaced, by a program that takes no lock while the provider is asked stays so.
func TestLogoutWithoutTheLockWins(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		newer := s.login(t)
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 2)
		waiting := s.ask(t.Context(), p, seen)
		synctest.Wait()
		if err := s.store.Write(t.Context(), s.it, newer.Seal()); err != nil {
			t.Fatal(err)
		}
		got := <-waiting
		if got.err != nil || !got.g.AccessToken.Equal(newer.AccessToken) || !p.read(t, s.it).RefreshToken.Equal(newer.RefreshToken) {
			t.Errorf("replaced: %s", outcome(got.g, got.err))
		}
		time.Sleep(time.Minute)
		waiting = s.ask(t.Context(), p, newer)
		synctest.Wait()
		if err := s.store.Delete(t.Context(), s.it); err != nil {
			t.Fatal(err)
		}
		if got := <-waiting; !errors.Is(got.err, store.ErrNotFound) {
			t.Errorf("removed: %s", outcome(got.g, got.err))
		}
		time.Sleep(time.Minute)
		if _, err := p.Store().Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("it came back: %v", err)
		}
	})
}

// Close waits for what a provider is answering and stores it; nothing else is waited for.
func TestClose(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		for _, tt := range []struct {
			name  string
			fault oauthtest.Fault
			lock  bool // somebody has the login's lock
			took  time.Duration
			works bool
		}{
			{name: "an answer", fault: oauthtest.Fault{Delay: 5 * time.Second}, took: 5 * time.Second, works: true},
			{name: "a retry", fault: oauthtest.RateLimited("20")},
			{name: "the lock", lock: true},
		} {
			p, seen := s.begin()
			if tt.lock {
				unlock, err := s.store.Lock(t.Context(), s.it)
				if err != nil {
					t.Fatal(err)
				}
				defer unlock()
			} else {
				s.Fault(oauthtest.Token, tt.fault, 1)
			}
			calls := len(s.asked())
			waiting := s.ask(t.Context(), p, seen)
			synctest.Wait()
			start := time.Now()
			p.Close()
			if took := time.Since(start); took != tt.took {
				t.Errorf("%s: Close took %v", tt.name, took)
			}
			if got := <-waiting; (got.err == nil) != tt.works {
				t.Errorf("%s: %s", tt.name, outcome(got.g, got.err))
			}
			if tt.works {
				s.wantNewest(readFrom(t, s.store, s.it), nil)
			}
			if !tt.lock && len(s.asked()) != calls+1 {
				t.Errorf("%s: asked %d times", tt.name, len(s.asked())-calls)
			}
			if _, err := p.Refresh(t.Context(), s.it, seen); err == nil {
				t.Errorf("%s: a closed coordinator refreshes", tt.name)
			}
			if !tt.lock {
				s.remove(s.process()) // with its cooldown
			}
		}
	})
}
