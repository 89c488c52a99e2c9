// Package qwen has what Qwen's login by device code does differently: its [Dialect].
package qwen

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect has PKCE in the login by device code. An answer's scope may be null; resource_url is the host to use the token
// at.
var Dialect = dialect.Dialect{
	DeviceURL: "https://chat.qwen.ai/api/v1/oauth2/device/code",
	TokenURL:  "https://chat.qwen.ai/api/v1/oauth2/token",
	Status:    dialect.Discontinued,
	Terms:     "Qwen ended the free service behind this login on 15 April 2026; an API key of Alibaba Cloud Model Studio takes its place.",

	ClientID: "f0304373b74a44d2b584a3fb70ca9e56",
	Scopes:   []string{"openid", "profile", "email", "model.completion"},
	Flows:    []string{"device"},

	Token:  dialect.Token{DeadStatuses: []int{400, 401}},
	Device: dialect.Device{PKCE: true, RequestID: "X-Request-Id", Expired: []int{401}},
}
