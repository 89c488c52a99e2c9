package oauthtest

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/config"
)

// The browser goes to the listener of the program that logs in, and comes back with its page.
func TestFollowToTheListener(t *testing.T) {
	for _, how := range []string{"tcp", "pipe", "handler"} {
		t.Run(how, func(t *testing.T) {
			var got url.Values
			app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = r.URL.Query()
				_, _ = w.Write([]byte("you can close this"))
			}))
			defer app.Close()
			s := personServer(t, how)
			cfg := clientConfig(s)
			cfg.RedirectURL = app.URL + "/callback"
			verifier := oauth2.GenerateVerifier()
			address := cfg.AuthCodeURL("test-state", oauth2.S256ChallengeOption(verifier))
			for _, answer := range []func() (string, error){
				func() (string, error) { return s.Deny(t.Context(), address) },
				func() (string, error) { return s.Approve(t.Context(), address) },
			} {
				redirect, err := answer()
				if err != nil {
					t.Fatal(err)
				}
				if got != nil && got.Get("error") != "access_denied" {
					t.Errorf("denied: %v", got)
				}
				status, page, err := s.Follow(t.Context(), redirect)
				if err != nil || status != 200 || page != "you can close this" {
					t.Fatalf("%d %q %v", status, page, err)
				}
			}
			if got.Get("code") == "" || got.Get("state") != "test-state" {
				t.Error("no code or another state came back")
			}
			// A person who cannot open the page copies its address.
			pasted, err := s.Copy(t.Context(), address)
			if err != nil || !strings.HasPrefix(pasted, cfg.RedirectURL+"?code=ac-") {
				t.Errorf("%.40s %v", pasted, err)
			}
			if _, err := s.Approve(t.Context(), s.EndpointURL(Authorize)+"?client_id=x"); err == nil || !strings.Contains(err.Error(), "HTTP 400") {
				t.Errorf("an error page: %v", err)
			}
		})
	}
}

// personServer asks its user, by each way to serve.
func personServer(t *testing.T, how string) *Server {
	t.Helper()
	o := Options{Approval: AskUser}
	switch how {
	case "pipe":
		s := startPipe(t, o)
		t.Cleanup(func() { closeServer(t, s) })
		return s
	case "handler":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o.Issuer = "http://" + l.Addr().String()
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		web := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.Handler()}}
		web.Start()
		t.Cleanup(web.Close)
		return s
	}
	return start(t, o)
}

func TestPastePage(t *testing.T) {
	s := start(t, Options{Clients: []Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/paste"}}}})
	cfg := clientConfig(s)
	cfg.RedirectURL = s.EndpointURL(Paste)
	address := cfg.AuthCodeURL("test-state", oauth2.S256ChallengeOption(oauth2.GenerateVerifier()))
	pasted, err := s.Copy(t.Context(), address)
	if err != nil || pasted != s.Issued().Codes[0] {
		t.Errorf("%.5s %v", pasted, err)
	}
	s.SetApproval(DenyAll)
	if _, err := s.Copy(t.Context(), address); err == nil {
		t.Error("a code although the user said no")
	}
}

func TestDiscovery(t *testing.T) {
	for _, path := range []string{"", "/tenant", "/tenant/one"} {
		s := start(t, Options{IssuerPath: path})
		base := strings.TrimSuffix(s.URL(), path)
		for e, want := range map[Endpoint]string{
			Metadata:  base + "/.well-known/oauth-authorization-server" + path,
			Discovery: base + path + "/.well-known/openid-configuration",
		} {
			var m map[string]any
			fetch(t, s, e, &m)
			if s.EndpointURL(e) != want || m["issuer"] != s.URL() || m["token_endpoint"] != base+"/token" ||
				m["device_authorization_endpoint"] != base+"/device" || (m["jwks_uri"] != nil) != (e == Discovery) {
				t.Errorf("%s: %v", s.EndpointURL(e), m)
			}
		}
		if path != "" { // an issuer's path is inserted, not left out and not appended to
			for _, wrong := range []string{base + string(Metadata), base + path + string(Metadata), base + string(Discovery)} {
				rep := get(t, s, wrong)
				if rep.Body.Close(); rep.StatusCode != 404 {
					t.Errorf("%s: %d", wrong, rep.StatusCode)
				}
			}
		}
		var keys struct{ Keys []any }
		if fetch(t, s, Keys, &keys); len(keys.Keys) != 0 {
			t.Error("keys")
		}
		login(t, s)
	}
	for _, bad := range []string{"tenant", "/tenant/", "/a//b", "/a?b=c", "/a#b"} {
		if s, err := Start(Options{IssuerPath: bad}); err == nil {
			closeServer(t, s)
			t.Errorf("issuer path %q is taken", bad)
		}
	}
}

func fetch(t *testing.T, s *Server, e Endpoint, v any) {
	t.Helper()
	rep := get(t, s, s.EndpointURL(e))
	defer rep.Body.Close()
	if err := json.NewDecoder(rep.Body).Decode(v); err != nil || rep.StatusCode != 200 {
		t.Fatalf("%s: %d %v", e, rep.StatusCode, err)
	}
}

func TestSettings(t *testing.T) {
	for _, dialect := range append([]string{""}, Dialects()...) {
		s := start(t, Options{Dialect: dialect})
		p := configured(t, s.Settings("test-provider"))
		want := map[string]Endpoint{p.AuthorizeURL: Authorize, p.TokenURL: Token, p.DeviceURL: Device, p.RevokeURL: Revoke}
		for got, e := range want {
			if got != "" && got != s.EndpointURL(e) {
				t.Errorf("%s: %s is %s", dialect, e, got)
			}
		}
		if p.Dialect != dialect && (dialect != "" || p.Dialect != "oauth2") {
			t.Errorf("%s: dialect %s", dialect, p.Dialect)
		}
		if (p.ClientSecretKey == "test-provider-secret") != (dialect == "gemini") || (p.RedirectURL != "") != (dialect == "") {
			t.Errorf("%s: secret %q, redirect %q", dialect, p.ClientSecretKey, p.RedirectURL)
		}
	}
	s := start(t, Options{IssuerPath: "/tenant"})
	if p := configured(t, s.DiscoverySettings("test-provider")); p.Issuer != s.URL() || p.TokenURL != "" {
		t.Errorf("by the issuer: %q %q", p.Issuer, p.TokenURL)
	}
	s = start(t, Options{Clients: []Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/paste"}}}})
	if p := configured(t, s.Settings("test-provider")); p.RedirectURL != s.EndpointURL(Paste) || !slices.Equal(p.Flows, []string{"paste"}) {
		t.Errorf("paste: %q %v", p.RedirectURL, p.Flows)
	}
}

// configured is what credproxy reads of a section.
func configured(t *testing.T, section string) *config.Provider {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(section), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatalf("%v in\n%s", err, section)
	}
	return c.Providers["test-provider"]
}

func TestRequestsElsewhere(t *testing.T) {
	s := start(t, Options{Dialect: "qwen"})
	for _, path := range []string{"/token", "/.well-known/openid-configuration", "/api/v1/oauth2/device/code/"} {
		rep := get(t, s, s.URL()+path)
		rep.Body.Close()
		if got := s.Requests(Elsewhere); rep.StatusCode != 404 || got[len(got)-1].Path != path {
			t.Errorf("%s: %d", path, rep.StatusCode)
		}
	}
	if _, err := Start(Options{Dialect: "acme"}); err == nil || !strings.Contains(err.Error(), "anthropic") {
		t.Errorf("an unknown dialect: %v", err)
	}
}
