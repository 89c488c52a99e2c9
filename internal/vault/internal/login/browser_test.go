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

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func TestBrowserLogin(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Extra: map[string]any{"account_id": "acc-1", "unnamed": "x"}})
	l := w.browserLogin(t, secret.String{})
	if l.Flow != FlowBrowser || l.PollInterval() != time.Second || l.UserCode != "" {
		t.Errorf("flow %s, interval %s, user code %q", l.Flow, l.PollInterval(), l.UserCode)
	}
	u, err := url.Parse(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("audience") != "api" || q.Get("scope") != "read write" || len(q.Get("state")) < 22 {
		t.Errorf("authorization URL: %s", l.URL)
	}

	status, page := w.open(t, l.URL)
	if status != http.StatusOK || !strings.Contains(page, "You are logged in") || !strings.Contains(page, "go back to the terminal") {
		t.Errorf("page: %d %s", status, page)
	}
	// The listener ends with its answer, not with Close.
	if c, err := net.Dial("tcp", host(l)); err == nil {
		c.Close()
		t.Error("the listener is still there after its answer")
	}
	g, err := l.Wait(t.Context())
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
	verifier := w.server.Requests(oauthtest.Token)[0].Params.Get("code_verifier")
	if verifier == "" || strings.Contains(l.URL, verifier) {
		t.Error("the verifier is in the URL")
	}
	hides(t, w, page, l, *l.authorization, l.callback.done)
}

// The page says what has become of the grant, not only that there is one.
func TestPageWaitsForTheStore(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	for want, end := range map[string]func(*Login){
		"You are logged in": func(l *Login) { l.Told(nil) },
		"Login failed":      func(l *Login) { l.Told(errors.New("test-store-reason")) },
		"Login cancelled":   (*Login).Close,
	} {
		l, err := Start(t.Context(), w.client, Request{Provider: w.p, Flow: FlowBrowser, Told: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		pages := make(chan string, 1)
		go func() {
			_, page := w.open(t, l.URL)
			pages <- page
		}()
		if _, err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case page := <-pages:
			t.Errorf("before it was told: %s", page)
		default:
			end(l)
			page := <-pages
			if !strings.Contains(page, want) || strings.Contains(page, "could be stored") || strings.Contains(page, "test-store-reason") {
				t.Errorf("want %q: %s", want, page)
			}
		}
	}
}

// host is where a login listens.
func host(l *Login) string {
	u, _ := url.Parse(l.authorization.Redirect)
	return u.Host
}

func TestConfidentialClient(t *testing.T) {
	clients := []oauthtest.Client{{ID: "test-client", Secret: "test-client-secret+ /", RedirectURIs: []string{"http://localhost/cb"}}}
	w := newWorld(t, oauthtest.Options{Clients: clients})
	w.p.RedirectURL = "http://localhost/cb"
	l := w.browserLogin(t, secret.New("test-client-secret+ /"))
	w.open(t, l.URL)
	if _, err := l.Wait(t.Context()); err != nil {
		t.Fatalf("the right secret: %v", err)
	}
	l = w.browserLogin(t, secret.New("wrong"))
	w.open(t, l.URL)
	_, err := l.Wait(t.Context())
	if e, ok := errors.AsType[*provider.Error](err); !ok || e.Code != "invalid_client" || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong secret: %v", err)
	}
}

func TestCallbackIsNotFooled(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	l := w.browserLogin(t, secret.String{})
	callback := l.authorization.Redirect
	u, _ := url.Parse(l.URL)
	state := u.Query().Get("state")
	for name, address := range map[string]string{
		"no state":      callback + "?code=stolen",
		"wrong state":   callback + "?code=stolen&state=" + strings.Repeat("A", 43),
		"two states":    callback + "?code=stolen&state=" + state + "&state=" + state,
		"part of it":    callback + "?code=stolen&state=" + state[:42],
		"not a query":   callback + "?code=%zz&state=" + state,
		"another path":  strings.TrimSuffix(callback, "/callback") + "/other?code=stolen&state=" + state,
		"a longer path": callback + "/?code=stolen&state=" + state,
		"an error only": callback + "?error=access_denied",
	} {
		if status, page := w.open(t, address); status/100 != 4 || strings.Contains(page, "stolen") {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodHead, http.MethodOptions} {
		req, _ := http.NewRequestWithContext(t.Context(), method, callback+"?code=stolen&state="+state, nil)
		resp, err := w.browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: HTTP %d", method, resp.StatusCode)
		}
	}
	if n := w.server.Calls(oauthtest.Token); n != 0 {
		t.Errorf("%d token requests for callbacks that are not ours", n)
	}
	if status, _ := w.open(t, l.URL); status != http.StatusOK {
		t.Errorf("the login itself: HTTP %d", status)
	}
	if _, err := l.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// While the first callback is being exchanged, and on a connection that was open before, a second one starts nothing.
func TestCallbackDecidesOnce(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	release := make(chan struct{})
	w.server.Fault(oauthtest.Token, oauthtest.Fault{Wait: release}, 1)
	l := w.browserLogin(t, secret.String{})
	address := w.approve(t, l.URL).String()
	first := make(chan int, 1)
	go func() {
		status, _ := w.open(t, address)
		first <- status
	}()
	if err := w.server.WaitCalls(t.Context(), oauthtest.Token, 1); err != nil {
		t.Fatal(err)
	}
	if status, _ := w.open(t, address); status != http.StatusConflict {
		t.Errorf("the second callback: HTTP %d", status)
	}
	close(release)
	if status := <-first; status != http.StatusOK {
		t.Errorf("the first callback: HTTP %d", status)
	}
	if _, err := l.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if n := w.server.Calls(oauthtest.Token); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// A dialect without state has a path that nobody can guess.
func TestPathIsTheSecretWithoutState(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	w.p.Dialect = "openrouter"
	l := w.browserLogin(t, secret.String{})
	u, _ := url.Parse(l.URL)
	callback := u.Query().Get("callback_url")
	if callback != l.authorization.Redirect || len(callback) < len("http://127.0.0.1:1/callback/")+40 {
		t.Fatalf("callback_url %q", callback)
	}
	last := callback[:len(callback)-1] + "?code=stolen"
	for name, address := range map[string]string{
		"a shorter path": last,
		"the one before": "http://" + host(l) + "/callback?code=stolen",
		"a state":        callback + "?code=stolen&state=x",
	} {
		if status, _ := w.open(t, address); status/100 != 4 {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
	pasting := w.start(t, FlowPaste) // the address of another login
	defer pasting.Close()
	if _, err := pasting.Finish(t.Context(), callback+"?code=test-code-1"); !errors.Is(err, ErrOtherLogin) || w.server.Calls(oauthtest.Token) != 0 {
		t.Errorf("pasted into another login: %v", err)
	}
	w.server.Fault(oauthtest.Token, oauthtest.Fault{
		Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: new(`{"key":"test-minted-key-1"}`),
	}, 1)
	if status, _ := w.open(t, callback+"?code=test-code-1"); status != http.StatusOK {
		t.Errorf("the callback: HTTP %d", status)
	}
	g, err := l.Wait(t.Context())
	if err != nil || g.AccessToken.Reveal() != "test-minted-key-1" {
		t.Errorf("Wait: %v", err)
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
			b := w.browserLogin(t, secret.String{})
			w.open(t, b.URL)
			_, err = b.Wait(t.Context())
			if err == nil || strings.Contains(err.Error(), "canary") || strings.Contains(Crossing(err).Message, "canary") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// RFC 9207: the configured issuer's answers count, those of another do not.
func TestIssuer(t *testing.T) {
	w := newWorld(t, oauthtest.Options{SendIssuer: true})
	w.p.Issuer = w.server.URL()
	l := w.browserLogin(t, secret.String{})
	w.open(t, l.URL)
	if _, err := l.Wait(t.Context()); err != nil {
		t.Errorf("the right issuer: %v", err)
	}
	w.p.Issuer = "https://id.acme.example"
	l = w.browserLogin(t, secret.String{})
	w.open(t, l.URL)
	if _, err := l.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "another issuer") {
		t.Errorf("another issuer: %v", err)
	}
	if n := len(w.server.Requests(oauthtest.Token)); n != 1 {
		t.Errorf("%d token requests: the code of another issuer was sent", n)
	}
}

func TestDeniedInTheBrowser(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Approval: oauthtest.DenyAll})
	l := w.browserLogin(t, secret.String{})
	if status, page := w.open(t, l.URL); status != http.StatusOK || !strings.Contains(page, "not allowed") {
		t.Errorf("page: HTTP %d %s", status, page)
	}
	_, err := l.Wait(t.Context())
	if e, ok := errors.AsType[*provider.Error](err); !ok || e.Kind != provider.Denied || e.Code != "access_denied" {
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
			l := w.browserLogin(t, secret.String{})
			if status, page := w.open(t, l.URL); status != http.StatusBadGateway || !strings.Contains(page, "Login failed") {
				t.Errorf("page: HTTP %d", status)
			}
			_, err := l.Wait(t.Context())
			e, ok := errors.AsType[*provider.Error](err)
			if !ok || e.Kind != c.kind || e.Provider != "acme" {
				t.Fatalf("Wait: %v", err)
			}
			if hides(t, w, err, Crossing(err)); strings.Contains(err.Error(), "Canary") {
				t.Errorf("the error repeats the answer: %v", err)
			}
		})
	}
}

func TestCancelledLoginStopsListening(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	l := w.browserLogin(t, secret.String{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	past, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if _, err := l.Wait(past); !errors.Is(err, ErrTimeout) {
		t.Errorf("Wait: %v", err)
	}
	// A browser opens connections that it may need later: they do not hold up the end.
	idle, err := net.Dial("tcp", host(l))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	waited := make(chan error, 1)
	go func() {
		_, err := l.Wait(context.Background())
		waited <- err
	}()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		l.Close()
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute): // the connection itself may stay for an hour
		t.Fatal("Close waits for a connection on which nothing comes")
	}
	if err := <-waited; !errors.Is(err, ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if c, err := net.Dial("tcp", host(l)); err == nil {
		c.Close()
		t.Error("the listener is still there")
	}
	l.Close() // may come again
}

// Close during the exchange cuts the request off, and the browser still gets a page that says what to do.
func TestCloseDuringTheExchange(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	w.server.Fault(oauthtest.Token, oauthtest.Fault{Wait: make(chan struct{})}, 1)
	l := w.browserLogin(t, secret.String{})
	pages := make(chan string, 1)
	go func() {
		_, page := w.open(t, l.URL)
		pages <- page
	}()
	if err := w.server.WaitCalls(t.Context(), oauthtest.Token, 1); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if page := <-pages; !strings.Contains(page, "Login cancelled") {
		t.Errorf("page: %s", page)
	}
	if _, err := l.Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
}

// taken listens on a free port of 127.0.0.1 in another program's place.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func TestTakenPort(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	address := taken(t)
	w.p.RedirectURL = "http://" + address + "/callback"
	_, err := Start(t.Context(), w.client, w.request(FlowBrowser))
	if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), address) {
		t.Errorf("asked for by name: %v, want ErrPortTaken with the address", err)
	}
	l, err := Start(t.Context(), w.client, w.request(""))
	if err != nil || l.Flow != FlowDevice {
		t.Fatalf("not asked for: %v, want the next flow", err)
	}
	l.Close()
	w.p.Flows = []string{FlowBrowser, FlowPaste} // by which the browser would be sent to whoever has the port
	if _, err = Start(t.Context(), w.client, w.request("")); !errors.Is(err, ErrPortTaken) {
		t.Errorf("no other flow: %v", err)
	}
	w.p.Flows = []string{FlowBrowser}
	w.p.RedirectURL = "http://192.0.2.1:1/callback" // not of this machine
	_, err = Start(t.Context(), w.client, w.request(""))
	if e, ok := errors.AsType[*NoFlowError](err); !ok || len(e.Have) != 0 {
		t.Errorf("no redirect on loopback: %v", err)
	}
}

// A provider with two ports: the second is for when the first is taken, by whichever family.
func TestSecondPort(t *testing.T) {
	first := taken(t)
	_, port, _ := net.SplitHostPort(first)
	listeners, redirect, err := listenFirst("acme", []string{"http://localhost:" + port + "/cb", "http://localhost/cb"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(listeners)
	u, _ := url.Parse(redirect)
	if u.Hostname() != "localhost" || u.Port() == port || u.Port() == "" || u.Path != "/cb" {
		t.Errorf("redirect %s", redirect)
	}
	_, _, err = listenFirst("acme", []string{"http://" + first + "/cb", redirect})
	if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), first+", localhost:"+u.Port()) {
		t.Errorf("both taken: %v", err)
	}
	// Only a taken port is a reason to try the next.
	for _, address := range []string{"http://192.0.2.1:9/cb", "http://%zz/"} {
		_, _, err = listenFirst("acme", []string{address, "http://127.0.0.1/cb"})
		if e, ok := errors.AsType[*ListenError](err); !ok || errors.Is(err, ErrPortTaken) || e.Address == "" {
			t.Errorf("%s: %v", address, err)
		}
	}
}
