package wire

import (
	"bytes"
	"unicode/utf8"
)

// plain has the bytes that stand for themselves in a string and may stand in a name.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// plainLen returns how many plain bytes s begins with. Tokens of kilobytes go through here at every request, so it looks
// at eight bytes at a time.
func plainLen[T ~string | ~[]byte](s T) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := s[i : i+8]
		x := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 |
			uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56
		quote, escape, del := x^ones*'"', x^ones*'\\', x^ones*0x7f
		// A subtraction sets the top bit of a byte that was too small for it: below 0x20, or zero. A borrow can do so in the
		// bytes after such a one, never before it.
		if (x|(x-ones*0x20)|(quote-ones)&^quote|(escape-ones)&^escape|(del-ones)&^del)&tops != 0 {
			break
		}
	}
	for i < len(s) && plain[s[i]] {
		i++
	}
	return i
}

// str steps over a string. Surrogates must be paired and the bytes must be UTF-8. It reports whether the string is made
// of plain bytes only.
func (s *scanner) str() (simple bool) {
	in, i := s.in, s.pos+1
	start := i
	simple = true
	for {
		i += plainLen(in[i:])
		if i == len(in) {
			break
		}
		switch c := in[i]; {
		case c == '"':
			if !simple && !utf8.Valid(in[start:i]) {
				s.fail("not UTF-8")
				return false
			}
			s.pos = i + 1
			return simple
		case c == '\\':
			n := escape(in[i:])
			if n == 0 {
				s.fail("a malformed escape")
				return false
			}
			simple = false
			i += n
		case c < 0x20:
			s.fail("a control character in a string")
			return false
		default:
			simple = false
			i++
		}
	}
	s.fail("a string does not end")
	return false
}

// escape returns the length of the escape sequence at the start of b, a surrogate pair being one; 0 if it is none.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		switch r := hex4(b); {
		case r < 0 || isLow(r):
			return 0
		case isHigh(r):
			if !isLow(hex4(b[6:])) {
				return 0
			}
			return 12
		}
		return 6
	}
	return 0
}

func isHigh(r rune) bool { return 0xd800 <= r && r < 0xdc00 }
func isLow(r rune) bool  { return 0xdc00 <= r && r < 0xe000 }

// hex4 returns the code unit that b begins with in the form \uXXXX, or -1.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unquote returns the content of a string that the scanner has accepted. Without escapes it is a part of quoted.
func unquote(quoted []byte) []byte {
	body := quoted[1 : len(quoted)-1]
	i := bytes.IndexByte(body, '\\')
	if i < 0 {
		return body
	}
	out := make([]byte, 0, len(body))
	for ; i >= 0; i = bytes.IndexByte(body, '\\') {
		out = append(out, body[:i]...)
		n := escape(body[i:])
		switch c := body[i+1]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(body[i:])
			if n == 12 {
				r = 0x10000 + (r-0xd800)<<10 + (hex4(body[i+6:]) - 0xdc00)
			}
			out = utf8.AppendRune(out, r)
		default: // " \ /
			out = append(out, c)
		}
		body = body[i+n:]
	}
	return append(out, body...)
}
