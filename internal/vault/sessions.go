package vault

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	flows "github.com/credproxy/credproxy/internal/vault/internal/login"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// BeginLogin begins a login for a sandbox. What it answers holds no secret; the session belongs to the peer's UID.
// allowed is asked once more before anything is stored. ended is told, once, how a login ended that needs no pasted code
// and was not cancelled: nil when it is stored. Either may be nil.
func (v *Vault) BeginLogin(ctx context.Context, uid int, providerName, bucket string, flow wire.FlowType, allowed func() bool, ended func(*wire.Error)) (*wire.Session, error) {
	name, err := FlowNamed(flow)
	if err != nil {
		return nil, err
	}
	return v.sessions.Begin(ctx, flows.Begin{
		UID: uid, Provider: providerName, Bucket: bucket, Allowed: allowed, Ended: ended,
		Start: func(ctx context.Context) (*flows.Login, error) { return v.startLogin(ctx, providerName, name) },
	})
}

// CanBegin says what speaks against a login before anybody is bothered with it: that there is no such provider, that it
// has no such flow (by its name in the configuration, or ""), or that too many logins are pending. Else it is nil.
func (v *Vault) CanBegin(providerName, flow string) error {
	p, ok := v.provider(providerName)
	if !ok {
		return errNoProvider
	}
	if err := flows.Check(p, flow); err != nil {
		return flows.Crossing(err)
	}
	return v.sessions.Room()
}

// ExchangeLogin ends a login with the code that the person pasted. The exchange goes on when ctx ends.
func (v *Vault) ExchangeLogin(ctx context.Context, uid int, sessionID, code string) (*wire.Token, error) {
	return v.sessions.Exchange(ctx, uid, sessionID, code)
}

// PollLogin says how a login stands that the person finishes in the browser.
func (v *Vault) PollLogin(_ context.Context, uid int, sessionID string) (*wire.Poll, error) {
	return v.sessions.Poll(uid, sessionID)
}

// CancelLogin gives a login up: when it returns, nothing polls or listens for it any more.
func (v *Vault) CancelLogin(_ context.Context, uid int, sessionID string) error {
	return v.sessions.Cancel(uid, sessionID)
}

// LoginOf returns what a session is a login to.
func (v *Vault) LoginOf(sessionID string) (providerName, bucket string, ok bool) {
	return v.sessions.Of(sessionID)
}

// ReviewLogins ends the logins of sandboxes that are not allowed any more, for when a profile has been edited.
func (v *Vault) ReviewLogins() { v.sessions.Review() }

// EndLogins cancels the logins that sandboxes have begun and waits for those that are being stored. No other begins.
func (v *Vault) EndLogins() { v.sessions.Close() }

// HasLogin reports whether a login is stored that a new one would replace, as far as is known: true also when the store does
// not say.
func (v *Vault) HasLogin(ctx context.Context, providerName, bucket string) bool {
	_, err := v.store.Read(ctx, loginItem(providerName, bucket))
	return !errors.Is(err, store.ErrNotFound)
}

// storeLogin stores what a session brought and returns it as it may go inside.
func (v *Vault) storeLogin(ctx context.Context, providerName, bucket string, g *grant.Grant) (*wire.Token, error) {
	t, err := g.Wire(v.allowedFields(providerName))
	if err != nil { // it would take the place of one that can be served
		return nil, notServable(providerName, bucket, err)
	}
	if err := v.storeGrant(ctx, providerName, bucket, g); err != nil {
		return nil, err
	}
	v.log.Info("logged in from inside", "provider", providerName, "bucket", bucket)
	return t, nil
}

// sparing counts what happens, to let the first few of each minute through.
type sparing struct {
	mu   sync.Mutex
	from time.Time
	n    int
}

const sparingMost = 10

func (s *sparing) room(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.from) >= time.Minute {
		s.from, s.n = now, 0
	}
	s.n++
	return s.n <= sparingMost
}

// loginFailure is what a sandbox is told of a login that failed. The host's log has the rest.
func (v *Vault) loginFailure(err error) *wire.Error {
	if coded, ok := err.(*wire.Error); ok {
		return coded
	}
	level := slog.LevelWarn
	if !v.failures.room(time.Now()) { // a sandbox can fail as often as it likes
		level = slog.LevelDebug
	}
	v.log.Log(context.Background(), level, "a login that a sandbox began has failed", "error", err)
	if coded, ok := errors.AsType[*wire.Error](err); ok { // the store's trouble; what it wraps may look like the provider's
		return coded
	}
	if e := flows.Crossing(err); e != nil {
		return e
	}
	coded, _ := errors.AsType[*wire.Error](hostError(err))
	return coded
}
