package provider

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/gemini"
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
	_, err := w.c.Exchange(t.Context(), w.authorize(t), url.Values{"code": {"test-code"}}, secret.String{})
	if e := asError(t, err); e.Kind != Refused || e.Code != "invalid_grant" || e.Revoked {
		t.Errorf("%+v", e)
	}
}

// Each dialect's refresh against a server that rotates and detects reuse.
func TestRefreshByDialect(t *testing.T) {
	for name, d := range dialects {
		if d.Authorize.Callback != "" || d.Authorize.IssuesClient {
			continue // they log in as no other does
		}
		t.Run(name, func(t *testing.T) {
			w := start(t, false, name, oauthtest.Options{})
			g := w.login(t, secret.String{})
			for range 3 {
				next, err := w.refresh(g, secret.String{})
				if err != nil {
					t.Fatal(err)
				}
				if next.RefreshToken.IsZero() || next.RefreshToken.Equal(g.RefreshToken) || !w.s.Valid(next.AccessToken.Reveal()) {
					t.Error("the new tokens did not arrive")
				}
				g = grant.Merge(g, next)
			}
			for _, use := range w.s.RefreshUses() {
				if use.Outcome != oauthtest.Accepted {
					t.Errorf("a refresh token was %s", use.Outcome)
				}
			}
			last := w.s.Requests(oauthtest.Token)[3]
			names := []string{"client_id", "grant_type", "refresh_token"}
			for name := range last.Params {
				if !slices.Contains(names, name) {
					t.Errorf("the request has a parameter %s", name)
				}
			}
			if last.Header.Get("Accept") != "application/json" || last.Header.Get("Authorization") != "" {
				t.Errorf("headers: %v", last.Header)
			}
			if json := last.Header.Get("Content-Type") == "application/json"; json != d.Token.RefreshJSON {
				t.Errorf("the request is JSON: %t", json)
			}
		})
	}
}

func TestBuiltin(t *testing.T) {
	for _, name := range []string{"KIMI_CODE_OAUTH_HOST", "ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "XAI_OAUTH_ISSUER"} {
		t.Setenv(name, "https://elsewhere.example")
	}
	endpoints := map[string][4]string{ // authorize, token, device, revoke
		"anthropic":  {"https://claude.ai/oauth/authorize", "https://platform.claude.com/v1/oauth/token", "", ""},
		"codex":      {"https://auth.openai.com/oauth/authorize", "https://auth.openai.com/oauth/token", "https://auth.openai.com/api/accounts/deviceauth/usercode", "https://auth.openai.com/oauth/revoke"},
		"chatgpt":    {"https://auth.openai.com/api/accounts/authorize", "https://auth.openai.com/api/accounts/oauth/token", "", ""},
		"gemini":     {"https://accounts.google.com/o/oauth2/v2/auth", "https://oauth2.googleapis.com/token", "", "https://oauth2.googleapis.com/revoke"},
		"qwen":       {"", "https://chat.qwen.ai/api/v1/oauth2/token", "https://chat.qwen.ai/api/v1/oauth2/device/code", ""},
		"github":     {"", "https://github.com/login/oauth/access_token", "https://github.com/login/device/code", ""},
		"xai":        {"", "https://auth.x.ai/oauth2/token", "https://auth.x.ai/oauth2/device/code", ""},
		"kimi":       {"", "https://auth.kimi.com/api/oauth/token", "https://auth.kimi.com/api/oauth/device_authorization", ""},
		"openrouter": {"https://openrouter.ai/auth", "https://openrouter.ai/api/v1/auth/keys", "", ""},
	}
	flows := map[string]string{"anthropic": "paste browser", "codex": "browser device paste", "gemini": "paste browser", "chatgpt": "browser paste", "openrouter": "browser paste"}
	status := map[string]string{"anthropic": "restricted", "gemini": "discontinued", "qwen": "discontinued"}
	for _, name := range config.BuiltinProviders {
		p, ok := Builtin(name)
		if !ok || p.Name != name || p.Dialect != name || (p.ClientID == "") != (name == "openrouter") {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		if got := [4]string{p.AuthorizeURL, p.TokenURL, p.DeviceURL, p.RevokeURL}; got != endpoints[name] {
			t.Errorf("%s: endpoints %q", name, got)
		}
		if got := strings.Join(p.Flows, " "); got != cmp.Or(flows[name], "device") {
			t.Errorf("%s: flows %s", name, got)
		}
		if s, sentence := Terms(name); s != cmp.Or(status[name], "ok") || status[name] != "" && sentence == "" {
			t.Errorf("%s: terms %s, %q", name, s, sentence)
		}
		if (p.ClientSecretKey != "") != (name == "gemini") || p.Encoding != "" {
			t.Errorf("%s: secret key %q, encoding %q", name, p.ClientSecretKey, p.Encoding)
		}
		p.TokenURL, p.Flows[0] = "https://elsewhere.example", "changed"
		if again, _ := Builtin(name); again.TokenURL != endpoints[name][1] || again.Flows[0] == "changed" {
			t.Errorf("%s: a caller changed it for everybody", name)
		}
		if !slices.Contains(config.Dialects, name) {
			t.Errorf("no provider can be described that talks like %s", name)
		}
	}
	for _, name := range []string{"oauth2", "acme", "", "Codex"} {
		if _, ok := Builtin(name); ok {
			t.Errorf("%q is built in", name)
		}
		if s, sentence := Terms(name); s != "ok" || sentence != "" {
			t.Errorf("%q: terms %s, %q", name, s, sentence)
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
		described      config.Provider
		id             string
		exchange, then bool // JSON
	}{
		{config.Provider{Dialect: "oauth2", ClientID: "acme", TokenEncoding: "form"}, "acme", false, false},
		{config.Provider{Dialect: "oauth2", ClientID: "acme", TokenEncoding: "json"}, "acme", true, true},
		{config.Provider{Dialect: "codex"}, "app_EMoamEEZ73f0CkXaXp7hrann", false, true},
		{config.Provider{Dialect: "codex", ClientID: "acme", TokenEncoding: "form"}, "acme", false, false},
		{config.Provider{Dialect: "anthropic"}, "9d1c250a-e61b-44d9-88ed-5944d1962f5e", true, true},
		{config.Provider{Dialect: "qwen", TokenEncoding: "json"}, "f0304373b74a44d2b584a3fb70ca9e56", true, true},
		{config.Provider{Dialect: "gemini"}, gemini.Dialect.ClientID, false, false},
		{config.Provider{Dialect: "github", ClientID: "Iv1.test"}, "Iv1.test", false, false},
		{config.Provider{Dialect: "openrouter"}, "", true, false},
	} {
		c.described.TokenURL = "https://acme.example/token"
		p := FromConfig(&c.described)
		d := p.dialect().Token
		if p.ClientID != c.id || p.inJSON(d.ExchangeJSON) != c.exchange || p.inJSON(d.RefreshJSON) != c.then {
			t.Errorf("%+v: client id %q, JSON %t %t", c.described, p.ClientID, p.inJSON(d.ExchangeJSON), p.inJSON(d.RefreshJSON))
		}
		if p.TokenURL != "https://acme.example/token" || p.RevokeURL != "" || p.AuthorizeURL != "" || p.DeviceURL != "" || p.ClientSecretKey != "" || p.Flows != nil {
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
		"encoding":      func(r *request) { r.p.Encoding = "json" },
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
