package journal_test

import (
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func BenchmarkWrite(b *testing.B) {
	j := open(b, newDir(b))
	r := generation(1, 5000)
	for b.Loop() {
		if err := j.Write(b.Context(), item, r, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	j := open(b, newDir(b))
	v := secret.New(strings.Repeat("x", 4000))
	for b.Loop() {
		if _, err := j.Seal(b.Context(), item, v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersion(b *testing.B) {
	j := open(b, newDir(b), newDir(b))
	write(b, j, item, generation(1, 5000))
	write(b, j, item, generation(2, 5000))
	for b.Loop() {
		if _, err := j.Version(b.Context(), item); err != nil {
			b.Fatal(err)
		}
	}
}
