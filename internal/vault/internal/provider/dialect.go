package provider

import (
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
)

// dialect is what one provider does differently from RFC 6749. The zero value is RFC 6749 as it stands.
type dialect struct {
	// Of the built-in provider. The client id is also the default of a configured provider with this dialect.
	clientID            string
	tokenURL, revokeURL string
	secretKey           string // the stored key with the client secret that the built-in provider needs
	secretSource        string // where a person finds that secret

	json         bool // token requests are JSON objects
	secretInBody bool // where a client secret is tried first; RFC 6749 section 2.3.1 prefers HTTP Basic

	// What says, beside invalid_grant, that a refresh token is dead for good. A status says it with any error code but
	// those that are about the client or about waiting.
	deadCodes    []string
	deadStatuses []int

	// account finds the account's id in an answer's id token and access token; "" when it is in neither.
	account func(idToken, accessToken string) string
}

// dialects holds what the vendors' own clients send and understand. The endpoints are constants: nothing in the
// environment or in the configuration redirects a built-in provider.
var dialects = map[string]dialect{
	"oauth2": {},
	// Refresh tokens are single-use; an answer may omit refresh_token when it did not rotate. There is no revocation.
	"anthropic": {
		clientID: "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
		tokenURL: "https://platform.claude.com/v1/oauth/token",
		json:     true,
	},
	// Refresh tokens are single-use; an answer may omit id_token and expires_in.
	"codex": {
		clientID:     "app_EMoamEEZ73f0CkXaXp7hrann",
		tokenURL:     "https://auth.openai.com/oauth/token",
		revokeURL:    "https://auth.openai.com/oauth/revoke",
		json:         true,
		deadCodes:    []string{"refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"},
		deadStatuses: []int{401},
		account:      openAIAccount,
	},
	// A refresh token stays the same and is in no refresh's answer. The client is an installed application, whose secret
	// is published but is not ours to publish.
	"gemini": {
		clientID:  "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
		tokenURL:  "https://oauth2.googleapis.com/token",
		revokeURL: "https://oauth2.googleapis.com/revoke",
		secretKey: "gemini-client-secret",
		secretSource: "Google publishes it in the source of Gemini CLI as OAUTH_CLIENT_SECRET" +
			" (github.com/google-gemini/gemini-cli, packages/core/src/code_assist/oauth2.ts)",
		secretInBody: true,
	},
	// An answer's scope may be null; resource_url is the host to use the token at.
	"qwen": {
		clientID:     "f0304373b74a44d2b584a3fb70ca9e56",
		tokenURL:     "https://chat.qwen.ai/api/v1/oauth2/token",
		deadStatuses: []int{400, 401},
	},
	// Errors come with status 200.
	"github": {
		clientID:     "178c6fc778ccc68e1d6a",
		tokenURL:     "https://github.com/login/oauth/access_token",
		secretInBody: true,
		deadCodes:    []string{"bad_refresh_token"},
	},
	// refresh_token is omitted when it did not rotate.
	"xai": {
		clientID: "b1a00492-073a-47ea-816f-4c329264a828",
		tokenURL: "https://auth.x.ai/oauth2/token",
	},
	"kimi": {
		clientID:     "17e5f671-d194-4dfb-9706-5516cb48c098",
		tokenURL:     "https://auth.kimi.com/api/oauth/token",
		deadStatuses: []int{401, 403},
	},
}

// Builtin is a provider that needs no description: anthropic, codex, gemini, qwen, github, xai or kimi. Its stored
// logins can be refreshed; it has no endpoint for a login.
func Builtin(name string) (*Provider, bool) {
	d, ok := dialects[name]
	if !ok || d.tokenURL == "" {
		return nil, false
	}
	return &Provider{
		Name:            name,
		Dialect:         name,
		ClientID:        d.clientID,
		ClientSecretKey: d.secretKey,
		TokenURL:        d.tokenURL,
		RevokeURL:       d.revokeURL,
		Fields:          grant.DefaultFields,
		JSONBody:        d.json,
		secretSource:    d.secretSource,
	}, true
}
