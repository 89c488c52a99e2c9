package provider

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

const testSecret = "test-client-secret-1"

// world is an authorisation server, a client and the provider acme that both know.
type world struct {
	s *oauthtest.Server
	c *Client
	p *Provider
}

// start makes a world over TCP, or over pipes for a synctest bubble.
func start(t *testing.T, pipe bool, dialect string, o oauthtest.Options) *world {
	t.Helper()
	if len(o.Clients) == 0 {
		id := (&Provider{Dialect: dialect}).dialect().ClientID
		if id == "" {
			id = "acme-client"
		}
		o.Clients = []oauthtest.Client{{ID: id, RedirectURIs: []string{"http://127.0.0.1/callback"}}}
	}
	if o.Encoding == oauthtest.FormBody {
		o.Encoding = oauthtest.FormOrJSONBody
	}
	run, c := oauthtest.Start, NewClient()
	if pipe {
		run = oauthtest.StartPipe
	}
	s, err := run(o)
	if err != nil {
		t.Fatal(err)
	}
	if pipe {
		c = NewClientWith(s.Client().Transport)
	}
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	p := FromConfig(&config.Provider{
		Name: "acme", Dialect: dialect, ClientID: o.Clients[0].ID,
		AuthorizeURL: s.EndpointURL(oauthtest.Authorize), TokenURL: s.EndpointURL(oauthtest.Token), RevokeURL: s.EndpointURL(oauthtest.Revoke),
	})
	return &world{s, c, p}
}

// authorize begins a login.
func (w *world) authorize(t *testing.T) *Authorization {
	t.Helper()
	a, err := w.c.Authorize(context.Background(), w.p, "http://127.0.0.1/callback")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// login gets a grant as a person would.
func (w *world) login(t *testing.T, clientSecret secret.String) *grant.Grant {
	t.Helper()
	a := w.authorize(t)
	resp, err := w.s.Client().Get(a.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || back.Query().Get("code") == "" {
		t.Fatalf("no code came back: HTTP %d", resp.StatusCode)
	}
	g, err := w.c.Exchange(context.Background(), a, back.Query(), clientSecret)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (w *world) refresh(old *grant.Grant, clientSecret secret.String) (*grant.Grant, error) {
	return w.c.Refresh(context.Background(), w.p, old, clientSecret, func(Answer) {})
}

// stored is a login as it would be in the store.
func stored() *grant.Grant {
	return &grant.Grant{AccessToken: secret.New("test-access-token-1"), RefreshToken: secret.New("test-refresh-token-1"), TokenType: "Bearer", Expiry: 1}
}

func asError(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error %T %v, want *Error", err, err)
	}
	return e
}

// answerWith plays an answer to the byte.
func answerWith(status int, body string) oauthtest.Fault {
	return oauthtest.Fault{Status: status, Body: &body, Header: http.Header{"Content-Type": {"application/json"}}}
}

// rawServer answers every request with the same bytes and closes the connection.
func rawServer(t *testing.T, answer string) (address string) {
	t.Helper()
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
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body) // unread bytes would make the close a reset
				_, _ = io.WriteString(c, answer)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// texts are all the ways in which an error gets into a log.
func texts(err error) string {
	return strings.Join([]string{err.Error(), fmt.Sprintf("%v %+v %q", err, err, err)}, "\n")
}

// discard takes what a test server says about a client that hung up.
var discard = log.New(io.Discard, "", 0)

// approve is the person with the browser, who comes back with a query.
func approve(t *testing.T, s *oauthtest.Server, a *Authorization) url.Values {
	t.Helper()
	back, err := s.Approve(context.Background(), a.URL)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(back)
	if err != nil || !strings.HasPrefix(back, a.Redirect+"?") {
		t.Fatalf("came back to %q, not to %q", back, a.Redirect)
	}
	return u.Query()
}
