package oauthtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Endpoint names an endpoint by its path on the plain server. A dialect serves it elsewhere, or not at all:
// [Server.EndpointURL].
type Endpoint string

const (
	Authorize Endpoint = "/authorize"
	Token     Endpoint = "/token"
	Device    Endpoint = "/device" // device_authorization_endpoint
	Verify    Endpoint = "/verify" // the user's page for device codes
	Revoke    Endpoint = "/revoke"
	Resource  Endpoint = "/resource" // answers 200 and {"active":true,...} to a valid access token
	Metadata  Endpoint = "/.well-known/oauth-authorization-server"
	Discovery Endpoint = "/.well-known/openid-configuration" // the same document, as OpenID Connect has it
	Keys      Endpoint = "/jwks"                             // of which there are none
	Paste     Endpoint = "/paste"                            // a redirect URI: the page shows the code, for the user to copy

	DevicePoll Endpoint = "/device/poll" // dialect codex only: polled in place of Token
	DeviceDone Endpoint = "/device/done" // dialect codex only: the redirect URI of a device login's code
	Elsewhere  Endpoint = ""             // every path that the server does not have; answered with 404
)

// Server is an authorisation server. All methods may be called from any goroutine.
//
// Ownership: mu guards state, faults, log, arrived and opt.Approval (the rest of opt never changes). Handlers hold it to change state and never while they read
// from or write to the network, nor while a [Fault] waits; a request's effect is therefore complete, and visible to the
// inspecting methods, before the first byte of its answer is written.
type Server struct {
	opt     Options
	vendor  *vendor
	base    string // scheme and host
	handler http.Handler

	http   *http.Server // nil without a listener
	client *http.Client // nil without a listener
	served chan struct{}
	close  func() // closes done, once
	done   chan struct{}

	mu      sync.Mutex
	state   state
	faults  map[Endpoint][]*queuedFault
	log     []*Request
	arrived chan struct{} // closed and replaced at every arrival
}

// New makes a server without a listener, for a caller that serves [Server.Handler] itself.
func New(o Options) (*Server, error) {
	setDefault(&o.Issuer, "http://oauthtest.invalid")
	base, issuerPath, err := o.split()
	if err != nil {
		return nil, fmt.Errorf("oauthtest: options: %w", err)
	}
	v := plain(issuerPath)
	if o.Dialect != "" {
		dialect := vendors[o.Dialect]
		if dialect == nil {
			return nil, fmt.Errorf("oauthtest: options: dialect %q is unknown; there are %v", o.Dialect, Dialects())
		}
		v = dialect()
	}
	v.paths[Resource] = string(Resource) // a vendor has its own elsewhere; here a test looks whether a token is good
	if err := o.complete(v, base); err != nil {
		return nil, fmt.Errorf("oauthtest: options: %w", err)
	}
	done := make(chan struct{})
	s := &Server{
		opt: o, vendor: v, base: base, done: done, close: sync.OnceFunc(func() { close(done) }),
		state: newState(), faults: map[Endpoint][]*queuedFault{}, arrived: make(chan struct{}),
	}
	s.handler = s.routes()
	return s, nil
}

// Start serves on a free port of 127.0.0.1.
func Start(o Options) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("oauthtest: %w", err)
	}
	o.Issuer = "http://" + l.Addr().String() + o.IssuerPath
	s, err := New(o)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.serve(l, &http.Transport{})
	return s, nil
}

// StartPipe serves over net.Pipe: only [Server.Client] reaches it. Everything it starts belongs to the caller's
// testing/synctest bubble, if there is one.
func StartPipe(o Options) (*Server, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	l := newPipeListener()
	s.serve(l, &http.Transport{DialContext: l.dial})
	return s, nil
}

func (s *Server) serve(l net.Listener, t *http.Transport) {
	s.http = &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	s.client = &http.Client{
		Transport: t,
		// The redirect of an authorisation response is what a caller wants to see; nothing listens there.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		_ = s.http.Serve(l) // ends with ErrServerClosed, by Close
	}()
}

// URL is the issuer: scheme and host, and a path only if [Options] have one.
func (s *Server) URL() string { return s.opt.Issuer }

// EndpointURL is the full address of an endpoint, or empty if the dialect does not have it.
func (s *Server) EndpointURL(e Endpoint) string {
	path, ok := s.vendor.paths[e]
	if !ok {
		return ""
	}
	return s.base + path
}

// Handler serves all endpoints. A [Fault] that drops the connection panics with http.ErrAbortHandler, which net/http's
// server understands.
func (s *Server) Handler() http.Handler { return s.handler }

// Client reaches this server and does not follow redirects. It is nil for a server made by New.
func (s *Server) Client() *http.Client { return s.client }

// String keeps %v of a server from printing what it holds.
func (s *Server) String() string { return "oauthtest server " + s.opt.Issuer }

// Close ends faults that wait, lets requests finish until ctx ends, closes all connections, and returns when nothing
// of the server runs any more.
func (s *Server) Close(ctx context.Context) error {
	s.close()
	if s.http == nil {
		return nil
	}
	s.client.CloseIdleConnections()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("oauthtest: close: %w", err), s.http.Close())
	}
	<-s.served
	return err
}

// pipeListener hands one end of a net.Pipe to Accept for every dial.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
