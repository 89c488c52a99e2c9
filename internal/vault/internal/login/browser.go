// Package login runs one login on the host. [StartBrowser] is the loopback redirect of RFC 8252: it listens, makes the
// URL for the person's browser, checks what comes back and exchanges the code. The PKCE verifier, the state and the
// code never leave this package but for the provider.
package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Timeout is how long a login waits for the person.
const Timeout = 10 * time.Minute

// ErrTimeout: nobody finished the login in the browser.
var ErrTimeout = errors.New("nobody finished the login in the browser within 10 minutes")

// DeniedError: the provider sent the browser back with an error instead of a code (RFC 6749 section 4.1.2.1).
type DeniedError struct {
	Provider string
	Code     string // access_denied, …; only characters that the RFC's registered codes have
}

func (e *DeniedError) Error() string {
	return "provider " + e.Provider + ": the login was not granted (" + e.Code + ")"
}

// Browser is a login by browser redirect that is under way. Its owner calls Wait once and Close in any case.
type Browser struct {
	provider     *provider.Provider
	client       *provider.Client
	clientSecret secret.String
	verifier     secret.String
	state        string
	path         string // of the redirect URI
	redirect     string
	authURL      string

	ctx    context.Context // ends the exchange; cancelled by Close
	cancel context.CancelFunc

	server  *http.Server
	serving sync.WaitGroup // one goroutine a listener

	once sync.Once    // the first callback with our state decides
	done chan outcome // capacity 1, written inside once
}

type outcome struct {
	grant *grant.Grant
	err   error
}

// StartBrowser listens on the provider's loopback redirect and makes the authorization URL. The redirect works from
// the moment this returns.
func StartBrowser(p *provider.Provider, c *provider.Client, clientSecret secret.String) (*Browser, error) {
	redirect, err := url.Parse(p.RedirectURL)
	if err != nil {
		return nil, fmt.Errorf("provider %s: redirect_url is not a URL", p.Name)
	}
	listeners, port, err := listenLoopback(redirect.Hostname(), redirect.Port())
	if err != nil {
		return nil, fmt.Errorf("provider %s: listening on %s for the browser: %w", p.Name, redirect.Host, err)
	}
	redirect.Host = net.JoinHostPort(redirect.Hostname(), port)
	b := &Browser{
		provider:     p,
		client:       c,
		clientSecret: clientSecret,
		verifier:     secret.New(oauth2.GenerateVerifier()),
		state:        rand.Text(),
		path:         redirect.Path,
		redirect:     redirect.String(),
		done:         make(chan outcome, 1),
	}
	if b.path == "" {
		b.path = "/"
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if b.authURL, err = p.AuthorizationURL(b.redirect, b.state, b.verifier); err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return nil, err
	}
	b.server = &http.Server{
		Handler:           http.HandlerFunc(b.callback),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      time.Minute, // a callback is answered after the exchange
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // what browsers do wrong is nothing for the terminal
	}
	b.server.SetKeepAlivesEnabled(false)
	for _, l := range listeners {
		b.serving.Go(func() { _ = b.server.Serve(l) })
	}
	return b, nil
}

// URL is where the person's browser has to go.
func (b *Browser) URL() string { return b.authURL }

// Wait returns the grant once the browser came back and the code was exchanged.
func (b *Browser) Wait(ctx context.Context) (*grant.Grant, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Timeout, ErrTimeout)
	defer cancel()
	select {
	case o := <-b.done:
		return o.grant, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Close stops listening, lets the last page reach the browser and waits for every goroutine of the login.
func (b *Browser) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	b.cancel() // an exchange that nobody waits for
	if b.server.Shutdown(ctx) != nil {
		_ = b.server.Close()
	}
	b.serving.Wait()
}

// callback answers the redirect (RFC 6749 section 4.1.2) and nothing else. A request without our state changes
// nothing: whoever sent it did not come from the provider.
func (b *Browser) callback(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != b.path || r.Method != http.MethodGet {
		page(w, http.StatusNotFound, "Nothing here", "This address only takes the answer of a login.")
		return
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && stranger(r.RemoteAddr, local.String()) {
		page(w, http.StatusForbidden, "Not yours", "This login was begun by another user of this machine.")
		return
	}
	q := r.URL.Query()
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(b.state)) != 1 {
		page(w, http.StatusBadRequest, "Not this login", "The answer does not belong to the login that is waiting here. Start again from the terminal.")
		return
	}
	first := false
	b.once.Do(func() { first = true })
	if !first {
		page(w, http.StatusConflict, "Already answered", "This login has been answered before. Look at the terminal.")
		return
	}
	o := b.finish(q)
	b.done <- o
	if o.err != nil {
		page(w, http.StatusBadGateway, "Login failed", "The reason is in the terminal. You can close this page.")
		return
	}
	page(w, http.StatusOK, "You are logged in", "credproxy keeps the login on this machine. You can close this page and go back to the terminal.")
}

func (b *Browser) finish(q url.Values) outcome {
	// RFC 9207 section 2.4: an answer that another server gave must not have its code sent to this one. A server that does
	// not say who it is is taken at its word: there are many.
	if iss := q["iss"]; b.provider.Issuer != "" && len(iss) > 0 && (len(iss) > 1 || iss[0] != b.provider.Issuer) {
		return outcome{err: fmt.Errorf("provider %s: the answer is from another issuer than the one configured", b.provider.Name)}
	}
	if code := q.Get("error"); code != "" {
		return outcome{err: &DeniedError{Provider: b.provider.Name, Code: provider.PlainCode(code)}}
	}
	code := q.Get("code")
	if code == "" {
		return outcome{err: fmt.Errorf("provider %s: the browser came back without a code", b.provider.Name)}
	}
	g, err := b.client.Exchange(b.ctx, b.provider, code, b.redirect, b.verifier, b.clientSecret)
	return outcome{grant: g, err: err}
}

// listenLoopback listens on the loopback address that host names; for "localhost" on both families, because a browser
// may try either. An empty port is a free one.
func listenLoopback(host, port string) (listeners []net.Listener, chosen string, err error) {
	addresses := []string{host}
	if strings.EqualFold(host, "localhost") {
		addresses = []string{"127.0.0.1", "::1"}
	}
	if port == "" {
		port = "0"
	}
	const attempts = 8 // for a free port that both families have
	for range attempts {
		chosen = port
		listeners = nil
		for i, address := range addresses {
			l, listenErr := net.Listen("tcp", net.JoinHostPort(address, chosen))
			if listenErr != nil {
				err = listenErr
				if i > 0 && !errors.Is(listenErr, syscall.EADDRINUSE) {
					err = nil // a machine without IPv6
					continue
				}
				break
			}
			err = nil
			listeners = append(listeners, l)
			_, chosen, _ = net.SplitHostPort(l.Addr().String())
		}
		if err == nil {
			return listeners, chosen, nil
		}
		for _, l := range listeners {
			_ = l.Close()
		}
		if port != "0" {
			break
		}
	}
	return nil, "", err
}
