package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Token is an access token as it crosses the socket: no refresh token, and no way to hold one. The zero value is
// not a valid token. A Token prints, formats and logs as a placeholder; it marshals as the protocol encodes it.
//
// Tokens handed out by a proxy's caches are shared between requests: treat a *Token as immutable once it is built.
type Token struct {
	AccessToken string
	Expiry      int64  // Unix seconds; 0 when the provider named no lifetime
	TokenType   string // "Bearer" or as the provider wrote it
	Scope       string // space-separated; "" when unknown

	extra []Field
}

// Field is one further member of a token: a provider's account_id, id_token, resource_url, … or what a client saved
// itself. Value is compact JSON.
type Field struct {
	Name  string
	Value json.RawMessage
}

// Errors of [Token.Set].
var (
	ErrLongLivedSecret = errors.New("the field names a long-lived secret")
	ErrReservedField   = errors.New("the field has a place of its own in a token")
	ErrFieldName       = errors.New("a field's name must be printable ASCII")
)

// Set adds the field name to the token, or replaces it. Members of value whose names are those of long-lived
// secrets are removed at any depth; a name that is one itself is refused with [ErrLongLivedSecret], one of the
// token's own fields, in any case, with [ErrReservedField], one that cannot cross with [ErrFieldName], a value that
// is not strict JSON with a [*SyntaxError] or a [*RuleError]. No error repeats the name.
func (t *Token) Set(name string, value json.RawMessage) error {
	if slices.ContainsFunc(tokenNames, func(own string) bool { return strings.EqualFold(own, name) }) {
		return ErrReservedField
	}
	if LongLived(name) {
		return ErrLongLivedSecret
	}
	if !printable([]byte(name)) {
		return ErrFieldName
	}
	// A request that saves the token has three levels around the value.
	pruned, err := prune(value, 3)
	if err != nil {
		return err
	}
	for i := range t.extra {
		if t.extra[i].Name == name {
			t.extra[i].Value = pruned
			return nil
		}
	}
	t.extra = append(t.extra, Field{name, pruned})
	return nil
}

// Extra returns the further fields in the order in which they were set. The slice and its values belong to the
// token: do not change them.
func (t *Token) Extra() []Field { return t.extra }

// Field returns the value of the further field name, or nil.
func (t *Token) Field(name string) json.RawMessage {
	for _, f := range t.extra {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

// longLived are the names of secrets that outlive a sandbox, folded as [LongLived] folds: lower case, no '_', no '-'.
var longLived = map[string]bool{
	"refreshtoken": true,
	"clientsecret": true,
	"codeverifier": true,
	"devicecode":   true,
	"deviceauthid": true,
}

// LongLived reports whether name is that of a secret that must not cross: refresh_token, client_secret,
// code_verifier, device_code or device_auth_id, in any case and with or without separators (refreshToken).
func LongLived(name string) bool {
	var folded [12]byte
	n := 0
	for i := range len(name) {
		c := name[i]
		if c == '_' || c == '-' {
			continue
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if n == len(folded) {
			return false
		}
		folded[n] = c
		n++
	}
	return longLived[string(folded[:n])]
}

const redacted = "wire.Token(redacted)"

// String, GoString, Format and LogValue keep an access token out of whatever prints a Token.
func (Token) String() string             { return redacted }
func (Token) GoString() string           { return redacted }
func (Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }
func (Token) LogValue() slog.Value       { return slog.StringValue(redacted) }

// MarshalJSON encodes the token as get_token answers it.
func (t Token) MarshalJSON() ([]byte, error) { return t.appendData(nil), nil }

// UnmarshalJSON decodes a token as save_token takes it. Long-lived secrets in it are dropped.
func (t *Token) UnmarshalJSON(b []byte) error {
	d, err := DecodeToken(b)
	if err != nil {
		return err
	}
	*t = *d
	return nil
}
