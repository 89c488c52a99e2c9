// Package provider knows how one OAuth 2.0 provider is spoken to: where its endpoints are, what an authorization
// request looks like, how a token request and its answer are encoded, and what its errors mean for a login.
// [FromConfig] makes a [Provider] of a described one and [Builtin] knows those that need no description;
// [Provider.AuthorizationURL], [Client.Exchange], [Client.Refresh] and [Client.Revoke] are the requests, and
// [Provider.Parse] reads an answer that was kept from an earlier refresh, [Provider.Salvage] the new refresh token from
// one that cannot be parsed. [WithRunningTimeout] makes the limits of a request, and of what surrounds it.
//
// An answer to a refresh may hold the only copy of a rotated refresh token. So much is taken that is not quite as it
// should be, an answer that brought a token is never asked for again, and limits do not count the time that the process
// was frozen.
//
// An answer's body never becomes part of an error: errors are made of this package's own words, the status code and the
// OAuth error code (RFC 6749 section 5.2) if it can be nothing but a code.
//
// golang.org/x/oauth2 makes the PKCE challenge. Its token requests are not used: its errors quote the answer's body, it
// hands out a token before the answer could be written ahead, knows neither JSON requests nor the dialects' errors, and
// its memory of client authentication is hidden in a Config that lives as long as one login.
package provider

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Provider is one provider's endpoints and quirks.
type Provider struct {
	Name            string
	Dialect         string   // of the table in dialect.go; one that is not there is plain OAuth 2.0
	Issuer          string   // RFC 9207; "" is not checked
	Flows           []string // in the order of preference
	ClientID        string
	ClientSecretKey string // the stored API key that holds the client secret; "" for a public client
	AuthorizeURL    string
	TokenURL        string
	RevokeURL       string
	RedirectURL     string // loopback; without a port any free one is used (RFC 8252 section 7.3)
	Scopes          []string
	Fields          []string // members of an answer that are kept and may go inside
	JSONBody        bool     // token requests are JSON objects instead of forms
	AuthorizeParams map[string]string

	secretSource string // where a person finds the client secret; "" when only they know
}

// defaultRedirect is used for providers that accept any loopback port and any path.
const defaultRedirect = "http://127.0.0.1/callback"

// FromConfig makes the provider that the configuration describes. A dialect brings its quirks and, where the
// description has none, its client id and its encoding; endpoints and client secret are the description's alone, so
// that nothing which belongs to the built-in provider is sent to another place.
func FromConfig(c *config.Provider) *Provider {
	d := dialects[c.Dialect]
	p := &Provider{
		Name:            c.Name,
		Dialect:         c.Dialect,
		Issuer:          c.Issuer,
		Flows:           c.Flows,
		ClientID:        c.ClientID,
		ClientSecretKey: c.ClientSecretKey,
		AuthorizeURL:    c.AuthorizeURL,
		TokenURL:        c.TokenURL,
		RevokeURL:       c.RevokeURL,
		RedirectURL:     c.RedirectURL,
		Scopes:          c.Scopes,
		Fields:          c.TokenFields,
		JSONBody:        c.TokenEncoding == "json" || c.TokenEncoding == "" && d.json,
		AuthorizeParams: c.AuthorizeParams,
	}
	if p.ClientID == "" {
		p.ClientID = d.clientID
	}
	if p.RedirectURL == "" {
		p.RedirectURL = defaultRedirect
	}
	if p.Fields == nil {
		p.Fields = grant.DefaultFields
	}
	return p
}

// AuthorizationURL is where the person's browser goes (RFC 6749 section 4.1.1, with the S256 challenge of RFC 7636
// section 4.3). The verifier is in it only as its hash.
func (p *Provider) AuthorizationURL(redirect, state string, verifier secret.String) (string, error) {
	u, err := url.Parse(p.AuthorizeURL)
	if err != nil {
		return "", fmt.Errorf("provider %s: authorize_url is not a URL", p.Name)
	}
	q := u.Query()
	for name, value := range p.AuthorizeParams {
		q.Set(name, value)
	}
	q.Set("response_type", "code")
	q.Set("client_id", p.ClientID)
	q.Set("redirect_uri", redirect)
	q.Set("state", state)
	q.Set("code_challenge", oauth2.S256ChallengeFromVerifier(verifier.Reveal()))
	q.Set("code_challenge_method", "S256")
	if len(p.Scopes) > 0 {
		q.Set("scope", strings.Join(p.Scopes, " "))
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// RequestFingerprint tells whether a refresh would be the same request as an earlier one: it changes with the refresh
// token, the client's id and secret, the endpoint, the dialect and the encoding, which together decide the answer.
func (p *Provider) RequestFingerprint(old *grant.Grant, clientSecret secret.String) string {
	var b strings.Builder
	for _, part := range []string{
		p.TokenURL, p.Dialect, fmt.Sprint(p.JSONBody), p.ClientID, clientSecret.Reveal(), old.RefreshToken.Reveal(),
	} {
		fmt.Fprintf(&b, "%d:%s", len(part), part) // with its length, no part can continue another
	}
	return secret.New(b.String()).Fingerprint()
}

// MissingSecret is the *Error for a provider whose client secret is not stored under ClientSecretKey. It says where the
// secret is to be had and how to store it.
func (p *Provider) MissingSecret() error {
	hint := `; store it with "credproxy key set ` + p.ClientSecretKey + `"`
	if p.secretSource != "" {
		hint = "; " + p.secretSource + hint
	}
	return &Error{Kind: Refused, Provider: p.Name, reason: "its client secret is not stored", hint: hint}
}

// keeps reports whether a member of an answer is kept in the grant.
func (p *Provider) keeps(field string) bool { return slices.Contains(p.Fields, field) }
