// Package chatgpt has what OpenAI's "Sign in with ChatGPT" for other programs does differently: its [Dialect].
package chatgpt

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// resource is what the tokens are for (RFC 8707).
const resource = "https://api.openai.com/v1"

// Dialect begins with a client id that everybody has; the redirect brings the one that is used from there on.
var Dialect = dialect.Dialect{
	AuthorizeURL: "https://auth.openai.com/api/accounts/authorize",
	TokenURL:     "https://auth.openai.com/api/accounts/oauth/token",

	ClientID:  "dynamic_agent_client",
	Scopes:    []string{"openid", "profile", "email", "offline_access", "resource.invoke", "chatgpt.tokens.use.direct"},
	Flows:     []string{"browser", "paste"},
	Redirects: []string{"http://127.0.0.1:1455/auth/callback"},

	Authorize: dialect.Authorize{
		Params:       map[string]string{"agent_name_hint": "credproxy", "resource": resource},
		Install:      "ext_agent_host_id",
		Nonce:        true,
		IssuesClient: true,
	},
	Token: dialect.Token{
		Params: map[string]string{"resource": resource},
		Scope:  "chatgpt.tokens.use.direct",
		// The server is the same as Codex's.
		DeadCodes:    []string{"refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"},
		DeadStatuses: []int{401},
	},
}
