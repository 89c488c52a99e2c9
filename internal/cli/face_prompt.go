package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// askHidden asks on the terminal that stdin is for one line, of up to maxCode bytes, which is never on the screen: a code is
// a secret while it lasts. The terminal's own line editing cuts a line at 4096 bytes, so it is off, and this does without it
// what people expect: backspace, Ctrl-U, a paste (in brackets, https://invisible-island.net/xterm/xterm-paste64.html) in
// which line breaks are where the address was wrapped. How much there is shows; what, does not. Keys that send signals go on
// doing so. fresh drops what was typed before the question. The terminal is put back whenever this returns.
func (a *app) askHidden(ctx context.Context, prompt string, fresh bool) (string, error) {
	fd := int(a.stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	screen := a.stderr
	if !isTerminal(screen) {
		screen = a.stdin
	}
	raw := *before
	raw.Lflag &^= unix.ICANON | unix.ECHO | unix.ECHONL | unix.IEXTEN
	raw.Lflag |= unix.ISIG
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 0, 2 // a read returns after 0.2 s at the latest, to look at ctx
	set := uint(setTermios)
	if fresh {
		set = setTermiosFlush
	}
	if err := unix.IoctlSetTermios(fd, set, &raw); err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	brackets, unbracket := "", ""
	if !dumb() {
		brackets, unbracket = "\x1b[?2004h", "\x1b[?2004l"
	}
	defer func() {
		_ = unix.IoctlSetTermios(fd, setTermios, before)
		fmt.Fprint(screen, unbracket+"\n")
	}()
	fmt.Fprint(screen, brackets+prompt)

	var line hiddenLine
	buffer := make([]byte, 4096)
	for ctx.Err() == nil {
		n, err := unix.Read(fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", fmt.Errorf("asking on the terminal: %w", err)
		case n == 0:
			if now, err := unix.IoctlGetTermios(fd, getTermios); err != nil {
				return "", errors.New("the terminal has gone")
			} else if now.Lflag&unix.ECHO != 0 { // a shell put it back while we were stopped
				_ = unix.IoctlSetTermios(fd, setTermios, &raw)
			}
			continue
		}
		done, err := line.feed(buffer[:n])
		if err != nil {
			return "", err
		}
		line.report(screen, prompt)
		if done {
			return string(line.text), nil
		}
	}
	return "", ctx.Err()
}

// errCancelled is Ctrl-D, or Ctrl-C where that sends no signal.
var errCancelled = errors.New("cancelled")

// hiddenLine is a line that is being typed. Bytes come as they were read, so that an escape sequence may be in two parts.
type hiddenLine struct {
	text     []byte
	escape   []byte // the escape sequence that has begun, with its ESC
	pasting  bool   // between the brackets of a paste
	reported int    // characters, as the screen says
}

// feed takes what was typed; done is the end of the line. What is behind that is dropped.
func (l *hiddenLine) feed(typed []byte) (done bool, err error) {
	for _, c := range typed {
		switch {
		case len(l.escape) > 0:
			l.escapes(c)
		case c == 0x1b:
			l.escape = append(l.escape, c)
		case c == '\n' || c == '\r':
			if !l.pasting {
				return true, nil
			}
		case l.pasting && c < ' ':
		case c == 0x03 || c == 0x04:
			return false, errCancelled
		case c == 0x7f || c == '\b':
			_, size := utf8.DecodeLastRune(l.text)
			l.text = l.text[:len(l.text)-size]
		case c == 0x15 || c == 0x17: // Ctrl-U, and Ctrl-W of what is one word
			l.text = l.text[:0]
		case c >= ' ' && len(l.text) < maxCode:
			l.text = append(l.text, c)
		}
	}
	return false, nil
}

// escapes takes the next byte of an escape sequence: ESC [ parameters final, ESC O letter, or ESC and one character.
func (l *hiddenLine) escapes(c byte) {
	l.escape = append(l.escape, c)
	switch begun := l.escape[1]; {
	case begun == '[' && (len(l.escape) == 2 || (c < 0x40 && c >= ' ' && len(l.escape) < 32)):
		return
	case begun == 'O' && len(l.escape) == 2:
		return
	}
	switch string(l.escape) {
	case "\x1b[200~":
		l.pasting = true
	case "\x1b[201~":
		l.pasting = false
	}
	l.escape = l.escape[:0]
}

// report says on the line of the prompt how many characters there are, for whoever pastes without seeing anything happen.
func (l *hiddenLine) report(screen *os.File, prompt string) {
	n := utf8.RuneCount(l.text)
	if w := width(screen); n == l.reported || dumb() || (w > 0 && w <= len(prompt)+len("65536 characters")) {
		return
	}
	l.reported = n
	said := ""
	if n > 0 {
		said = count(n, "character")
	}
	fmt.Fprint(screen, "\r\x1b[K"+prompt+said)
}

// boldLines makes each line bold by itself, for terminals that begin every line anew.
func (p painter) boldLines(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i := range lines {
		lines[i] = p.bold(lines[i])
	}
	return strings.Join(lines, "\n") + "\n"
}
