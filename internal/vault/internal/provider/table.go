package provider

import (
	"cmp"
	"slices"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/anthropic"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/chatgpt"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/codex"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/gemini"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/github"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/kimi"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/openrouter"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/qwen"
	"github.com/credproxy/credproxy/internal/vault/internal/provider/xai"
)

// dialects are all that are spoken; the built-in providers are those with endpoints. Nobody writes to them.
var dialects = map[string]*dialect.Dialect{
	"oauth2":     {},
	"anthropic":  &anthropic.Dialect,
	"codex":      &codex.Dialect,
	"chatgpt":    &chatgpt.Dialect,
	"gemini":     &gemini.Dialect,
	"qwen":       &qwen.Dialect,
	"github":     &github.Dialect,
	"xai":        &xai.Dialect,
	"kimi":       &kimi.Dialect,
	"openrouter": &openrouter.Dialect,
}

// dialect is how the provider talks; a name that is not in the table is plain OAuth 2.0.
func (p *Provider) dialect() *dialect.Dialect {
	if d, ok := dialects[p.Dialect]; ok {
		return d
	}
	return dialects["oauth2"]
}

// Builtin is a provider that needs no description: anthropic, codex, chatgpt, gemini, qwen, github, xai, kimi or
// openrouter.
func Builtin(name string) (*Provider, bool) {
	d, ok := dialects[name]
	if !ok || d.TokenURL == "" {
		return nil, false
	}
	return &Provider{
		Name:            name,
		Dialect:         name,
		Flows:           slices.Clone(d.Flows),
		ClientID:        d.ClientID,
		ClientSecretKey: d.SecretKey,
		AuthorizeURL:    d.AuthorizeURL,
		TokenURL:        d.TokenURL,
		DeviceURL:       d.DeviceURL,
		RevokeURL:       d.RevokeURL,
		Scopes:          slices.Clone(d.Scopes),
		Fields:          grant.DefaultFields,
		builtin:         true,
	}, true
}

// Terms is what the vendor of a built-in provider says about logins that other programs make: a status ("ok",
// "restricted" or "discontinued") and a sentence for the person, which may be "". Any other name is "ok".
func Terms(name string) (status, sentence string) {
	d, ok := dialects[name]
	if !ok {
		return dialect.OK, ""
	}
	return cmp.Or(d.Status, dialect.OK), d.Terms
}
