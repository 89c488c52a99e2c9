// Package filename turns any text into a file name and back: [Escape] and [Unescape]. Different texts get names that
// differ on every file system, also on one that does not tell upper from lower case or normalises Unicode (macOS).
package filename

import "strings"

const hexDigits = "0123456789abcdef"

// Escape keeps a-z 0-9 . _ @ - as they are and writes every other byte as % and two hexadecimal digits in lower case.
// Upper case letters are escaped, so no name ever has one: two names that differ at all differ in more than case. A
// leading dot is escaped too: the names . and .. and hidden files, such as temporary ones, are never ours.
func Escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// Unescape is the reverse of Escape. It reports false for names that Escape does not make.
func Unescape(name string) (string, bool) {
	b := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '%' {
			if i+2 >= len(name) {
				return "", false
			}
			hi, lo := strings.IndexByte(hexDigits, name[i+1]), strings.IndexByte(hexDigits, name[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			c = byte(hi<<4 | lo)
			i += 2
		}
		b = append(b, c)
	}
	s := string(b)
	return s, Escape(s) == name
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '@' || c == '-'
}
