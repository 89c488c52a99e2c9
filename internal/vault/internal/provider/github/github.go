// Package github has what GitHub's login by device code does differently: its [Dialect].
package github

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect has errors with status 200. Tokens of an OAuth app do not expire and have no refresh token; those of a GitHub
// App do.
var Dialect = dialect.Dialect{
	DeviceURL: "https://github.com/login/device/code",
	TokenURL:  "https://github.com/login/oauth/access_token",

	ClientID: "178c6fc778ccc68e1d6a",
	Scopes:   []string{"repo", "read:org", "gist"},
	Flows:    []string{"device"},

	Token: dialect.Token{SecretInBody: true, DeadCodes: []string{"bad_refresh_token"}},
}
