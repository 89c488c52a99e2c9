package oauthtest

import (
	"encoding/base64"
	"encoding/json"
)

// testEmail is the address of the one user.
const testEmail = "test-user@example.com"

// jwt has the three parts of RFC 7519. Nobody signed it: a client that looks inside has no key to check it with.
func jwt(claims map[string]any) string {
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err) // the claims are strings and numbers
	}
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"RS256","typ":"JWT","kid":"test-key"}`)) + "." + part(b) + "." + part([]byte("not a signature"))
}
