package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/credproxy/credproxy/wire"
)

// Tokens is a store of access tokens: over the socket ([TokenStore]) or on this machine. Which one it is does not show:
// neither hands out a refresh token. An empty bucket is the default one.
type Tokens interface {
	// Token returns the stored token, nil when there is none.
	Token(ctx context.Context, provider, bucket string) (*wire.Token, error)
	// SaveToken merges t over the stored token; a stored refresh token stays.
	SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error
	// RemoveToken deletes the token; that there is none is no error.
	RemoveToken(ctx context.Context, provider, bucket string) error
	Providers(ctx context.Context) ([]string, error)
	Buckets(ctx context.Context, provider string) ([]string, error)
	// BucketStats returns nil when there is no token. Nothing is counted: the numbers are 0.
	BucketStats(ctx context.Context, provider, bucket string) (*wire.BucketStats, error)
	// RefreshToken has the provider renew the token, which has expired or was refused, and returns what is stored then.
	// That may be the token of another renewal: callers at the same time share one, and one a moment ago is not repeated
	// while its token is valid. A renewal that has begun goes on on the host when ctx ends.
	//
	// No stored token is wire.ErrNotFound. wire.ErrRateLimited says in RetryAfter when to ask again: the provider was
	// asked less than 30 s ago, and the token has expired. An error for which [wire.Error.LoginNeeded] is true lasts
	// until somebody has logged in on the host; others of [wire.ErrInternal] may pass.
	RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error)
	// LockToken and UnlockToken guard a change that takes several calls.
	LockToken(ctx context.Context, provider, bucket string) error
	UnlockToken(ctx context.Context, provider, bucket string) error
}

// Keys is a store of API keys: over the socket ([KeyStore]) or on this machine.
type Keys interface {
	// APIKey returns the key, false when there is none.
	APIKey(ctx context.Context, name string) (wire.APIKey, bool, error)
	HasAPIKey(ctx context.Context, name string) (bool, error)
	APIKeys(ctx context.Context) ([]string, error)
	SetAPIKey(ctx context.Context, name string, key wire.APIKey) error
	RemoveAPIKey(ctx context.Context, name string) error
}

var (
	_ Tokens = (*TokenStore)(nil)
	_ Keys   = (*KeyStore)(nil)
)

// ErrSandboxKeys is the error of changing API keys from inside a sandbox.
//
//lint:ignore ST1005 people and programs know the sentence as it is
var ErrSandboxKeys = errors.New("API key management is not available in sandbox mode. Manage keys on the host.")

// Tokens returns the host's tokens.
func (c *Client) Tokens() *TokenStore { return &TokenStore{c} }

// Keys returns the host's API keys.
func (c *Client) Keys() *KeyStore { return &KeyStore{c} }

// ask makes a request and decodes its answer into data.
func (c *Client) ask(ctx context.Context, r *wire.Request, data json.Unmarshaler) error {
	raw, err := c.call(ctx, r)
	if err != nil {
		return err
	}
	if err := data.UnmarshalJSON(raw); err != nil {
		return fmt.Errorf("credential proxy: answer to %s: %w", r.Op, err)
	}
	return nil
}

// tell makes a request whose answer says nothing more.
func (c *Client) tell(ctx context.Context, r *wire.Request) error {
	_, err := c.call(ctx, r)
	return err
}

// TokenStore is the host's tokens, as far as the sandbox may use them.
type TokenStore struct{ c *Client }

// Token implements [Tokens].
func (s *TokenStore) Token(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	t := new(wire.Token)
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpGetToken, Provider: provider, Bucket: bucket}, t)
	switch {
	case errors.Is(err, wire.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return t, nil
}

// SaveToken implements [Tokens].
func (s *TokenStore) SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error {
	return s.c.tell(ctx, &wire.Request{Op: wire.OpSaveToken, Provider: provider, Bucket: bucket, Token: t})
}

// RemoveToken implements [Tokens].
func (s *TokenStore) RemoveToken(ctx context.Context, provider, bucket string) error {
	err := s.c.tell(ctx, &wire.Request{Op: wire.OpRemoveToken, Provider: provider, Bucket: bucket})
	if errors.Is(err, wire.ErrNotFound) {
		return nil
	}
	return err
}

// Providers implements [Tokens].
func (s *TokenStore) Providers(ctx context.Context) ([]string, error) {
	var list wire.Providers
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpListProviders}, &list)
	return list, err
}

// Buckets implements [Tokens].
func (s *TokenStore) Buckets(ctx context.Context, provider string) ([]string, error) {
	var list wire.Buckets
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpListBuckets, Provider: provider}, &list)
	return list, err
}

// BucketStats implements [Tokens]. It asks for the token: there is nothing else to know.
func (s *TokenStore) BucketStats(ctx context.Context, provider, bucket string) (*wire.BucketStats, error) {
	t, err := s.Token(ctx, provider, bucket)
	if t == nil || err != nil {
		return nil, err
	}
	if bucket == "" {
		bucket = wire.DefaultBucket
	}
	return &wire.BucketStats{Bucket: bucket}, nil
}

// RefreshToken implements [Tokens].
func (s *TokenStore) RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	t := new(wire.Token)
	if err := s.c.ask(ctx, &wire.Request{Op: wire.OpRefreshToken, Provider: provider, Bucket: bucket}, t); err != nil {
		return nil, err
	}
	return t, nil
}

// Status returns how the login stands and when it is renewed. It is nil when there is none, and when the proxy does not
// know: the question is an extension of the protocol, which other proxies ignore.
func (s *TokenStore) Status(ctx context.Context, provider, bucket string) (*wire.LoginStatus, error) {
	var stats wire.BucketStats
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpGetBucketStats, Provider: provider, Bucket: bucket, Detail: true}, &stats)
	if errors.Is(err, wire.ErrNotFound) {
		return nil, nil
	}
	return stats.Login, err
}

// LockToken does nothing and succeeds: the host takes its own locks.
func (s *TokenStore) LockToken(context.Context, string, string) error { return nil }

// UnlockToken does nothing and succeeds.
func (s *TokenStore) UnlockToken(context.Context, string, string) error { return nil }

// KeyStore is the host's API keys, as far as the sandbox may use them.
type KeyStore struct{ c *Client }

// APIKey implements [Keys].
func (s *KeyStore) APIKey(ctx context.Context, name string) (wire.APIKey, bool, error) {
	var key wire.APIKey
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpGetAPIKey, Name: name}, &key)
	if errors.Is(err, wire.ErrNotFound) {
		return "", false, nil
	}
	return key, err == nil, err
}

// HasAPIKey implements [Keys].
func (s *KeyStore) HasAPIKey(ctx context.Context, name string) (bool, error) {
	var exists wire.Exists
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpHasAPIKey, Name: name}, &exists)
	if errors.Is(err, wire.ErrNotFound) {
		return false, nil
	}
	return bool(exists), err
}

// APIKeys implements [Keys].
func (s *KeyStore) APIKeys(ctx context.Context) ([]string, error) {
	var list wire.APIKeys
	err := s.c.ask(ctx, &wire.Request{Op: wire.OpListAPIKeys}, &list)
	return list, err
}

// SetAPIKey fails with [ErrSandboxKeys], without asking the host.
func (s *KeyStore) SetAPIKey(context.Context, string, wire.APIKey) error { return ErrSandboxKeys }

// RemoveAPIKey fails with [ErrSandboxKeys], without asking the host.
func (s *KeyStore) RemoveAPIKey(context.Context, string) error { return ErrSandboxKeys }
