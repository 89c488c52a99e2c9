package provider

import (
	"encoding/base64"
	"encoding/json"
	"strings"
)

// claims returns the claims of a JWT (RFC 7519 section 3), nil if token is none. They are not verified: they came from
// the provider itself over TLS, and serve as hints about a token, never as proof of anything.
func claims(token string) map[string]json.RawMessage {
	_, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") { // five parts are an encrypted one
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(payload, "="))
	if err != nil {
		return nil
	}
	var members map[string]json.RawMessage
	_ = json.Unmarshal(b, &members)
	return members
}

// account is the account that a token belongs to, which some vendors' requests have to name beside the token: the claim
// at path in the first of the tokens that has it; "" when none has.
func account(path []string, tokens ...string) string {
	for _, token := range tokens {
		members := claims(token)
		last := len(path) - 1
		for _, name := range path[:last] {
			raw := members[name]
			members = nil
			_ = json.Unmarshal(raw, &members)
		}
		if id := text(members[path[last]]); id != "" {
			return id
		}
	}
	return ""
}
