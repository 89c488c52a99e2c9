package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

// What a refresh fails with is an error by its code, with all that the proxy said, in both versions.
func TestRefreshErrors(t *testing.T) {
	for _, version := range []int{1, 2} {
		for _, said := range []*wire.Error{
			{Code: wire.CodeNotFound, Message: "there is no such login"},
			{Code: wire.CodeRateLimited, Message: "refreshed a moment ago", RetryAfter: 24},
			{Code: wire.CodeUnauthorized, Message: "the profile does not allow this operation"},
			{Code: wire.CodeInternal, Message: "the provider does not answer"},
			{Code: wire.CodeInternal, Message: wire.LoginNeededPrefix + "the provider has revoked the login"},
			{Code: wire.CodeProviderNotFound, Message: "no such provider"},
		} {
			px := &proxy{maxVersion: version, answer: func(p *peer, r *wire.Request) {
				p.write(wire.AppendError(nil, p.version, r.ID, said))
			}}
			c := px.listen(t, Options{})
			token, err := c.Tokens().RefreshToken(t.Context(), "p", "")
			got, ok := errors.AsType[*wire.Error](err)
			if token != nil || !ok || *got != *said || !errors.Is(err, said) {
				t.Errorf("version %d: %v, %#v, want %#v", version, token, err, said)
				continue
			}
			if want := said.Message[:5] == "login"; got.LoginNeeded() != want {
				t.Errorf("%q: login needed %v", said.Message, !want)
			}
			if want := "refreshed a moment ago (retry after 24 s)"; said.RetryAfter > 0 && err.Error() != want {
				t.Errorf("got %q, want %q", err, want)
			}
		}
	}
}

// busy is a vault whose one login is being renewed: everything about it waits until renewed is closed.
type busy struct {
	server.Vault // of which nothing else is asked
	renewed      chan struct{}
}

func (v *busy) wait(ctx context.Context) (*wire.Token, error) {
	select {
	case <-v.renewed:
		return &wire.Token{AccessToken: "test-access-token-2", Expiry: 1900000000, TokenType: "Bearer"}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the renewal: %w", ctx.Err())
	}
}

func (v *busy) CachedToken(string, string) (*wire.Token, bool) { return nil, false }
func (v *busy) RefreshToken(ctx context.Context, _, _ string) (*wire.Token, error) {
	return v.wait(ctx)
}
func (v *busy) SaveToken(ctx context.Context, _, _ string, _ *wire.Token) error {
	_, err := v.wait(ctx)
	return err
}
func (v *busy) RemoveToken(ctx context.Context, _, _ string) error {
	_, err := v.wait(ctx)
	return err
}

type everything struct{}

func (everything) AllowsOperation(string) bool      { return true }
func (everything) AllowsProvider(string) bool       { return true }
func (everything) AllowsBucket(string, string) bool { return true }
func (everything) AllowsKey(string) bool            { return true }
func (everything) Record(*audit.Event)              {}

// proxied runs f with a Client of the real server, both in a bubble; slow is how long the answers are on their way.
func proxied(t *testing.T, slow time.Duration, f func(t *testing.T, c *Client, v *busy)) {
	synctest.Test(t, func(t *testing.T) {
		v := &busy{renewed: make(chan struct{})}
		c, stop := serving(t, v, slow)
		f(t, c, v)
		stop()
	})
}

// serving returns a Client of the real server of v, for a bubble. stop ends both.
func serving(t *testing.T, v server.Vault, slow time.Duration) (c *Client, stop func()) {
	s := server.New(server.Config{
		Vault: v, Scope: func() server.Scope { return everything{} }, Audit: everything{},
		Identify: func(net.Conn) (socket.Peer, error) { return socket.Peer{UID: os.Geteuid()}, nil }, OwnUID: os.Geteuid(),
	})
	l := &queue{conns: make(chan net.Conn), done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	c = New(Options{dial: func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		l.conns <- theirs
		return delayed{ours, slow}, nil
	}})
	return c, func() {
		_ = c.Close()
		_ = s.Shutdown(t.Context())
		wg.Wait()
	}
}

// queue is a listener of the connections that are put into it.
type queue struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}
func (q *queue) Close() error   { q.once.Do(func() { close(q.done) }); return nil }
func (q *queue) Addr() net.Addr { return &net.UnixAddr{Name: "queue", Net: "unix"} }

// delayed is a connection whose other side is far away.
type delayed struct {
	net.Conn
	by time.Duration
}

func (d delayed) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	time.Sleep(d.by)
	return n, err
}

// Whatever takes too long on the host ends with the proxy's word, which comes before the client gives up.
func TestLimitsOfBothSides(t *testing.T) {
	ops := []struct {
		name  string
		limit time.Duration
		do    func(ctx context.Context, s *TokenStore) error
	}{
		{"refresh", 29 * time.Second, func(ctx context.Context, s *TokenStore) error {
			_, err := s.RefreshToken(ctx, "p", "")
			return err
		}},
		{"save", 29500 * time.Millisecond, func(ctx context.Context, s *TokenStore) error {
			return s.SaveToken(ctx, "p", "", &wire.Token{AccessToken: "a", TokenType: "Bearer"})
		}},
		{"remove", 29500 * time.Millisecond, func(ctx context.Context, s *TokenStore) error { return s.RemoveToken(ctx, "p", "") }},
	}
	for _, op := range ops {
		for _, slow := range []time.Duration{0, 20 * time.Millisecond} {
			proxied(t, slow, func(t *testing.T, c *Client, v *busy) {
				if err := c.Connect(t.Context()); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				err := op.do(t.Context(), c.Tokens())
				if d := time.Since(begun); !errors.Is(err, wire.ErrInternal) || errors.Is(err, ErrTimeout) || d < op.limit || d > op.limit+5*slow {
					t.Errorf("%s: %v after %v, want the proxy's INTERNAL_ERROR after %v", op.name, err, d, op.limit)
				}
				close(v.renewed)
				if err := op.do(t.Context(), c.Tokens()); err != nil {
					t.Errorf("%s, once the renewal is done: %v", op.name, err)
				}
			})
			proxied(t, slow, func(t *testing.T, c *Client, v *busy) {
				time.AfterFunc(op.limit-time.Second, func() { close(v.renewed) })
				if err := op.do(t.Context(), c.Tokens()); err != nil {
					t.Errorf("%s, with the renewal done in time: %v", op.name, err)
				}
			})
		}
	}
}
