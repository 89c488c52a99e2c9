package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"rsc.io/qr"
)

// piped is a face whose streams are no terminals: stdin is the text, stdout and stderr are what the functions return.
func piped(t *testing.T, stdin string) (f *face, stdout, stderr func() string) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) (*os.File, func() string) {
		path := filepath.Join(dir, name)
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		return file, func() string {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	in, _ := open("stdin")
	if _, err := in.WriteString(stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	out, stdout := open("stdout")
	err, stderr := open("stderr")
	return &face{app: &app{stdin: in, stdout: out, stderr: err}, login: login{"acme", "default"}}, stdout, stderr
}

const page = "https://auth.example/device"

func TestFaceIsPlainWithoutTerminal(t *testing.T) {
	f, stdout, stderr := piped(t, "y\ncode-1\r\ncode-2")
	ctx := t.Context()
	if yes, err := f.confirm(ctx, "go on?"); !yes || err != nil {
		t.Errorf("confirm: %v, %v", yes, err)
	}
	if err := f.ShowURL(ctx, "https://auth.example/authorize?a=b"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"code-1", "code-2"} {
		if code, err := f.AskCode(ctx, ""); code != want || err != nil {
			t.Errorf("asked for the code: %q, %v, want %q", code, err, want)
		}
	}
	var why *failure
	if _, err := f.AskCode(ctx, "that was\nno code"); !errors.As(err, &why) || err.Error() != "that was no code" || why.hint == "" {
		t.Errorf("at the end of stdin: %v", err)
	}
	if err := f.ShowCode(ctx, page, page+"?user_code=WDJB-MJHT", "WDJB-MJHT"); err != nil {
		t.Error(err)
	}
	until := time.Now().Add(10 * time.Minute)
	f.Waiting(until)
	f.Waiting(until) // says nothing more
	f.rest()
	f.Waiting(time.Time{})
	f.rest()
	if got, want := stdout(), "https://auth.example/authorize?a=b\n"+page+"\n"; got != want {
		t.Errorf("stdout is %q, want %q", got, want)
	}
	code := "waiting for the code from the page, or the page's whole address, on a line of stdin; Ctrl-C cancels\n"
	want := "go on? [y/N] \n" +
		"open this page in a browser to log in to acme:\n" + code + code + "that was no code\n" + code +
		"open this page in a browser, on any device, to log in to acme:\nand enter this code there: WDJB-MJHT\n" +
		"waiting for the login in the browser, for up to 10 minutes; Ctrl-C cancels\n" +
		"waiting for the login in the browser; Ctrl-C cancels\n"
	if got := stderr(); got != want {
		t.Errorf("stderr is\n%s\nwant\n%s", got, want)
	}
}

// Where the browser has to be depends on how the login goes on.
func TestFaceSaysWhere(t *testing.T) {
	const (
		address = "https://auth.example/authorize?redirect_uri=http%3A%2F%2F127.0.0.1%3A49152%2Fcallback"
		away    = "https://auth.example/authorize?redirect_uri=https%3A%2F%2Fauth.example%2Fcode"
		nowhere = "the browser will end at a page that it cannot open: copy its address\n"
	)
	t.Setenv("BROWSER", "nosuch-browser")
	for _, c := range []struct {
		face    *face
		address string
		flow    string
		want    string
	}{
		{&face{}, address, "browser", "open this page to log in to acme:\n"},
		{&face{inside: true}, address, "browser", "open this page in a browser on the host to log in to acme:\n"},
		{&face{inside: true}, address, "paste", "open this page in a browser to log in to acme:\n" + nowhere},
		{&face{}, strings.Replace(address, "127.0.0.1", "localhost", 1), "paste", "open this page in a browser to log in to acme:\n" + nowhere},
		{&face{}, away, "paste", "open this page in a browser to log in to acme:\n"},
		{&face{open: true, flows: []string{"browser", "paste"}}, address, "browser", "no browser was opened (BROWSER: exec: \"nosuch-browser\": executable file not found in $PATH): open the page yourself\n" +
			"browser on another machine? --flow paste\n"},
		{&face{open: true}, address, "browser", "browser on another machine? --flow device or --flow paste\n"},
		{&face{open: true, flows: []string{"browser"}}, address, "browser", "open the page yourself\n"},
		{&face{qr: true}, address, "browser", "this page has to be opened on this machine: a phone that scans the QR code cannot finish the login\n"},
		{&face{qr: true, inside: true}, address, "browser", "this page has to be opened on the host: a phone that scans the QR code cannot finish the login\n"},
	} {
		f, stdout, stderr := piped(t, "code-1\n")
		c.face.app, c.face.login = f.app, f.login
		f = c.face
		if err := f.ShowURL(t.Context(), c.address); err != nil {
			t.Fatal(err)
		}
		if c.flow == "paste" {
			if _, err := f.AskCode(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		} else {
			f.Waiting(time.Time{})
		}
		f.rest()
		said, _, _ := strings.Cut(stderr(), "waiting for")
		if stdout() != c.address+"\n" || !strings.HasSuffix(said, c.want) {
			t.Errorf("%s, inside %v, flows %v: %q, not %q", c.flow, f.inside, f.flows, said, c.want)
		}
	}
}

func TestNoAnswerIsNo(t *testing.T) {
	for stdin, want := range map[string]bool{"": false, "\n": false, "n\n": false, "yy\n": false, "Y": true, " yes \n": true} {
		f, _, _ := piped(t, stdin)
		if got, err := f.confirm(t.Context(), "?"); got != want || (err != nil) != (stdin == "") || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%q: %v, %v", stdin, got, err)
		}
	}
}

func TestQuestionsEndWithTheContext(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f, _, _ := piped(t, "")
	f.app.stdin = r
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.AskCode(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	_ = w.Close()
	_ = r.Close()
}

// What a provider sends reaches the terminal, and the arguments of a browser.
func TestFaceShowsNoTricks(t *testing.T) {
	for _, address := range []string{"", "--help", "file:///etc/passwd", "javascript:alert(1)", "https:///x", "https://x/\x1b]0;x\a", "https://x/ y", "https://x/ü"} {
		f, stdout, _ := piped(t, "")
		if err := f.ShowURL(t.Context(), address); err == nil || stdout() != "" {
			t.Errorf("%q was shown: %v", address, err)
		}
		if err := f.ShowCode(t.Context(), address, "", "A"); err == nil || stdout() != "" {
			t.Errorf("%q was shown: %v", address, err)
		}
	}
	f, _, stderr := piped(t, "")
	f.qr = true // of the page, when the complete address is none
	if err := f.ShowCode(t.Context(), page, "file:///x", "A\x1b[2JB"); err != nil || strings.Contains(stderr(), "\x1b") {
		t.Errorf("%v, %q", err, stderr())
	}
	picture, _ := qrCode(page, false, 0, 0)
	if !strings.Contains(stderr(), picture) {
		t.Error("the QR code is not the page's address")
	}
	for _, code := range []string{"", "\n", strings.Repeat("A", maxUserCode+1)} {
		if err := f.ShowCode(t.Context(), page, "", code); err == nil {
			t.Errorf("%.10q was shown", code)
		}
	}
}

func TestHiddenLine(t *testing.T) {
	for _, c := range []struct {
		typed string // a | begins another read
		text  string
		err   error
	}{
		{typed: "code\n", text: "code"},
		{typed: "co|de\r\nrest", text: "code"},
		{typed: "x\x7fcodeé\x7f\n", text: "code"},
		{typed: "\x7f\bcode\n", text: "code"},
		{typed: "wrong\x15code\n", text: "code"},
		{typed: "wrong\x17code\n", text: "code"},
		{typed: "\x1b[200~code\x1b[201~\n", text: "code"},
		{typed: "\x1b|[20|0~https://x/\r\ncall\tback\x04?code=a\x1b[201|~\r", text: "https://x/callback?code=a"},
		{typed: "\x1b[200~a\n\x1b[201~ b\n", text: "a b"},
		{typed: "\x1b[Aco\x1b[1;5D\x1bOPde\x1bx\n", text: "code"},
		{typed: "\x01\x00code\n", text: "code"},
		{typed: "code\x04", err: errCancelled},
		{typed: "\x03", err: errCancelled},
	} {
		var l hiddenLine
		for part := range strings.SplitSeq(c.typed, "|") {
			done, err := l.feed([]byte(part))
			if !errors.Is(err, c.err) && err != nil {
				t.Errorf("%q: %v", c.typed, err)
			}
			if done && string(l.text) != c.text {
				t.Errorf("%q is %q, want %q", c.typed, l.text, c.text)
			}
			if last := strings.HasSuffix(c.typed, part); last && done == (c.err != nil) {
				t.Errorf("%q: done is %v", c.typed, done)
			}
		}
	}
	var l hiddenLine
	if _, err := l.feed(bytes.Repeat([]byte("x"), maxCode+10)); err != nil || len(l.text) != maxCode {
		t.Errorf("%d bytes are kept, %v", len(l.text), err)
	}
	var endless hiddenLine
	if done, _ := endless.feed([]byte("\x1b[" + strings.Repeat("1", 1000) + "\n")); !done {
		t.Error("an escape sequence without an end swallows everything")
	}
}

func TestQRCodeIsWhatItShows(t *testing.T) {
	text := page + "?user_code=WDJB-MJHT"
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	for _, colours := range []bool{false, true} {
		picture, err := qrCode(text, colours, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(picture, "\x1b") != colours {
			t.Errorf("colours are %v: %q", colours, picture)
		}
		picture = strings.NewReplacer("\x1b[38;5;231;48;5;16m", "", "\x1b[0m", "").Replace(picture)
		for row, line := range strings.Split(strings.TrimSuffix(picture, "\n"), "\n") {
			if n := utf8.RuneCountInString(line); n != code.Size+2*qrMargin {
				t.Fatalf("line %d is %d wide", row, n)
			}
			for column, r := range []rune(line) {
				for half, dark := range []bool{r == ' ' || r == '▄', r == ' ' || r == '▀'} {
					x, y := column-qrMargin, 2*row+half-qrMargin
					if y < code.Size+qrMargin && dark != code.Black(x, y) {
						t.Fatalf("the module %d, %d is %v", x, y, dark)
					}
				}
			}
		}
	}
	if _, err := qrCode(text, false, 0, (code.Size+2*qrMargin)/2); err == nil || !strings.Contains(err.Error(), "needs 1 more line") {
		t.Errorf("one line too few: %v", err)
	}
	if _, err := qrCode(text, false, 20, 0); err == nil || !strings.Contains(err.Error(), "columns") {
		t.Errorf("20 columns: %v", err)
	}
	if _, err := qrCode(strings.Repeat("x", 4000), false, 0, 0); err == nil {
		t.Error("4000 bytes went into a QR code")
	}
	// The longest address of a built-in provider has room on an ordinary terminal.
	if _, err := qrCode("https://"+strings.Repeat("x", 440), false, 80, 0); err != nil {
		t.Error(err)
	}
}

func TestLargeLetters(t *testing.T) {
	for r, letter := range letters {
		for _, row := range letter {
			if len(row) != len(letter[0]) || strings.Trim(row, "# ") != "" {
				t.Errorf("%c: %q", r, row)
			}
		}
	}
	for r := '0'; r <= 'Z'; r++ {
		if _, ok := letters[r]; !ok && (r <= '9' || r >= 'A') {
			t.Errorf("%c has no letter", r)
		}
	}
	want := "  █  █  ███\n  █  █   █\n  ████   █\n  █  █   █\n  █  █  ███\n"
	if got := large("HI", 80); got != want {
		t.Errorf("HI is\n%s", got)
	}
	for code, columns := range map[string]int{"Hi": 80, "Ü": 80, "HI": 10} {
		if got := large(code, columns); got != "" {
			t.Errorf("%s in %d columns is\n%s", code, columns, got)
		}
	}
	if large("WDJB-MJHT", 80) == "" || large("WDJB-MJHT", 0) == "" {
		t.Error("an ordinary code is not shown")
	}
}

func TestCut(t *testing.T) {
	for want, columns := range map[string]int{"⠋ waiting": 9, "⠋ wait…": 7, "…": 1} {
		if got := cut("⠋ waiting", columns); got != want {
			t.Errorf("%d columns: %q", columns, got)
		}
	}
	if got := cut("⠋ waiting", 0); got != "⠋ waiting" {
		t.Errorf("columns that nobody knows: %q", got)
	}
}
