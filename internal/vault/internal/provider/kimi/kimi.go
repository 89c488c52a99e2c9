// Package kimi has what Moonshot's login for Kimi Code does differently: its [Dialect].
package kimi

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect has no scopes, and says by its status alone that a refresh token is dead.
var Dialect = dialect.Dialect{
	DeviceURL: "https://auth.kimi.com/api/oauth/device_authorization",
	TokenURL:  "https://auth.kimi.com/api/oauth/token",

	ClientID: "17e5f671-d194-4dfb-9706-5516cb48c098",
	Flows:    []string{"device"},

	Token: dialect.Token{DeadStatuses: []int{401, 403}},
}
