package login

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

const (
	me    = 1000
	other = 1001
)

// proxy is the sessions of one proxy in front of a provider, with a store that remembers.
type proxy struct {
	*Sessions
	w *world

	begin func(*Begin) // changes what the next sessions are begun with

	mu      sync.Mutex
	stored  []string // access tokens
	storing func(ctx context.Context) error
}

func newProxy(w *world, timeout time.Duration) *proxy {
	x := &proxy{w: w, begin: func(*Begin) {}}
	x.Sessions = NewSessions(SessionsOptions{Timeout: timeout, Store: x.store})
	return x
}

func (x *proxy) store(ctx context.Context, provider, bucket string, g *grant.Grant) (*wire.Token, error) {
	x.mu.Lock()
	storing := x.storing
	x.mu.Unlock()
	if storing != nil {
		if err := storing(ctx); err != nil {
			return nil, err
		}
	}
	if provider != "acme" || bucket != "work" {
		return nil, errors.New("stored under another name")
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stored = append(x.stored, g.AccessToken.Reveal())
	return g.Wire(nil)
}

func (x *proxy) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.stored)
}

func (x *proxy) try(ctx context.Context, flow string) (*wire.Session, error) {
	b := Begin{UID: me, Provider: "acme", Bucket: "work", Start: x.starts(flow, secret.String{})}
	x.begin(&b)
	return x.Begin(ctx, b)
}

// starts begins a login by a flow.
func (x *proxy) starts(flow string, clientSecret secret.String) func(context.Context) (*Login, error) {
	return func(ctx context.Context) (*Login, error) {
		return Start(ctx, x.w.client, Request{Provider: x.w.p, Flow: flow, Secret: clientSecret})
	}
}

func (x *proxy) session(t *testing.T, flow string) *wire.Session {
	t.Helper()
	s, err := x.try(t.Context(), flow)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// code is what a person copies for a session.
func (x *proxy) code(t *testing.T, s *wire.Session) string {
	t.Helper()
	q := x.w.approve(t, s.AuthURL).Query()
	return q.Get("code") + "#" + q.Get("state")
}

// bubble runs f in a bubble with a proxy whose provider asks the person.
func bubble(t *testing.T, o oauthtest.Options, timeout time.Duration, f func(t *testing.T, x *proxy)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newPipeWorld(t, o)
		defer w.close(t)
		x := newProxy(w, timeout)
		defer x.Close()
		f(t, x)
	})
}

// wants checks an answer's code.
func wants(t *testing.T, what string, err error, code wire.Code) {
	t.Helper()
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Code != code || e.Message == "" {
		t.Errorf("%s: %v (%T), want %s", what, err, err, code)
	}
}

// state polls a session.
func (x *proxy) state(t *testing.T, s *wire.Session) *wire.Poll {
	t.Helper()
	p, err := x.Poll(me, s.ID)
	if err != nil {
		t.Fatalf("Poll: %v", err)
	}
	return p
}
