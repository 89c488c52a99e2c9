package provider

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

// maxLifetime bounds expires_in: a longer one is the provider's way to say "does not expire soon", and the sum must
// stay a date.
const maxLifetime = 10 * 365 * 24 * time.Hour

// parseAnswer reads a successful token response (RFC 6749 section 5.1). Kept are the members every provider has and
// those that the provider's description names; the rest is dropped here, before anything can store it.
func (p *Provider) parseAnswer(body []byte, now time.Time) (*grant.Grant, *Error) {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil || members == nil {
		return nil, &Error{Kind: Malformed, reason: "its answer is not a JSON object"}
	}
	str := func(name string) string {
		var s string
		_ = json.Unmarshal(members[name], &s)
		return s
	}
	// Some providers report an error with status 200.
	if code := oauthCode(members); code != "" {
		return nil, refusal(code, 0)
	}
	g := &grant.Grant{
		AccessToken:  secret.New(str("access_token")),
		RefreshToken: secret.New(str("refresh_token")),
		TokenType:    str("token_type"),
		Scope:        str("scope"),
	}
	if g.AccessToken.IsZero() {
		return nil, &Error{Kind: Malformed, reason: "its answer holds no access token"}
	}
	// RFC 6749 appendix A has printable ASCII only. What is looser, such as a line feed, would end a header in the wrong
	// place and move the cursor of whoever prints it.
	for _, s := range []string{g.AccessToken.Reveal(), g.RefreshToken.Reveal(), g.TokenType} {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return nil, &Error{Kind: Malformed, reason: "its answer holds a token with control characters"}
		}
	}
	// "The value is case insensitive" (RFC 6749 section 5.1); other programs that read the store expect this form.
	if g.TokenType == "" || strings.EqualFold(g.TokenType, "bearer") {
		g.TokenType = "Bearer"
	}
	if life, ok := lifetime(members["expires_in"]); ok {
		g.Expiry = now.Add(life).Unix()
	}
	for name, raw := range members {
		if p.keeps(name) && !wire.LongLived(name) && !standard(name) {
			g.Fields = append(g.Fields, wire.Field{Name: name, Value: raw})
		}
	}
	return g, nil
}

// standard reports whether a member of an answer has its own place in a grant.
func standard(name string) bool {
	switch name {
	case "access_token", "refresh_token", "token_type", "scope", "expires_in", "expiry":
		return true
	}
	return false
}

// lifetime reads expires_in: seconds as a number or as a string, as some providers write it. Missing, zero, negative
// or unreadable values mean that the provider named no lifetime.
func lifetime(raw json.RawMessage) (time.Duration, bool) {
	text := strings.Trim(string(raw), `"`)
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 {
		return 0, false
	}
	if seconds > maxLifetime.Seconds() {
		return maxLifetime, true
	}
	return time.Duration(seconds * float64(time.Second)), true
}
