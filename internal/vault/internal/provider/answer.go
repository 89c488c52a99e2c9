package provider

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

// Answer is a provider's successful (2xx) token response as it came, before anybody has looked at it. Body is secret.
type Answer struct {
	Body []byte
	Sent time.Time // when the request was sent: lifetimes count from there, to be on the safe side
}

// Parse reads the answer to a refresh (RFC 6749 section 5.1): a JSON object, whatever stands behind it, or a form, as
// GitHub sends one. The grant holds what the answer holds, to be combined
// with the stored one by [grant.Merge]: members that every provider has and those that the provider's description
// names. What the answer omits, also by null or "", is zero. old is the login that was refreshed, or nil; errors
// are *Error.
func (p *Provider) Parse(a Answer, old *grant.Grant) (*grant.Grant, error) {
	return p.parse(a, old, true)
}

// parse is Parse for any token request.
func (p *Provider) parse(a Answer, old *grant.Grant, refreshing bool) (*grant.Grant, error) {
	if old == nil {
		old = &grant.Grant{}
	}
	members, d := decode(a.Body), p.dialect().Token
	g := &grant.Grant{
		AccessToken:  secret.New(text(members[cmp.Or(d.Access, "access_token")])),
		RefreshToken: secret.New(text(members["refresh_token"])),
		TokenType:    text(members["token_type"]),
		Scope:        scope(members["scope"]),
	}
	if g.AccessToken.IsZero() {
		// Some providers report an error with status 200. Beside an access token an error is a member without a meaning,
		// which is ignored as RFC 6749 section 5.1 wants: refusing the answer could lose a rotated refresh token.
		return nil, p.failure(http.StatusOK, a.Body, refreshing)
	}
	// RFC 6749 appendix A has printable ASCII only. What is looser, such as a line feed, would end a header in the wrong
	// place and move the cursor of whoever prints it. A login can be repeated; a refresh whose tokens are sound is not
	// lost for its token_type.
	if !printable(g.AccessToken.Reveal()) || !printable(g.RefreshToken.Reveal()) || !refreshing && !printable(g.TokenType) {
		return nil, &Error{Kind: Malformed, Provider: p.Name, reason: "its answer holds a token with control characters"}
	}
	switch {
	case g.TokenType == "" || !printable(g.TokenType):
		g.TokenType = old.TokenType
		if g.TokenType == "" {
			g.TokenType = "Bearer"
		}
	case strings.EqualFold(g.TokenType, "bearer"):
		// "The value is case insensitive" (RFC 6749 section 5.1); other programs that read the store expect this form.
		g.TokenType = "Bearer"
	}
	g.Expiry = expiry(members["expires_in"], g.AccessToken.Reveal(), a.Sent)
	if g.Expiry == 0 && d.Lifetime > 0 {
		g.Expiry = expiry(json.RawMessage(strconv.Itoa(int(d.Lifetime/time.Second))), "", a.Sent)
	}
	if len(d.Account) > 0 {
		if id := account(d.Account, text(members["id_token"]), g.AccessToken.Reveal()); id != "" && printable(id) {
			members["account_id"], _ = json.Marshal(id) // a string always marshals
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		raw := members[name]
		if p.keeps(name) && !wire.LongLived(name) && !standard(name) && string(raw) != "null" && string(raw) != `""` {
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

// printable reports whether s has only what can be seen, and spaces. U+FFFD stands for bytes that were not UTF-8, so
// that a token with it is not the one that was issued.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// scope reads scope: names with spaces between them (RFC 6749 section 3.3), or a list of names as some providers have
// it; anything else, such as null, is "".
func scope(raw json.RawMessage) string {
	s := text(raw)
	var list []string
	if s == "" && json.Unmarshal(raw, &list) == nil {
		s = strings.Join(list, " ")
	}
	if !printable(s) {
		return ""
	}
	return s
}

const (
	// maxLifetime bounds a token's life in seconds: more is the provider's way to say "does not expire soon".
	maxLifetime = 10 * 365 * 24 * 60 * 60
	// maxDate is the end of the year 9999, the last that dates are written with.
	maxDate = 253402300799
)

// expiry is when an access token ends, in Unix seconds. expires_in decides if it is a lifetime, however it is written;
// otherwise the token's own claim exp if the token is a JWT that has one. 0 when neither tells: an answer whose token
// would be over already says nothing about a token that was just issued.
func expiry(expiresIn json.RawMessage, access string, sent time.Time) int64 {
	now := min(max(sent.Unix(), 0), maxDate-maxLifetime)
	life, ok := number(expiresIn)
	if ok && life > 0 && life <= maxLifetime {
		return now + int64(life)
	}
	if exp, hasExp := number(claims(access)["exp"]); hasExp && exp > float64(now) {
		return now + int64(min(exp-float64(now), maxLifetime))
	}
	if ok && life > maxLifetime {
		return now + maxLifetime
	}
	return 0
}

// number reads a JSON number, or one in a string as some providers write expires_in. What is too large is infinite.
func number(raw json.RawMessage) (float64, bool) {
	s := string(raw)
	if quoted := text(raw); quoted != "" {
		s = strings.TrimSpace(quoted)
	}
	// ParseFloat also takes hexadecimal numbers, underscores, NaN and infinity.
	if s == "" || strings.Trim(s, "0123456789+-.eE") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}
