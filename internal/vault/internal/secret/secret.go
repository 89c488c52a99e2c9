// Package secret holds a string that outlives a sandbox: a refresh token, a client secret, a PKCE verifier, a device
// code. Wrap it with [New] where it is read and call [String.Reveal] only where it is sent to its provider or sealed
// into a store. Printing, logging, formatting, comparing with == and marshalling do not get at it.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
)

// String is a secret string. The zero value is "no secret".
//
// The value sits behind a pointer: fmt does not call the methods of unexported struct fields, so a plain string in
// here would come out of fmt.Printf("%v", structThatHoldsIt). The array of functions makes the type incomparable.
type String struct {
	_ [0]func()
	p *string
}

const redacted = "secret(redacted)"

// ErrMarshal is returned by every attempt to marshal a String.
var ErrMarshal = errors.New("a secret cannot be marshalled")

// New wraps s; New("") is the zero String.
func New(s string) String {
	if s == "" {
		return String{}
	}
	return String{p: &s}
}

// Reveal returns the secret itself, or "".
func (s String) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// IsZero reports whether there is no secret.
func (s String) IsZero() bool { return s.p == nil }

// Equal compares in time that does not depend on how much the two have in common.
func (s String) Equal(t String) bool {
	a, b := sha256.Sum256([]byte(s.Reveal())), sha256.Sum256([]byte(t.Reveal()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Fingerprint is 32 hexadecimal characters that tell whether two secrets are the same, for records that hold no
// secret; "" for the zero String. Tokens have far too many possible values to be found from it by trying.
func (s String) Fingerprint() string {
	if s.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte("credproxy fingerprint\n" + s.Reveal()))
	return hex.EncodeToString(sum[:16])
}

func (String) String() string                 { return redacted }
func (String) GoString() string               { return redacted }
func (String) Format(f fmt.State, _ rune)     { _, _ = f.Write([]byte(redacted)) }
func (String) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (String) MarshalJSON() ([]byte, error)   { return nil, ErrMarshal }
func (String) MarshalText() ([]byte, error)   { return nil, ErrMarshal }
func (String) MarshalBinary() ([]byte, error) { return nil, ErrMarshal }
func (String) GobEncode() ([]byte, error)     { return nil, ErrMarshal }
