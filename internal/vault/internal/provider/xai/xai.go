// Package xai has what xAI's login for SuperGrok does differently: its [Dialect].
package xai

import (
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"
)

// Dialect omits refresh_token when it did not rotate, and sometimes expires_in.
var Dialect = dialect.Dialect{
	DeviceURL: "https://auth.x.ai/oauth2/device/code",
	TokenURL:  "https://auth.x.ai/oauth2/token",

	ClientID: "b1a00492-073a-47ea-816f-4c329264a828",
	Scopes:   []string{"openid", "profile", "email", "offline_access", "grok-cli:access", "api:access"},
	Flows:    []string{"device"},

	Token: dialect.Token{Lifetime: time.Hour},
}
