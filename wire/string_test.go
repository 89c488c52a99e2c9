package wire

import (
	"strings"
	"testing"
)

// Every byte in every place of a word of eight and around it counts as the table says.
func TestPlainLen(t *testing.T) {
	for length := range 20 {
		base := strings.Repeat("a", length)
		if n := plainLen(base); n != length {
			t.Errorf("%q: %d", base, n)
		}
		for at := range length {
			for c := range 256 {
				// What follows the byte is plain, or not plain either.
				for _, rest := range []string{base[at+1:], strings.Repeat("\x00", length-at-1), strings.Repeat("\xff", length-at-1)} {
					s := base[:at] + string([]byte{byte(c)}) + rest
					want := 0
					for want < len(s) && plain[s[want]] {
						want++
					}
					if got := plainLen(s); got != want {
						t.Fatalf("%q: %d, want %d", s, got, want)
					}
					if got := plainLen([]byte(s)); got != want {
						t.Fatalf("bytes of %q: %d, want %d", s, got, want)
					}
				}
			}
		}
	}
}
