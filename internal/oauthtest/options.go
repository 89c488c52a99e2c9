package oauthtest

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"time"
)

// Grant types, as sent in grant_type.
const (
	GrantCode    = "authorization_code"
	GrantRefresh = "refresh_token"
	GrantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
)

// Approval says who answers for the user.
type Approval int

const (
	ApproveAll Approval = iota // every request is approved at once
	AskUser                    // the pages at /authorize and /verify ask; [Server.Decide] answers for a user code
	DenyAll                    // every request is denied at once
)

// Rotation says what a refresh does to the refresh token.
type Rotation int

const (
	Rotate        Rotation = iota // a new one each time; the old one's reuse revokes the family
	Keep                          // it stays, and the answer has no refresh_token
	KeepAndRepeat                 // it stays, and the answer repeats it
)

// Encoding says which request bodies the token, device and revocation endpoints take.
type Encoding int

const (
	FormBody       Encoding = iota // application/x-www-form-urlencoded, as RFC 6749 has it
	FormOrJSONBody                 // also a flat JSON object
	JSONBody                       // a flat JSON object only
)

// ClientSecret is that of the confidential client which a dialect has by default ("gemini").
const ClientSecret = "test-client-secret-1"

// Client is a registered client. One without a Secret is public; one with a Secret authenticates by HTTP Basic or in the body.
type Client struct {
	ID     string
	Secret string
	// RedirectURIs are compared exactly, except that the port of an http URI on 127.0.0.1, [::1] or localhost is free
	// (RFC 8252 section 7.3).
	RedirectURIs []string
	// Grants are the grant types the client may use; empty allows all. Without [GrantRefresh] no refresh token is issued.
	Grants []string
}

func (c *Client) may(grant string) bool {
	return len(c.Grants) == 0 || slices.Contains(c.Grants, grant)
}

// expires says that the client names [GrantRefresh]: for a dialect whose tokens last unless the client wants refreshes.
func (c *Client) expires() bool { return slices.Contains(c.Grants, GrantRefresh) }

// Prefixes begin the issued strings, so that a search of bytes can tell what leaked.
type Prefixes struct {
	Access  string // default "at-"
	Refresh string // default "rt-"
	Code    string // default "ac-"
	Device  string // default "dc-"
}

// Options configure a server. The zero value is a strict server that approves everything and knows the public client
// "test-client" with the redirect URI "http://127.0.0.1/callback".
type Options struct {
	// Dialect makes the server play a vendor ([Dialects]) with its paths, members, encodings and errors, and refuse what
	// the vendor's description does not have. Empty: the plain server, which speaks as the RFCs do.
	// Clients, Scopes, Rotation, lifetimes and Prefixes that are not set are the vendor's, Encoding and PKCEOptional always.
	Dialect string

	Clients []Client
	// Issuer is the base URL in every address the server hands out. Start sets it; for New the default is
	// "http://oauthtest.invalid". A path belongs to the issuer's name alone: it is where RFC 8414 section 3.1 puts it in the
	// address of the metadata, and the other endpoints do not have it.
	Issuer string
	// IssuerPath, such as "/tenant", is appended to the Issuer that Start makes, and to none that was set.
	IssuerPath string
	// Scopes are those that can be asked for, and what is granted when none is. Empty: any are granted as asked.
	Scopes []string

	Approval Approval
	Rotation Rotation
	Encoding Encoding

	// PKCEOptional lets an authorisation request come without code_challenge. One that has it is always held to it.
	PKCEOptional bool
	// SendIssuer adds iss to authorisation responses (RFC 9207).
	SendIssuer bool

	AccessLifetime  time.Duration // default 1 h; whole seconds, sent as expires_in
	RefreshLifetime time.Duration // zero: refresh tokens do not expire
	CodeLifetime    time.Duration // default 1 min
	DeviceLifetime  time.Duration // default 10 min; whole seconds
	DeviceInterval  time.Duration // default 5 s; whole seconds

	Prefixes Prefixes
	// Account is the user's account where a vendor names it: a claim of the JWTs, a member of the answer. Default "test-account".
	Account string
	// Extra are added to every token answer, for example account_id, id_token or resource_url.
	Extra map[string]any
}

// client and scopes set what is not set.
func (o *Options) client(c Client) {
	if len(o.Clients) == 0 {
		o.Clients = []Client{c}
	}
}

func (o *Options) scopes(known ...string) {
	if len(o.Scopes) == 0 {
		o.Scopes = known
	}
}

// split returns scheme and host of the issuer, and its path.
func (o *Options) split() (base, issuerPath string, err error) {
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", "", fmt.Errorf("issuer %q: not scheme, host and path", o.Issuer)
	}
	if u.Path != "" && (u.Path != path.Clean(u.Path) || u.RawPath != "") {
		return "", "", fmt.Errorf("issuer %q: its path is not clean", o.Issuer)
	}
	return u.Scheme + "://" + u.Host, u.Path, nil
}

func (o *Options) complete(v *vendor, base string) error {
	if v.options != nil {
		v.options(o, base)
	}
	if len(o.Clients) == 0 {
		o.Clients = []Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}}
	}
	seen := map[string]bool{}
	for i := range o.Clients {
		c := &o.Clients[i]
		if c.ID == "" || seen[c.ID] {
			return fmt.Errorf("client %d: its id %q is empty or taken", i, c.ID)
		}
		seen[c.ID] = true
		for _, raw := range c.RedirectURIs {
			// RFC 6749 section 3.1.2: absolute, and without a fragment.
			if u, err := url.Parse(raw); err != nil || !u.IsAbs() || u.Fragment != "" {
				return fmt.Errorf("client %q: redirect URI %q is not an absolute URI without a fragment", c.ID, raw)
			}
		}
	}
	setDefault(&o.Account, "test-account")
	setDefault(&o.AccessLifetime, time.Hour)
	setDefault(&o.CodeLifetime, time.Minute)
	setDefault(&o.DeviceLifetime, 10*time.Minute)
	setDefault(&o.DeviceInterval, 5*time.Second)
	for name, d := range map[string]time.Duration{
		"AccessLifetime": o.AccessLifetime, "DeviceLifetime": o.DeviceLifetime, "DeviceInterval": o.DeviceInterval,
	} {
		if d < time.Second || d%time.Second != 0 {
			return fmt.Errorf("%s %v: it goes over the wire in whole seconds, at least one", name, d)
		}
	}
	if o.RefreshLifetime < 0 || o.CodeLifetime < 0 {
		return errors.New("a lifetime is negative")
	}
	setDefault(&o.Prefixes.Access, "at-")
	setDefault(&o.Prefixes.Refresh, "rt-")
	setDefault(&o.Prefixes.Code, "ac-")
	setDefault(&o.Prefixes.Device, "dc-")
	for _, name := range []string{"access_token", "refresh_token", "token_type", "expires_in", "scope"} {
		if _, ok := o.Extra[name]; ok {
			return fmt.Errorf("extra field %q belongs to the server; change it with a Fault", name)
		}
	}
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
