package credproxy

import (
	"context"
	"errors"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// directTokens and directKeys are this machine's stores, with the meaning that the proxy's stores have: "there is none"
// is no error.
type (
	directTokens struct{ v *vault.Vault }
	directKeys   struct{ v *vault.Vault }
)

var (
	_ client.Tokens = directTokens{}
	_ client.Keys   = directKeys{}
)

func checked(names ...string) error {
	for _, name := range names {
		if !wire.ValidName(name) {
			return wire.E(wire.CodeInvalidRequest, "a name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
		}
	}
	return nil
}

func orDefault(bucket string) string {
	if bucket == "" {
		return wire.DefaultBucket
	}
	return bucket
}

func (d directTokens) Token(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	bucket = orDefault(bucket)
	if err := checked(provider, bucket); err != nil {
		return nil, err
	}
	t, err := d.v.Token(ctx, provider, bucket)
	if errors.Is(err, wire.ErrNotFound) {
		return nil, nil
	}
	return t, err
}

func (d directTokens) SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error {
	bucket = orDefault(bucket)
	if err := checked(provider, bucket); err != nil {
		return err
	}
	return d.v.SaveToken(ctx, provider, bucket, t)
}

func (d directTokens) RemoveToken(ctx context.Context, provider, bucket string) error {
	bucket = orDefault(bucket)
	if err := checked(provider, bucket); err != nil {
		return err
	}
	return d.v.RemoveToken(ctx, provider, bucket)
}

func (d directTokens) Providers(ctx context.Context) ([]string, error) { return d.v.Providers(ctx) }

func (d directTokens) Buckets(ctx context.Context, provider string) ([]string, error) {
	if err := checked(provider); err != nil {
		return nil, err
	}
	return d.v.Buckets(ctx, provider)
}

func (d directTokens) BucketStats(ctx context.Context, provider, bucket string) (*wire.BucketStats, error) {
	t, err := d.Token(ctx, provider, bucket)
	if t == nil || err != nil {
		return nil, err
	}
	return &wire.BucketStats{Bucket: orDefault(bucket)}, nil
}

func (d directTokens) RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	bucket = orDefault(bucket)
	if err := checked(provider, bucket); err != nil {
		return nil, err
	}
	return d.v.RefreshToken(ctx, provider, bucket)
}

// logIn is client.Login on this machine. A [client.LoginFace] is a vault.Face.
func (d directTokens) logIn(ctx context.Context, o client.LoginOptions) (*wire.Token, error) {
	bucket := orDefault(o.Bucket)
	if err := checked(o.Provider, bucket); err != nil {
		return nil, err
	}
	flow, err := vault.FlowNamed(o.Flow)
	if err != nil {
		return nil, err
	}
	if o.Face == nil {
		return nil, errors.New("a login needs a face: LoginOptions.Face is nil")
	}
	if err := d.v.Login(ctx, o.Provider, bucket, vault.LoginOptions{Flow: flow, Face: o.Face}); err != nil {
		return nil, err
	}
	return d.v.Token(ctx, o.Provider, bucket)
}

// The vault takes a token's lock around every change of its own, so there is nothing left to guard.
func (directTokens) LockToken(context.Context, string, string) error   { return nil }
func (directTokens) UnlockToken(context.Context, string, string) error { return nil }

func (d directKeys) APIKey(ctx context.Context, name string) (wire.APIKey, bool, error) {
	if err := checked(name); err != nil {
		return "", false, err
	}
	key, err := d.v.APIKey(ctx, name)
	if errors.Is(err, wire.ErrNotFound) {
		return "", false, nil
	}
	return key, err == nil, err
}

func (d directKeys) HasAPIKey(ctx context.Context, name string) (bool, error) {
	if err := checked(name); err != nil {
		return false, err
	}
	return d.v.HasAPIKey(ctx, name)
}

func (d directKeys) APIKeys(ctx context.Context) ([]string, error) { return d.v.APIKeys(ctx) }

func (d directKeys) SetAPIKey(ctx context.Context, name string, key wire.APIKey) error {
	return d.v.SetAPIKey(ctx, name, string(key))
}

func (d directKeys) RemoveAPIKey(ctx context.Context, name string) error {
	return d.v.RemoveAPIKey(ctx, name)
}
