package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/wire"
)

// host is a vault whose provider "device" is polled, whose "browser" sends a browser, and whose "paste" shows
// "test-code-1". A person needs 12 s for what there is to do in a browser.
type host struct {
	server.Vault // of which nothing else is asked

	mu       sync.Mutex
	slow     time.Duration // before a login begins
	sessions []*hosted
}

// hosted is one login that has begun.
type hosted struct {
	id              string
	uid             int
	provider        string
	flow            wire.FlowType
	done            time.Time // when the person has done what they have to
	used, cancelled bool
}

func (h *host) CachedToken(string, string) (*wire.Token, bool) { return nil, false }
func (h *host) Providers(context.Context) ([]string, error)    { return nil, nil }

func (h *host) BeginLogin(ctx context.Context, uid int, provider, _ string, _ wire.FlowType, _ func() bool, _ func(*wire.Error)) (*wire.Session, error) {
	if h.slow > 0 { // and does not notice that nobody waits any more
		time.Sleep(h.slow)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &hosted{id: fmt.Sprintf("%032x", len(h.sessions)+1), uid: uid, provider: provider, done: time.Now().Add(12 * time.Second)}
	s := &wire.Session{ID: l.id, ExpiresInMS: 600_000}
	switch provider {
	case "device":
		l.flow = wire.FlowDeviceCode
		s.VerificationURL, s.UserCode, s.PollIntervalMS = "https://login.example/device", "WDJB-MJHT", 5000
		s.VerificationURLComplete = "https://login.example/device?code=WDJB-MJHT"
	case "browser":
		l.flow = wire.FlowBrowserRedirect
		s.AuthURL, s.PollIntervalMS = "https://login.example/authorize?state=test-state-1", 1000
	case "paste":
		l.flow = wire.FlowPKCERedirect
		s.AuthURL = "https://login.example/authorize?state=test-state-1"
	default:
		return nil, wire.E(wire.CodeProviderNotFound, "no such provider")
	}
	s.Flow = l.flow
	h.sessions = append(h.sessions, l)
	return s, nil
}

// use finds a session for an operation that ends it.
func (h *host) use(uid int, id string) (*hosted, error) {
	for _, l := range h.sessions {
		switch {
		case l.id != id || l.cancelled:
		case l.uid != uid:
			return nil, wire.ErrUnauthorized
		case l.used:
			return nil, wire.ErrSessionAlreadyUsed
		default:
			return l, nil
		}
	}
	return nil, wire.ErrSessionNotFound
}

func (h *host) ExchangeLogin(_ context.Context, uid int, id, code string) (*wire.Token, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := h.use(uid, id)
	switch {
	case err != nil:
		return nil, err
	case code == "?":
		return nil, wire.E(wire.CodeInvalidRequest, "this is not a code")
	}
	l.used = true
	if code != "test-code-1" && code != "test-code-1#test-state-1" {
		return nil, wire.E(wire.CodeExchangeFailed, "the provider did not accept the code")
	}
	return loggedIn, nil
}

func (h *host) PollLogin(_ context.Context, uid int, id string) (*wire.Poll, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := h.use(uid, id)
	switch {
	case err != nil:
		return nil, err
	case time.Now().Before(l.done) && l.flow == wire.FlowDeviceCode:
		return &wire.Poll{Status: wire.PollPending, PollIntervalMS: 5000}, nil
	case time.Now().Before(l.done):
		return &wire.Poll{Status: wire.PollPending, PollIntervalMS: 1000}, nil
	}
	l.used = true
	return &wire.Poll{Status: wire.PollComplete, Token: loggedIn}, nil
}

func (h *host) CancelLogin(_ context.Context, uid int, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l, err := h.use(uid, id); err == nil {
		l.cancelled = true
	}
	return nil
}

func (h *host) LoginOf(id string) (provider, bucket string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.sessions {
		if l.id == id {
			return l.provider, wire.DefaultBucket, true
		}
	}
	return "", "", false
}

// pending are the logins that nobody has finished or cancelled.
func (h *host) pending() (ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.sessions {
		if !l.used && !l.cancelled {
			ids = append(ids, l.id)
		}
	}
	return ids
}

// atHost runs f with a Client of the real server of h, in a bubble.
func atHost(t *testing.T, f func(t *testing.T, c *Client, h *host, since func() time.Duration)) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		c, stop := serving(t, h, 0)
		begun := time.Now()
		f(t, c, h, func() time.Duration { return time.Since(begun) })
		stop()
		if left := h.pending(); len(left) > 0 {
			t.Errorf("pending at the end: %v", left)
		}
	})
}

func TestLoginAtTheServer(t *testing.T) {
	for _, c := range []struct {
		provider string
		pastes   []string
		want     error
		after    time.Duration
		shown    []string
	}{
		{"device", nil, nil, 15 * time.Second, []string{"https://login.example/device", "https://login.example/device?code=WDJB-MJHT", "WDJB-MJHT"}},
		{"browser", nil, nil, 12 * time.Second, []string{"https://login.example/authorize?state=test-state-1"}},
		{"paste", []string{"", "?", "test-code-1#other", "test-code-1#test-state-1"}, nil, 0, []string{"https://login.example/authorize?state=test-state-1"}},
		{"paste", []string{"test-code-2"}, wire.ErrExchangeFailed, 0, []string{"https://login.example/authorize?state=test-state-1"}},
		{"paste", nil, wire.ErrSessionExpired, 10*time.Minute + 2*loginGrace, []string{"https://login.example/authorize?state=test-state-1"}},
		{"nobody", nil, wire.ErrProviderNotFound, 0, nil},
	} {
		atHost(t, func(t *testing.T, cl *Client, _ *host, since func() time.Duration) {
			f := &face{pastes: c.pastes}
			token, err := cl.Login(t.Context(), LoginOptions{Provider: c.provider, Face: f})
			if !errors.Is(err, c.want) || (token == nil) != (c.want != nil) || since() != c.after || !slices.Equal(f.seen, c.shown) {
				t.Errorf("%s: %v, %v after %v, shown %q", c.provider, token, err, since(), f.seen)
			}
		})
	}
}

// Whoever leaves leaves nothing behind on the host.
func TestLeavingAtTheServer(t *testing.T) {
	for _, provider := range []string{"device", "browser", "paste"} {
		for _, slow := range []time.Duration{0, 3 * time.Second, 20 * time.Second} {
			atHost(t, func(t *testing.T, c *Client, h *host, since func() time.Duration) {
				h.slow = slow
				ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
				defer stop()
				_, err := c.Login(ctx, LoginOptions{Provider: provider, Face: &face{}})
				if !errors.Is(err, context.DeadlineExceeded) || since() != 2*time.Second {
					t.Errorf("%s: %v after %v", provider, err, since())
				}
				if left := h.pending(); slow == 0 && len(left) > 0 {
					t.Errorf("%s: pending when it returned: %v", provider, left)
				}
				time.Sleep(slow)
				synctest.Wait()
				if left := h.pending(); len(left) > 0 {
					t.Errorf("%s, slow by %v: pending %v", provider, slow, left)
				}
			})
		}
	}
}

// The agent uses up all that may be asked for: its login waits, and comes to its end.
func TestLoginOfABusyAgent(t *testing.T) {
	atHost(t, func(t *testing.T, c *Client, _ *host, since func() time.Duration) {
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		refused := 0
		wg.Go(func() {
			for pause(ctx, 10*time.Millisecond) == nil {
				if _, err := c.Tokens().Providers(ctx); errors.Is(err, wire.ErrRateLimited) {
					refused++
				}
			}
		})
		f := &face{}
		token, err := c.Login(ctx, LoginOptions{Provider: "browser", Face: f})
		if err != nil || token == nil || since() > 30*time.Second {
			t.Errorf("%v, %v after %v", token, err, since())
		}
		stop()
		wg.Wait()
		if refused == 0 {
			t.Error("the agent was not busy")
		}
	})
}

// A client of the original protocol asks for no extension and gets none; it may poll without waiting.
func TestOriginalClientAtTheServer(t *testing.T) {
	atHost(t, func(t *testing.T, c *Client, _ *host, _ func() time.Duration) {
		ctx := t.Context()
		s, err := c.OAuthInitiate(ctx, "device", "", "")
		if err != nil || s.ExpiresInMS != 0 || s.VerificationURLComplete != "" || s.PollIntervalMS != 5000 {
			t.Fatalf("%v, expires in %d ms", err, s.ExpiresInMS)
		}
		for range 40 {
			if p, err := c.OAuthPoll(ctx, s.ID); err != nil || p.Status != wire.PollPending || p.PollIntervalMS != 5000 {
				t.Fatalf("%v, %v", p, err)
			}
		}
		time.Sleep(12 * time.Second)
		if p, err := c.OAuthPoll(ctx, s.ID); err != nil || p.Status != wire.PollComplete || p.Token.AccessToken != loggedIn.AccessToken {
			t.Errorf("%v, %v", p, err)
		}
		if p, err := c.OAuthPoll(ctx, s.ID); !errors.Is(err, wire.ErrSessionAlreadyUsed) {
			t.Errorf("%v, %v", p, err)
		}
		if err := c.OAuthCancel(ctx, s.ID); err != nil {
			t.Error(err)
		}
	})
}
