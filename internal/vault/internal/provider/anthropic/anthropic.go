// Package anthropic has what Anthropic's login for Claude subscriptions does differently: its [Dialect].
package anthropic

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect has token requests in JSON, with the state repeated in the exchange. The page for pasting shows code#state.
// Refresh tokens are single-use; an answer may omit refresh_token when it did not rotate. There is no revocation and no
// login by device code.
var Dialect = dialect.Dialect{
	AuthorizeURL: "https://claude.ai/oauth/authorize",
	TokenURL:     "https://platform.claude.com/v1/oauth/token",
	Status:       dialect.Restricted,
	Terms: "Anthropic does not permit other programs to obtain, keep or pass on logins of Claude subscriptions (Free, Pro, Max)" +
		" and may refuse their tokens; an API key from the Claude Console is permitted.",

	ClientID:  "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
	Scopes:    []string{"org:create_api_key", "user:profile", "user:inference"},
	Flows:     []string{"paste", "browser"},
	Redirects: []string{"http://localhost/callback"},
	PastePage: "https://platform.claude.com/oauth/code/callback",

	Authorize: dialect.Authorize{Params: map[string]string{"code": "true"}},
	Token:     dialect.Token{ExchangeJSON: true, RefreshJSON: true, State: true},
}
