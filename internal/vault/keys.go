package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// MaxKeyLen is the longest API key, in bytes, so that an answer with it fits into a frame of version 1.
const MaxKeyLen = 32 << 10

// CachedAPIKey answers from memory, or not at all. It never blocks.
func (v *Vault) CachedAPIKey(name string) (wire.APIKey, bool) { return v.keys.Peek(keyItem(name)) }

// APIKey returns a stored key; a *wire.Error with wire.CodeNotFound when there is none.
func (v *Vault) APIKey(ctx context.Context, name string) (wire.APIKey, error) {
	key, err := v.keys.Read(ctx, keyItem(name))
	if err != nil {
		return "", hostError(fmt.Errorf("reading the API key %s: %w", name, err))
	}
	return key, nil
}

// HasAPIKey reports whether the key is stored.
func (v *Vault) HasAPIKey(ctx context.Context, name string) (bool, error) {
	_, err := v.APIKey(ctx, name)
	if errors.Is(err, wire.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// APIKeys lists the names of the stored keys, sorted.
func (v *Vault) APIKeys(ctx context.Context) ([]string, error) {
	accounts, err := v.keys.List(ctx, store.ServiceKeys)
	if err != nil {
		return nil, hostError(fmt.Errorf("listing API keys: %w", err))
	}
	names := []string{}
	for _, account := range accounts {
		if wire.ValidName(account) {
			names = append(names, account)
		}
	}
	return names, nil
}

// SetAPIKey stores a key, without the white space around it. Only the host calls it.
func (v *Vault) SetAPIKey(ctx context.Context, name, value string) error {
	if !wire.ValidName(name) {
		return wire.E(wire.CodeInvalidRequest, "a key's name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
	}
	value = strings.TrimSpace(value)
	switch {
	case value == "":
		return wire.E(wire.CodeInvalidRequest, "the key is empty")
	case len(value) > MaxKeyLen:
		return wire.E(wire.CodeInvalidRequest, "the key is longer than 32 KiB")
	case !utf8.ValidString(value), strings.ContainsRune(value, 0):
		return wire.E(wire.CodeInvalidRequest, "the key is not text in UTF-8")
	}
	it := keyItem(name)
	return v.underLock(ctx, it, func() error { return hostError(v.keys.Write(ctx, it, secret.New(value))) })
}

// RemoveAPIKey deletes a key; a *wire.Error with wire.CodeNotFound when there is none. Only the host calls it.
func (v *Vault) RemoveAPIKey(ctx context.Context, name string) error {
	it := keyItem(name)
	return v.underLock(ctx, it, func() error {
		if _, err := v.store.Read(ctx, it); err != nil && !errors.Is(err, store.ErrDamaged) {
			return hostError(fmt.Errorf("API key %s: %w", name, err))
		}
		return hostError(v.keys.Delete(ctx, it))
	})
}
