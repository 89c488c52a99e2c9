package provider

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// What providers answer instead of tokens, to the byte where their own words are known, and what it means for the login.
func TestErrors(t *testing.T) {
	openAI := func(code string) string {
		return `{"error":{"message":"Your refresh token has already been used to generate a new access token. Please try signing in again.","type":"invalid_request_error","param":null,"code":"` + code + `"}}`
	}
	for _, c := range []struct {
		dialect string
		status  int
		body    string
		kind    Kind
		code    string
		revoked bool
	}{
		{"oauth2", 400, `{"error":"invalid_grant","error_description":"expired"}`, Refused, "invalid_grant", true},
		{"oauth2", 400, `{"error":"INVALID_GRANT"}`, Refused, "invalid_grant", true},
		{"oauth2", 401, `{"error":"invalid_client"}`, Refused, "invalid_client", false},
		{"oauth2", 400, `{"error":"unauthorized_client"}`, Refused, "unauthorized_client", false},
		{"oauth2", 400, `{"error":"unsupported_grant_type"}`, Refused, "unsupported_grant_type", false},
		{"oauth2", 400, `{"error":"invalid_scope"}`, Refused, "invalid_scope", false},
		{"oauth2", 400, `{"error":"invalid_request"}`, Refused, "invalid_request", false},
		{"oauth2", 401, ``, Refused, "", false},
		{"oauth2", 401, `{"error":"something_else"}`, Refused, "unknown_error", false},
		{"oauth2", 401, `<html>401</html>`, Refused, "", false},
		{"oauth2", 403, `<html>blocked</html>`, Unclear, "", false},
		{"oauth2", 404, `{}`, Unclear, "", false},
		{"oauth2", 400, `{"error":"access_denied"}`, Unclear, "access_denied", false},
		{"oauth2", 400, `{"error":{"type":"invalid_request_error"}}`, Unclear, "invalid_request_error", false},
		{"oauth2", 400, `{"code":"invalid_grant"}`, Refused, "invalid_grant", true},
		{"oauth2", 400, `{"error":null,"code":"invalid_grant"}`, Refused, "invalid_grant", true},
		{"oauth2", 400, `{"error":{"code":400,"type":"invalid_grant"}}`, Refused, "invalid_grant", true},
		{"oauth2", 400, `{"error":{"code":"invalid_grant","type":"server_error"}}`, Refused, "invalid_grant", true},
		{"oauth2", 400, `{"error":["invalid_grant"]}`, Unclear, "", false},
		{"oauth2", 400, `{"error":"temporarily_unavailable"}`, Transient, "temporarily_unavailable", false},
		{"oauth2", 400, `{"error":"server_error"}`, Transient, "server_error", false},
		{"oauth2", 400, `{"error":"slow_down"}`, Transient, "slow_down", false},
		{"oauth2", 500, `{"error":"invalid_grant"}`, Transient, "invalid_grant", false},
		{"oauth2", 502, `<html>bad gateway</html>`, Transient, "", false},
		{"oauth2", 408, ``, Transient, "", false},
		{"oauth2", 429, ``, Transient, "", false},
		{"oauth2", 200, `{"error":"invalid_grant"}`, Refused, "invalid_grant", true},
		{"oauth2", 200, `{"error":"temporarily_unavailable"}`, Transient, "temporarily_unavailable", false},
		{"oauth2", 200, `<html>welcome to the hotel</html>`, Malformed, "", false},
		{"oauth2", 200, ``, Malformed, "", false},
		{"oauth2", 200, `null`, Malformed, "", false},
		{"oauth2", 200, `[]`, Malformed, "", false},
		{"oauth2", 200, `{"access_token":""}`, Malformed, "", false},
		{"oauth2", 200, `{"access_token":7}`, Malformed, "", false},
		{"oauth2", 204, ``, Malformed, "", false},
		{"oauth2", 400, openAI("refresh_token_reused"), Unclear, "refresh_token_reused", false}, // not this dialect's code

		{"anthropic", 400, `{"error":"invalid_grant","error_description":"Refresh token not found or invalid"}`, Refused, "invalid_grant", true},
		{"anthropic", 429, `{"error":{"type":"rate_limit_error","message":"Rate limited. Please try again later."}}`, Transient, "rate_limit_error", false},
		{"anthropic", 400, `{"type":"error","error":{"type":"rate_limit_error","message":"Rate limited."}}`, Transient, "rate_limit_error", false},
		{"anthropic", 529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, Transient, "overloaded_error", false},
		{"anthropic", 401, `{"type":"error","error":{"type":"authentication_error","message":"Invalid"}}`, Refused, "authentication_error", false},

		{"codex", 401, openAI("refresh_token_reused"), Refused, "refresh_token_reused", true},
		{"codex", 401, openAI("refresh_token_expired"), Refused, "refresh_token_expired", true},
		{"codex", 401, openAI("refresh_token_invalidated"), Refused, "refresh_token_invalidated", true},
		{"codex", 400, openAI("Refresh_Token_Reused"), Refused, "refresh_token_reused", true},
		{"codex", 400, `{"error":"refresh_token_expired"}`, Refused, "refresh_token_expired", true},
		{"codex", 400, `{"code":"refresh_token_invalidated"}`, Refused, "refresh_token_invalidated", true},
		{"codex", 401, ``, Refused, "", true},
		{"codex", 401, `{"error":"invalid_client"}`, Refused, "invalid_client", false}, // the login is as good as before
		{"codex", 403, `{"detail":"blocked"}`, Unclear, "", false},
		{"codex", 500, openAI("server_error"), Transient, "server_error", false},

		{"gemini", 400, `{"error": "invalid_grant","error_description": "Token has been expired or revoked."}`, Refused, "invalid_grant", true},
		{"gemini", 401, `{"error": "invalid_client","error_description": "Unauthorized"}`, Refused, "invalid_client", false},
		{"gemini", 400, `{"error":{"code":400,"message":"…","status":"INVALID_ARGUMENT"}}`, Unclear, "", false},

		{"qwen", 400, `{"error":"invalid_request","error_description":"Invalid refresh token or client_id"}`, Refused, "invalid_request", true},
		{"qwen", 401, ``, Refused, "", true},
		{"qwen", 400, `{"error":"slow_down"}`, Transient, "slow_down", false},
		{"qwen", 400, `{"error":"unsupported_grant_type"}`, Refused, "unsupported_grant_type", false},
		{"qwen", 403, ``, Unclear, "", false},

		{"github", 200, `{"error":"bad_refresh_token","error_description":"The refresh token passed is incorrect or expired.","error_uri":"https://docs.github.com"}`, Refused, "bad_refresh_token", true},
		{"github", 200, `{"error":"incorrect_client_credentials"}`, Refused, "incorrect_client_credentials", false},
		{"github", 200, `{"error":"unsupported_grant_type"}`, Refused, "unsupported_grant_type", false},
		{"github", 200, `{"error":"slow_down","interval":10}`, Transient, "slow_down", false},

		{"xai", 400, `{"error":"invalid_grant"}`, Refused, "invalid_grant", true},
		{"kimi", 401, ``, Refused, "", true},
		{"kimi", 403, `{}`, Refused, "", true},
		{"kimi", 400, `{"error":"invalid_grant"}`, Refused, "invalid_grant", true},
		{"kimi", 400, `{}`, Unclear, "", false},
	} {
		t.Run(c.dialect+" "+http.StatusText(c.status), func(t *testing.T) {
			w := start(t, false, c.dialect, oauthtest.Options{})
			w.s.Fault(oauthtest.Token, answerWith(c.status, c.body), -1)
			received := 0
			_, err := w.c.Refresh(t.Context(), w.p, stored(), secret.String{}, func(a Answer) {
				received++
				if string(a.Body) != c.body {
					t.Error("received is not what was sent")
				}
			})
			e := asError(t, err)
			status := c.status
			if status == 200 || status == 204 {
				status = 0
			}
			want := Error{Kind: c.kind, Provider: "acme", Status: status, Code: c.code, Revoked: c.revoked}
			got := *e
			got.reason = ""
			if got != want {
				t.Errorf("%d %s:\ngot  %+v\nwant %+v", c.status, c.body, got, want)
			}
			if (received == 1) != (c.status/100 == 2) || received > 1 {
				t.Errorf("received was called %d times for HTTP %d", received, c.status)
			}
			if n := w.s.Calls(oauthtest.Token); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
			if c.status/100 == 2 {
				again := asError(t, func() error { _, err := w.p.Parse(Answer{Body: []byte(c.body), Sent: time.Now()}, nil); return err }())
				if *again != *e {
					t.Errorf("Parse: %v, Refresh: %v", again, e)
				}
			}
		})
	}
}

// Of a login, a refused code says nothing about a refresh token.
func TestExchangeRevokesNothing(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{})
	_, err := w.c.Exchange(t.Context(), w.p, "test-code", "http://127.0.0.1/callback", secret.New(verifier), secret.String{})
	if e := asError(t, err); e.Kind != Refused || e.Code != "invalid_grant" || e.Revoked {
		t.Errorf("%+v", e)
	}
}

// Each dialect's refresh against a server that rotates and detects reuse.
func TestRefreshByDialect(t *testing.T) {
	for dialect, d := range dialects {
		t.Run(dialect, func(t *testing.T) {
			encoding := oauthtest.FormBody
			if d.json {
				encoding = oauthtest.JSONBody
			}
			id := d.clientID
			if id == "" {
				id = "acme-client"
			}
			s, err := oauthtest.Start(oauthtest.Options{Encoding: encoding, Clients: []oauthtest.Client{{ID: id, RedirectURIs: []string{"http://127.0.0.1/callback"}}}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(t.Context())
			described := &config.Provider{Name: "acme", Dialect: dialect, AuthorizeURL: s.EndpointURL(oauthtest.Authorize), TokenURL: s.EndpointURL(oauthtest.Token)}
			if dialect == "oauth2" {
				described.ClientID = id
			}
			w := &world{s, NewClient(), FromConfig(described)}
			g := w.login(t, secret.String{})
			for range 3 {
				next, err := w.refresh(g, secret.String{})
				if err != nil {
					t.Fatal(err)
				}
				if next.RefreshToken.IsZero() || next.RefreshToken.Equal(g.RefreshToken) || !s.Valid(next.AccessToken.Reveal()) {
					t.Error("the new tokens did not arrive")
				}
				g = grant.Merge(g, next)
			}
			for _, use := range s.RefreshUses() {
				if use.Outcome != oauthtest.Accepted {
					t.Errorf("a refresh token was %s", use.Outcome)
				}
			}
			last := s.Requests(oauthtest.Token)[3]
			names := []string{"client_id", "grant_type", "refresh_token"}
			for name := range last.Params {
				if !slices.Contains(names, name) {
					t.Errorf("the request has a parameter %s", name)
				}
			}
			if last.Header.Get("Accept") != "application/json" || last.Header.Get("Authorization") != "" {
				t.Errorf("headers: %v", last.Header)
			}
		})
	}
}

func TestBuiltin(t *testing.T) {
	for _, name := range []string{"KIMI_CODE_OAUTH_HOST", "ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "XAI_OAUTH_ISSUER"} {
		t.Setenv(name, "https://elsewhere.example")
	}
	for name, token := range map[string]string{
		"anthropic": "https://platform.claude.com/v1/oauth/token",
		"codex":     "https://auth.openai.com/oauth/token",
		"gemini":    "https://oauth2.googleapis.com/token",
		"qwen":      "https://chat.qwen.ai/api/v1/oauth2/token",
		"github":    "https://github.com/login/oauth/access_token",
		"xai":       "https://auth.x.ai/oauth2/token",
		"kimi":      "https://auth.kimi.com/api/oauth/token",
	} {
		p, ok := Builtin(name)
		if !ok || p.Name != name || p.Dialect != name || p.TokenURL != token || p.ClientID == "" {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		if !slices.Contains(config.BuiltinProviders, name) {
			t.Errorf("%s can be described in the configuration, which would redirect it", name)
		}
		if (p.ClientSecretKey != "") != (name == "gemini") || p.JSONBody != (name == "anthropic" || name == "codex") {
			t.Errorf("%s: secret key %q, JSON %t", name, p.ClientSecretKey, p.JSONBody)
		}
		p.TokenURL = "https://elsewhere.example"
		if again, _ := Builtin(name); again.TokenURL != token {
			t.Errorf("%s: a caller changed it for everybody", name)
		}
	}
	for _, name := range []string{"oauth2", "chatgpt", "openrouter", "acme", "", "Codex"} {
		if _, ok := Builtin(name); ok {
			t.Errorf("%q is built in", name)
		}
	}
	for _, name := range config.Dialects {
		if _, ok := dialects[name]; !ok {
			t.Errorf("the configuration takes the dialect %q, which nobody speaks", name)
		}
	}
}

func TestMissingSecret(t *testing.T) {
	c := NewClientWith(refuseAll{t})
	gemini, _ := Builtin("gemini")
	_, err := c.Refresh(t.Context(), gemini, stored(), secret.String{}, nil)
	for _, part := range []string{"provider gemini", "client secret", "Gemini CLI", `"credproxy key set gemini-client-secret"`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: does not say %s", err, part)
		}
	}
	if e := asError(t, err); e.Kind != Refused || e.Revoked || e.Reason() != "its client secret is not stored" {
		t.Errorf("%+v", e)
	}
	acme := FromConfig(&config.Provider{Name: "acme", Dialect: "gemini", TokenURL: "https://acme.example/token", ClientSecretKey: "acme-secret"})
	_, err = c.Refresh(t.Context(), acme, stored(), secret.String{}, nil)
	if err == nil || !strings.Contains(err.Error(), "credproxy key set acme-secret") || strings.Contains(err.Error(), "Google") {
		t.Errorf("acme: %v", err)
	}
	_, err = c.Refresh(t.Context(), acme, &grant.Grant{AccessToken: secret.New("test-access-token-1")}, secret.New(testSecret), nil)
	if err == nil || !strings.Contains(err.Error(), "no refresh token") {
		t.Errorf("without a refresh token: %v", err)
	}
}

type refuseAll struct{ t *testing.T }

func (r refuseAll) RoundTrip(*http.Request) (*http.Response, error) {
	r.t.Error("a request was sent")
	return nil, http.ErrUseLastResponse
}

func TestFromConfig(t *testing.T) {
	for _, c := range []struct {
		described config.Provider
		id        string
		json      bool
	}{
		{config.Provider{Dialect: "oauth2", ClientID: "acme", TokenEncoding: "form"}, "acme", false},
		{config.Provider{Dialect: "oauth2", ClientID: "acme", TokenEncoding: "json"}, "acme", true},
		{config.Provider{Dialect: "codex"}, "app_EMoamEEZ73f0CkXaXp7hrann", true},
		{config.Provider{Dialect: "codex", ClientID: "acme", TokenEncoding: "form"}, "acme", false},
		{config.Provider{Dialect: "anthropic"}, "9d1c250a-e61b-44d9-88ed-5944d1962f5e", true},
		{config.Provider{Dialect: "qwen", TokenEncoding: "json"}, "f0304373b74a44d2b584a3fb70ca9e56", true},
		{config.Provider{Dialect: "gemini"}, dialects["gemini"].clientID, false},
		{config.Provider{Dialect: "github", ClientID: "Iv1.test"}, "Iv1.test", false},
	} {
		c.described.TokenURL = "https://acme.example/token"
		p := FromConfig(&c.described)
		if p.ClientID != c.id || p.JSONBody != c.json {
			t.Errorf("%+v: client id %q, JSON %t", c.described, p.ClientID, p.JSONBody)
		}
		if p.TokenURL != "https://acme.example/token" || p.RevokeURL != "" || p.AuthorizeURL != "" || p.ClientSecretKey != "" {
			t.Errorf("%s: it has something of the built-in provider: %+v", p.Dialect, p)
		}
	}
}

func TestRequestFingerprint(t *testing.T) {
	type request struct {
		p *Provider
		g *grant.Grant
		s secret.String
	}
	base := func() request {
		return request{&Provider{Name: "acme", Dialect: "oauth2", TokenURL: "https://acme.example/token", ClientID: "id"}, stored(), secret.New(testSecret)}
	}
	of := func(change func(*request)) string {
		r := base()
		change(&r)
		return r.p.RequestFingerprint(r.g, r.s)
	}
	same := of(func(*request) {})
	if len(same) != 32 || strings.Trim(same, "0123456789abcdef") != "" {
		t.Errorf("fingerprint %q", same)
	}
	for name, change := range map[string]func(*request){
		"access token": func(r *request) { r.g.AccessToken = secret.New("test-access-token-2") },
		"name":         func(r *request) { r.p.Name = "other" },
	} {
		if of(change) != same {
			t.Errorf("it changes with the %s, which is not sent", name)
		}
	}
	for name, change := range map[string]func(*request){
		"refresh token": func(r *request) { r.g.RefreshToken = secret.New("test-refresh-token-2") },
		"secret":        func(r *request) { r.s = secret.String{} },
		"client id":     func(r *request) { r.p.ClientID = "id2" },
		"endpoint":      func(r *request) { r.p.TokenURL += "2" },
		"encoding":      func(r *request) { r.p.JSONBody = true },
		"dialect":       func(r *request) { r.p.Dialect = "codex" },
		"a shifted border": func(r *request) {
			r.p.ClientID, r.s = "i", secret.New("d"+testSecret)
		},
	} {
		if of(change) == same {
			t.Errorf("it does not change with %s", name)
		}
	}
}
