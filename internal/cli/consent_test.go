package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/daemon"
	"github.com/credproxy/credproxy/internal/socket"
)

func TestTypedLine(t *testing.T) {
	for _, c := range []struct {
		name  string
		typed []string // as it comes
		yes   bool
		state int
	}{
		{"y", []string{"y", "\r"}, true, lineAnswered},
		{"yes at once", []string{"yes\r\n"}, true, lineAnswered},
		{"capitals and blanks", []string{" YES \n"}, true, lineAnswered},
		{"mended", []string{"yn", "\x7f", "es\r"}, true, lineAnswered},
		{"mended too much", []string{"\x7f\x7f\b", "y\r"}, true, lineAnswered},
		{"begun again", []string{"no", "\x15", "y\r"}, true, lineAnswered},
		{"nothing", []string{"\r"}, false, lineAnswered},
		{"no", []string{"n\r"}, false, lineAnswered},
		{"nearly", []string{"ye\r"}, false, lineAnswered},
		{"more than yes", []string{"yes please\r"}, false, lineAnswered},
		{"Ctrl-C", []string{"y", "\x03"}, false, lineAnswered},
		{"Ctrl-D", []string{"yes\x04"}, false, lineAnswered},
		{"not finished", []string{"y"}, true, lineTyping},
		{"where the cursor is", []string{"\x1b[1;1R"}, false, lineForeign},
		{"with what it means in front", []string{"\x1b]ly\x1b\\y\r"}, false, lineForeign},
		{"behind an answer", []string{"y\r\x1b[0n"}, false, lineForeign},
		{"two lines at once", []string{"y\ry\r"}, false, lineForeign},
		{"in a paste", []string{"\x1b[200~y\r\x1b[201~"}, false, lineForeign},
		{"another control character", []string{"y\x1a"}, false, lineForeign},
		{"no ASCII", []string{"\u00ff\r"}, false, lineForeign},
		{"too long", []string{strings.Repeat(" ", 60) + "y\r"}, false, lineForeign},
	} {
		var l typedLine
		var screen strings.Builder
		for _, part := range c.typed {
			if l.state != lineTyping {
				t.Errorf("%s: ended before %q", c.name, part)
			}
			screen.WriteString(l.feed([]byte(part)))
		}
		if l.state != c.state || l.state == lineAnswered && l.yes() != c.yes {
			t.Errorf("%s: state %d, yes %t", c.name, l.state, l.yes())
		}
		if strings.Contains(screen.String(), "\x1b") {
			t.Errorf("%s: echoed as %q", c.name, screen.String())
		}
	}
}

func TestQuestionLines(t *testing.T) {
	for _, c := range []struct {
		q    daemon.Question
		want []string
	}{
		{daemon.Question{Profile: "work", Provider: "acme", Bucket: "default", Flow: "paste", Replaces: true, Peer: socket.Peer{PID: 7, Container: "0123456789ab"}},
			[]string{"pid 7 in container 0123456789ab, with the profile work", "acme/default, by a pasted code", "replaces: the login"}},
		{daemon.Question{Profile: "default", Provider: "a", Bucket: "b", Peer: socket.Peer{PID: 7, Container: "pidns:4026531836"}, Terms: "Read\nthem."},
			[]string{"pid 7, with", "a/b", "Read?them.", "to allow it is to accept them"}},
		{daemon.Question{Profile: "p\x1b[2J", Provider: "\u202ea", Bucket: strings.Repeat("b", 1000), Peer: socket.Peer{Container: "\x9b2J\xff"}},
			[]string{"a process in container ?2J?", "p?[2J", "?a/bbb", "b..."}},
	} {
		text := strings.Join(questionLines(c.q), "\n")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if c.q.Replaces != strings.Contains(text, "replaces") || (c.q.Terms != "") != strings.Contains(text, "terms:") {
			t.Errorf("too much or too little in\n%s", text)
		}
		for _, line := range questionLines(c.q) {
			if line != printable(line) && len(line) < 400 {
				t.Errorf("%q cannot be printed", line)
			}
		}
	}
}

func TestHeldLog(t *testing.T) {
	var out bytes.Buffer
	h := &heldLog{to: &out}
	write := func(s string) {
		if n, err := h.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	write("a")
	release := h.hold()
	write("b")
	write(strings.Repeat("x", maxHeld))
	write("c")
	if out.String() != "a" {
		t.Errorf("while it is held: %q", &out)
	}
	release()
	write("d")
	if out.String() != "abcd" {
		t.Errorf("afterwards: %q", &out)
	}
}
