package login

import (
	"context"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Browser is a login by browser redirect.
//
// Deprecated: use Start.
type Browser struct{ l *Login }

// StartBrowser begins a login by browser redirect.
//
// Deprecated: use Start.
func StartBrowser(p *provider.Provider, c *provider.Client, clientSecret secret.String) (*Browser, error) {
	l, err := Start(context.Background(), c, Request{Provider: p, Flow: FlowBrowser, Secret: clientSecret})
	return &Browser{l}, err
}

// URL is where the person's browser has to go.
func (b *Browser) URL() string { return b.l.URL }

// Wait waits for ten minutes at most.
func (b *Browser) Wait(ctx context.Context) (*grant.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return b.l.Wait(ctx)
}

// Close ends the login.
func (b *Browser) Close() { b.l.Close() }
