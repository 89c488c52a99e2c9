package provider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// The answer is handed over as it came and before it is read; its time is that of the request.
func TestReceivedComesFirst(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{})
	old := w.login(t, secret.String{})
	before := time.Now()
	var kept Answer
	g, err := w.c.Refresh(t.Context(), w.p, old, secret.String{}, func(a Answer) { kept = a })
	if err != nil {
		t.Fatal(err)
	}
	if kept.Sent.Before(before) || kept.Sent.After(time.Now()) {
		t.Errorf("sent %v", kept.Sent)
	}
	again, err := w.p.Parse(kept, old)
	if err != nil || !again.AccessToken.Equal(g.AccessToken) || !again.RefreshToken.Equal(g.RefreshToken) || again.Expiry != g.Expiry {
		t.Errorf("what was kept is not what was answered: %v", err)
	}
	if _, err := w.c.Refresh(t.Context(), w.p, old, secret.String{}, func(Answer) { t.Error("called for a refusal") }); err == nil {
		t.Error("a used refresh token was taken")
	}
}

func TestClientAuthentication(t *testing.T) {
	confidential := oauthtest.Options{Clients: []oauthtest.Client{{ID: "acme client:1", Secret: testSecret, RedirectURIs: []string{"http://127.0.0.1/callback"}}}}
	clientSecret := secret.New(testSecret)
	// how tells where the secret was in the last n token requests.
	how := func(w *world, n int) (places []string) {
		all := w.s.Requests(oauthtest.Token)
		for _, r := range all[len(all)-n:] {
			place := "none"
			if r.Header.Get("Authorization") != "" {
				place = "basic"
			}
			if r.Params.Get("client_secret") != "" {
				place += "+body"
			}
			places = append(places, place)
		}
		return places
	}
	for name, c := range map[string]struct {
		dialect string
		refusal oauthtest.Fault
		first   string // the places of the login's requests
		then    string // of the refresh's
	}{
		"basic is accepted":    {"oauth2", oauthtest.Fault{}, "basic", "basic"},
		"basic is refused":     {"oauth2", oauthtest.ErrorAnswer(401, "invalid_client"), "basic none+body", "none+body"},
		"with 400":             {"oauth2", oauthtest.ErrorAnswer(400, "invalid_client"), "basic none+body", "none+body"},
		"without a code":       {"oauth2", answerWith(401, ""), "basic none+body", "none+body"},
		"basic is overlooked":  {"oauth2", oauthtest.ErrorAnswer(400, "invalid_request"), "basic none+body", "none+body"},
		"taken for public":     {"oauth2", oauthtest.ErrorAnswer(400, "unauthorized_client"), "basic none+body", "none+body"},
		"in the body at once":  {"gemini", oauthtest.Fault{}, "none+body", "none+body"},
		"GitHub's refusal":     {"github", oauthtest.ErrorAnswer(200, "incorrect_client_credentials"), "none+body basic", "basic"},
		"a body of any length": {"oauth2", answerWith(401, strings.Repeat(" ", 2<<20)), "basic none+body", "none+body"},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, false, c.dialect, confidential)
			if c.refusal.Status != 0 {
				w.s.Fault(oauthtest.Token, c.refusal, 1)
			}
			g := w.login(t, clientSecret)
			if got := strings.Join(how(w, w.s.Calls(oauthtest.Token)), " "); got != c.first {
				t.Errorf("login: %s, want %s", got, c.first)
			}
			calls := w.s.Calls(oauthtest.Token)
			if _, err := w.refresh(g, clientSecret); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(how(w, w.s.Calls(oauthtest.Token)-calls), " "); got != c.then {
				t.Errorf("refresh: %s, want %s", got, c.then)
			}
		})
	}

	t.Run("a provider that changes its mind", func(t *testing.T) {
		w := start(t, false, "oauth2", confidential)
		g := w.login(t, clientSecret)
		w.s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(401, "invalid_client"), 1)
		g, err := w.refresh(g, clientSecret)
		if err != nil {
			t.Fatal(err)
		}
		uses := w.s.RefreshUses()
		if len(uses) != 2 || uses[0].Outcome != oauthtest.Unprocessed || uses[1].Outcome != oauthtest.Accepted {
			t.Errorf("uses: %d", len(uses))
		}
		if _, err := w.refresh(g, clientSecret); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(how(w, 4), " "); got != "basic basic none+body none+body" {
			t.Errorf("requests: %s", got)
		}
	})
	t.Run("a refused token is sent once", func(t *testing.T) {
		w := start(t, false, "oauth2", confidential)
		for _, code := range []string{"invalid_grant", "access_denied", "temporarily_unavailable"} {
			before := w.s.Calls(oauthtest.Token)
			w.s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(400, code), 1)
			if _, err := w.refresh(stored(), clientSecret); err == nil {
				t.Error("no error")
			}
			if n := w.s.Calls(oauthtest.Token) - before; n != 1 {
				t.Errorf("%s: %d requests", code, n)
			}
		}
	})
	// An answer with a token was preceded by the use of the refresh token, whatever stands beside it.
	t.Run("an error beside a token", func(t *testing.T) {
		for _, known := range []bool{true, false} {
			for name, fault := range map[string]oauthtest.Fault{
				"error":             oauthtest.With("error", `"invalid_client"`),
				"GitHub's error":    oauthtest.With("error", `"incorrect_client_credentials"`),
				"error of a public": oauthtest.With("error", `"unauthorized_client"`),
				"code":              oauthtest.With("code", `"invalid_request"`),
				"nested":            oauthtest.With("error", `{"code":"invalid_client"}`),
				"no access token": {Edit: func(a map[string]any) {
					a["error"] = "invalid_client"
					delete(a, "access_token")
				}},
			} {
				w := start(t, false, "oauth2", confidential)
				g := w.login(t, clientSecret)
				if !known {
					w.c = NewClient()
				}
				calls, received := w.s.Calls(oauthtest.Token), 0
				w.s.Fault(oauthtest.Token, fault, 1)
				next, err := w.c.Refresh(t.Context(), w.p, g, clientSecret, func(Answer) { received++ })
				if name == "no access token" {
					if e := asError(t, err); e.Code != "invalid_client" || e.Revoked {
						t.Errorf("%s: %v", name, err)
					}
				} else if err != nil || !w.s.Valid(next.AccessToken.Reveal()) || next.RefreshToken.IsZero() {
					t.Errorf("%s: %v", name, err)
				}
				if n := w.s.Calls(oauthtest.Token) - calls; n != 1 || received != 1 {
					t.Errorf("%s: %d requests, %d answers", name, n, received)
				}
				if err == nil {
					if _, err := w.refresh(next, clientSecret); err != nil {
						t.Errorf("%s: the login is dead: %v", name, err)
					}
					if how(w, 1)[0] != "basic" {
						t.Errorf("%s: the place was not remembered", name)
					}
				}
			}
		}
	})
	t.Run("the wrong secret", func(t *testing.T) {
		w := start(t, false, "oauth2", confidential)
		_, err := w.refresh(stored(), secret.New("test-wrong-secret"))
		if e := asError(t, err); e.Kind != Refused || e.Code != "invalid_client" || e.Revoked {
			t.Errorf("%+v", e)
		}
		if got := strings.Join(how(w, w.s.Calls(oauthtest.Token)), " "); got != "basic none+body" {
			t.Errorf("requests: %s", got)
		}
		w.login(t, clientSecret)
		if got := strings.Join(how(w, 1), " "); got != "basic" {
			t.Errorf("a failure was remembered: %s", got)
		}
	})
}

func TestTimeLimit(t *testing.T) {
	for name, fault := range map[string]oauthtest.Fault{
		"no answer":               {Delay: time.Minute},
		"a slow body":             {Drip: time.Second},
		"a slow refusal, then ok": {Status: 401, Delay: 10 * time.Second}, // the second attempt shares the limit
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, true, "oauth2", oauthtest.Options{})
				w.s.Fault(oauthtest.Token, fault, -1)
				began := time.Now()
				_, err := w.c.Refresh(t.Context(), w.p, stored(), secret.New(testSecret), func(Answer) { t.Error("called for half an answer") })
				e := asError(t, err)
				if e.Kind != Transient || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer in time") {
					t.Errorf("%v", err)
				}
				if took := time.Since(began); took != 15*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// The limit is for the headers; the body of a success, whose tokens are issued, has time of its own behind it.
func TestBodyHasItsOwnTime(t *testing.T) {
	for name, tt := range map[string]struct {
		fault oauthtest.Fault
		took  time.Duration // 0: it succeeds
	}{
		"late headers, and then the body": {fault: oauthtest.Fault{Delay: 14 * time.Second, Drip: 10 * time.Millisecond}},
		"late headers, and no end":        {fault: oauthtest.Fault{Delay: 14 * time.Second, Drip: time.Second}, took: 24 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, true, "oauth2", oauthtest.Options{})
				old := w.login(t, secret.String{})
				w.s.Fault(oauthtest.Token, tt.fault, 1)
				began := time.Now()
				_, err := w.c.Refresh(t.Context(), w.p, old, secret.String{}, nil)
				if took := time.Since(began); tt.took == 0 && err != nil || tt.took != 0 && (took != tt.took || !errors.Is(err, context.DeadlineExceeded)) {
					t.Errorf("after %v: %v", took, err)
				}
			})
		})
	}
}

// The caller's context ends a request too.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, true, "oauth2", oauthtest.Options{})
		w.s.Fault(oauthtest.Token, oauthtest.Fault{Delay: time.Minute}, -1)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		_, err := w.c.Refresh(ctx, w.p, stored(), secret.String{}, nil)
		if e := asError(t, err); e.Kind != Transient || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", e, time.Since(began))
		}
	})
}

func TestRateLimit(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{})
	for value, want := range map[string]time.Duration{"7": 7 * time.Second, "": 0, "-3": 0, "100000": time.Hour} {
		w.s.Fault(oauthtest.Token, oauthtest.RateLimited(value), 1)
		_, err := w.refresh(stored(), secret.String{})
		if e := asError(t, err); e.Kind != Transient || e.RetryAfter != want {
			t.Errorf("Retry-After %q: %+v", value, e)
		}
	}
	slow := oauthtest.ErrorAnswer(http.StatusOK, "slow_down")
	slow.Header.Set("Retry-After", "9")
	w.s.Fault(oauthtest.Token, slow, 1)
	_, err := w.refresh(stored(), secret.String{})
	if e := asError(t, err); e.Kind != Transient || e.RetryAfter != 9*time.Second {
		t.Errorf("%+v", e)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		w := start(t, false, "oauth2", oauthtest.Options{})
		w.s.Fault(oauthtest.Token, oauthtest.Fault{Status: status, Header: http.Header{"Location": {w.s.EndpointURL(oauthtest.Revoke)}}}, 1)
		_, err := w.refresh(stored(), secret.String{})
		if e := asError(t, err); e.Kind != Malformed || e.Status != status || e.Revoked {
			t.Errorf("%d: %v", status, err)
		}
		if w.s.Calls(oauthtest.Revoke) != 0 {
			t.Errorf("%d: the refresh token went to another place", status)
		}
	}
}

func TestBodies(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{})
	old := w.login(t, secret.String{})
	w.s.Fault(oauthtest.Token, oauthtest.Padded(1<<20-2048), 1)
	g, err := w.refresh(old, secret.String{})
	if err != nil {
		t.Fatalf("just below 1 MiB: %v", err)
	}
	w.s.Fault(oauthtest.Token, oauthtest.Padded(1<<20), 1)
	_, err = w.c.Refresh(t.Context(), w.p, g, secret.String{}, func(Answer) { t.Error("called for a part of an answer") })
	if e := asError(t, err); e.Kind != Malformed || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("over 1 MiB: %v", err)
	}
	w.s.Fault(oauthtest.Token, answerWith(503, strings.Repeat("x", 2<<20)), 1)
	_, err = w.refresh(g, secret.String{})
	if e := asError(t, err); e.Kind != Transient || e.Status != 503 {
		t.Errorf("a long refusal: %v", err)
	}
	for _, status := range []int{200, 400} {
		broken := answerWith(status, `{"error":"invalid_grant"}`)
		broken.Drop, broken.DropAfter = true, 20
		w.s.Fault(oauthtest.Token, broken, 1)
		_, err = w.c.Refresh(t.Context(), w.p, g, secret.String{}, func(Answer) { t.Error("called for a part of an answer") })
		if e := asError(t, err); e.Kind != Transient || (e.Status != 0) != (status == 400) || !strings.Contains(err.Error(), "broke off") {
			t.Errorf("an answer that broke off: %v", err)
		}
	}
}

// An answer whose connection breaks after its last byte is still an answer.
func TestWholeAnswerOfABrokenConnection(t *testing.T) {
	const body = `{"access_token":"test-access-token-2","refresh_token":"test-refresh-token-2"}`
	for name, head := range map[string]string{"length": "Content-Length: 500\r\n\r\n", "chunks": "Transfer-Encoding: chunked\r\n\r\n4d\r\n"} {
		if len(body) != 0x4d {
			t.Fatalf("the chunk's length is %x", len(body))
		}
		c, p := NewClient(), &Provider{Name: "acme", TokenURL: rawServer(t, "HTTP/1.1 200 OK\r\n"+head+body)}
		received := ""
		g, err := c.Refresh(t.Context(), p, stored(), secret.String{}, func(a Answer) { received = string(a.Body) })
		if err != nil || g.RefreshToken.Reveal() != "test-refresh-token-2" || received != body {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What comes back in place of HTTP is not repeated.
func TestBrokenHTTP(t *testing.T) {
	const canary = "test-canary-1"
	for _, answer := range []string{
		"", canary + "\n", "HTTP/1.1 " + canary + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: " + canary + "\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + canary + "\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat(canary, 10000) + "\r\n\r\n",
		"HTTP/1.1 400 " + canary + "\r\nRetry-After: " + canary + "\r\nWWW-Authenticate: " + canary + "\r\n\r\n" + canary,
	} {
		p := &Provider{Name: "acme", TokenURL: rawServer(t, answer) + "/?" + "q=1"}
		_, err := NewClient().Refresh(t.Context(), p, stored(), secret.New("test-canary-secret"), nil)
		e := asError(t, err)
		if shown := texts(err); strings.Contains(shown, "canary") || strings.Contains(shown, "test-refresh") || strings.Contains(shown, "q=1") || e.Kind == Refused {
			t.Errorf("%.60q: %s", answer, shown)
		}
	}
	p := &Provider{Name: "acme", TokenURL: "http://127.0.0.1:1/token"}
	_, err := NewClient().Refresh(t.Context(), p, stored(), secret.String{}, nil)
	if e := asError(t, err); e.Kind != Transient || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestTLS(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"access_token":"test-access-token-2"}`))
	})
	for _, c := range []struct {
		highest uint16
		trusted bool
		host    string
		want    string // "" is success
	}{
		{tls.VersionTLS11, true, "127.0.0.1", "protocol version"},
		{tls.VersionTLS12, true, "127.0.0.1", ""},
		{tls.VersionTLS13, true, "127.0.0.1", ""},
		{tls.VersionTLS13, false, "127.0.0.1", "signed by an authority that this machine does not know"},
		{tls.VersionTLS13, true, "localhost", "certificate is for another name"},
	} {
		s := httptest.NewUnstartedServer(answer)
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: c.highest}
		s.Config.ErrorLog = discard
		s.StartTLS()
		client := NewClient()
		if c.trusted {
			roots := x509.NewCertPool()
			roots.AddCert(s.Certificate())
			client.http.Transport.(*http.Transport).TLSClientConfig.RootCAs = roots
		}
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		p := &Provider{Name: "acme", TokenURL: "https://" + net.JoinHostPort(c.host, port) + "/token"}
		_, err := client.Refresh(t.Context(), p, stored(), secret.String{}, func(Answer) {})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s, %s: %v", tls.VersionName(c.highest), c.host, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || asError(t, err).Kind != Transient):
			t.Errorf("%s, %s: %v", tls.VersionName(c.highest), c.host, err)
		}
		client.Close()
		s.Close()
	}
}

// The environment names the proxy; net/http reads it once a process, so the request is made by another one.
func TestProxyOfTheEnvironment(t *testing.T) {
	const child = "CREDPROXY_TEST_PROXY_CHILD"
	if os.Getenv(child) != "" {
		p, _ := Builtin("kimi")
		_, err := NewClient().Refresh(t.Context(), p, stored(), secret.String{}, nil)
		e := asError(t, err)
		if e.Kind != Transient || !strings.Contains(err.Error(), "proxy of the environment (HTTPS_PROXY) refused the connection (HTTP 407)") ||
			strings.Contains(texts(err), "canary") {
			t.Error(err)
		}
		return
	}
	asked := make(chan string, 4)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		http.Error(w, "test-canary", http.StatusProxyAuthRequired)
	}))
	defer proxy.Close()
	address, _ := url.Parse(proxy.URL)
	address.User = url.UserPassword("user", "test-canary-password")
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	command.Env = append(os.Environ(), child+"=1", "HTTPS_PROXY="+address.String(), "NO_PROXY=", "no_proxy=")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := <-asked; got != "CONNECT auth.kimi.com:443" {
		t.Errorf("the proxy was asked: %s", got)
	}
}

func TestRevoke(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{})
	g := w.login(t, secret.String{})
	for _, c := range []struct {
		fault oauthtest.Fault
		kind  Kind
		text  string
	}{
		{oauthtest.ErrorAnswer(503, "temporarily_unavailable"), Transient, "cannot answer now (temporarily_unavailable, HTTP 503)"},
		{oauthtest.ErrorAnswer(400, "unsupported_token_type"), Unclear, "did not revoke the token (unsupported_token_type, HTTP 400)"},
		{oauthtest.ErrorAnswer(401, "invalid_client"), Refused, "did not revoke the token (invalid_client, HTTP 401)"},
		{oauthtest.ErrorAnswer(200, "invalid_client"), Refused, "did not revoke the token (invalid_client)"},
	} {
		w.s.Fault(oauthtest.Revoke, c.fault, 1)
		err := w.c.Revoke(t.Context(), w.p, g.RefreshToken, "refresh_token", secret.String{})
		if e := asError(t, err); e.Kind != c.kind || e.Revoked || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want %s", err, c.text)
		}
	}
	for range 2 { // also one that is revoked already
		if err := w.c.Revoke(t.Context(), w.p, g.RefreshToken, "refresh_token", secret.String{}); err != nil {
			t.Error(err)
		}
	}
	if w.s.Valid(g.AccessToken.Reveal()) {
		t.Error("it is still valid")
	}
	w.p.RevokeURL = ""
	if err := w.c.Revoke(t.Context(), w.p, g.RefreshToken, "refresh_token", secret.String{}); err == nil || !strings.Contains(err.Error(), "revoke_url") {
		t.Error(err)
	}
}
