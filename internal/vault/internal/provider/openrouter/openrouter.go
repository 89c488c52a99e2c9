// Package openrouter has what OpenRouter does in place of OAuth: its [Dialect].
package openrouter

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect mints an API key that does not expire, and knows no clients. Callbacks on localhost may have any port; 3000 is
// the one that has always been permitted (openrouter.ai/docs, "OAuth PKCE").
var Dialect = dialect.Dialect{
	AuthorizeURL: "https://openrouter.ai/auth",
	TokenURL:     "https://openrouter.ai/api/v1/auth/keys",
	Terms:        "OpenRouter makes an API key that does not expire; a logout removes it here, and its settings page revokes it.",

	Flows:     []string{"browser", "paste"},
	Redirects: []string{"http://localhost:3000/callback", "http://localhost/callback"},

	Authorize: dialect.Authorize{Callback: "callback_url"},
	// A status without a code says that the code is not good.
	Token: dialect.Token{ExchangeJSON: true, Access: "key", DeadStatuses: []int{400, 403}},
}
