package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/renew"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// RefreshToken returns a token that is newer than the stored one was when it was called: however many ask at once, the
// provider is asked once. Within 30 s of the last attempt the stored token is answered if it is valid. ctx ends the waiting
// and not the refresh.
//
// The error is a *wire.Error for the socket, as of every method: wire.CodeNotFound, wire.CodeRateLimited, or
// wire.CodeInternal; [wire.Error.LoginNeeded] tells whether only a new login helps.
func (v *Vault) RefreshToken(ctx context.Context, providerName, bucket string) (*wire.Token, error) {
	it := loginItem(providerName, bucket)
	l, err := v.logins.Read(ctx, it)
	if err == nil && l.err != nil {
		return nil, notServable(providerName, bucket, l.err)
	}
	if err != nil {
		return nil, hostError(fmt.Errorf("reading the login %s/%s: %w", providerName, bucket, err))
	}
	g, err := v.refresh.Refresh(ctx, it, l.grant)
	if err != nil {
		return nil, hostError(fmt.Errorf("refresh of %s/%s: %w", providerName, bucket, err))
	}
	t, err := g.Wire(v.allowedFields(providerName))
	if err != nil {
		return nil, notServable(providerName, bucket, err)
	}
	return t, nil
}

// Renew keeps the tokens that are served fresh until ctx ends: each is renewed before it expires, from the first time
// that it was asked for. It begins with storing what processes that have died could not store. It returns when no renewal
// is running any more. It also sweeps the sessions of logins.
func (v *Vault) Renew(ctx context.Context) {
	v.round.Store(1)
	var beside sync.WaitGroup // a store that hangs is not to hold up the renewals
	beside.Go(func() {
		if err := v.refresh.Resume(ctx); err != nil && ctx.Err() == nil {
			v.log.Error("the recovery files cannot be read", "error", err)
		}
	})
	beside.Go(func() { v.sessions.Sweep(ctx) })
	v.renewals.Run(ctx)
	beside.Wait()
}

// served schedules the renewal of a login that was served, once for each token and round. It costs two loads when that
// has happened.
func (v *Vault) served(it store.Item, l login) {
	round := v.round.Load()
	if round == 0 || l.served.Load() == round || l.grant.RefreshToken.IsZero() || l.grant.Expiry == 0 {
		return
	}
	l.served.Store(round)
	v.renewals.Watch(it, time.Unix(l.grant.Expiry, 0))
}

// gaveUp begins another round: the next time that any token is served, it is scheduled if it is not.
func (v *Vault) gaveUp(it store.Item) {
	v.log.Warn("renewing a token is given up until it is asked for again", "login", it.Account)
	v.round.Add(1)
}

// renew renews one login that is due, if it still is the one that was scheduled.
func (v *Vault) renew(ctx context.Context, it store.Item, expiry time.Time) renew.Outcome {
	l, err := v.logins.Reload(ctx, it)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return renew.Outcome{Stop: true}
	case err != nil:
		return v.notRenewed(it, err)
	case l.grant.RefreshToken.IsZero() || l.grant.Expiry == 0:
		return renew.Outcome{Stop: true}
	case l.grant.Expiry != expiry.Unix(): // somebody else renewed it
		return renew.Outcome{Expiry: time.Unix(l.grant.Expiry, 0), After: v.refresh.Wait(ctx, it)}
	}
	g, err := v.refresh.Refresh(ctx, it, l.grant)
	limited, isLimited := errors.AsType[*refresh.LimitedError](err)
	_, isNeeded := errors.AsType[*refresh.LoginNeededError](err)
	_, isClient := errors.AsType[*refresh.ClientRefusedError](err)
	switch {
	case isLimited:
		return renew.Outcome{Err: err, After: limited.After}
	case isNeeded, isClient, errors.Is(err, store.ErrNotFound):
		v.log.Warn("a token cannot be renewed", "login", it.Account, "error", err)
		return renew.Outcome{Stop: true}
	case err != nil:
		return v.notRenewed(it, err)
	case g.Expiry == 0:
		return renew.Outcome{Stop: true}
	}
	return renew.Outcome{Expiry: time.Unix(g.Expiry, 0), After: v.refresh.Wait(ctx, it)}
}

func (v *Vault) notRenewed(it store.Item, err error) renew.Outcome {
	v.log.Warn("a token was not renewed; it will be tried again", "login", it.Account, "error", err)
	return renew.Outcome{Err: err}
}
