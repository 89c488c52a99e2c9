//go:build e2e && linux

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// jwt is an access token that says when it ends, as some providers have them.
func jwt(claims m) string {
	b, _ := json.Marshal(claims)
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(b) + "." + part([]byte("test-signature"))
}

// refusal is an error in place of an answer, in JSON.
func refusal(status int, body string) oauthtest.Fault {
	return oauthtest.Fault{Status: status, Body: &body, Header: http.Header{"Content-Type": {"application/json"}}}
}

// What providers do differently, each with a running proxy whose provider is edited to the dialect after the login.
func TestDialects(t *testing.T) {
	const soonOver = 1800
	exp := time.Now().Add(soonOver * time.Second).Unix()
	for _, c := range []struct {
		dialect  string
		json     bool // token requests are JSON
		keep     bool // refresh tokens stay
		secret   bool // the client has one
		answer   func(a map[string]any)
		want     m // members of the token that follows
		dead     oauthtest.Fault
		deadCode string // what auth status says about it
	}{
		{
			dialect: "codex", json: true,
			answer: func(a map[string]any) {
				delete(a, "expires_in")
				delete(a, "account_id")
				a["access_token"] = jwt(m{"exp": exp, "sub": "test-user"})
			},
			want:     m{"expiry": float64(exp), "account_id": "acct-at-login"},
			dead:     refusal(401, `{"error":{"message":"Your refresh token has already been used","type":"invalid_request_error","param":null,"code":"refresh_token_reused"}}`),
			deadCode: "refresh_token_reused",
		},
		{
			dialect: "codex", json: true,
			answer: func(a map[string]any) {
				delete(a, "account_id")
				a["id_token"] = jwt(m{"https://api.openai.com/auth": m{"chatgpt_account_id": "acct-of-the-token"}})
			},
			want: m{"account_id": "acct-of-the-token"},
			dead: refusal(401, `no JSON`), deadCode: "HTTP 401",
		},
		{
			dialect: "qwen",
			answer: func(a map[string]any) {
				a["scope"], a["resource_url"], a["expires_in"] = nil, "portal.test.example", fmt.Sprint(soonOver)
			},
			want: m{"resource_url": "portal.test.example", "account_id": "acct-at-login"},
			dead: refusal(400, `{"status":"error","message":"test"}`), deadCode: "HTTP 400",
		},
		{
			dialect: "github", secret: true,
			answer: func(a map[string]any) { a["refresh_token_expires_in"] = 15811200 },
			want:   m{"account_id": "acct-at-login"},
			dead:   refusal(200, `{"error":"bad_refresh_token","error_description":"The refresh token passed is incorrect or expired."}`), deadCode: "bad_refresh_token",
		},
		{
			dialect: "anthropic", json: true,
			answer: func(a map[string]any) { a["scope"] = "user:inference user:profile" },
			want:   m{"scope": "user:inference user:profile"},
			dead:   refusal(400, `{"error":"invalid_grant","error_description":"Refresh token not found or invalid"}`), deadCode: "invalid_grant",
		},
		{
			dialect: "gemini", keep: true, secret: true,
			answer: func(a map[string]any) { a["id_token"] = jwt(m{"sub": "test-user"}) },
			want:   m{"account_id": "acct-at-login"},
			dead:   refusal(400, `{"error":"invalid_grant","error_description":"Token has been expired or revoked."}`), deadCode: "invalid_grant",
		},
		{
			dialect: "oauth2",
			answer:  func(a map[string]any) { delete(a, "expires_in"); a["token_type"] = "bearer" },
			want:    m{"expiry": 0.0, "token_type": "Bearer"},
			dead:    refusal(400, `{"error":"invalid_grant"}`), deadCode: "invalid_grant",
		},
	} {
		t.Run(c.dialect+" "+c.deadCode, func(t *testing.T) {
			t.Parallel()
			client := oauthtest.Client{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}
			lines := []string{`token_fields = ["account_id", "id_token", "resource_url"]`}
			if c.secret {
				client.Secret = "test-client-secret-value"
				lines = append(lines, `client_secret_key = "acme-secret"`)
			}
			o := oauthtest.Options{Clients: []oauthtest.Client{client}, Encoding: oauthtest.FormOrJSONBody}
			if c.keep {
				o.Rotation = oauthtest.Keep
			}
			s := oauth(t, o)
			h := newHost(t)
			h.configure(generous + providerConfig("acme", s, lines...))
			h.mustWith("test-client-secret-value", "key", "set", "acme-secret")
			for _, login := range []string{"acme", "acme/dead"} {
				s.Fault(oauthtest.Token, oauthtest.With("account_id", `"acct-at-login"`), 1)
				h.login(login)
			}
			p := h.serve()
			conn := dial(t, p.socket)
			h.configure(generous + providerConfig("acme", s, append(lines, fmt.Sprintf("dialect = %q", c.dialect))...))
			if p.stderr.find(regexp.MustCompile(`was edited: applied`), p.ended, patience) == nil {
				t.Fatalf("the edited configuration is not applied: %s", p.stderr)
			}

			// An answer.
			s.Fault(oauthtest.Token, oauthtest.Fault{Edit: c.answer}, 1)
			a := conn.refresh("acme")
			if !a.OK || a.Data["refresh_token"] != nil || a.Data["token_type"] != "Bearer" {
				t.Fatalf("refresh_token: %+v", a)
			}
			for name, want := range c.want {
				if got := a.Data[name]; got != want && (want != 0.0 || got != nil) {
					t.Errorf("%s is %v, want %v", name, got, want)
				}
			}
			sent := refreshes(s)
			if len(sent) != 1 {
				t.Fatalf("the provider was asked %d times", len(sent))
			}
			if isJSON := strings.HasPrefix(sent[0].Header.Get("Content-Type"), "application/json"); isJSON != c.json {
				t.Errorf("the request is %s", sent[0].Header.Get("Content-Type"))
			}
			_, inBody := sent[0].Params["client_secret"]
			if inHeader := sent[0].Header.Get("Authorization") != ""; inBody != c.secret || inHeader {
				t.Errorf("a client secret in the body: %v, in a header: %v", inBody, inHeader)
			}
			var names []string
			for name := range sent[0].Params {
				names = append(names, name)
			}
			for _, name := range names {
				if !slices.Contains([]string{"grant_type", "client_id", "client_secret", "refresh_token", "scope"}, name) {
					t.Errorf("the request has a parameter %q", name)
				}
			}
			family := s.Families()[0]
			if last := family.RefreshTokens[len(family.RefreshTokens)-1]; !s.Valid(last) || len(family.RefreshTokens) == 1 != c.keep {
				t.Errorf("%d refresh tokens were issued, the last is good: %v", len(family.RefreshTokens), s.Valid(last))
			}
			// What is stored is the newest refresh token: the provider is sent it when it is revoked. Google's way to ask, which
			// says nothing of the client, is not taken by this server.
			r := h.run("auth", "logout", "acme", "--revoke")
			if r.code != 0 && c.dialect != "gemini" {
				t.Errorf("%v", r)
			}
			family = s.Families()[0]
			asked := s.Requests(oauthtest.Revoke)
			if len(asked) != 1 || asked[0].Params.Get("token") != family.RefreshTokens[len(family.RefreshTokens)-1] || family.Revoked != (c.dialect != "gemini") {
				t.Error("what was stored after the refresh is not the newest refresh token")
			}

			// A refresh token that is dead.
			s.Fault(oauthtest.Token, c.dead, 1)
			for range 3 {
				if a := conn.refresh("acme/dead"); a.Code != "INTERNAL_ERROR" && !a.OK || a.Code == "INTERNAL_ERROR" && !strings.HasPrefix(a.Error, "login needed: ") {
					t.Errorf("refresh_token with a dead refresh token: %+v", a)
				}
			}
			if st := h.status("acme/dead"); st.State != "login_needed" || !strings.Contains(st.Detail, c.deadCode) {
				t.Errorf("auth status: %+v", st)
			}
			if n := len(refreshes(s)); n != 2 {
				t.Errorf("a dead refresh token was sent %d times", n-1)
			}
			conn.expire("acme/dead")
			h.fails(4, "credproxy auth login acme/dead", "token", "acme/dead")
			if n := len(refreshes(s)); n != 2 {
				t.Errorf("a dead refresh token was sent %d times", n-1)
			}
			h.onlySealed(s)
		})
	}
}

// A provider that wants to be left alone is, also by the command on the host and by the next process.
func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme")
	f := refusal(429, `{"type":"error","error":{"type":"rate_limit_error","message":"test"}}`)
	f.Header.Set("Retry-After", "90")
	s.Fault(oauthtest.Token, f, 1)
	p := h.serve()
	c := dial(t, p.socket)
	if a := c.refresh("acme"); a.Code != "INTERNAL_ERROR" || strings.HasPrefix(a.Error, "login needed") {
		t.Errorf("%+v", a)
	}
	if a := c.refresh("acme"); !a.OK || a.Data["access_token"] != newest(s, 0) {
		t.Errorf("a token that is still good: %+v", a)
	}
	c.expire("acme")
	limited := func(c *conn) {
		t.Helper()
		if a := c.refresh("acme"); a.Code != "RATE_LIMITED" || a.RetryAfter < 80 || a.RetryAfter > 90 {
			t.Errorf("%+v", a)
		}
	}
	limited(c)
	h.fails(6, "again in", "token", "acme")
	h.fails(6, "again in", "auth", "refresh", "acme")
	p.stop()
	limited(dial(t, h.serve().socket))
	if n := len(refreshes(s)); n != 1 {
		t.Errorf("the provider was asked %d times, want once", n)
	}
}

// A provider that stumbles is asked again, with the same refresh token, and within one request of the client.
func TestFailuresThatPass(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme")
	s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(503, "temporarily_unavailable"), 1)
	s.Fault(oauthtest.Token, oauthtest.Fault{Drop: true}, 1)
	c := dial(t, h.serve().socket)
	if a := c.refresh("acme"); !a.OK || a.Data["access_token"] != newest(s, 0) || len(s.Families()[0].AccessTokens) != 2 {
		t.Errorf("%+v", a)
	}
	sent := refreshes(s)
	if len(sent) != 3 {
		t.Fatalf("the provider was asked %d times, want 3", len(sent))
	}
	if first, second := sent[1].Time.Sub(sent[0].Time), sent[2].Time.Sub(sent[1].Time); first < 900*time.Millisecond || second < 2800*time.Millisecond {
		t.Errorf("asked again after %v and %v, want 1 s and 3 s", first, second)
	}
	neverReused(t, s)
}

// In a sandbox, the commands refresh, and say how a login stands.
func TestRefreshInASandbox(t *testing.T) {
	t.Parallel()
	for _, c := range []engineCase{everyEngine[0], everyEngine[3], everyEngineOverTLS[0]} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := &sandboxed{engine: c.engine, transport: c.transport, shell: []string{"/bin/sh", "-c"}}
			x.host, x.oauth = refreshing(t, "[profiles.work.providers]\nacme = [\"default\", \"dead\"]\n", "acme", "acme/dead", "acme/hidden")
			x.vars = append(x.vars, "CONTAINERS_CONF="+setting(t, "CONTAINERS_CONF"))
			if c.engine != "bwrap" {
				x.image = setting(t, "CREDPROXY_TEST_IMAGE")
			}
			p := x.serve()
			c := dial(t, p.socket)
			c.expire("acme")
			c.expire("acme/dead")
			p.stop()
			r := x.in(append(x.shell, `credproxy token acme && credproxy auth status --json && credproxy auth refresh acme`)...)
			token, report, _ := strings.Cut(r.stdout, "\n")
			var status struct {
				Store  string
				Logins []standing
			}
			if err := json.Unmarshal([]byte(report), &status); r.code != 0 || err != nil || token != newest(x.oauth, 0) || len(x.oauth.Families()[0].AccessTokens) != 2 {
				t.Fatalf("%v: %v", err, r)
			}
			if status.Store != "file" || len(status.Logins) != 2 {
				t.Fatalf("auth status inside: %+v", status)
			}
			one, two := status.Logins[0], status.Logins[1]
			if one.Bucket == "dead" {
				one, two = two, one
			}
			now := time.Now()
			if one.State != "ok" || one.Expiry == nil || one.RenewsAt == nil || one.LastRefresh == nil ||
				now.Sub(time.Unix(*one.LastRefresh, 0)) > time.Minute || time.Unix(*one.RenewsAt, 0).Sub(now) < 50*time.Minute || *one.Expiry <= *one.RenewsAt {
				t.Errorf("auth status inside: %+v", one)
			}
			if two.State != "expired" || two.LastRefresh != nil || two.RenewsAt != nil {
				t.Errorf("auth status inside: %+v", two)
			}
			if n := len(refreshes(x.oauth)); n != 1 {
				t.Errorf("the provider was asked %d times", n)
			}
			x.oauth.Fault(oauthtest.Token, oauthtest.ErrorAnswer(400, "invalid_grant"), 1)
			if r := x.in("credproxy", "token", "acme/dead"); r.code != 4 || !strings.Contains(r.stderr, "log in on the host") {
				t.Errorf("a login that is over: %v", r)
			}
			if r := x.in("credproxy", "auth", "refresh", "acme/hidden"); r.code != 5 {
				t.Errorf("a login that the profile does not name: %v", r)
			}
			if n := len(refreshes(x.oauth)); n != 2 {
				t.Errorf("the provider was asked %d times", n)
			}
			x.nothingLeft(t, "a refresh")
			x.onlySealed(x.oauth)
		})
	}
}
