package wire

import (
	"strings"
	"testing"
)

var benchRequest = []byte(`{"v":2,"id":"4711","op":"get_token","payload":{"provider":"anthropic","bucket":"default"}}`)

func BenchmarkDecodeRequest(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeRequest(benchRequest, 2); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	t := &Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer", Scope: "a b"}
	if err := t.Set("account_id", []byte(`"acct"`)); err != nil {
		b.Fatal(err)
	}
	long := *t
	long.AccessToken = strings.Repeat("x", 2000)
	for name, t := range map[string]*Token{"short": t, "2000": &long} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = AppendResponse(buf[:0], 2, "4711", t)
			}
		})
	}
}

func BenchmarkDecodeResponse(b *testing.B) {
	b.ReportAllocs()
	t := &Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer", Scope: "a b"}
	frame := AppendResponse(nil, 2, "4711", t)
	for b.Loop() {
		r, err := DecodeResponse(frame, 2)
		if err == nil {
			_, err = DecodeToken(r.Data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
