package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// BuiltinProviders are the names that a provider from the file cannot have. Their endpoints are constants, and a description under
// one of these names would redirect a login that people trust.
var BuiltinProviders = []string{"anthropic", "codex", "chatgpt", "gemini", "qwen", "github", "xai", "kimi", "openrouter"}

// BuiltinSecretKeys are the stored keys that hold client secrets of built-in providers, each with its provider. As those that the
// file names, they never go inside.
var BuiltinSecretKeys = map[string]string{"gemini-client-secret": "gemini"}

// Dialects are the ways to log in and to talk to a token endpoint: RFC 6749 with its kin, or one built-in provider's deviations
// from them.
var Dialects = append([]string{plainDialect}, BuiltinProviders...)

// plainDialect has nothing of its own: the description says everything. The others bring a client id, flows and their order; that
// of openrouter has no client id because it needs none.
const plainDialect = "oauth2"

// Flows are the ways to log in: a browser that comes back to a loopback address (RFC 8252), a device code (RFC 8628), a code that
// the provider shows and the user pastes.
var Flows = []string{"browser", "device", "paste"}

// longLived are fields of a token answer that outlive the sandbox. No spelling of them can be named in token_fields.
var longLived = []string{"refreshtoken", "clientsecret", "codeverifier", "devicecode", "deviceauthid", "registrationaccesstoken"}

// ownParams are parameters of the authorisation request that the login makes itself: set from outside, they would undo PKCE
// (RFC 7636), the check of the state, or the choice of the client; request and request_uri (RFC 9101) replace all the others.
var ownParams = []string{"client_id", "client_secret", "redirect_uri", "response_type", "scope", "state", "code_challenge",
	"code_challenge_method", "code_verifier", "request", "request_uri"}

func (d *decoder) provider(n *node, name string) *Provider {
	before := len(d.errs)
	p := &Provider{Name: name, Dialect: plainDialect}
	if slices.ContainsFunc(BuiltinProviders, func(b string) bool { return strings.EqualFold(b, name) }) {
		d.fail(n, "%s is the name of a built-in provider, whose endpoints cannot be changed; choose another name (dialect = %q talks like it)",
			n, strings.ToLower(name))
		return p
	}
	f := d.section(n, providerKeys)
	d.choice(f["dialect"], &p.Dialect, Dialects...)
	d.choice(f["token_encoding"], &p.TokenEncoding, "form", "json")
	if p.TokenEncoding == "" && p.Dialect == plainDialect {
		p.TokenEncoding = "form" // RFC 6749, appendix B
	}
	if id := f["client_id"]; d.str(id, &p.ClientID) && (p.ClientID == "" || !isVisible(p.ClientID)) {
		d.fail(id, "%s must be printable characters without spaces", id) // RFC 6749, appendix A.1
	}
	if key := f["client_secret_key"]; d.str(key, &p.ClientSecretKey) && !isName(p.ClientSecretKey) {
		// The value is not printed: it may be the secret itself.
		d.fail(key, `%s must be the name of a stored key (1 to 64 of A-Z a-z 0-9 . _ -), not a secret; "credproxy key set NAME" stores one`, key)
	}
	d.issuer(f["issuer"], &p.Issuer)
	d.endpoint(f["authorize_url"], &p.AuthorizeURL)
	d.endpoint(f["token_url"], &p.TokenURL)
	d.endpoint(f["device_url"], &p.DeviceURL)
	d.endpoint(f["revoke_url"], &p.RevokeURL)
	redirect := d.url(f["redirect_url"], &p.RedirectURL)

	for _, item := range d.strings(f["scopes"]) {
		if item.text == "" || !isVisible(item.text) || strings.ContainsAny(item.text, `"\`) { // RFC 6749, section 3.3
			d.fail(item, "%s in %s is not one scope; each is a string of its own, without spaces and quotes", quote(item.text), item)
		}
		p.Scopes = append(p.Scopes, item.text)
	}
	for _, item := range d.strings(f["token_fields"]) {
		switch {
		case !isName(item.text):
			d.fail(item, "%s in %s is not a field's name (1 to 64 of A-Z a-z 0-9 . _ -)", quote(item.text), item)
		case slices.Contains(longLived, strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "").Replace(item.text))):
			d.fail(item, "%s in %s outlives the sandbox and never goes inside; remove it", quote(item.text), item)
		}
		p.TokenFields = append(p.TokenFields, item.text)
	}
	p.AuthorizeParams = map[string]string{}
	for key, value := range d.table(f["authorize_params"]) {
		switch {
		case key == "" || !isVisible(key):
			d.fail(value, "%s is not a parameter's name", value)
		case strings.EqualFold(key, "scope"):
			d.fail(value, `%s is set from "scopes" of %s; move it there`, value, n.section())
		case slices.Contains(ownParams, strings.ToLower(key)):
			d.fail(value, "%s is made by the login itself and cannot be set; remove it", value)
		}
		var s string
		if d.str(value, &s) {
			p.AuthorizeParams[key] = s
		}
	}

	flows := f["flows"]
	if flows != nil { // else they follow from the dialect and the endpoints, which the provider's metadata may have
		p.Flows = []string{}
		for _, item := range d.strings(flows) {
			if d.oneOf(item, Flows) {
				p.Flows = append(p.Flows, item.text)
			}
		}
	}
	d.redirect(f["redirect_url"], redirect, p.Flows)
	if len(d.errs) == before { // else what seems to be missing may be there, misspelt
		d.required(n, flows, p)
	}
	return p
}

// required looks for what is missing. With an issuer no endpoint is: its metadata has them (RFC 8414, OpenID Connect Discovery).
func (d *decoder) required(n, flows *node, p *Provider) {
	if p.ClientID == "" && p.Dialect == plainDialect {
		d.fail(n, `%s needs "client_id"`, n.section())
	}
	if p.Issuer != "" {
		return
	}
	if p.TokenURL == "" {
		d.fail(n, `%s needs "token_url", or "issuer" to find it`, n.section())
	}
	for _, flow := range p.Flows {
		if flow == "device" && p.DeviceURL == "" {
			d.fail(flows, `flow "device" of %s needs "device_url", or "issuer" to find it`, n.section())
		}
		if flow != "device" && p.AuthorizeURL == "" {
			d.fail(flows, `flow %q of %s needs "authorize_url", or "issuer" to find it`, flow, n.section())
		}
	}
}

// redirect checks where the browser is sent after the login: to a listener of ours, or to a page that shows the code. Flows that
// are not known yet (nil) will be chosen such that they fit.
func (d *decoder) redirect(n *node, u *url.URL, flows []string) {
	if u == nil {
		return
	}
	browser, paste := slices.Contains(flows, "browser"), flows == nil || slices.Contains(flows, "paste")
	switch {
	case u.Scheme == "http" && isLoopback(u.Hostname()):
		if u.RawQuery != "" || u.ForceQuery {
			d.fail(n, "%s must not have a query", n)
		}
	case browser:
		d.fail(n, `%s must be http on loopback for the flow "browser", such as "http://localhost:8085/callback"`, n)
	case u.Scheme != "https":
		d.fail(n, `%s must be http on loopback, or https for the flow "paste"`, n)
	case !paste:
		d.fail(n, `%s can be https only for the flow "paste"; otherwise it must be http on loopback`, n)
	}
}

// endpoint reads a URL to which secrets may be sent. It is nil if there is none, or a bad one.
func (d *decoder) endpoint(n *node, dst *string) *url.URL {
	u := d.url(n, dst)
	if u == nil || u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname()) {
		return u
	}
	d.fail(n, "%s must be https (or http on loopback)", n)
	return nil
}

// issuer reads an issuer identifier: an endpoint without query and fragment (RFC 8414, section 2).
func (d *decoder) issuer(n *node, dst *string) {
	if u := d.endpoint(n, dst); u != nil && (u.RawQuery != "" || u.ForceQuery) {
		d.fail(n, "%s must not have a query", n)
	}
}

// url reads an absolute http or https URL. Its text is never printed: a password or token could be in it.
func (d *decoder) url(n *node, dst *string) *url.URL {
	if !d.str(n, dst) {
		return nil
	}
	u, err := url.Parse(n.text)
	switch {
	case err != nil || n.text == "" || !isVisible(n.text):
		d.fail(n, "%s is not a URL", n)
	case u.Scheme != "https" && u.Scheme != "http":
		d.fail(n, "%s must be https (or http on loopback)", n)
	case u.Opaque != "" || u.Hostname() == "" || !validPort(u):
		d.fail(n, "%s is not a URL with a host", n)
	case u.User != nil:
		d.fail(n, "%s must not have a user name or password in it", n)
	case strings.Contains(n.text, "#"): // RFC 6749, sections 3.1 to 3.2: no fragment
		d.fail(n, "%s must not have a fragment (#…)", n)
	default:
		return u
	}
	return nil
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	_, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil
}

// isLoopback reports whether host can only be this machine: 127.0.0.0/8, ::1, or the name localhost (RFC 6761, section 6.3).
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Zone() == "" && addr.IsLoopback()
}
