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

// openAIAccount is the ChatGPT account that a token belongs to, which requests have to name beside the token.
func openAIAccount(idToken, accessToken string) string {
	for _, token := range []string{idToken, accessToken} {
		var auth map[string]json.RawMessage
		_ = json.Unmarshal(claims(token)["https://api.openai.com/auth"], &auth)
		if id := text(auth["chatgpt_account_id"]); id != "" {
			return id
		}
	}
	return ""
}
