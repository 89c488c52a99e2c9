package config

import (
	"errors"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

type kind uint8

const (
	tableKind kind = iota
	arrayKind
	stringKind
	integerKind
	tablesKind // [[…]]
	otherKind  // booleans, floats, dates: no key of ours takes these
)

func (k kind) String() string {
	return [...]string{"a table", "an array", "a string", "an integer", "an array of tables", "a boolean, float or date"}[k]
}

// A node is one value of the file with the line it stands on. go-toml decodes into maps and forgets the lines, and an error about
// a value's meaning needs them.
type node struct {
	kind   kind
	line   int
	key    string
	parent *node
	text   string           // of a string
	number int64            // of an integer
	fields map[string]*node // of a table
	items  []*node          // of an array
}

// parseTree turns a TOML document into nodes. The document is decoded twice: once by go-toml's decoder, which knows TOML's rules
// about what may be defined when, and then, known to be valid, by its parser, which knows where things are.
func parseTree(path string, data []byte) (*node, error) {
	var discarded map[string]any
	if err := toml.Unmarshal(data, &discarded); err != nil {
		e := &Error{Path: path, Problem: strings.TrimPrefix(err.Error(), "toml: "), Err: err}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			e.Line, _ = de.Position()
		}
		return nil, e
	}
	t := treeBuilder{}
	for i, c := range data {
		if c == '\n' {
			t.newlines = append(t.newlines, i)
		}
	}
	root := &node{kind: tableKind, line: 1}
	section := root
	t.parser.Reset(data)
	for t.parser.NextExpression() {
		switch e := t.parser.Expression(); e.Kind {
		case unstable.KeyValue:
			t.set(section, e)
		case unstable.Table:
			section = t.descend(root, e.Key())
			section.line = t.headerLine(e)
		case unstable.ArrayTable:
			section = t.descend(root, e.Key())
			if section.kind != tablesKind {
				section.kind, section.line = tablesKind, t.headerLine(e)
			}
		}
	}
	if err := t.parser.Error(); err != nil {
		return nil, &Error{Path: path, Problem: err.Error(), Err: err}
	}
	return root, nil
}

type treeBuilder struct {
	parser   unstable.Parser
	newlines []int // offsets; Parser.Shape counts them from the start every time
}

func (t *treeBuilder) line(n *unstable.Node, inherited int) int {
	if n.Raw.Length == 0 {
		return inherited
	}
	return 1 + sort.SearchInts(t.newlines, int(n.Raw.Offset))
}

func (t *treeBuilder) headerLine(e *unstable.Node) int {
	keys := e.Key()
	keys.Next()
	return t.line(keys.Node(), 0)
}

// descend returns the node that a dotted key names, made as a table if it is new.
func (t *treeBuilder) descend(n *node, keys unstable.Iterator) *node {
	for keys.Next() {
		name := string(keys.Node().Data)
		child := n.fields[name]
		if child == nil {
			child = &node{kind: tableKind, line: t.line(keys.Node(), n.line), key: name, parent: n}
			if n.fields == nil {
				n.fields = map[string]*node{}
			}
			n.fields[name] = child
		}
		n = child
	}
	return n
}

func (t *treeBuilder) set(section *node, e *unstable.Node) {
	n := t.descend(section, e.Key())
	t.fill(n, e.Value())
}

func (t *treeBuilder) fill(n *node, v *unstable.Node) {
	switch v.Kind {
	case unstable.String:
		n.kind, n.text = stringKind, string(v.Data)
	case unstable.Integer:
		// The decoder has taken it, so it fits; base 0 reads TOML's prefixes and underscores.
		n.kind = integerKind
		n.number, _ = strconv.ParseInt(string(v.Data), 0, 64)
	case unstable.InlineTable:
		n.kind = tableKind
		for it := v.Children(); it.Next(); {
			t.set(n, it.Node())
		}
	case unstable.Array:
		n.kind = arrayKind
		for it := v.Children(); it.Next(); {
			item := &node{line: t.line(it.Node(), n.line), key: n.key, parent: n.parent}
			t.fill(item, it.Node())
			n.items = append(n.items, item)
		}
	default:
		n.kind = otherKind
	}
}

// String is how messages name the node: `requests_per_second in [limits]`.
func (n *node) String() string {
	if n.parent == nil {
		return "the file"
	}
	return bare(n.key) + n.parent.in()
}

// in ends a phrase with the section that something is in.
func (n *node) in() string {
	if n.parent == nil {
		return " at the top level"
	}
	return " in " + n.section()
}

// section is the node's name as a table header, "[profiles.work]".
func (n *node) section() string {
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, bare(n.key))
	}
	slices.Reverse(parts)
	return "[" + strings.Join(parts, ".") + "]"
}

// bare is a key as one writes it in TOML: quoted only where that is needed.
func bare(key string) string {
	if !isName(key) || strings.Contains(key, ".") {
		return quote(key)
	}
	return key
}

// quote makes text from the file safe to print: on one line, and no longer than a person wants to read.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.Quote(s)
}

// isName reports whether s is a provider, bucket, key or profile name: 1 to 64 characters of A–Z a–z 0–9 . _ -
func isName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if !isNameByte(s[i]) {
			return false
		}
	}
	return true
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}
