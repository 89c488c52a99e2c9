package client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/wire"
)

// face is a person who has learned what to do. It records what it was shown.
type face struct {
	pastes []string // what AskCode returns, one after the other; after the last it waits for ctx to end
	err    error    // of everything that is shown

	seen     []string
	problems []string
	waits    []time.Time // until, of each call of Waiting
	waiting  func()      // called by Waiting, if not nil
}

func (f *face) ShowURL(_ context.Context, url string) error {
	f.seen = append(f.seen, url)
	return f.err
}

func (f *face) ShowCode(_ context.Context, url, complete, userCode string) error {
	f.seen = append(f.seen, url, complete, userCode)
	return f.err
}

func (f *face) AskCode(ctx context.Context, problem string) (string, error) {
	f.problems = append(f.problems, problem)
	if len(f.pastes) == 0 {
		<-ctx.Done()
		return "", errors.New("the prompt was closed")
	}
	p := f.pastes[0]
	f.pastes = f.pastes[1:]
	return p, nil
}

func (f *face) Waiting(until time.Time) {
	f.waits = append(f.waits, until)
	if f.waiting != nil {
		f.waiting()
	}
}

var (
	devicePage  = wire.Session{ID: "s", Flow: wire.FlowDeviceCode, VerificationURL: "https://a.example/device", UserCode: "AB-CD"}
	browserPage = wire.Session{ID: "s", Flow: wire.FlowBrowserRedirect, AuthURL: "https://a.example/authorize?state=x"}
	pastePage   = wire.Session{ID: "s", Flow: wire.FlowPKCERedirect, AuthURL: "https://a.example/authorize?state=x"}
	loggedIn    = &wire.Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer"}
	pending     = wire.Poll{Status: wire.PollPending}
	complete    = wire.Poll{Status: wire.PollComplete, Token: loggedIn}
)

// script is a proxy that answers one login. Each of the answers is a wire.Data, a *wire.Error, or nil for none; the last is
// given again and again.
type script struct {
	initiate any
	answers  []any // of oauth_exchange and oauth_poll
	cancels  []any // of oauth_cancel; {} when there are none

	mu        sync.Mutex
	begun     []*wire.Request
	asked     []time.Time // oauth_exchange and oauth_poll
	codes     []string
	cancelled []string // sessions
}

func (sc *script) answer(p *peer, r *wire.Request) {
	next := func(list *[]any) (a any) {
		if len(*list) == 0 {
			return wire.Empty{}
		}
		a = (*list)[0]
		if len(*list) > 1 {
			*list = (*list)[1:]
		}
		return a
	}
	var a any
	sc.mu.Lock()
	switch r.Op {
	case wire.OpOAuthInitiate:
		sc.begun = append(sc.begun, r)
		a = sc.initiate
	case wire.OpOAuthExchange, wire.OpOAuthPoll:
		sc.asked = append(sc.asked, time.Now())
		sc.codes = append(sc.codes, r.Code)
		a = next(&sc.answers)
	case wire.OpOAuthCancel:
		sc.cancelled = append(sc.cancelled, r.SessionID)
		a = next(&sc.cancels)
	default:
		a = wire.Empty{}
	}
	sc.mu.Unlock()
	switch a := a.(type) {
	case wire.Data:
		p.reply(r.ID, a)
	case *wire.Error:
		p.write(wire.AppendError(nil, p.version, r.ID, a))
	}
}

// login makes one login of sc in a bubble. after is how long it took.
func (sc *script) login(t *testing.T, f LoginFace) (token *wire.Token, after time.Duration, err error) {
	t.Helper()
	inBubble(t, &proxy{answer: sc.answer}, func(t *testing.T, c *Client, since func() time.Duration) {
		token, err = c.Login(t.Context(), LoginOptions{Provider: "p", Bucket: "work", Face: f})
		after = since()
	})
	return token, after, err
}

// intervals are the times between the requests that asked, the first from the login's beginning.
func (sc *script) intervals(after time.Duration) []time.Duration {
	var list []time.Duration
	if n := len(sc.asked); n > 0 {
		last := sc.asked[n-1].Add(-after)
		for _, at := range sc.asked {
			list = append(list, at.Sub(last))
			last = at
		}
	}
	return list
}
