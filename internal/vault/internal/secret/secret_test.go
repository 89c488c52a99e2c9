package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

const canary = "test-canary-value"

// holder has a String in each place from which fmt and the encoders reach it differently.
type holder struct {
	Open   secret.String
	hidden secret.String
	Ptr    *secret.String
	List   []secret.String
	Map    map[string]secret.String
	Any    any
}

func newHolder() holder {
	s := secret.New(canary)
	return holder{Open: s, hidden: s, Ptr: &s, List: []secret.String{s}, Map: map[string]secret.String{"k": s}, Any: s}
}

func leaks(t *testing.T, how, out string) {
	t.Helper()
	forms := []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), strings.Trim(fmt.Sprint([]byte(canary)), "[]")}
	for _, form := range forms {
		if strings.Contains(out, form) {
			t.Errorf("%s shows the secret", how)
		}
	}
}

func TestFormattingDoesNotShow(t *testing.T) {
	s := secret.New(canary)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%10.3s", "%t", "%c", "%U", "%b", "%w"} {
		for _, v := range []any{s, &s, newHolder(), new(newHolder()), []any{s}, struct{ s secret.String }{s}, struct{ S *secret.String }{&s}} {
			leaks(t, fmt.Sprintf("%s of %T", verb, v), fmt.Sprintf(verb, v))
		}
	}
	leaks(t, "Sprint", fmt.Sprint(s, newHolder()))
	leaks(t, "an error", fmt.Errorf("x: %w", fmt.Errorf("%v", s)).Error())
	if got := fmt.Sprint(s); got != "secret(redacted)" {
		t.Errorf("Sprint = %q", got)
	}
}

func TestLoggingDoesNotShow(t *testing.T) {
	for name, mk := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		s := secret.New(canary)
		slog.New(mk(&b)).Info("m", "direct", s, "pointer", &s, "struct", newHolder(), "group", slog.GroupValue(slog.Any("in", s)))
		leaks(t, name+" handler", b.String())
		if !strings.Contains(b.String(), "redacted") {
			t.Errorf("%s: the attribute is missing: %s", name, b.String())
		}
	}
}

func TestMarshallingIsRefused(t *testing.T) {
	s := secret.New(canary)
	for name, v := range map[string]any{
		"value":   s,
		"pointer": &s,
		"field":   struct{ A secret.String }{s},
		"map":     map[string]secret.String{"a": s},
		"key":     map[string]any{"a": []any{s}},
	} {
		out, err := json.Marshal(v)
		if !errors.Is(err, secret.ErrMarshal) {
			t.Errorf("json of %s: error %v, want ErrMarshal", name, err)
		}
		leaks(t, "json", string(out)+fmt.Sprint(err))
	}
	out, err := xml.Marshal(struct{ A secret.String }{s})
	if err == nil {
		t.Error("xml: no error")
	}
	leaks(t, "xml", string(out)+fmt.Sprint(err))
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(struct{ A secret.String }{s}); err == nil {
		t.Error("gob: no error")
	}
	leaks(t, "gob", b.String())
	// The zero value is refused too: that it is empty would say that there is no refresh token.
	if _, err := json.Marshal(secret.String{}); !errors.Is(err, secret.ErrMarshal) {
		t.Errorf("json of zero: %v", err)
	}
}

func TestRevealAndZero(t *testing.T) {
	for _, v := range []string{"", "x", "a\x00b", strings.Repeat("é", 1000)} {
		s := secret.New(v)
		if s.Reveal() != v || s.IsZero() != (v == "") {
			t.Errorf("New of %d bytes: Reveal has %d, IsZero %v", len(v), len(s.Reveal()), s.IsZero())
		}
	}
	var zero secret.String
	if zero.Reveal() != "" || !zero.IsZero() || !zero.Equal(secret.New("")) {
		t.Error("the zero value is not the empty secret")
	}
}

func TestEqual(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "b", false}, {"a", "aa", false}, {"a\x00", "a", false}} {
		if got := secret.New(tt.a).Equal(secret.New(tt.b)); got != tt.want {
			t.Errorf("Equal(%q, %q) = %v", tt.a, tt.b, got)
		}
	}
}

func TestNotComparable(t *testing.T) {
	if reflect.TypeFor[secret.String]().Comparable() {
		t.Error("secret.String can be compared with ==, in time that depends on the content")
	}
}

func TestFingerprint(t *testing.T) {
	a, b := secret.New("test-refresh-token-1"), secret.New("test-refresh-token-2")
	if a.Fingerprint() != secret.New(a.Reveal()).Fingerprint() || a.Fingerprint() == b.Fingerprint() {
		t.Error("fingerprints do not tell secrets apart")
	}
	if len(a.Fingerprint()) != 32 || strings.Contains(a.Fingerprint(), "test") {
		t.Errorf("fingerprint %q", a.Fingerprint())
	}
	if z := (secret.String{}).Fingerprint(); z != "" {
		t.Errorf("fingerprint of nothing: %q", z)
	}
}
