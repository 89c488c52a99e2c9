// Package grant is what a provider issued to a person: an access token with its refresh token and whatever else the
// provider's answer held. [Parse] and [Grant.Seal] are its stored form, [Merge] and [MergeSaved] the only ways to
// combine two, and [Grant.Wire] is the one function that makes of it what may cross the socket.
package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

// Grant is one login. It prints, formats and logs as a placeholder and refuses to be marshalled; [Grant.Seal] is the
// way to store it. A Grant is immutable once it has been built: caches share it.
type Grant struct {
	AccessToken  secret.String
	RefreshToken secret.String // zero when the provider issued none
	Expiry       int64         // Unix seconds; 0 when the provider named no lifetime
	TokenType    string
	Scope        string

	// Fields are further members, from the provider's answer, from a client's save_token or written by another
	// program that shares the store. Values are JSON.
	Fields []wire.Field

	// ClientID is the client id that the provider issued together with this login, "" where it does not do that. It stays on
	// the host.
	ClientID string

	// Saved names the Fields that a client saved itself: those go back inside as they came.
	Saved []string
}

// Members of the stored form that hold Grant.Saved and Grant.ClientID. Other programs keep members they do not know.
const (
	savedMember  = "credproxy_saved"
	clientMember = "credproxy_client_id"
)

const redacted = "grant(redacted)"

func (Grant) String() string               { return redacted }
func (Grant) GoString() string             { return redacted }
func (Grant) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (Grant) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Grant) MarshalJSON() ([]byte, error) { return nil, secret.ErrMarshal }

// ErrMalformed means that a stored value is not a login.
var ErrMalformed = errors.New("the stored value is not a login")

// Parse reads the stored form: the JSON object that the original client writes (access_token, refresh_token, expiry in
// Unix seconds, scope, token_type and further members). Its errors do not quote the value.
func Parse(sealed secret.String) (*Grant, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(sealed.Reveal()), &members); err != nil || members == nil {
		return nil, ErrMalformed
	}
	g := &Grant{}
	access, ok1 := jsonString(members, "access_token")
	refresh, ok2 := jsonString(members, "refresh_token")
	kind, ok3 := jsonString(members, "token_type")
	scope, ok4 := jsonString(members, "scope")
	client, ok5 := jsonString(members, clientMember)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || access == "" {
		return nil, ErrMalformed
	}
	g.AccessToken, g.RefreshToken = secret.New(access), secret.New(refresh)
	g.TokenType, g.Scope, g.ClientID = kind, scope, client
	if raw, ok := members["expiry"]; ok {
		var seconds float64
		if json.Unmarshal(raw, &seconds) != nil || math.IsNaN(seconds) || seconds < 0 || seconds > math.MaxInt64/2 {
			return nil, ErrMalformed
		}
		g.Expiry = int64(seconds)
	}
	if raw, ok := members[savedMember]; ok && json.Unmarshal(raw, &g.Saved) != nil {
		return nil, ErrMalformed
	}
	for name, raw := range members {
		if !own(name) {
			g.Fields = append(g.Fields, wire.Field{Name: name, Value: raw})
		}
	}
	slices.SortFunc(g.Fields, func(a, b wire.Field) int { return strings.Compare(a.Name, b.Name) })
	return g, nil
}

// own reports whether the stored form has a place of its own for the member.
func own(name string) bool {
	switch name {
	case "access_token", "refresh_token", "expiry", "token_type", "scope", savedMember, clientMember:
		return true
	}
	return false
}

// jsonString returns the string member name, "" when it is absent or null; !ok when it is something else.
func jsonString(members map[string]json.RawMessage, name string) (s string, ok bool) {
	raw, present := members[name]
	if !present {
		return "", true
	}
	var p *string
	if json.Unmarshal(raw, &p) != nil {
		return "", false
	}
	if p == nil {
		return "", true
	}
	return *p, true
}

// Seal returns the stored form, which [Parse] and the original client read.
func (g *Grant) Seal() secret.String {
	members := make(map[string]any, len(g.Fields)+7)
	for _, f := range g.Fields {
		members[f.Name] = f.Value
	}
	members["access_token"] = g.AccessToken.Reveal()
	members["expiry"] = g.Expiry
	members["token_type"] = g.TokenType
	if !g.RefreshToken.IsZero() {
		members["refresh_token"] = g.RefreshToken.Reveal()
	}
	if g.Scope != "" {
		members["scope"] = g.Scope
	}
	if g.ClientID != "" {
		members[clientMember] = g.ClientID
	}
	if len(g.Saved) > 0 {
		members[savedMember] = g.Saved
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(members); err != nil {
		// Every value is a string, a number or JSON that was checked when the field was set.
		panic("grant: unreachable: a field is not JSON")
	}
	return secret.New(strings.TrimSuffix(b.String(), "\n"))
}

// Merge combines a stored grant with a provider's newer answer (RFC 6749 section 6): the access token, its expiry and
// its type always come from the answer, the refresh token and the client's id only if the answer has one, every other field from the
// answer if it is there and from the stored grant otherwise. old may be nil.
func Merge(old, answer *Grant) *Grant {
	merged := *answer
	merged.Fields = slices.Clone(answer.Fields)
	merged.Saved = nil
	if old == nil {
		return &merged
	}
	if merged.RefreshToken.IsZero() {
		merged.RefreshToken = old.RefreshToken
	}
	if merged.Scope == "" {
		merged.Scope = old.Scope
	}
	if merged.ClientID == "" {
		merged.ClientID = old.ClientID
	}
	merged.keep(old)
	if !merged.RefreshToken.Equal(old.RefreshToken) {
		// Wire leaves out what holds the refresh token. One that was replaced is worth nothing to its owner, but whoever sends
		// it once more ends the login with many providers.
		merged.Fields = slices.DeleteFunc(merged.Fields, func(f wire.Field) bool { return holds(f.Value, old.RefreshToken) })
	}
	return &merged
}

// WithoutSaved returns the grant without what clients saved into it, for when it is too large to be stored.
func (g *Grant) WithoutSaved() *Grant {
	without := *g
	without.Fields = slices.DeleteFunc(slices.Clone(g.Fields), func(f wire.Field) bool { return slices.Contains(g.Saved, f.Name) })
	without.Saved = nil
	return &without
}

// SameAccount reports whether two grants may be of one account: whether account_id, where the provider has said it in both, is
// the same.
func SameAccount(a, b *Grant) bool {
	of := func(g *Grant) string {
		i := slices.IndexFunc(g.Fields, func(f wire.Field) bool { return f.Name == "account_id" })
		if i < 0 || slices.Contains(g.Saved, "account_id") {
			return ""
		}
		return string(g.Fields[i].Value)
	}
	return of(a) == "" || of(b) == "" || of(a) == of(b)
}

// WithoutFieldsOf returns the grant without the fields that hold one of the secrets: a provider that repeats what it was sent.
func (g *Grant) WithoutFieldsOf(secrets ...secret.String) *Grant {
	without := *g
	without.Fields = slices.DeleteFunc(slices.Clone(g.Fields), func(f wire.Field) bool {
		return slices.ContainsFunc(secrets, func(s secret.String) bool { return holds(f.Value, s) })
	})
	return &without
}

// holds reports whether a JSON value has the secret in it, however it is escaped. A needle of a few characters would match
// by chance; providers' refresh tokens have dozens.
func holds(value json.RawMessage, s secret.String) bool {
	needle := s.Reveal()
	return len(needle) >= 8 && (strings.Contains(string(value), needle) || strings.Contains(unescaped(value), needle))
}

// keep adds the fields of old that g does not have, and remembers which of those a client had saved.
func (g *Grant) keep(old *Grant) {
	for _, f := range old.Fields {
		if g.field(f.Name) {
			continue
		}
		g.Fields = append(g.Fields, f)
		if slices.Contains(old.Saved, f.Name) {
			g.Saved = append(g.Saved, f.Name)
		}
	}
}

func (g *Grant) field(name string) bool {
	return slices.ContainsFunc(g.Fields, func(f wire.Field) bool { return f.Name == name })
}

// MergeSaved combines a stored grant with a token that a client saved over the socket. A wire token cannot hold a
// refresh token, so the stored one stays. old may be nil.
func MergeSaved(old *Grant, t *wire.Token) *Grant {
	merged := &Grant{
		AccessToken: secret.New(t.AccessToken),
		Expiry:      t.Expiry,
		TokenType:   t.TokenType,
		Scope:       t.Scope,
	}
	for _, f := range t.Extra() {
		if own(f.Name) {
			continue
		}
		merged.Fields = append(merged.Fields, f)
		merged.Saved = append(merged.Saved, f.Name)
	}
	if old == nil {
		return merged
	}
	merged.RefreshToken, merged.ClientID = old.RefreshToken, old.ClientID
	if merged.Scope == "" {
		merged.Scope = old.Scope
	}
	merged.keep(old)
	return merged
}

// DefaultFields are the members of a provider's answer that may go inside when the provider's description names none.
var DefaultFields = []string{"account_id", "id_token", "resource_url", "project_id"}

// ErrNotServable means that a grant's access token is also its refresh token, so that it must not go inside.
var ErrNotServable = errors.New("the access token is also the refresh token, so it stays on the host")

// Wire makes what may cross the socket. This is the only function of the program that turns a Grant into something
// that can be encoded: it builds the token from what is allowed (the members every token has, the fields in allowed,
// the fields a client saved) instead of removing what is not. A field whose value holds the refresh token under
// another name is left out.
func (g *Grant) Wire(allowed []string) (*wire.Token, error) {
	refresh := g.RefreshToken.Reveal()
	// A needle of a few characters would match by chance; providers' refresh tokens have dozens.
	hides := func(s string) bool { return len(refresh) >= 8 && strings.Contains(s, refresh) }
	if hides(g.AccessToken.Reveal()) || hides(g.Scope) || hides(g.TokenType) {
		return nil, ErrNotServable
	}
	t := &wire.Token{
		AccessToken: g.AccessToken.Reveal(),
		Expiry:      g.Expiry,
		TokenType:   g.TokenType,
		Scope:       g.Scope,
	}
	if t.TokenType == "" {
		t.TokenType = "Bearer"
	}
	for _, f := range g.Fields {
		if !slices.Contains(allowed, f.Name) && !slices.Contains(g.Saved, f.Name) {
			continue
		}
		if holds(f.Value, g.RefreshToken) {
			continue
		}
		// Set removes the names of long-lived secrets at any depth; a field that it refuses stays on the host.
		_ = t.Set(f.Name, f.Value)
	}
	return t, nil
}

// unescaped returns every string of a JSON value, decoded and joined, so that an escape cannot hide a substring.
func unescaped(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return ""
	}
	var b strings.Builder
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			b.WriteString(v)
			b.WriteByte(0)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for name, e := range v {
				b.WriteString(name)
				b.WriteByte(0)
				walk(e)
			}
		}
	}
	walk(v)
	return b.String()
}
