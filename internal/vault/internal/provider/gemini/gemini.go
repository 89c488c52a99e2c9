// Package gemini has what Google's login for Gemini Code Assist does differently: its [Dialect].
package gemini

import "github.com/credproxy/credproxy/internal/vault/internal/provider/dialect"

// Dialect has a refresh token that stays the same, is issued at a consent only and is in no refresh's answer. The client
// is an installed application, whose secret is published but is not ours to publish.
var Dialect = dialect.Dialect{
	AuthorizeURL: "https://accounts.google.com/o/oauth2/v2/auth",
	TokenURL:     "https://oauth2.googleapis.com/token",
	RevokeURL:    "https://oauth2.googleapis.com/revoke",
	Status:       dialect.Discontinued,
	Terms: "Google ended this login for individuals on 18 June 2026; accounts with a paid Gemini Code Assist may still be served," +
		" everybody else needs an API key.",
	SecretKey: "gemini-client-secret",
	SecretSource: "Google publishes it in the source of Gemini CLI as OAUTH_CLIENT_SECRET" +
		" (github.com/google-gemini/gemini-cli, packages/core/src/code_assist/oauth2.ts)",

	ClientID: "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
	Scopes: []string{
		"https://www.googleapis.com/auth/cloud-platform",
		"https://www.googleapis.com/auth/userinfo.email",
		"https://www.googleapis.com/auth/userinfo.profile",
	},
	Flows:     []string{"paste", "browser"},
	Redirects: []string{"http://127.0.0.1/oauth2callback"},
	PastePage: "https://codeassist.google.com/authcode",

	// Without a new consent there may be no refresh token.
	Authorize: dialect.Authorize{Params: map[string]string{"access_type": "offline", "prompt": "consent"}},
	Token:     dialect.Token{SecretInBody: true},
	Revoke:    dialect.Revoke{TokenOnly: true},
}
