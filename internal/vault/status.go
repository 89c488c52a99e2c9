package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/renew"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// State is how a login stands.
type State string

// The states of a login.
const (
	StateOK          State = "ok"
	StateExpired     State = "expired"      // a refresh gives a new token
	StateLoginNeeded State = "login_needed" // only a new login does
	StateUnsaved     State = "unsaved"      // a rotated token that the store does not take
)

// LoginStatus is what can be said of a stored login. Times are Unix seconds, 0 when there is none or nobody knows.
type LoginStatus struct {
	Provider    string
	Bucket      string
	Expiry      int64
	State       State
	RenewsAt    int64  // when a proxy that serves the token renews it, to half a minute
	LastRefresh int64  // the last refresh that gave a token
	LastOutcome string // of the last attempt: "ok", "failed", "refused", or "" for none
	Detail      string // a sentence for people, or ""
}

// Status lists the stored logins, by provider and bucket. A login that cannot be read is listed as such. If the store cannot
// be listed, the error says so, and the list has the logins of which the recovery files know.
func (v *Vault) Status(ctx context.Context) ([]LoginStatus, error) {
	accounts, listErr := v.logins.List(ctx, store.ServiceLogins)
	if listErr != nil {
		listErr = hostError(fmt.Errorf("listing logins: %w", listErr))
		items, err := v.journal.List(ctx)
		if err != nil {
			return nil, listErr
		}
		for _, it := range items {
			accounts = append(accounts, it.Account)
		}
		slices.Sort(accounts)
	}
	list := []LoginStatus{}
	for _, account := range accounts {
		providerName, bucket, ok := splitAccount(account)
		if !ok {
			continue
		}
		s, err := v.status(ctx, providerName, bucket)
		if errors.Is(err, store.ErrNotFound) { // removed since it was listed
			continue
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b LoginStatus) int {
		return strings.Compare(a.Provider+":"+a.Bucket, b.Provider+":"+b.Bucket)
	})
	return list, listErr
}

// LoginStatus says how one login stands, in the words that cross the socket.
func (v *Vault) LoginStatus(ctx context.Context, providerName, bucket string) (*wire.LoginStatus, error) {
	s, err := v.status(ctx, providerName, bucket)
	if err != nil {
		return nil, hostError(fmt.Errorf("reading the login %s/%s: %w", providerName, bucket, err))
	}
	return &wire.LoginStatus{
		State: string(s.State), Expiry: s.Expiry, RenewsAt: s.RenewsAt, LastRefresh: s.LastRefresh,
		LastOutcome: s.LastOutcome, Detail: s.Detail, Store: v.StoreName(),
	}, nil
}

// status says how one login stands. With an error, which is the store's, the status says that it cannot be read.
func (v *Vault) status(ctx context.Context, providerName, bucket string) (LoginStatus, error) {
	it := loginItem(providerName, bucket)
	s := LoginStatus{Provider: providerName, Bucket: bucket}
	l, err := v.logins.Reload(ctx, it) // for who looks whether a login elsewhere has helped
	h := v.refresh.History(ctx, it, l.grant)
	if !h.Refreshed.IsZero() {
		s.LastRefresh = h.Refreshed.Unix()
	}
	s.LastOutcome = string(h.Outcome)
	switch {
	case err != nil && h.Unsaved:
		s.State, s.Detail = StateUnsaved, h.Detail+": "+err.Error()
		return s, err
	case err != nil:
		s.State, s.Detail = StateLoginNeeded, "the stored login cannot be read: "+err.Error()
		return s, err
	}
	s.Expiry = l.grant.Expiry
	s.State, s.Detail = state(l, h)
	if s.State != StateLoginNeeded && !l.grant.RefreshToken.IsZero() && s.Expiry > now() {
		s.RenewsAt = renewsAt(l.grant, h).Unix()
	}
	return s, nil
}

func state(l login, h refresh.History) (State, string) {
	expired := l.grant.Expiry != 0 && l.grant.Expiry <= now()
	refreshable := !l.grant.RefreshToken.IsZero()
	switch {
	case h.Unsaved:
		return StateUnsaved, h.Detail
	case h.Refused:
		return StateLoginNeeded, h.Detail
	case expired && refreshable:
		return StateExpired, h.Detail
	case expired:
		return StateLoginNeeded, "expired, and there is no refresh token"
	case l.err != nil:
		return StateOK, l.err.Error()
	case !refreshable && l.grant.Expiry != 0:
		return StateOK, "no refresh token: a new login is needed when it expires"
	}
	return StateOK, h.Detail
}

// renewsAt is the time by the rule, of which every proxy goes its own few seconds off. The rule counts from when the token
// was issued; where nobody knows that, from now.
func renewsAt(g *grant.Grant, h refresh.History) time.Time {
	expiry, from := time.Unix(g.Expiry, 0), h.Issued
	if from.IsZero() || !from.Before(expiry) {
		from = time.Now()
	}
	due := renew.Due(from, expiry, 0)
	if free := h.Refreshed.Add(refresh.Cooldown); due.Before(free) {
		return free
	}
	return due
}
