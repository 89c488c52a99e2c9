package provider

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// startDialect makes a vendor that is played to the byte, in a bubble, and the provider that is described with its
// endpoints, and with nothing else that its dialect knows.
func startDialect(t *testing.T, name string, o oauthtest.Options) *world {
	t.Helper()
	o.Dialect, o.Issuer = name, "http://127.0.0.2:8080"
	if name == "oauth2" {
		o.Dialect = ""
	}
	s, err := oauthtest.StartPipe(o)
	if err != nil {
		t.Fatal(err)
	}
	described := &config.Provider{
		Name: "acme", Dialect: name, AuthorizeURL: s.EndpointURL(oauthtest.Authorize), TokenURL: s.EndpointURL(oauthtest.Token),
		DeviceURL: s.EndpointURL(oauthtest.Device), RevokeURL: s.EndpointURL(oauthtest.Revoke),
	}
	if name == "oauth2" {
		described.ClientID = "test-client"
	}
	if name == "gemini" {
		described.ClientSecretKey = "acme-secret"
	}
	w := &world{s, NewClientWith(s.Client().Transport), FromConfig(described)}
	t.Cleanup(func() {
		w.c.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// secret is what the vendor's client authenticates with.
func (w *world) secret() secret.String {
	if w.p.ClientSecretKey != "" {
		return secret.New(oauthtest.ClientSecret)
	}
	return secret.String{}
}

// browser logs in as a person whose browser comes back to redirect.
func (w *world) browser(t *testing.T, redirect string) (*Authorization, *grant.Grant) {
	t.Helper()
	a, err := w.c.Authorize(t.Context(), w.p, redirect)
	if err != nil {
		t.Fatal(err)
	}
	q := approve(t, w.s, a)
	if !a.Mine(q.Get("state")) {
		t.Error("the state that came back is not this login's")
	}
	g, err := w.c.Exchange(t.Context(), a, q, w.secret())
	if err != nil {
		t.Fatal(err)
	}
	return a, g
}

// paste logs in as a person who copies what the page shows.
func (w *world) paste(t *testing.T) *grant.Grant {
	t.Helper()
	a, err := w.c.Authorize(t.Context(), w.p, w.p.PasteRedirect())
	if err != nil {
		t.Fatal(err)
	}
	pasted, err := w.s.Copy(t.Context(), a.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := url.Values{}
	if _, query, isURL := strings.Cut(pasted, "?"); isURL {
		q, _ = url.ParseQuery(query)
	} else {
		code, state, both := strings.Cut(pasted, "#")
		q.Set("code", code)
		if both {
			q.Set("state", state)
		}
	}
	g, err := w.c.Exchange(t.Context(), a, q, w.secret())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// device logs in with a code that the person types after some polls.
func (w *world) device(t *testing.T) *grant.Grant {
	t.Helper()
	w.s.SetApproval(oauthtest.AskUser)
	l, err := w.c.StartDevice(t.Context(), w.p, w.secret())
	if err != nil {
		t.Fatal(err)
	}
	if l.VerificationURL != w.s.EndpointURL(oauthtest.Verify) || l.UserCode == "" {
		t.Errorf("the person is sent to %s", l.VerificationURL)
	}
	interval := l.Interval
	poll := func(after time.Duration) (*grant.Grant, *Error) {
		time.Sleep(after)
		g, err := w.c.PollDevice(t.Context(), l, w.secret())
		if err == nil {
			return g, nil
		}
		return nil, asError(t, err)
	}
	for range 3 { // codex says "pending" in two ways
		if _, e := poll(interval); e == nil || e.Kind != Pending {
			t.Errorf("before the person is done: %v", e)
		}
	}
	_, e := poll(interval / 10)
	if e == nil || e.Kind != SlowDown {
		t.Fatalf("too early: %v", e)
	}
	slower := interval + 5*time.Second
	if w.p.Dialect == "github" && e.Interval != slower || w.p.Dialect != "github" && e.Interval != 0 {
		t.Errorf("the new interval is %v", e.Interval)
	}
	if _, e := poll(slower); e == nil || e.Kind != Pending {
		t.Errorf("in the new interval: %v", e)
	}
	if !w.s.Decide(l.UserCode, true) {
		t.Error("nobody waits for this code")
	}
	g, e := poll(slower)
	if e != nil {
		t.Fatal(e)
	}
	return g
}

// A whole login by each flow, refreshes and a logout, with every vendor.
func TestWholeLogins(t *testing.T) {
	if got, want := strings.Join(oauthtest.Dialects(), " "), "anthropic chatgpt codex gemini github kimi openrouter qwen xai"; got != want {
		t.Errorf("vendors that are played: %s", got)
	}
	for _, c := range []struct {
		dialect, flow string
		fields        string // of the grant
		rotates       bool   // refreshes bring a new refresh token
		keeps         bool   // the refresh token stays; neither: there is none
		revokes       bool
	}{
		{"oauth2", "browser", "", true, false, true},
		{"oauth2", "paste", "", true, false, true},
		{"oauth2", "device", "", true, false, true},
		{"anthropic", "paste", "", true, false, false},
		{"anthropic", "browser", "", true, false, false},
		{"codex", "browser", "account_id id_token", true, false, true},
		{"codex", "device", "account_id id_token", true, false, true},
		{"chatgpt", "browser", "id_token", true, false, false},
		{"gemini", "paste", "id_token", false, true, true},
		{"gemini", "browser", "id_token", false, true, true},
		{"qwen", "device", "resource_url", true, false, false},
		{"github", "device", "", false, false, false},
		{"xai", "device", "", false, true, false},
		{"kimi", "device", "", true, false, false},
		{"openrouter", "browser", "", false, false, false},
	} {
		t.Run(c.dialect+" "+c.flow, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startDialect(t, c.dialect, oauthtest.Options{})
				if !slices.Contains(append(w.p.Flows, "paste"), c.flow) {
					t.Fatalf("flows: %s", w.p.Flows)
				}
				var g *grant.Grant
				switch c.flow {
				case "browser":
					for _, redirect := range w.p.Redirects() {
						if u, _ := url.Parse(redirect); u.Port() == "" {
							redirect = strings.Replace(redirect, u.Host, u.Host+":54321", 1)
						}
						var a *Authorization
						a, g = w.browser(t, redirect)
						if strings.Contains(a.URL, a.verifier.Reveal()) {
							t.Error("the verifier is in the URL")
						}
					}
				case "paste":
					g = w.paste(t)
				case "device":
					g = w.device(t)
				}
				names := []string{}
				for _, f := range g.Fields {
					names = append(names, f.Name)
				}
				if got := strings.Join(names, " "); got != c.fields || g.TokenType != "Bearer" || !w.s.Valid(g.AccessToken.Reveal()) {
					t.Errorf("the grant has %s and a token of type %s", got, g.TokenType)
				}
				if g.RefreshToken.IsZero() == (c.rotates || c.keeps) || (g.ClientID != "") != (c.dialect == "chatgpt") {
					t.Errorf("a refresh token is there: %t; client %q", !g.RefreshToken.IsZero(), g.ClientID)
				}
				if c.rotates || c.keeps {
					g = w.refreshes(t, g, c.rotates)
				} else if g.Expiry != 0 {
					t.Errorf("it ends at %d", g.Expiry)
				}
				w.logout(t, g, c.revokes)
			})
		})
	}
}

// refreshes renews a login twice, each time as it comes from the store.
func (w *world) refreshes(t *testing.T, g *grant.Grant, rotates bool) *grant.Grant {
	t.Helper()
	for range 2 {
		old, err := grant.Parse(g.Seal())
		if err != nil {
			t.Fatal(err)
		}
		answer, err := w.c.Refresh(t.Context(), w.p, old, w.secret(), nil)
		if err != nil {
			t.Fatal(err)
		}
		g = grant.Merge(old, answer)
		if !w.s.Valid(g.AccessToken.Reveal()) || g.AccessToken.Equal(old.AccessToken) || g.RefreshToken.Equal(old.RefreshToken) == rotates || g.ClientID != old.ClientID {
			t.Error("the refresh did not bring what it should")
		}
		if g.Expiry <= time.Now().Unix() || len(g.Fields) != len(old.Fields) {
			t.Errorf("after the refresh: expiry %d, %d fields", g.Expiry, len(g.Fields))
		}
	}
	return g
}

func (w *world) logout(t *testing.T, g *grant.Grant, revokes bool) {
	t.Helper()
	if !revokes {
		if err := w.c.Revoke(t.Context(), w.p.For(g), g.AccessToken, "access_token", w.secret()); err == nil || !strings.Contains(err.Error(), "revoke_url") {
			t.Errorf("revoke: %v", err)
		}
		return
	}
	for _, token := range []struct {
		secret.String
		hint string
	}{{g.AccessToken, "access_token"}, {g.RefreshToken, "refresh_token"}} {
		if err := w.c.Revoke(t.Context(), w.p.For(g), token.String, token.hint, w.secret()); err != nil || w.s.Valid(token.Reveal()) {
			t.Errorf("revoke the %s: %v", token.hint, err)
		}
	}
	_, err := w.c.Refresh(t.Context(), w.p, g, w.secret(), nil)
	if e := asError(t, err); e.Kind != Refused || !e.Revoked {
		t.Errorf("a refresh afterwards: %v", err)
	}
}
