// Package codex has what OpenAI's login for its own Codex client does differently: its [Dialect].
package codex

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect exchanges in a form and refreshes in JSON. Two loopback ports are registered, no others. Refresh tokens are
// single-use; an answer may omit id_token and expires_in.
var Dialect = dialect.Dialect{
	AuthorizeURL: "https://auth.openai.com/oauth/authorize",
	TokenURL:     "https://auth.openai.com/oauth/token",
	DeviceURL:    "https://auth.openai.com/api/accounts/deviceauth/usercode",
	RevokeURL:    "https://auth.openai.com/oauth/revoke",
	Terms:        `This is the login of OpenAI's own client Codex; the one that OpenAI offers to other programs is "chatgpt".`,

	ClientID:  "app_EMoamEEZ73f0CkXaXp7hrann",
	Scopes:    []string{"openid", "profile", "email", "offline_access"},
	Flows:     []string{"browser", "device", "paste"},
	Redirects: []string{"http://localhost:1455/auth/callback", "http://localhost:1457/auth/callback"},

	Authorize: dialect.Authorize{Params: map[string]string{
		"id_token_add_organizations": "true",
		"codex_cli_simplified_flow":  "true",
		"originator":                 "credproxy",
	}},
	Token: dialect.Token{
		RefreshJSON:  true,
		DeadCodes:    []string{"refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"},
		DeadStatuses: []int{401},
		Account:      []string{"https://api.openai.com/auth", "chatgpt_account_id"},
	},
	Device: dialect.Device{Auth: &dialect.DeviceAuth{
		Poll:            "token",
		Page:            "/codex/device",
		Callback:        "/deviceauth/callback",
		PendingCode:     "deviceauth_authorization_pending",
		PendingStatuses: []int{403, 404},
	}},
	Revoke: dialect.Revoke{JSON: true, RefreshClient: true},
}
