package login

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// They are variable for tests, in which this process may be the one that takes long.
var (
	// lastPage is how long closing waits for a browser to take its last page.
	lastPage = 2 * time.Second
	// headerLimit is how long a connection may take to say what it wants.
	headerLimit = 5 * time.Second
)

const (
	// toldLimit is how long a page waits to hear whether the login is stored. With the exchange it is below pageLimit.
	toldLimit = 20 * time.Second
	pageLimit = time.Minute
)

// callback listens for the redirect of one authorization (RFC 6749 section 4.1.2). It is the only reader of the
// connections; Login.Close ends it.
type callback struct {
	login *Login
	path  string // of the redirect URI; for a dialect without state it is a secret
	done  chan outcome

	listeners []net.Listener
	server    *http.Server
	serving   sync.WaitGroup // one goroutine a listener
	conns     sync.WaitGroup // one goroutine a connection
	crowd     crowd

	once     sync.Once     // the first callback that is ours decides
	answered chan struct{} // closed when that one has its page
	decided  chan struct{} // closed when that one has come
}

// maxConns is how many connections a listener keeps open. A browser needs two or three; every process of this machine may
// open any number, and each takes a file descriptor of the proxy.
const maxConns = 16

// crowd is the connections of one listener, the oldest first. When there is one too many, the oldest has to go: who only
// holds the line never keeps out a browser that speaks at once.
type crowd struct {
	mu   sync.Mutex
	open []net.Conn
}

func (c *crowd) enter(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, conn)
	if len(c.open) > maxConns {
		_ = c.open[0].Close()
		c.open = slices.Delete(c.open, 0, 1)
	}
}

func (c *crowd) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(other net.Conn) bool { return other == conn })
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

type outcome struct {
	grant *grant.Grant
	err   error
}

// startBrowser listens on the first of the provider's redirects that is free.
func (l *Login) startBrowser(ctx context.Context, p *provider.Provider) error {
	listeners, redirect, err := listenFirst(p.Name, p.Redirects())
	if err != nil {
		return err
	}
	l.authorization, err = l.client.Authorize(ctx, p, redirect)
	if err != nil {
		closeAll(listeners)
		return err
	}
	l.URL = l.authorization.URL
	l.serve(listeners)
	return nil
}

// listenFirst listens on the first of the redirect URIs, at least one, whose port is not taken, and returns that one with
// its port. The error is a *ListenError.
func listenFirst(providerName string, redirects []string) ([]net.Listener, string, error) {
	var failed *ListenError
	var tried []string
	for _, address := range redirects {
		u, err := url.Parse(address)
		if err != nil {
			return nil, "", &ListenError{Provider: providerName, Address: "redirect_url", Err: errors.New("it is not a URL")}
		}
		listeners, port, err := listenLoopback(u.Hostname(), u.Port())
		if err == nil {
			u.Host = net.JoinHostPort(u.Hostname(), port)
			return listeners, u.String(), nil
		}
		tried = append(tried, u.Host)
		failed = &ListenError{Provider: providerName, Address: u.Host, Err: err, taken: errors.Is(err, syscall.EADDRINUSE)}
		if !failed.taken {
			return nil, "", failed
		}
		failed.Address = strings.Join(tried, ", ")
	}
	return nil, "", failed
}

func (l *Login) serve(listeners []net.Listener) {
	path := "/"
	if u, err := url.Parse(l.authorization.Redirect); err == nil && u.Path != "" {
		path = u.Path
	}
	c := &callback{
		login: l, path: path, listeners: listeners,
		done: make(chan outcome, 1), decided: make(chan struct{}), answered: make(chan struct{}),
	}
	c.server = &http.Server{
		Handler:           c,
		ReadHeaderTimeout: headerLimit,
		WriteTimeout:      pageLimit, // a callback is answered after the exchange
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // what browsers do wrong is nothing for the terminal
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // on a goroutine of serving
				c.conns.Add(1)
				c.crowd.enter(conn)
			case http.StateClosed:
				c.crowd.leave(conn)
				c.conns.Done()
			}
		},
	}
	c.server.SetKeepAlivesEnabled(false)
	for _, listener := range listeners {
		c.serving.Go(func() { _ = c.server.Serve(listener) })
	}
	l.callback = c
}

func (c *callback) wait(ctx context.Context) (*grant.Grant, error) {
	select {
	case o := <-c.done:
		return o.grant, o.err
	case <-ctx.Done():
		select {
		case o := <-c.done: // both at once
			return o.grant, o.err
		default:
			return nil, ctx.Err()
		}
	}
}

// close returns when nothing listens and no connection is open. The exchange has been cut off before, so a callback that
// is being answered gets its page now.
func (c *callback) close() {
	closeAll(c.listeners)
	c.serving.Wait()
	select {
	case <-c.decided:
		timer := time.NewTimer(lastPage)
		defer timer.Stop()
		select {
		case <-c.answered:
		case <-timer.C:
		}
	default:
	}
	_ = c.server.Close()
	c.conns.Wait()
}

// ServeHTTP answers the redirect and nothing else. What is not ours changes nothing: whoever sent it did not come from
// the provider.
func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.URL.Path), []byte(c.path)) != 1 || r.Method != http.MethodGet {
		page(w, http.StatusNotFound, "Nothing here", "This address only takes the answer of a login.")
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(q["state"]) > 1 || !c.login.authorization.Mine(q.Get("state")) {
		page(w, http.StatusBadRequest, "Not this login", "The answer does not belong to the login that is waiting here. Start again from the terminal.")
		return
	}
	// Behind the state, for this reads the tables of all connections of the machine.
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && stranger(r.RemoteAddr, local.String()) {
		page(w, http.StatusForbidden, "Not yours", "This login was begun by another user of this machine.")
		return
	}
	first := false
	c.once.Do(func() { first = true })
	if !first {
		page(w, http.StatusConflict, "Already answered", "This login has been answered before. Look at the terminal.")
		return
	}
	c.crowd.leave(r.Context().Value(connKey{}).(net.Conn)) // this one is not sent away any more
	close(c.decided)
	defer close(c.answered)
	g, err := c.login.client.Exchange(c.login.closing, c.login.authorization, q, c.login.secret)
	if err != nil && c.login.closing.Err() != nil {
		err = ErrClosed
	}
	c.done <- outcome{g, err}
	closeAll(c.listeners) // this was all they were for; the page goes over its own connection
	stored := false
	if err == nil {
		stored, err = c.login.stored()
	}
	denied, ok := errors.AsType[*provider.Error](err)
	switch {
	case stored:
		page(w, http.StatusOK, "You are logged in", "You can close this page and go back to the terminal.")
	case err == nil:
		page(w, http.StatusOK, "You are logged in", "You can close this page and go back to the terminal, which says whether the login could be stored.")
	case ok && denied.Kind == provider.Denied:
		page(w, http.StatusOK, "Not logged in", "The login was not allowed. You can close this page. To try again, start again from the terminal.")
	case errors.Is(err, ErrClosed):
		page(w, http.StatusServiceUnavailable, "Login cancelled", "Nobody waits for this login any more. You can close this page. To log in, start again from the terminal.")
	default:
		page(w, http.StatusBadGateway, "Login failed", "The reason is in the terminal. You can close this page. To try again, start again from the terminal.")
	}
}

// stored waits to be told what has become of the grant. false and no error: nobody has said so in time.
func (l *Login) stored() (bool, error) {
	if l.told == nil {
		return false, nil
	}
	timer := time.NewTimer(toldLimit)
	defer timer.Stop()
	select {
	case err := <-l.told:
		return err == nil, err
	case <-timer.C:
		return false, nil
	case <-l.closing.Done():
	}
	select {
	case err := <-l.told: // both at once
		return err == nil, err
	default:
		return false, ErrClosed
	}
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
		closeAll(listeners)
		if port != "0" {
			break
		}
	}
	return nil, "", err
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}
