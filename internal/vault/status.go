package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
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

// LoginStatus is what can be said of a stored login.
type LoginStatus struct {
	Provider string
	Bucket   string
	Expiry   int64 // Unix seconds; 0 when it is unknown or the token has none
	State    State
	Detail   string // a sentence for people, or ""
}

// Status lists the stored logins, by provider and bucket. A login that cannot be read is listed as such; only a store
// that cannot be listed is an error.
func (v *Vault) Status(ctx context.Context) ([]LoginStatus, error) {
	accounts, err := v.logins.List(ctx, store.ServiceLogins)
	if err != nil {
		return nil, hostError(fmt.Errorf("listing logins: %w", err))
	}
	list := []LoginStatus{}
	for _, account := range accounts {
		providerName, bucket, ok := splitAccount(account)
		if !ok {
			continue
		}
		s := LoginStatus{Provider: providerName, Bucket: bucket}
		l, err := v.logins.Read(ctx, loginItem(providerName, bucket))
		switch {
		case errors.Is(err, store.ErrNotFound): // removed since it was listed
			continue
		case err != nil:
			s.State, s.Detail = StateLoginNeeded, "the stored login cannot be read: "+err.Error()
		default:
			s.Expiry = l.grant.Expiry
			s.State, s.Detail = state(l)
		}
		list = append(list, s)
	}
	return list, nil
}

func state(l login) (State, string) {
	expired := l.grant.Expiry != 0 && l.grant.Expiry <= now()
	refreshable := !l.grant.RefreshToken.IsZero()
	switch {
	case expired && refreshable:
		return StateExpired, ""
	case expired:
		return StateLoginNeeded, "expired, and the provider issued no refresh token"
	case l.err != nil:
		return StateOK, l.err.Error()
	case !refreshable && l.grant.Expiry != 0:
		return StateOK, "no refresh token: a new login is needed when it expires"
	}
	return StateOK, ""
}
