package wire

import (
	"bytes"
	"slices"
)

// scanner walks JSON once, from front to back, and checks all of it: grammar, UTF-8, member names, duplicates, depth.
// It keeps two kinds of fault apart. After a fault of syntax nothing more is read. After a broken rule it goes on, so
// that the id of a bad request is found wherever it stands and so that what is reported as a broken rule is JSON.
//
// It is a loop, not a recursion: nesting costs one bit a level, and names are remembered for MaxDepth levels and
// MaxMembers members only, so the memory it takes does not exceed a small multiple of its input.
type scanner struct {
	in  []byte
	pos int

	syntax string // the first fault of syntax, or ""
	broken string // the first broken rule, or ""

	name   []byte // the member that more has moved to, unescaped; nil in an array
	quoted []byte // the same as it stands in the input, with its quotes

	depth   int
	fresh   bool            // the innermost level was just opened
	shallow uint64          // a bit for each of the first 64 open levels: is it an object?
	deep    []uint64        // the same for the further ones
	first   [MaxDepth]int32 // for each open level, where its names begin

	// The names seen in all open objects. The first ones stand in the scanner itself: together with a caller that keeps
	// the scanner on its stack, that spares an allocation.
	count int
	few   [16][]byte
	many  [][]byte // all of them, when there were ever more than fit into few
}

// err returns what was found wrong: syntax before rules, and of each the first.
func (s *scanner) err() error {
	switch {
	case s.syntax != "":
		return &SyntaxError{s.syntax}
	case s.broken != "":
		return &RuleError{s.broken}
	}
	return nil
}

func (s *scanner) fail(reason string) {
	if s.syntax == "" {
		s.syntax = reason
	}
	s.pos = len(s.in)
}

func (s *scanner) rule(reason string) {
	if s.broken == "" {
		s.broken = reason
	}
}

// peek steps over white space and returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	for s.pos < len(s.in) {
		switch c := s.in[s.pos]; c {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// end checks that nothing but white space is left.
func (s *scanner) end() {
	s.peek()
	if s.pos < len(s.in) {
		s.fail("data after the value")
	}
}

// object steps into the one object that the input must be.
func (s *scanner) object() {
	if s.peek() != '{' {
		s.fail("not an object")
		return
	}
	s.begin()
}

// kind returns the place of the bit that says what level d is.
func (s *scanner) kind(d int) (word *uint64, bit uint64) {
	if d < 64 {
		return &s.shallow, 1 << d
	}
	return &s.deep[d/64-1], 1 << (d % 64)
}

// begin steps into the object or array that stands here.
func (s *scanner) begin() {
	d := s.depth
	s.depth++
	if d >= 64 && d/64 > len(s.deep) {
		s.deep = append(s.deep, 0)
	}
	word, bit := s.kind(d)
	*word &^= bit
	if s.in[s.pos] == '{' {
		*word |= bit
	}
	s.pos++
	s.fresh = true
	if d >= MaxDepth {
		s.rule("nested deeper than 32 levels")
		return
	}
	s.first[d] = int32(s.count)
}

func (s *scanner) inObject() bool {
	word, bit := s.kind(s.depth - 1)
	return *word&bit != 0
}

// more moves to the next value of the innermost object or array, past the member's name, and reports true; or it
// steps out and reports false.
func (s *scanner) more() bool {
	if s.syntax != "" {
		return false
	}
	object, fresh := s.inObject(), s.fresh
	s.fresh = false
	s.name, s.quoted = nil, nil
	c := s.peek()
	if object && c == '}' || !object && c == ']' {
		s.pos++
		s.leave(object)
		return false
	}
	if !fresh {
		if c != ',' {
			s.fail("a comma or a closing bracket is missing")
			return false
		}
		s.pos++
		c = s.peek()
	}
	if !object {
		return true
	}
	if c != '"' {
		s.fail("a member's name is missing")
		return false
	}
	start := s.pos
	simple := s.str()
	if s.syntax != "" {
		return false
	}
	s.quoted = s.in[start:s.pos]
	if simple {
		s.name = s.quoted[1 : len(s.quoted)-1]
	} else if s.name = unquote(s.quoted); !printable(s.name) {
		s.rule("a member's name has a control or non-ASCII character")
	}
	if s.peek() != ':' {
		s.fail("a colon is missing")
		return false
	}
	s.pos++
	s.remember()
	return true
}

// remember notes the member's name for the search for duplicates.
func (s *scanner) remember() {
	if s.depth > MaxDepth {
		return
	}
	if s.count-int(s.first[s.depth-1]) == MaxMembers {
		s.rule("more than 1024 members in one object")
		return
	}
	if s.many == nil && s.count < len(s.few) {
		s.few[s.count] = s.name
	} else {
		if s.many == nil {
			s.many = append(s.many, s.few[:]...)
		}
		s.many = append(s.many[:s.count], s.name)
	}
	s.count++
}

func printable(name []byte) bool {
	for _, c := range name {
		if c < 0x20 || c >= 0x7f {
			return false
		}
	}
	return true
}

func (s *scanner) leave(object bool) {
	s.depth--
	if !object || s.depth >= MaxDepth {
		return
	}
	names := s.many
	if names == nil {
		names = s.few[:]
	}
	first := int(s.first[s.depth])
	if duplicates(names[first:s.count]) {
		s.rule("a member's name occurs twice in one object")
	}
	s.count = first
}

// duplicates may reorder names.
func duplicates(names [][]byte) bool {
	if len(names) > 8 {
		slices.SortFunc(names, bytes.Compare)
		for i := 1; i < len(names); i++ {
			if bytes.Equal(names[i-1], names[i]) {
				return true
			}
		}
		return false
	}
	for i, a := range names {
		for _, b := range names[:i] {
			if bytes.Equal(a, b) {
				return true
			}
		}
	}
	return false
}

// value steps over one value of any kind and returns it as it stands in the input.
func (s *scanner) value() []byte {
	c := s.peek()
	start := s.pos
	if c != '{' && c != '[' {
		s.scalar(c)
		return s.in[start:s.pos]
	}
	base := s.depth
	for {
		if c := s.peek(); c == '{' || c == '[' {
			s.begin()
		} else {
			s.scalar(c)
		}
		for {
			if s.syntax != "" {
				return nil
			}
			if s.depth == base {
				return s.in[start:s.pos]
			}
			if s.more() {
				break
			}
		}
	}
}

// prune is value, but appends the value to dst: without white space and without members that name a long-lived
// secret.
func (s *scanner) prune(dst []byte) []byte {
	base := s.depth
	for {
		if c := s.peek(); c == '{' || c == '[' {
			dst = append(dst, c)
			s.begin()
		} else {
			start := s.pos
			s.scalar(c)
			dst = append(dst, s.in[start:s.pos]...)
		}
		for {
			if s.syntax != "" || s.depth == base {
				return dst
			}
			object := s.inObject()
			more := s.more()
			for more && object && LongLived(string(s.name)) {
				s.value()
				more = s.more()
			}
			if !more {
				if object {
					dst = append(dst, '}')
				} else {
					dst = append(dst, ']')
				}
				continue
			}
			// No scalar ends with an opening bracket, so one that stands last was opened just now.
			if last := dst[len(dst)-1]; last != '{' && last != '[' {
				dst = append(dst, ',')
			}
			if object {
				dst = append(append(dst, s.quoted...), ':')
			}
			break
		}
	}
}

// scalar steps over the string, number or literal that must stand here and begins with c.
func (s *scanner) scalar(c byte) {
	switch {
	case c == '"':
		s.str()
	case c == '-' || isDigit(c):
		s.number()
	case c == 't':
		s.literal("true")
	case c == 'f':
		s.literal("false")
	case c == 'n':
		s.literal("null")
	default:
		s.fail("a value is missing")
	}
}

func (s *scanner) literal(word string) {
	if !bytes.HasPrefix(s.in[s.pos:], []byte(word)) {
		s.fail("an unknown literal")
		return
	}
	s.pos += len(word)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// number steps over a number (RFC 8259, section 6).
func (s *scanner) number() {
	in, i := s.in, s.pos
	digits := func() bool {
		start := i
		for i < len(in) && isDigit(in[i]) {
			i++
		}
		return i > start
	}
	if in[i] == '-' {
		i++
	}
	ok := true
	if i < len(in) && in[i] == '0' {
		i++
	} else {
		ok = digits()
	}
	if ok && i < len(in) && in[i] == '.' {
		i++
		ok = digits()
	}
	if ok && i < len(in) && in[i]|0x20 == 'e' {
		i++
		if i < len(in) && (in[i] == '+' || in[i] == '-') {
			i++
		}
		ok = digits()
	}
	// Whatever stands right behind a number is refused by its container: 01, 1x.
	if !ok {
		s.fail("a malformed number")
		return
	}
	s.pos = i
}
