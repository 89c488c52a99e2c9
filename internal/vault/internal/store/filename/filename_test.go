package filename_test

import (
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/store/filename"
)

func TestEscape(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"llxprt-code-oauth", "llxprt-code-oauth"},
		{"acme:default", "acme%3adefault"},
		{"Work@Home", "%57ork@%48ome"},
		{".", "%2e"},
		{"..", "%2e."},
		{"a.b", "a.b"},
		{"a/b", "a%2fb"},
		{"50%", "50%25"},
		{"é", "%c3%a9"},
		{"e\u0301", "e%cc%81"}, // the same letter, decomposed
		{"a\nb\x00", "a%0ab%00"},
		{"", ""},
	} {
		if got := filename.Escape(tt.in); got != tt.want {
			t.Errorf("Escape(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if got, ok := filename.Unescape(tt.want); !ok || got != tt.in {
			t.Errorf("Unescape(%q) = %q, %v, want %q", tt.want, got, ok, tt.in)
		}
	}
	for _, name := range []string{"A", "%", "%4", "%4A", "%61", "a b", ".x", "%zz", "é", "x%"} {
		if got, ok := filename.Unescape(name); ok {
			t.Errorf("Unescape(%q) = %q: Escape does not make this name", name, got)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("acme:default", "ACME:default")
	f.Add(".", "%2e")
	f.Fuzz(func(t *testing.T, a, b string) {
		ea, eb := filename.Escape(a), filename.Escape(b)
		if a != b && strings.EqualFold(ea, eb) {
			t.Errorf("%q and %q are both %q", a, b, ea)
		}
		if back, ok := filename.Unescape(ea); !ok || back != a {
			t.Errorf("%q comes back as %q", a, back)
		}
		if strings.ContainsAny(ea, "/\x00") || strings.HasPrefix(ea, ".") {
			t.Errorf("%q is no file name", ea)
		}
		if back, ok := filename.Unescape(a); ok && filename.Escape(back) != a {
			t.Errorf("Unescape takes %q, which Escape writes otherwise", a)
		}
	})
}
