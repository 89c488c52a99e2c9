package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// CachedToken answers from memory, or not at all. It never blocks.
func (v *Vault) CachedToken(providerName, bucket string) (*wire.Token, bool) {
	it := loginItem(providerName, bucket)
	l, ok := v.logins.Peek(it)
	if !ok || l.token == nil {
		return nil, false
	}
	v.served(it, l)
	return l.token, true
}

// Token returns the stored token as it may go inside, expired or not; a *wire.Error with wire.CodeNotFound when there
// is none.
func (v *Vault) Token(ctx context.Context, providerName, bucket string) (*wire.Token, error) {
	it := loginItem(providerName, bucket)
	l, err := v.logins.Read(ctx, it)
	if err != nil {
		return nil, hostError(fmt.Errorf("reading the login %s/%s: %w", providerName, bucket, err))
	}
	if l.err != nil {
		return nil, notServable(providerName, bucket, l.err)
	}
	v.served(it, l)
	return l.token, nil
}

func notServable(providerName, bucket string, err error) error {
	return &failure{
		crossing: wire.E(wire.CodeInternal, "this token cannot go inside a sandbox"),
		err:      fmt.Errorf("login %s/%s: %w", providerName, bucket, err),
	}
}

// SaveToken stores a token that came from inside, merged over the stored one: the refresh token and the fields that t
// does not have stay. New logins are bounded, so that a sandbox cannot fill the disk.
func (v *Vault) SaveToken(ctx context.Context, providerName, bucket string, t *wire.Token) error {
	it := loginItem(providerName, bucket)
	return v.underLock(ctx, it, func() error {
		old, err := v.stored(ctx, it)
		if err != nil {
			return err
		}
		sealed := grant.MergeSaved(old, t).Seal()
		if old == nil {
			size := max(int64(len(sealed.Reveal())), diskBlock)
			if v.created.Add(size) > maxCreated {
				v.created.Add(-size)
				return errCreated
			}
		}
		return hostError(v.logins.Write(ctx, it, sealed))
	})
}

// What one process stores in new logins that came from inside: some 16,000 small ones. A file takes a block at least.
const (
	maxCreated = 64 << 20
	diskBlock  = 4 << 10
)

var errCreated = wire.E(wire.CodeInternal, "too many new logins were saved through this proxy: log in on the host")

// stored reads the item from the store itself, nil if there is none. A value that is no login counts as none, so that
// a save or a login can replace it.
func (v *Vault) stored(ctx context.Context, it store.Item) (*grant.Grant, error) {
	sealed, err := v.store.Read(ctx, it)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDamaged):
		return nil, nil
	case err != nil:
		return nil, hostError(fmt.Errorf("reading the login %s: %w", it.Account, err))
	}
	g, err := grant.Parse(sealed)
	if err != nil {
		v.log.Warn("replacing a stored value that is not a login", "login", it.Account, "store", v.store.Name())
		return nil, nil
	}
	return g, nil
}

// RemoveToken deletes the login. Deleting what is not there is no error. A refresh that is running is waited for, and what
// it brought is deleted with the rest.
func (v *Vault) RemoveToken(ctx context.Context, providerName, bucket string) error {
	it := loginItem(providerName, bucket)
	if _, err := v.store.Read(ctx, it); errors.Is(err, store.ErrNotFound) {
		if version, err := v.journal.Version(ctx, it); err == nil && version == journal.Absent {
			return nil // and no lock file for a name that never was
		}
	}
	return v.underLock(ctx, it, func() error { return v.forget(ctx, it) })
}

// forget deletes a login and ends its renewals. The login's lock is held.
func (v *Vault) forget(ctx context.Context, it store.Item) error {
	if err := v.logins.Delete(ctx, it); err != nil {
		return hostError(err)
	}
	v.renewals.Forget(it)
	return nil
}

// Providers lists the providers that have a stored login, sorted.
func (v *Vault) Providers(ctx context.Context) ([]string, error) {
	return v.listLogins(ctx, func(providerName, _ string) (string, bool) { return providerName, true })
}

// Buckets lists the buckets of a provider that have a stored login, sorted.
func (v *Vault) Buckets(ctx context.Context, providerName string) ([]string, error) {
	return v.listLogins(ctx, func(p, bucket string) (string, bool) { return bucket, p == providerName })
}

func (v *Vault) listLogins(ctx context.Context, pick func(providerName, bucket string) (string, bool)) ([]string, error) {
	accounts, err := v.logins.List(ctx, store.ServiceLogins)
	if err != nil {
		return nil, hostError(fmt.Errorf("listing logins: %w", err))
	}
	names := []string{}
	for _, account := range accounts {
		providerName, bucket, ok := splitAccount(account)
		if !ok {
			continue
		}
		if name, ok := pick(providerName, bucket); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
