package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// textsOf are all the ways in which an error gets into a log.
func textsOf(err error) string { return fmt.Sprintf("%s\n%v\n%+v\n%#v\n%q\n", err, err, err, err, err) }

// A refresh token that is read before the flight would be an old one for all who come late: here to the same process, to
// another process, and after it all, with what they had read before.
func TestRefreshTokenIsReadBehindTheLock(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, seen := s.begin()
		b := s.process()
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 1)
		callers := []<-chan answer{s.ask(t.Context(), a, seen)}
		synctest.Wait()
		for range 4 {
			time.Sleep(time.Second)
			callers = append(callers, s.ask(t.Context(), a, seen), s.ask(t.Context(), b, seen))
		}
		for _, c := range callers {
			got := <-c
			s.wantNewest(got.g, got.err)
		}
		s.wantAsked(1)
		for _, p := range []*process{a, b, s.process()} {
			time.Sleep(10 * time.Minute)
			s.wantNewest(p.Refresh(t.Context(), s.it, seen))
		}
		s.wantAsked(1)
		time.Sleep(time.Hour) // now nothing that is stored will do, whatever was seen
		s.wantNewest(b.Refresh(t.Context(), s.it, seen))
		s.wantAsked(2)
	})
}

// Shared work that has the context of the one who began it would end with it.
func TestCallersComeAndGo(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 1)
		start := time.Now()
		ctx, leave := context.WithCancel(t.Context())
		first := s.ask(ctx, p, seen)
		synctest.Wait()
		second, third := s.ask(t.Context(), p, seen), s.ask(t.Context(), p, seen)
		time.Sleep(time.Second)
		leave()
		if got := <-first; !errors.Is(got.err, context.Canceled) || got.at.Sub(start) != time.Second {
			t.Errorf("who left after 1 s got %v after %v", got.err, got.at.Sub(start))
		}
		for _, c := range []<-chan answer{second, third} {
			got := <-c
			s.wantNewest(got.g, got.err)
		}
		s.wantAsked(1)
	})
}

// When all have left, the provider has rotated all the same: the new refresh token is stored, after retries too.
func TestAllCallersLeave(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusServiceUnavailable, "server_error"), 1)
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: 14 * time.Second}, 1)
		var callers []<-chan answer
		for n := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*900*time.Millisecond)
			defer cancel()
			callers = append(callers, s.ask(ctx, p, seen))
		}
		for _, c := range callers {
			if got := <-c; !errors.Is(got.err, context.DeadlineExceeded) {
				t.Errorf("who left got %v", got.err)
			}
		}
		time.Sleep(20 * time.Second)
		s.wantNewest(readFrom(t, s.store, s.it), nil)
		time.Sleep(time.Hour)
		s.wantNewest(s.renew(p), nil)
		s.wantAsked(3)
	})
}

// Whatever a provider says, none of it gets into an error, into the log or readably into a file.
func TestNothingOfABodyIsSaid(t *testing.T) {
	const canary = "test-canary-0123456789"
	plain := func(status int, kind, body string) oauthtest.Fault {
		return oauthtest.Fault{Status: status, Body: &body, Header: http.Header{
			"Content-Type": {kind}, "X-Canary": {canary}, "Location": {"http://127.0.0.1/" + canary}, "Www-Authenticate": {canary},
		}}
	}
	reply := func(status int, body string) oauthtest.Fault { return plain(status, "application/json", body) }
	long := reply(200, `{"`+strings.Repeat(canary, 1<<16)+`":1}`)
	broken := reply(200, `{"access_token":"`+canary+`","refresh_token":"`+canary+`"`)
	dropped := reply(200, `{"access_token":"`+canary+`","refresh_token":"`+canary+`"}`)
	dropped.Drop, dropped.DropAfter = true, 40
	for name, fault := range map[string]oauthtest.Fault{
		"description":           reply(400, `{"error":"invalid_grant","error_description":"`+canary+`","error_uri":"`+canary+`"}`),
		"client":                reply(401, `{"error":"invalid_client","error_description":"`+canary+`"}`),
		"code":                  reply(400, `{"error":"`+canary+`"}`),
		"nested code":           reply(400, `{"error":{"code":"`+canary+`","message":"`+canary+`"}}`),
		"status 200":            reply(200, `{"error":"`+canary+`"}`),
		"page":                  plain(502, "text/html", "<title>"+canary+"</title>"),
		"rate limit":            reply(429, `{"error":"slow_down","message":"`+canary+`"}`),
		"forbidden":             reply(403, canary),
		"redirect":              reply(302, canary),
		"not JSON":              reply(200, canary),
		"another JSON":          reply(200, `["`+canary+`"]`),
		"no access token":       reply(200, `{"refresh_token":"`+canary+`"}`),
		"a line feed":           reply(200, `{"access_token":"a\n`+canary+`"}`),
		"a number for a token":  reply(200, `{"access_token":{"`+canary+`":1}}`),
		"cut off":               broken,
		"connection cut off":    dropped,
		"longer than 1 MiB":     long,
		"canary in a new token": reply(200, `{"access_token":"`+canary+`","expires_in":"`+canary+`","`+canary+`":"`+canary+`"}`),
	} {
		t.Run(name, func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				p, seen := s.begin()
				s.Fault(oauthtest.Token, fault, -1)
				var errs []error
				for range 3 {
					if _, err := p.Refresh(t.Context(), s.it, seen); err != nil {
						errs = append(errs, err)
					}
					errs = append(errs, errors.New(p.History(t.Context(), s.it, p.read(t, s.it)).Detail))
					time.Sleep(time.Minute)
				}
				s.store.Refuse(nil, errors.New("full"))
				_, err := p.Refresh(t.Context(), s.it, seen)
				errs = append(errs, err)
				time.Sleep(time.Minute)
				s.wantQuiet(errs, canary)
			})
		})
	}
}

// R11.2 and R11.3, and the other logins that cannot be refreshed.
func TestNothingToRefresh(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p := s.process()
		seen := &grant.Grant{AccessToken: secret.New("test-access-token-1"), Expiry: 1, TokenType: "Bearer"}
		if _, err := p.Refresh(t.Context(), s.it, seen); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("no login: %v", err)
		}
		p.save(t, s.it, seen)
		if _, err := p.Refresh(t.Context(), s.it, seen); !needsLogin(err) || !strings.Contains(err.Error(), "no refresh token") {
			t.Errorf("no refresh token: %v", err)
		}
		if err := s.store.Write(t.Context(), s.it, secret.New("[]")); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Refresh(t.Context(), s.it, seen); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("what is stored is no login: %v", err)
		}
		s.store.Refuse(store.ErrLocked, store.ErrLocked)
		if _, err := p.Refresh(t.Context(), s.it, seen); !errors.Is(err, store.ErrLocked) {
			t.Errorf("a locked store: %v", err)
		}
		s.store.Refuse(nil, nil)
		unknown := store.Item{Service: store.ServiceLogins, Account: "unknown:default"}
		p.save(t, unknown, &grant.Grant{AccessToken: seen.AccessToken, RefreshToken: secret.New("test-refresh-token-1"), Expiry: 1})
		if _, err := p.Refresh(t.Context(), unknown, seen); !errors.Is(err, refresh.ErrNoProvider) {
			t.Errorf("a provider that nobody knows: %v", err)
		}
		s.wantAsked(0)
	})
}

// R11.4: what has changed while we waited is the answer if it is valid, and is refreshed if it is not; what has not changed
// is refreshed although it is valid, for its user may have got a 401 for it.
func TestComparedWithWhatWasSeen(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, old := s.begin()
		if s.renew(p); len(s.asked()) != 1 {
			t.Error("a token that is valid was not refreshed for who has seen that one")
		}
		unlock, err := s.store.Lock(t.Context(), s.it)
		if err != nil {
			t.Fatal(err)
		}
		waiting := s.ask(t.Context(), s.process(), old)
		synctest.Wait()
		newer := s.login(t)
		if err := s.store.Write(t.Context(), s.it, newer.Seal()); err != nil { // by whoever has the lock
			t.Fatal(err)
		}
		unlock()
		got := <-waiting
		s.wantNewest(got.g, got.err)
		s.wantAsked(1)

		time.Sleep(time.Minute)
		expired := *s.login(t)
		expired.Expiry = time.Now().Unix()
		if err := s.store.Write(t.Context(), s.it, expired.Seal()); err != nil {
			t.Fatal(err)
		}
		s.wantNewest(p.Refresh(t.Context(), s.it, newer))
		s.wantAsked(2)
	})
}

// Who joins a flight may have seen more than who began it: what is news to that one is no answer to this one.
func TestJoinerHasSeenTheNewerToken(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, old := s.begin()
		newer := s.login(t)
		p.save(t, s.it, newer)
		unlock, err := s.store.Lock(t.Context(), s.it)
		if err != nil {
			t.Fatal(err)
		}
		first := s.ask(t.Context(), p, old)
		synctest.Wait()
		joiner := s.ask(t.Context(), p, newer)
		synctest.Wait()
		unlock()
		if got := <-first; got.err != nil || !got.g.AccessToken.Equal(newer.AccessToken) {
			t.Errorf("who had seen the old one: %s", outcome(got.g, got.err))
		}
		got := <-joiner
		s.wantNewest(got.g, got.err)
		if got.g.AccessToken.Equal(newer.AccessToken) {
			t.Error("who had seen the newer one got that one")
		}
		s.wantAsked(1)
	})
}

// R12: what an answer omits stays, and so does what other programs have stored beside the login.
func TestMergedOverEverything(t *testing.T) {
	const beside = `{"access_token":"%s","refresh_token":"%s","expiry":%d,"token_type":"Bearer","scope":"a b",` +
		`"id_token":"id-1","account_id":"account-1","somebody_elses":{"deep":[1,"x"]}}`
	for name, tt := range map[string]struct {
		o     oauthtest.Options
		fault oauthtest.Fault
		want  map[string]string
	}{
		"nothing but the tokens": {oauthtest.Options{}, oauthtest.Without("scope"),
			map[string]string{"id_token": `"id-1"`, "account_id": `"account-1"`}},
		"no refresh token": {oauthtest.Options{Rotation: oauthtest.Keep}, oauthtest.Without("scope"),
			map[string]string{"id_token": `"id-1"`}},
		"the same refresh token": {oauthtest.Options{Rotation: oauthtest.KeepAndRepeat}, oauthtest.Without("scope"),
			map[string]string{"id_token": `"id-1"`}},
		"empty": {oauthtest.Options{Rotation: oauthtest.Keep}, oauthtest.Fault{Edit: func(a map[string]any) {
			a["refresh_token"], a["scope"], a["id_token"], a["account_id"] = "", nil, "", nil
		}}, map[string]string{"id_token": `"id-1"`, "account_id": `"account-1"`}},
		"newer": {oauthtest.Options{Extra: map[string]any{"id_token": "id-2", "account_id": "account-2"}}, oauthtest.Without("scope"),
			map[string]string{"id_token": `"id-2"`, "account_id": `"account-2"`}},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, tt.o, func(t *testing.T, s *scene) {
				p := s.process()
				g := s.login(t)
				stored := fmt.Sprintf(beside, g.AccessToken.Reveal(), g.RefreshToken.Reveal(), g.Expiry)
				if err := s.store.Write(t.Context(), s.it, secret.New(stored)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				s.Fault(oauthtest.Token, tt.fault, 1)
				s.wantNewest(s.renew(p), nil)
				got := readFrom(t, s.store, s.it)
				fields := map[string]string{}
				for _, f := range got.Fields {
					fields[f.Name] = string(f.Value)
				}
				for field, want := range tt.want {
					if fields[field] != want {
						t.Errorf("%s is %s, want %s", field, fields[field], want)
					}
				}
				if got.Scope != "a b" || fields["somebody_elses"] != `{"deep":[1,"x"]}` {
					t.Errorf("scope %q, somebody_elses %s", got.Scope, fields["somebody_elses"])
				}
				if want := time.Now().Add(time.Hour).Unix(); got.Expiry != want {
					t.Errorf("expiry %d, want %d", got.Expiry, want)
				}
				time.Sleep(2 * time.Hour)
				s.renew(p) // with whatever refresh token is stored now
				s.wantAsked(2)
			})
		})
	}
}

// Every caller of a flight gets the error of its kind, none of them a token.
func TestAllGetTheError(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, seen := s.begin()
		s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusForbidden, "access_denied"), 1)
		var callers []<-chan answer
		for range 5 {
			callers = append(callers, s.ask(t.Context(), p, seen))
		}
		for _, c := range callers {
			got := <-c
			if e, ok := errors.AsType[*provider.Error](got.err); ok && e.Kind == provider.Unclear && e.Status == 403 && got.g == nil {
				continue
			}
			// It came after the flight: the cooldown's answer.
			if got.err != nil || !got.g.AccessToken.Equal(seen.AccessToken) {
				t.Errorf("%s", outcome(got.g, got.err))
			}
		}
		s.wantAsked(1)
	})
}
