// Package dialect holds the type in which a vendor's package says how its authorisation server differs from RFC 6749:
// a [Dialect], which is data alone. Package provider does what it says; nobody else needs it.
package dialect

import "time"

// What vendors say about logins that other programs make.
const (
	OK           = "ok"
	Restricted   = "restricted"   // the vendor does not permit it
	Discontinued = "discontinued" // the vendor has ended the service for most
)

// Dialect is what one vendor does differently. The zero value is RFC 6749 with RFC 7009, RFC 7636 and RFC 8628 as they
// stand.
type Dialect struct {
	// Of the built-in provider only. The endpoints are constants: nothing in the environment or in the configuration
	// redirects a built-in provider.
	AuthorizeURL string
	TokenURL     string
	DeviceURL    string
	RevokeURL    string
	Status       string // OK, Restricted or Discontinued; "" is OK
	Terms        string // a sentence for a person who is about to log in; may be ""
	SecretKey    string // the stored key with the client secret that the built-in provider needs
	SecretSource string // where a person finds that secret

	// Of every provider that talks like it, where its description has nothing else.
	ClientID  string
	Scopes    []string
	Flows     []string // "browser", "device" and "paste", in the order of preference
	Redirects []string // loopback redirect URIs in the order to try; one without a port takes any (RFC 8252 section 7.3)
	PastePage string   // the vendor's page that shows a code to be pasted

	Authorize Authorize
	Token     Token
	Device    Device
	Revoke    Revoke
}

// Authorize is about the authorisation request and what comes back from it.
type Authorize struct {
	Params map[string]string // constant parameters

	// Install is the parameter that takes a stable URN of this installation.
	Install string

	// Nonce asks for an id token with a nonce (OpenID Connect Core section 3.1.2.1).
	Nonce bool

	// IssuesClient: the redirect brings a client id that belongs to this login, for its token requests.
	IssuesClient bool

	// Callback, if set, says that this is no OAuth but the minting of a key: the request is this parameter with the
	// redirect URI, and PKCE's; no state comes back; the token request is code, code_verifier and
	// code_challenge_method.
	Callback string
}

// Token is about token requests and their answers.
type Token struct {
	ExchangeJSON bool // the body is a JSON object instead of a form
	RefreshJSON  bool
	SecretInBody bool // where a client secret is tried first; RFC 6749 section 2.3.1 prefers HTTP Basic

	State  bool              // the exchange of a code repeats state
	Params map[string]string // constant parameters of exchange and refresh

	// Access is the member with the access token; "" is access_token.
	Access string

	// Scope is a scope without which a login is of no use, where the answer names scopes at all.
	Scope string

	// Lifetime is of an access token for which the answer has none; 0 when it is not known.
	Lifetime time.Duration

	// What says, beside invalid_grant, that a refresh token is dead for good. A status says it with any error code but
	// those that are about the client or about waiting.
	DeadCodes    []string
	DeadStatuses []int

	// Account is the path of the claim with the account's id in the id token, or else in the access token. It becomes
	// the member account_id.
	Account []string
}

// Device is about the login by device code.
type Device struct {
	PKCE      bool   // the request has a challenge, the poll its verifier
	RequestID string // the header that takes a random UUID of the request

	// Expired are statuses that say, whatever the code, that the device code is over.
	Expired []int

	// Auth is set for a protocol that is not RFC 8628's.
	Auth *DeviceAuth
}

// DeviceAuth is OpenAI's login by device code. JSON all through: the client's id goes to the device endpoint, which
// answers device_auth_id, user_code and interval; those two go to its sibling Poll, which answers PendingStatuses until
// the person is done, and then authorization_code with the code_verifier that the server made. The code is exchanged as
// any other, with the redirect URI Callback.
type DeviceAuth struct {
	Poll            string // last element of the path, in place of the device endpoint's
	Page            string // path of the person's page, at the device endpoint's origin
	Callback        string // path, at the same origin
	PendingCode     string
	PendingStatuses []int
}

// Revoke is about revocation requests.
type Revoke struct {
	JSON bool

	// TokenOnly: the request has no token_type_hint and says nothing about the client.
	TokenOnly bool

	// RefreshClient: the request names the client only when it is about a refresh token.
	RefreshClient bool
}
