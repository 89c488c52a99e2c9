package provider

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func TestAuthorize(t *testing.T) {
	c := NewClientWith(refuseAll{t})
	p := FromConfig(&config.Provider{
		Name: "acme", Dialect: "oauth2", ClientID: "acme client", TokenURL: "https://acme.example/token",
		AuthorizeURL: "https://acme.example/authorize?tenant=a+b&state=x&code_challenge=y", Scopes: []string{"read", "a+b"},
		AuthorizeParams: map[string]string{"audience": "https://api.example/ 1", "response_type": "token", "code_challenge_method": "plain"},
	})
	a, err := c.Authorize(t.Context(), p, "http://127.0.0.1:4711/callback")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(a.URL)
	if err != nil || strings.Contains(u.RawQuery, "+") {
		t.Errorf("%s: %v", a.URL, err)
	}
	for name, want := range map[string]string{
		"tenant": "a b", "client_id": "acme client", "scope": "read a+b", "audience": "https://api.example/ 1", "response_type": "code",
		"code_challenge_method": "S256", "redirect_uri": "http://127.0.0.1:4711/callback", "state": a.state.Reveal(),
	} {
		if got := u.Query()[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	again, _ := c.Authorize(t.Context(), p, "http://127.0.0.1:4711/callback")
	if again.state.Equal(a.state) || again.verifier.Equal(a.verifier) {
		t.Error("two logins have the same state or verifier")
	}
	if !a.Mine(a.state.Reveal()) || a.Mine(again.state.Reveal()) || a.Mine("") || a.Mine(a.state.Reveal()[:42]) {
		t.Error("Mine does not tell this login's state from others")
	}
	p.AuthorizeURL = ""
	if _, err := c.Authorize(t.Context(), p, defaultRedirect); asError(t, err).Kind != Refused || !strings.Contains(err.Error(), "authorize_url") {
		t.Error(err)
	}
	router, _ := Builtin("openrouter")
	a, err = c.Authorize(t.Context(), router, "http://localhost:3000/callback")
	if err != nil || !a.Mine("") || a.Mine("x") || !strings.HasPrefix(a.Redirect, "http://localhost:3000/callback/") {
		t.Errorf("%s: %v", a.Redirect, err)
	}
}

// What comes back from a login, and what becomes of it. Nothing but a code is worth a request.
func TestWhatComesBack(t *testing.T) {
	const mine = "{state}"
	for _, c := range []struct {
		name, dialect, issuer string
		q                     string
		kind                  Kind // 0: the code is sent
		text                  string
	}{
		{"a code", "oauth2", "", "code=c&state=" + mine, 0, ""},
		{"a pasted code alone", "oauth2", "", "code=c", 0, ""},
		{"another login's", "oauth2", "", "code=c&state=test-canary", Refused, "belongs to another login"},
		{"an empty state", "oauth2", "", "code=c&state=", Refused, "belongs to another login"},
		{"two states", "oauth2", "", "code=c&state=" + mine + "&state=x", Malformed, "state twice"},
		{"two codes", "oauth2", "", "code=c&code=d&state=" + mine, Malformed, "code twice"},
		{"two errors", "oauth2", "", "error=a&error=b&state=" + mine, Malformed, "error twice"},
		{"nothing", "oauth2", "", "state=" + mine, Malformed, "no code came back"},
		{"an empty code", "oauth2", "", "code=&state=" + mine, Malformed, "no code came back"},
		{"a code with a line feed", "oauth2", "", "code=c%0A&state=" + mine, Malformed, "no code came back"},
		{"a code with a NUL", "oauth2", "", "code=c%00&state=" + mine, Malformed, "no code came back"},
		{"a long code", "oauth2", "", "code=" + strings.Repeat("c", 4097), Malformed, "no code came back"},
		{"denied", "oauth2", "", "error=access_denied&error_description=test-canary&state=" + mine, Denied, "was denied (access_denied)"},
		{"denied in capitals", "oauth2", "", "error=ACCESS_DENIED&state=" + mine, Denied, "was denied (access_denied)"},
		{"denied as xAI has it", "xai", "", "error=authorization_denied&state=" + mine, Denied, "was denied (authorization_denied)"},
		{"denied, beside a code", "oauth2", "", "error=access_denied&code=c&state=" + mine, Denied, "was denied"},
		{"denied to another", "oauth2", "", "error=access_denied&state=x", Refused, "belongs to another login"},
		{"a passing error", "oauth2", "", "error=temporarily_unavailable&state=" + mine, Transient, "(temporarily_unavailable)"},
		{"an error", "oauth2", "", "error=invalid_scope&state=" + mine, Refused, "refused the login (invalid_scope)"},
		{"an unknown error", "oauth2", "", "error=test-canary&state=" + mine, Refused, "(unknown_error)"},
		{"the issuer", "oauth2", "https://acme.example", "code=c&iss=https%3A%2F%2Facme.example&state=" + mine, 0, ""},
		{"no issuer", "oauth2", "https://acme.example", "code=c&state=" + mine, 0, ""},
		{"another issuer", "oauth2", "https://acme.example", "code=c&iss=https%3A%2F%2Ftest-canary.example&state=" + mine, Refused, "another issuer"},
		{"an empty issuer", "oauth2", "https://acme.example", "code=c&iss=&state=" + mine, Refused, "another issuer"},
		{"two issuers", "oauth2", "https://acme.example", "code=c&iss=https%3A%2F%2Facme.example&iss=x&state=" + mine, Malformed, "iss twice"},
		{"an issuer that nobody knows", "oauth2", "", "code=c&iss=https%3A%2F%2Fanywhere.example&state=" + mine, 0, ""},
		{"another issuer's error", "oauth2", "https://acme.example", "error=access_denied&iss=x&state=" + mine, Refused, "another issuer"},
		{"an issued client", "chatgpt", "", "code=c&client_id=agent-1&state=" + mine, 0, ""},
		{"no issued client", "chatgpt", "", "code=c&state=" + mine, Malformed, "no usable client id"},
		{"two issued clients", "chatgpt", "", "code=c&client_id=a&client_id=b&state=" + mine, Malformed, "no usable client id"},
		{"an empty client", "chatgpt", "", "code=c&client_id=&state=" + mine, Malformed, "no usable client id"},
		{"a client with a space", "chatgpt", "", "code=c&client_id=test+canary&state=" + mine, Malformed, "no usable client id"},
		{"a client with an escape", "chatgpt", "", "code=c&client_id=a%1b%5b2Jcanary&state=" + mine, Malformed, "no usable client id"},
		{"a client beyond ASCII", "chatgpt", "", "code=c&client_id=%C3%A9&state=" + mine, Malformed, "no usable client id"},
		{"a client of 256", "chatgpt", "", "code=c&client_id=" + strings.Repeat("a", 256) + "&state=" + mine, 0, ""},
		{"a client of 257", "chatgpt", "", "code=c&client_id=" + strings.Repeat("a", 257) + "&state=" + mine, Malformed, "no usable client id"},
		{"a state where there is none", "openrouter", "", "code=c&state=x", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, client := startVendors(t)
			p := acme(c.dialect)
			p.Issuer, p.AuthorizeURL, p.TokenURL = c.issuer, "https://acme.example/authorize", "https://acme.example/token"
			a, err := client.Authorize(t.Context(), p, "http://127.0.0.1:4711/callback")
			if err != nil {
				t.Fatal(err)
			}
			q, err := url.ParseQuery(strings.ReplaceAll(c.q, mine, a.state.Reveal()))
			if err != nil {
				t.Fatal(err)
			}
			v.answer(`{"access_token":"a","key":"a"}`)
			_, err = client.Exchange(t.Context(), a, q, secret.String{})
			if c.kind == 0 {
				if err != nil || len(v.seen) != 1 {
					t.Errorf("%d requests: %v", len(v.seen), err)
				}
				return
			}
			if e := asError(t, err); e.Kind != c.kind || !strings.Contains(err.Error(), c.text) || strings.Contains(texts(err), "canary") {
				t.Errorf("kind %d: %v", e.Kind, err)
			}
			if len(v.seen) != 0 {
				t.Errorf("sent: %q", v.seen)
			}
		})
	}
}

// What "Sign in with ChatGPT" granted has to be of use, and of this login.
func TestGrantedScope(t *testing.T) {
	v, client := startVendors(t)
	p, _ := Builtin("chatgpt")
	for answer, text := range map[string]string{
		`{"access_token":"a","scope":"openid chatgpt.tokens.use.direct"}`: "",
		`{"access_token":"a"}`: "", // as asked for (RFC 6749 section 5.1)
		`{"access_token":"a","scope":"openid chatgpt.tokens.use.directly"}`:                 "not for what its tokens are needed for",
		`{"access_token":"a","scope":["openid"]}`:                                           "not for what its tokens are needed for",
		`{"access_token":"a","id_token":"e30.eyJub25jZSI6InRlc3Qtb3RoZXItbm9uY2UifQ.c2ln"}`: "id token belongs to another login",
		`{"access_token":"a","id_token":"e30.e30.c2ln"}`:                                    "",
		`{"access_token":"a","id_token":"test-canary"}`:                                     "",
	} {
		a, err := client.Authorize(t.Context(), p, p.Redirects()[0])
		if err != nil {
			t.Fatal(err)
		}
		v.answer(answer)
		g, err := client.Exchange(t.Context(), a, url.Values{"code": {"c"}, "client_id": {"agent-1"}, "state": {a.state.Reveal()}}, secret.String{})
		if text == "" {
			if err != nil || g.ClientID != "agent-1" {
				t.Errorf("%s: %v", answer, err)
			}
		} else if err == nil || asError(t, err).Kind != Refused || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestRedirects(t *testing.T) {
	for name, want := range map[string]string{
		"anthropic": "http://localhost/callback", "codex": "http://localhost:1455/auth/callback http://localhost:1457/auth/callback",
		"chatgpt": "http://127.0.0.1:1455/auth/callback", "gemini": "http://127.0.0.1/oauth2callback",
		"openrouter": "http://localhost:3000/callback http://localhost/callback", "qwen": "http://127.0.0.1/callback", "oauth2": "http://127.0.0.1/callback",
	} {
		p := FromConfig(&config.Provider{Dialect: name})
		if got := strings.Join(p.Redirects(), " "); got != want {
			t.Errorf("%s: %s", name, got)
		}
		if len(p.Redirects()) > 0 {
			p.Redirects()[0] = "changed"
		}
		if got := strings.Join(p.Redirects(), " "); got != want {
			t.Errorf("%s: a caller changed it for everybody: %s", name, got)
		}
		p.RedirectURL = "http://localhost:8085/cb"
		if got := p.Redirects(); !slices.Equal(got, []string{p.RedirectURL}) || p.PasteRedirect() != p.RedirectURL {
			t.Errorf("%s, described: %s, %s", name, got, p.PasteRedirect())
		}
		p.RedirectURL = "https://acme.example/code"
		if got := p.Redirects(); len(got) != 0 || p.PasteRedirect() != p.RedirectURL {
			t.Errorf("%s, with a page: %s, %s", name, got, p.PasteRedirect())
		}
	}
	for name, want := range map[string][2]string{ // built in, and with endpoints at auth.acme.example
		"anthropic":  {"https://platform.claude.com/oauth/code/callback", "https://auth.acme.example:8443/oauth/code/callback"},
		"gemini":     {"https://codeassist.google.com/authcode", "https://auth.acme.example:8443/authcode"},
		"codex":      {"http://localhost:1455/auth/callback", "http://localhost:1455/auth/callback"},
		"github":     {"http://127.0.0.1/callback", "http://127.0.0.1/callback"},
		"openrouter": {"http://localhost:3000/callback", "http://localhost:3000/callback"},
		"oauth2":     {"http://127.0.0.1/callback", "http://127.0.0.1/callback"},
	} {
		if p, ok := Builtin(name); ok && p.PasteRedirect() != want[0] {
			t.Errorf("%s: %s", name, p.PasteRedirect())
		}
		for _, described := range []*config.Provider{
			{Dialect: name, TokenURL: "https://auth.acme.example:8443/a/token?x=y"}, {Dialect: name, Issuer: "https://auth.acme.example:8443/tenant"},
		} {
			if got := FromConfig(described).PasteRedirect(); got != want[1] {
				t.Errorf("%s, described: %s", name, got)
			}
		}
	}
}

// The flows of a described provider are its own, or what dialect and endpoints make possible.
func TestFlows(t *testing.T) {
	const at = "https://acme.example/"
	for _, c := range []struct {
		described config.Provider
		want      string
	}{
		{config.Provider{Dialect: "oauth2", AuthorizeURL: at, DeviceURL: at}, "browser device paste"},
		{config.Provider{Dialect: "oauth2", AuthorizeURL: at, DeviceURL: at, RedirectURL: at}, "paste device"},
		{config.Provider{Dialect: "oauth2", DeviceURL: at}, "device"},
		{config.Provider{Dialect: "oauth2", Issuer: at}, ""},
		{config.Provider{Dialect: "anthropic", AuthorizeURL: at}, "paste browser"},
		{config.Provider{Dialect: "anthropic", AuthorizeURL: at, RedirectURL: at}, "paste"},
		{config.Provider{Dialect: "anthropic", AuthorizeURL: at, DeviceURL: at}, "paste browser device"},
		{config.Provider{Dialect: "anthropic", AuthorizeURL: at, Flows: []string{"browser"}}, "browser"},
		{config.Provider{Dialect: "anthropic", AuthorizeURL: at, Flows: []string{}}, ""},
		{config.Provider{Dialect: "codex", AuthorizeURL: at}, "browser paste"},
		{config.Provider{Dialect: "codex", DeviceURL: at}, "device"},
		{config.Provider{Dialect: "codex", AuthorizeURL: at, DeviceURL: at}, "browser device paste"},
		{config.Provider{Dialect: "github", AuthorizeURL: at}, "browser paste"},
		{config.Provider{Dialect: "github", AuthorizeURL: at, DeviceURL: at}, "device browser paste"},
		{config.Provider{Dialect: "openrouter", AuthorizeURL: at}, "browser paste"},
	} {
		if got := strings.Join(FromConfig(&c.described).Flows, " "); got != c.want {
			t.Errorf("%+v: %s", c.described, got)
		}
	}
}
