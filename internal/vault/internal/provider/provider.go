// Package provider knows how one OAuth 2.0 provider is spoken to: where its endpoints are, what an authorization
// request looks like, how a token request and its answer are encoded, and what its errors mean for a login.
//
// [FromConfig] makes a [Provider] of a described one and [Builtin] knows those that need no description; what vendors do
// differently is in a small package for each (see package dialect). The requests are a [Client]'s: [Client.Authorize] and
// [Client.Exchange] log in with a browser, [Client.StartDevice] and [Client.PollDevice] with a code typed elsewhere,
// [Client.Refresh] and [Client.Revoke] are for a login that exists, and [Client.Resolve] finds the endpoints of a
// provider of which only the issuer is known. [Provider.Parse] reads an answer that was kept from an earlier refresh,
// [Provider.Salvage] the new refresh token from one that cannot be parsed. [WithRunningTimeout] makes the limits of a
// request, and of what surrounds it.
//
// An answer to a refresh may hold the only copy of a rotated refresh token. So much is taken that is not quite as it
// should be, an answer that brought a token is never asked for again, and limits do not count the time that the process
// was frozen.
//
// An answer's body never becomes part of an error: errors are made of this package's own words, the status code and the
// OAuth error code (RFC 6749 section 5.2) if it can be nothing but a code.
//
// golang.org/x/oauth2 makes the PKCE verifier and challenge. Its token requests are not used: its errors quote the
// answer's body, it hands out a token before the answer could be written ahead, knows neither JSON requests nor the
// dialects' errors, and its memory of client authentication is hidden in a Config that lives as long as one login.
package provider

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// The flows of a login, as [Provider.Flows] names them.
const (
	FlowBrowser = "browser"
	FlowDevice  = "device"
	FlowPaste   = "paste"
)

// Provider is one provider's endpoints and choices. Its dialect has the quirks.
type Provider struct {
	Name            string
	Dialect         string   // of the table in table.go; one that is not there is plain OAuth 2.0
	Issuer          string   // RFC 8414 and RFC 9207; "" is not checked
	Flows           []string // "browser", "device", "paste" in the order of preference; nil until resolved when only the issuer is known
	ClientID        string
	ClientSecretKey string // the stored API key that holds the client secret; "" for a public client
	AuthorizeURL    string // endpoints: "" where there is none, or where only the issuer is known
	TokenURL        string
	DeviceURL       string
	RevokeURL       string
	RedirectURL     string // of the description: loopback or, for pasting, a page of the provider's; "" is the dialect's
	Scopes          []string
	Fields          []string // members of an answer that are kept and may go inside
	Encoding        string   // of token requests: "form" or "json"; "" is the dialect's
	AuthorizeParams map[string]string

	builtin      bool
	issInAnswers bool // the issuer says that it names itself in what comes back from an authorization request (RFC 9207)
}

// defaultRedirect is for providers that accept any loopback port and any path.
const defaultRedirect = "http://127.0.0.1/callback"

// FromConfig makes the provider that the configuration describes. A dialect brings its quirks and, where the
// description has none, its client id, encoding, scopes, flows and redirects; endpoints and client secret are the
// description's alone, so that nothing which belongs to the built-in provider is sent to another place.
func FromConfig(c *config.Provider) *Provider {
	p := &Provider{
		Name:            c.Name,
		Dialect:         c.Dialect,
		Issuer:          c.Issuer,
		Flows:           c.Flows,
		ClientID:        c.ClientID,
		ClientSecretKey: c.ClientSecretKey,
		AuthorizeURL:    c.AuthorizeURL,
		TokenURL:        c.TokenURL,
		DeviceURL:       c.DeviceURL,
		RevokeURL:       c.RevokeURL,
		RedirectURL:     c.RedirectURL,
		Scopes:          c.Scopes,
		Fields:          c.TokenFields,
		Encoding:        c.TokenEncoding,
		AuthorizeParams: c.AuthorizeParams,
	}
	d := p.dialect()
	p.ClientID = cmp.Or(p.ClientID, d.ClientID)
	if p.Scopes == nil {
		p.Scopes = slices.Clone(d.Scopes)
	}
	if p.Fields == nil {
		p.Fields = grant.DefaultFields
	}
	if p.Flows == nil {
		p.Flows = p.possibleFlows()
	}
	return p
}

// possibleFlows are the dialect's flows and then the usual ones, as far as there is an endpoint for them; nil for none. The
// last resort is to paste the address that the browser ended at, when that is on another machine.
func (p *Provider) possibleFlows() (flows []string) {
	usual := []string{FlowBrowser, FlowDevice, FlowPaste}
	if len(p.Redirects()) == 0 {
		usual = []string{FlowPaste, FlowDevice}
	}
	for _, flow := range slices.Concat(p.dialect().Flows, usual) {
		if p.Supports(flow) && !slices.Contains(flows, flow) {
			flows = append(flows, flow)
		}
	}
	return flows
}

// Supports reports whether there is what a flow needs: its endpoint, and for FlowBrowser a redirect that comes back to this
// machine. Of a provider that needs resolving, call it after that.
func (p *Provider) Supports(flow string) bool {
	switch flow {
	case FlowBrowser:
		return p.AuthorizeURL != "" && len(p.Redirects()) > 0
	case FlowDevice:
		return p.DeviceURL != ""
	case FlowPaste:
		return p.AuthorizeURL != ""
	}
	return false
}

// Redirects are the loopback redirect URIs of the browser flow in the order to try; one without a port takes any that is
// free, put into it. None when the description has a page of the provider's instead.
func (p *Provider) Redirects() []string {
	switch d := p.dialect(); {
	case loopbackHTTP(p.RedirectURL):
		return []string{p.RedirectURL}
	case p.RedirectURL != "":
		return nil
	case len(d.Redirects) > 0:
		return slices.Clone(d.Redirects)
	}
	return []string{defaultRedirect}
}

// PasteRedirect is the redirect URI of the paste flow: the description's, or the vendor's page that shows the code (for
// a described provider with a vendor's dialect: that page's path at the token endpoint's origin), or else one on
// loopback where nobody listens, from which the person copies the address of the page that could not be opened. Of a
// provider that needs resolving, call it after that.
func (p *Provider) PasteRedirect() string {
	d := p.dialect()
	switch {
	case p.RedirectURL != "":
		return p.RedirectURL
	case d.PastePage != "" && p.builtin:
		return d.PastePage
	case d.PastePage != "":
		if page, err := url.Parse(d.PastePage); err == nil {
			if at := origin(cmp.Or(p.TokenURL, p.Issuer)); at != "" {
				return at + page.Path
			}
		}
	case len(d.Redirects) > 0:
		return d.Redirects[0]
	}
	return defaultRedirect
}

// origin is the scheme and host of a URL, "" if it is none.
func origin(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// For is the provider with the client id that it issued together with the login, where it does that.
func (p *Provider) For(g *grant.Grant) *Provider {
	if g == nil || g.ClientID == "" || g.ClientID == p.ClientID {
		return p
	}
	issued := *p
	issued.ClientID = g.ClientID
	return &issued
}

// inJSON tells how a token request is encoded for which the dialect has the given default.
func (p *Provider) inJSON(dialectsOwn bool) bool {
	return p.Encoding == "json" || p.Encoding == "" && dialectsOwn
}

// RequestFingerprint tells whether a refresh would be the same request as an earlier one: it changes with the refresh
// token, the client's id (also one that was issued with the login) and secret, the endpoint or the issuer that names it,
// the dialect and the encoding, which together decide the answer.
func (p *Provider) RequestFingerprint(old *grant.Grant, clientSecret secret.String) string {
	p = p.For(old)
	var b strings.Builder
	for _, part := range []string{
		p.TokenURL, p.Issuer, p.Dialect, fmt.Sprint(p.inJSON(p.dialect().Token.RefreshJSON)), p.ClientID,
		clientSecret.Reveal(), old.RefreshToken.Reveal(),
	} {
		fmt.Fprintf(&b, "%d:%s", len(part), part) // with its length, no part can continue another
	}
	return secret.New(b.String()).Fingerprint()
}

// MissingSecret is the *Error for a provider whose client secret is not stored under ClientSecretKey. It says where the
// secret is to be had and how to store it.
func (p *Provider) MissingSecret() error {
	hint := `; store it with "credproxy key set ` + p.ClientSecretKey + `"`
	if source := p.dialect().SecretSource; source != "" && p.builtin {
		hint = "; " + source + hint
	}
	return &Error{Kind: Refused, Provider: p.Name, reason: noSecret, hint: hint}
}

const noSecret = "its client secret is not stored"

// NoSecret reports whether a request was not even sent, for want of the client secret ([Provider.MissingSecret]).
func (e *Error) NoSecret() bool { return e.reason == noSecret }

// keeps reports whether a member of an answer is kept in the grant.
func (p *Provider) keeps(field string) bool { return slices.Contains(p.Fields, field) }
