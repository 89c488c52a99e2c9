package login

import (
	"context"
	"fmt"
	"io"
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

func TestMain(m *testing.M) {
	lastPage, headerLimit = time.Hour, time.Hour
	goleak.VerifyTestMain(m)
}

// world is an authorisation server, our client of it, and the person's browser, which follows redirects.
type world struct {
	server  *oauthtest.Server
	client  *provider.Client
	browser *http.Client
	p       *provider.Provider
}

// newWorld has a server on loopback.
func newWorld(t *testing.T, o oauthtest.Options) *world {
	t.Helper()
	s, err := oauthtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{server: s, client: provider.NewClient(), browser: &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}}
	w.describe()
	t.Cleanup(func() {
		w.browser.CloseIdleConnections()
		w.close(t)
	})
	return w
}

// newPipeWorld has a server that lives in the caller's bubble, who closes the world.
func newPipeWorld(t *testing.T, o oauthtest.Options) *world {
	t.Helper()
	o.Issuer = "http://127.0.0.1:1"
	s, err := oauthtest.StartPipe(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{server: s, client: provider.NewClientWith(s.Client().Transport)}
	w.describe()
	return w
}

func (w *world) describe() {
	w.p = &provider.Provider{
		Name: "acme", Dialect: "oauth2", ClientID: "test-client",
		AuthorizeURL: w.server.EndpointURL(oauthtest.Authorize), TokenURL: w.server.EndpointURL(oauthtest.Token),
		DeviceURL: w.server.EndpointURL(oauthtest.Device), RevokeURL: w.server.EndpointURL(oauthtest.Revoke),
		Scopes: []string{"read", "write"}, Fields: []string{"account_id"},
		Flows:           []string{FlowBrowser, FlowDevice, FlowPaste},
		AuthorizeParams: map[string]string{"audience": "api"},
	}
}

func (w *world) close(t *testing.T) {
	t.Helper()
	w.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.server.Close(ctx); err != nil {
		t.Error(err)
	}
}

func (w *world) request(flow string) Request { return Request{Provider: w.p, Flow: flow} }

// start begins a login, which the caller closes.
func (w *world) start(t *testing.T, flow string) *Login {
	t.Helper()
	l, err := Start(t.Context(), w.client, w.request(flow))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// browserLogin begins a login by browser.
func (w *world) browserLogin(t *testing.T, clientSecret secret.String) *Login {
	t.Helper()
	l, err := Start(t.Context(), w.client, Request{Provider: w.p, Flow: FlowBrowser, Secret: clientSecret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
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

// approve opens an authorization URL and returns where the provider sent the browser: what a person copies.
func (w *world) approve(t *testing.T, address string) *url.URL {
	t.Helper()
	resp, err := w.server.Client().Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	u, err := resp.Location()
	if err != nil {
		t.Fatalf("HTTP %d, no redirect", resp.StatusCode)
	}
	return u
}

// hides checks that nothing of a login's secrets is in what could be logged.
func hides(t *testing.T, w *world, things ...any) {
	t.Helper()
	var secrets []string
	secrets = append(secrets, w.server.Issued().All()...)
	for _, e := range []oauthtest.Endpoint{oauthtest.Authorize, oauthtest.Token, oauthtest.Device} {
		for _, r := range w.server.Requests(e) {
			for _, name := range []string{"state", "code", "code_verifier", "code_challenge", "device_code", "refresh_token"} {
				if v := r.Params.Get(name); len(v) > 6 {
					secrets = append(secrets, v)
				}
			}
		}
	}
	for _, thing := range things {
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			text := fmt.Sprintf(format, thing)
			for _, s := range secrets {
				if strings.Contains(text, s) {
					t.Errorf("%T printed with %s shows a secret", thing, format)
				}
			}
		}
	}
}
