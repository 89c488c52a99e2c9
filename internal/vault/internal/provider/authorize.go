package provider

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Authorization is one request for an authorization code. It prints as a placeholder: its state and verifier are this
// login's secrets.
type Authorization struct {
	URL      string // where the person's browser goes
	Redirect string // where it comes back to

	provider *Provider // resolved
	verifier secret.String
	state    secret.String // zero when the dialect has none
	nonce    secret.String // zero when the dialect has none
}

const redactedAuthorization = "authorization(redacted)"

func (Authorization) String() string               { return redactedAuthorization }
func (Authorization) GoString() string             { return redactedAuthorization }
func (Authorization) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redactedAuthorization)) }
func (Authorization) LogValue() slog.Value         { return slog.StringValue(redactedAuthorization) }
func (Authorization) MarshalJSON() ([]byte, error) { return nil, secret.ErrMarshal }

// random is 32 random bytes in 43 characters that need no escaping in a URL.
func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// Authorize makes a request for an authorization code (RFC 6749 section 4.1.1) with a state and a challenge of its own
// (RFC 7636, S256). redirect is one of [Provider.Redirects], with its port, or [Provider.PasteRedirect]; where the
// dialect has no state, the Authorization's Redirect has a random element behind it instead. The verifier is in the URL
// only as its hash. Errors are *Error.
func (c *Client) Authorize(ctx context.Context, p *Provider, redirect string) (*Authorization, error) {
	p, err := c.resolve(ctx, p, p.AuthorizeURL == "")
	if err != nil {
		return nil, err
	}
	if p.AuthorizeURL == "" {
		return nil, &Error{Kind: Refused, Provider: p.Name, reason: "it has no page for a login (authorize_url)"}
	}
	u, err := url.Parse(p.AuthorizeURL)
	if err != nil {
		return nil, &Error{Kind: Refused, Provider: p.Name, reason: "authorize_url is not a URL"}
	}
	d := p.dialect().Authorize
	a := &Authorization{Redirect: redirect, provider: p, verifier: secret.New(oauth2.GenerateVerifier())}
	q := u.Query()
	for name, value := range d.Params {
		q.Set(name, value)
	}
	for name, value := range p.AuthorizeParams {
		q.Set(name, value)
	}
	q.Set("code_challenge", oauth2.S256ChallengeFromVerifier(a.verifier.Reveal()))
	q.Set("code_challenge_method", "S256")
	if d.Callback != "" {
		a.Redirect = strings.TrimSuffix(redirect, "/") + "/" + random()
		q.Set(d.Callback, a.Redirect)
	} else {
		a.state = secret.New(random())
		q.Set("response_type", "code")
		q.Set("client_id", p.ClientID)
		q.Set("redirect_uri", redirect)
		q.Set("state", a.state.Reveal())
		if len(p.Scopes) > 0 {
			q.Set("scope", strings.Join(p.Scopes, " "))
		}
	}
	if d.Nonce {
		a.nonce = secret.New(random())
		q.Set("nonce", a.nonce.Reveal())
	}
	if d.Install != "" {
		id, err := c.installation()
		if err != nil {
			return nil, &Error{Kind: Refused, Provider: p.Name, reason: "this installation's id cannot be had", err: err}
		}
		q.Set(d.Install, "urn:uuid:"+id)
	}
	// Some servers read + literally in a query; both mean a space (WHATWG URL), and a + itself is %2B by now.
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	a.URL = u.String()
	return a, nil
}

// Mine reports whether a state that came back is this login's, in time that does not depend on how much is right. Where
// the dialect has no state that is "".
func (a *Authorization) Mine(state string) bool {
	return subtle.ConstantTimeCompare([]byte(state), []byte(a.state.Reveal())) == 1
}

// maxCode bounds an authorization code, and what else comes back with it, in bytes.
const maxCode = 4096

// Exchange turns what came back from an authorization request into a grant (RFC 6749 section 4.1.3, RFC 7636 section
// 4.5). q is the query of the redirect, or the parts of a pasted text: code or error, and if they are there state, iss
// (RFC 9207) and client_id. A code is sent once; whoever has a browser's query checks with [Authorization.Mine] that it
// came from this login. Errors are *Error.
func (c *Client) Exchange(ctx context.Context, a *Authorization, q url.Values, clientSecret secret.String) (*grant.Grant, error) {
	code, err := a.code(q)
	if err != nil {
		return nil, err
	}
	p, d := a.provider, a.provider.dialect()
	issued := ""
	if d.Authorize.IssuesClient {
		issued = q.Get("client_id")
		if len(q["client_id"]) != 1 || !visible(issued, 256) {
			return nil, &Error{Kind: Malformed, Provider: p.Name, reason: "it issued no usable client id for this login"}
		}
		p = p.For(&grant.Grant{ClientID: issued})
	}
	g, err := c.exchange(ctx, p, code, a.Redirect, a.verifier, a.state, clientSecret)
	if err != nil {
		return nil, err
	}
	if want := d.Token.Scope; want != "" && g.Scope != "" && !slices.Contains(strings.Fields(g.Scope), want) {
		return nil, &Error{Kind: Refused, Provider: p.Name, reason: "the login was granted, but not for what its tokens are needed for"}
	}
	for _, field := range g.Fields {
		if field.Name != "id_token" || a.nonce.IsZero() {
			continue
		}
		if nonce := text(claims(text(field.Value))["nonce"]); nonce != "" && !a.nonce.Equal(secret.New(nonce)) {
			return nil, &Error{Kind: Refused, Provider: p.Name, reason: "its id token belongs to another login"}
		}
	}
	g.ClientID = issued
	return g, nil
}

// exchange sends a code. state is of the authorization, zero when it has none.
func (c *Client) exchange(ctx context.Context, p *Provider, code, redirect string, verifier, state, clientSecret secret.String) (*grant.Grant, error) {
	if p.ClientSecretKey != "" && clientSecret.IsZero() {
		return nil, p.MissingSecret()
	}
	d := p.dialect()
	params := url.Values{"code": {code}, "code_verifier": {verifier.Reveal()}}
	minting := d.Authorize.Callback != ""
	if minting {
		params.Set("code_challenge_method", "S256")
	} else {
		params.Set("grant_type", "authorization_code")
		params.Set("redirect_uri", redirect)
		if d.Token.State && !state.IsZero() {
			params.Set("state", state.Reveal())
		}
		for name, value := range d.Token.Params {
			params.Set(name, value)
		}
	}
	r, err := c.post(ctx, p, request{
		endpoint: p.TokenURL, params: params, json: p.inJSON(d.Token.ExchangeJSON), secret: clientSecret, anonymous: minting,
	})
	if err != nil {
		return nil, err
	}
	if r.status/100 != 2 {
		return nil, p.refused(r, false)
	}
	g, err := p.parse(Answer{r.body, r.sent}, nil, false)
	if err != nil {
		return nil, err
	}
	return g.WithoutFieldsOf(verifier), nil
}

// code is the authorization code of q, if q is this login's and holds one.
func (a *Authorization) code(q url.Values) (string, error) {
	p := a.provider
	failed := func(kind Kind, reason string) error { return &Error{Kind: kind, Provider: p.Name, reason: reason} }
	for _, name := range []string{"code", "error", "state", "iss"} {
		if len(q[name]) > 1 { // RFC 6749 section 3.1
			return "", failed(Malformed, "what came back from the login names "+name+" twice")
		}
	}
	switch state, iss := q["state"], q.Get("iss"); {
	case len(state) > 0 && !a.state.IsZero() && !a.Mine(state[0]):
		return "", failed(Refused, "what came back belongs to another login")
	case p.Issuer != "" && q.Has("iss") && iss != p.Issuer,
		p.issInAnswers && !q.Has("iss") && len(state) > 0 && loopbackHTTP(a.Redirect):
		return "", failed(Refused, "what came back is from another issuer than the one configured")
	}
	if code := q.Get("error"); code != "" {
		return "", a.denied(strings.ToLower(code))
	}
	code := q.Get("code")
	if code == "" || len(code) > maxCode || !printable(code) {
		return "", failed(Malformed, "no code came back from the login")
	}
	return code, nil
}

// denied is the error of an authorization response (RFC 6749 section 4.1.2.1).
func (a *Authorization) denied(code string) *Error {
	e := &Error{Kind: Refused, Provider: a.provider.Name, Code: PlainCode(code), reason: "it refused the login"}
	switch {
	case slices.Contains(deniedCodes, code):
		e.Kind, e.reason = Denied, "the login was denied"
	case slices.Contains(transientCodes, code):
		e.Kind, e.reason = Transient, "it cannot answer now"
	}
	return e
}

// visible reports whether s has 1 to limit characters, all of visible ASCII (RFC 6749 appendix A.1, without the space).
func visible(s string, limit int) bool {
	return s != "" && len(s) <= limit && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
