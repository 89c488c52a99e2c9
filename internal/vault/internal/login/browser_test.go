package login

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an authorisation server, our client of it, and a browser that follows redirects.
type world struct {
	server  *oauthtest.Server
	client  *provider.Client
	browser *http.Client
	p       *provider.Provider
}

func newWorld(t *testing.T, o oauthtest.Options) *world {
	t.Helper()
	s, err := oauthtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{server: s, client: provider.NewClient(), browser: &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}}
	w.p = &provider.Provider{
		Name: "acme", Dialect: "oauth2", ClientID: "test-client",
		AuthorizeURL: s.URL() + string(oauthtest.Authorize), TokenURL: s.URL() + string(oauthtest.Token), RevokeURL: s.URL() + string(oauthtest.Revoke),
		RedirectURL: "http://127.0.0.1/callback", Scopes: []string{"read", "write"}, Fields: []string{"account_id"},
		AuthorizeParams: map[string]string{"audience": "api"},
	}
	t.Cleanup(func() {
		w.browser.CloseIdleConnections()
		w.client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) start(t *testing.T, clientSecret secret.String) *Browser {
	t.Helper()
	b, err := StartBrowser(w.p, w.client, clientSecret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// open is the person's browser; it returns the last page.
func (w *world) open(t *testing.T, address string) (int, string) {
	t.Helper()
	resp, err := w.browser.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestBrowserLogin(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Extra: map[string]any{"account_id": "acc-1", "unnamed": "x"}})
	b := w.start(t, secret.String{})

	u, err := url.Parse(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("audience") != "api" || q.Get("scope") != "read write" || len(q.Get("state")) < 22 {
		t.Errorf("authorization URL: %s", b.URL())
	}
	if strings.Contains(b.URL(), b.verifier.Reveal()) || q.Get("state") == b.verifier.Reveal() {
		t.Error("the verifier is in the URL")
	}

	status, page := w.open(t, b.URL())
	if status != http.StatusOK || !strings.Contains(page, "You are logged in") {
		t.Errorf("page: %d %s", status, page)
	}
	g, err := b.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	issued := w.server.Issued()
	if g.AccessToken.Reveal() != issued.AccessTokens[0] || g.RefreshToken.Reveal() != issued.RefreshTokens[0] {
		t.Error("the grant is not what was issued")
	}
	if left := g.Expiry - time.Now().Unix(); left < 3500 || left > 3600 {
		t.Errorf("expires in %d s, want about 3600", left)
	}
	if len(g.Fields) != 1 || g.Fields[0].Name != "account_id" {
		t.Errorf("fields kept: %v", g.Fields)
	}
	for _, s := range append(issued.All(), b.verifier.Reveal()) {
		if strings.Contains(page, s) {
			t.Error("the page shows a secret")
		}
	}
}

func TestConfidentialClient(t *testing.T) {
	clients := []oauthtest.Client{{ID: "test-client", Secret: "test-client-secret+ /", RedirectURIs: []string{"http://localhost/cb"}}}
	w := newWorld(t, oauthtest.Options{Clients: clients})
	w.p.RedirectURL = "http://localhost/cb"
	b := w.start(t, secret.New("test-client-secret+ /"))
	w.open(t, b.URL())
	if _, err := b.Wait(context.Background()); err != nil {
		t.Fatalf("with HTTP Basic: %v", err)
	}

	b = w.start(t, secret.New("wrong"))
	w.open(t, b.URL())
	_, err := b.Wait(context.Background())
	if e, ok := errors.AsType[*provider.Error](err); !ok || e.Code != "invalid_client" || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong secret: %v", err)
	}
}

// A server that takes the secret in the body only: the refused attempt with HTTP Basic must not cost the login.
func TestConfidentialClientInTheBody(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Clients: []oauthtest.Client{{ID: "test-client", Secret: "test-client-secret", RedirectURIs: []string{"http://127.0.0.1/callback"}}}})
	w.server.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusUnauthorized, "invalid_client"), 1)
	b := w.start(t, secret.New("test-client-secret"))
	w.open(t, b.URL())
	if _, err := b.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	calls := w.server.Requests(oauthtest.Token)
	if len(calls) != 2 || calls[0].Header.Get("Authorization") == "" || calls[1].Header.Get("Authorization") != "" {
		t.Errorf("want one attempt with Basic and one in the body, got %d calls", len(calls))
	}
}

func TestCallbackIsNotFooled(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	b := w.start(t, secret.String{})
	callback := b.redirect
	for name, address := range map[string]string{
		"no state":      callback + "?code=stolen",
		"wrong state":   callback + "?code=stolen&state=" + strings.Repeat("A", 26),
		"another path":  strings.TrimSuffix(callback, "/callback") + "/other?code=stolen&state=" + b.state,
		"an error only": callback + "?error=access_denied",
	} {
		if status, _ := w.open(t, address); status/100 != 4 {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
	if n := w.server.Calls(oauthtest.Token); n != 0 {
		t.Errorf("%d token requests for callbacks that are not ours", n)
	}
	if status, _ := w.open(t, b.URL()); status != http.StatusOK {
		t.Errorf("the login itself: HTTP %d", status)
	}
	if _, err := b.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	// A replay of the callback starts nothing.
	if status, _ := w.open(t, callback+"?code=again&state="+b.state); status != http.StatusConflict {
		t.Errorf("replay: HTTP %d", status)
	}
	if n := w.server.Calls(oauthtest.Token); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// What a provider answers in place of HTTP, or of a token, does not get into an error or onto a terminal.
func TestNothingOfAnAnswerIsRepeated(t *testing.T) {
	const canary = "test-refresh-canary-1"
	for name, answer := range map[string]string{
		"no HTTP":            `{"access_token":"a","refresh_token":"` + canary + `"}` + "\n",
		"a broken status":    "HTTP/1.1 " + canary + "\r\n\r\n",
		"a broken header":    "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n",
		"a broken length":    "HTTP/1.1 200 OK\r\nContent-Length: " + canary + "\r\n\r\n",
		"a broken chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + canary + "\r\n",
		"a control sequence": "HTTP/1.1 200 OK\r\n\r\n" + `{"access_token":"\u001b]0;` + canary + `"}`,
		"a line feed":        "HTTP/1.1 200 OK\r\n\r\n" + `{"access_token":"at-1\n` + canary + `"}`,
		"a C1 control":       "HTTP/1.1 200 OK\r\n\r\n" + `{"access_token":"at-1","token_type":"\u009b` + canary + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, oauthtest.Options{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() { // ends when l is closed
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						_, _ = io.WriteString(c, answer)
					}
					_ = c.Close()
				}
			}()
			defer func() { _ = l.Close(); <-done }()
			w.p.TokenURL = "http://" + l.Addr().String() + "/token"
			b := w.start(t, secret.String{})
			w.open(t, b.URL())
			_, err = b.Wait(context.Background())
			if err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// RFC 9207: the configured issuer's answers count, those of another do not.
func TestIssuer(t *testing.T) {
	w := newWorld(t, oauthtest.Options{SendIssuer: true})
	w.p.Issuer = w.server.URL()
	b := w.start(t, secret.String{})
	w.open(t, b.URL())
	if _, err := b.Wait(context.Background()); err != nil {
		t.Errorf("the right issuer: %v", err)
	}
	w.p.Issuer = "https://id.acme.example"
	b = w.start(t, secret.String{})
	w.open(t, b.URL())
	if _, err := b.Wait(context.Background()); err == nil || !strings.Contains(err.Error(), "another issuer") {
		t.Errorf("another issuer: %v", err)
	}
	if n := len(w.server.Requests(oauthtest.Token)); n != 1 {
		t.Errorf("%d token requests: the code of another issuer was sent", n)
	}
}

func TestDeniedLogin(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Approval: oauthtest.DenyAll})
	b := w.start(t, secret.String{})
	w.open(t, b.URL())
	_, err := b.Wait(context.Background())
	if e, ok := errors.AsType[*DeniedError](err); !ok || e.Code != "access_denied" {
		t.Errorf("Wait: %v", err)
	}
}

// Whatever a token endpoint answers, the error is made of our words and nothing issued is in it.
func TestTokenEndpointFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault oauthtest.Fault
		kind  provider.Kind
	}{
		"500":                   {oauthtest.ErrorAnswer(http.StatusInternalServerError, "server_error"), provider.Transient},
		"429":                   {oauthtest.RateLimited("7"), provider.Transient},
		"401":                   {oauthtest.ErrorAnswer(http.StatusUnauthorized, "invalid_client"), provider.Refused},
		"error with status 200": {oauthtest.ErrorAnswer(http.StatusOK, "invalid_grant"), provider.Refused},
		"over 1 MiB":            {oauthtest.Padded(2 << 20), provider.Malformed},
		"no access token":       {oauthtest.Without("access_token"), provider.Malformed},
		"connection lost":       {oauthtest.DroppedReply(), provider.Transient},
		"secret in the error":   {oauthtest.ErrorAnswer(http.StatusBadRequest, "test-secret-Canary-77"), provider.Unclear},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, oauthtest.Options{})
			w.server.Fault(oauthtest.Token, c.fault, 5)
			b := w.start(t, secret.String{})
			if status, page := w.open(t, b.URL()); status != http.StatusBadGateway || !strings.Contains(page, "Login failed") {
				t.Errorf("page: HTTP %d", status)
			}
			_, err := b.Wait(context.Background())
			e, ok := errors.AsType[*provider.Error](err)
			if !ok || e.Kind != c.kind || e.Provider != "acme" {
				t.Fatalf("Wait: %v", err)
			}
			for _, s := range append(w.server.Issued().All(), b.verifier.Reveal(), b.state, "Canary") {
				if strings.Contains(err.Error(), s) {
					t.Errorf("the error shows a secret: %v", err)
				}
			}
		})
	}
}

func TestLifetimes(t *testing.T) {
	for raw, want := range map[string]int64{`"3600"`: 3600, `0`: 0, `-5`: 0, `"soon"`: 0, `1e300`: 10 * 365 * 24 * 3600, `null`: 0, `1.9`: 1} {
		w := newWorld(t, oauthtest.Options{})
		w.server.Fault(oauthtest.Token, oauthtest.With("expires_in", raw), 1)
		b := w.start(t, secret.String{})
		before := time.Now().Unix()
		w.open(t, b.URL())
		g, err := b.Wait(context.Background())
		if err != nil {
			t.Fatalf("expires_in %s: %v", raw, err)
		}
		if want == 0 && g.Expiry != 0 {
			t.Errorf("expires_in %s: expiry %d, want none", raw, g.Expiry)
		}
		if want != 0 && (g.Expiry < before+want || g.Expiry > before+want+20) {
			t.Errorf("expires_in %s: expires in %d s, want %d", raw, g.Expiry-before, want)
		}
	}
}

// A redirect of the token endpoint would carry the code to another place.
func TestRedirectIsNotFollowed(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	w.server.Fault(oauthtest.Token, oauthtest.Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {w.server.URL() + string(oauthtest.Resource)}}}, 1)
	b := w.start(t, secret.String{})
	w.open(t, b.URL())
	_, err := b.Wait(context.Background())
	if e, ok := errors.AsType[*provider.Error](err); !ok || e.Kind != provider.Malformed {
		t.Errorf("Wait: %v", err)
	}
	if n := w.server.Calls(oauthtest.Resource); n != 0 {
		t.Error("the redirect was followed")
	}
}

func TestCancelledLoginStopsListening(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	b, err := StartBrowser(w.p, w.client, secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	u, _ := url.Parse(b.redirect)
	b.Close()
	if c, err := net.Dial("tcp", u.Host); err == nil {
		c.Close()
		t.Error("the listener is still there")
	}
}

func TestFixedPortTaken(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.p.RedirectURL = "http://" + l.Addr().String() + "/callback"
	if _, err := StartBrowser(w.p, w.client, secret.String{}); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("StartBrowser: %v, want an error that names the address", err)
	}
}

func TestRevoke(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	b := w.start(t, secret.String{})
	w.open(t, b.URL())
	g, err := b.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.Revoke(context.Background(), w.p, g.RefreshToken, "refresh_token", secret.String{}); err != nil {
		t.Fatal(err)
	}
	if w.server.Valid(g.RefreshToken.Reveal()) || w.server.Valid(g.AccessToken.Reveal()) {
		t.Error("revoked, and still valid")
	}
	w.server.Fault(oauthtest.Revoke, oauthtest.ErrorAnswer(http.StatusBadRequest, "unsupported_token_type"), 1)
	if err := w.client.Revoke(context.Background(), w.p, g.RefreshToken, "refresh_token", secret.String{}); err == nil {
		t.Error("a refused revocation must be an error")
	}
}
