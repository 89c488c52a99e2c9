package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	flows "github.com/credproxy/credproxy/internal/vault/internal/login"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// Flows of a login, as the configuration and the command line name them.
const (
	FlowBrowser = "browser"
	FlowDevice  = "device"
	FlowPaste   = "paste"
)

// ProviderError is a provider's refusal or failure, as it may be shown to a person.
type ProviderError = provider.Error

// LoginOptions are a person's wishes for a login.
type LoginOptions struct {
	Flow string // "" is the first of the provider's flows that this version has

	// Show is called once with the URL that the person's browser has to open.
	Show func(url string)
}

// Login logs in to a configured provider on the host and stores the grant, replacing what was stored. It blocks until
// the person is done, ctx ends or ten minutes have passed.
func (v *Vault) Login(ctx context.Context, providerName, bucket string, o LoginOptions) error {
	if !wire.ValidName(bucket) {
		return wire.E(wire.CodeInvalidRequest, "a bucket's name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
	}
	p, err := v.loginProvider(providerName, o.Flow)
	if err != nil {
		return err
	}
	clientSecret, err := v.clientSecret(ctx, p)
	if err != nil {
		return err
	}
	b, err := flows.StartBrowser(p, v.client, clientSecret)
	if err != nil {
		return err
	}
	defer b.Close()
	o.Show(b.URL())
	g, err := b.Wait(ctx)
	if err != nil {
		return err
	}
	return v.storeGrant(ctx, providerName, bucket, g)
}

// loginProvider returns the provider if it can be logged in to by the wanted flow.
func (v *Vault) loginProvider(name, flow string) (*provider.Provider, error) {
	p, ok := v.configured(name)
	switch {
	case !ok && slices.Contains(config.BuiltinProviders, name):
		return nil, wire.E(wire.CodeProviderNotFound, "this version cannot log in to the built-in provider "+name+
			"; describe the provider under a name of your own in [providers.…]")
	case !ok:
		return nil, wire.E(wire.CodeProviderNotFound, "no provider of this name is configured")
	case p.Dialect != "oauth2":
		return nil, wire.E(wire.CodeProviderNotFound, "this version cannot log in to providers with the dialect "+p.Dialect)
	}
	if flow == "" {
		flow = FlowBrowser
	}
	switch {
	case flow != FlowBrowser:
		return nil, wire.E(wire.CodeInvalidRequest, "this version logs in with the browser flow only")
	case !slices.Contains(p.Flows, FlowBrowser) || p.AuthorizeURL == "":
		return nil, wire.E(wire.CodeInvalidRequest, "the provider has no browser flow: it needs authorize_url, and this version logs in with the browser flow only")
	}
	return p, nil
}

// clientSecret reads the stored key that a confidential client names.
func (v *Vault) clientSecret(ctx context.Context, p *provider.Provider) (secret.String, error) {
	if p.ClientSecretKey == "" {
		return secret.String{}, nil
	}
	s, err := v.store.Read(ctx, keyItem(p.ClientSecretKey))
	if errors.Is(err, store.ErrNotFound) {
		return secret.String{}, p.MissingSecret()
	}
	if err != nil {
		return secret.String{}, fmt.Errorf("the client secret of %s (the stored key %s): %w", p.Name, p.ClientSecretKey, hostError(err))
	}
	return s, nil
}

// storeGrant makes a new login durable. The person is waiting, but a login that the provider has issued is stored even
// if they go away now.
func (v *Vault) storeGrant(ctx context.Context, providerName, bucket string, g *grant.Grant) error {
	ctx = context.WithoutCancel(ctx)
	it := loginItem(providerName, bucket)
	return v.underLock(ctx, it, func() error {
		if err := v.logins.Write(ctx, it, g.Seal()); err != nil {
			return hostError(fmt.Errorf("storing the login %s/%s: %w", providerName, bucket, err))
		}
		v.refresh.Begin(ctx, it, g)
		return nil
	})
}

// LogoutResult says what a logout did.
type LogoutResult struct {
	Revoked    bool  // the provider confirmed
	AccessOnly bool  // what it was asked to revoke was the access token: there was no refresh token any more
	RevokeErr  error // why it did not; nil when nobody asked it
}

// Logout removes a stored login; with revoke it asks the provider first to revoke it (RFC 7009), the refresh token if
// there is one. The login is removed in any case. A *wire.Error with wire.CodeNotFound when there is none.
func (v *Vault) Logout(ctx context.Context, providerName, bucket string, revoke bool) (LogoutResult, error) {
	var r LogoutResult
	it := loginItem(providerName, bucket)
	err := v.underLock(ctx, it, func() error {
		sealed, err := v.store.Read(ctx, it)
		if err != nil {
			return hostError(fmt.Errorf("login %s/%s: %w", providerName, bucket, err))
		}
		if revoke {
			r.AccessOnly, r.RevokeErr = v.revoke(ctx, providerName, sealed)
			r.Revoked = r.RevokeErr == nil
		}
		return v.forget(ctx, it)
	})
	return r, err
}

func (v *Vault) revoke(ctx context.Context, providerName string, sealed secret.String) (accessOnly bool, err error) {
	p, ok := v.provider(providerName)
	if !ok {
		return false, errors.New("no provider of this name is configured, so nobody knows where to revoke it")
	}
	g, err := grant.Parse(sealed)
	if err != nil {
		return false, err
	}
	clientSecret, err := v.clientSecret(ctx, p)
	if err != nil {
		return false, err
	}
	if !g.RefreshToken.IsZero() {
		return false, v.client.Revoke(ctx, p, g.RefreshToken, "refresh_token", clientSecret)
	}
	return true, v.client.Revoke(ctx, p, g.AccessToken, "access_token", clientSecret)
}
