package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// tty is this process's controlling terminal, for one question. It belongs to one goroutine. take and giveBack enclose what is
// asked; close comes last.
type tty struct {
	fd     int
	over   <-chan struct{} // closed when the question is to end; nil: never
	before *term.State     // modes, as take found them
	owner  int             // the process group that had the terminal
	ignore []os.Signal     // what this process did not ignore before
	asked  bool            // something is on the screen that was not there before
	pretty bool            // it knows escape sequences
	colour bool
}

const (
	quietTime   = 200 * time.Millisecond // without input: no more is on its way
	readingTime = 700 * time.Millisecond // before an answer counts: nobody reads faster, and what was meant for the command comes sooner
	noisyLimit  = 10 * time.Second       // for the terminal to become quiet
	writeLimit  = 2 * time.Second        // for output that the terminal does not take
	pollEvery   = 20 * time.Millisecond
)

var (
	errNoisy   = errors.New("the terminal does not stop sending")
	errHungUp  = errors.New("the terminal has gone")
	errOver    = errors.New("the command ends, or is told to")
	errBlocked = errors.New("the terminal shows nothing")
)

// openTTY opens the terminal in a way that never blocks. While it is open, this process may use it from the background: the
// signals that would stop it are ignored.
func openTTY() (*tty, error) {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTerminal, err)
	}
	t := &tty{fd: fd, pretty: !dumb(), colour: !dumb() && os.Getenv("NO_COLOR") == ""}
	for _, sig := range []os.Signal{syscall.SIGTTOU, syscall.SIGTTIN} {
		if !signal.Ignored(sig) {
			signal.Ignore(sig)
			t.ignore = append(t.ignore, sig)
		}
	}
	return t, nil
}

func (t *tty) close() {
	_ = unix.Close(t.fd)
	if len(t.ignore) > 0 { // none would be all
		signal.Reset(t.ignore...)
	}
}

// take makes this process the one that the terminal belongs to, in a mode in which every key is a byte for us and no signal. It
// must have been ours, or a group's that gives it up.
func (t *tty) take(givesUp func(pgrp int) bool) error {
	var err error
	if t.owner, err = unix.IoctlGetInt(t.fd, unix.TIOCGPGRP); err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	own := unix.Getpgrp()
	if t.owner != own && !givesUp(t.owner) {
		return errElsewhere
	}
	if t.before, err = term.GetState(t.fd); err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	if t.owner != own {
		if err := unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, own); err != nil {
			return fmt.Errorf("the terminal: %w", err)
		}
	}
	if _, err := term.MakeRaw(t.fd); err != nil {
		t.giveBack()
		return fmt.Errorf("the terminal: %w", err)
	}
	return nil
}

// giveBack drops what was typed since, and leaves everything as take has found it.
func (t *tty) giveBack() {
	_, _ = t.read()
	_ = term.Restore(t.fd, t.before)
	if t.owner != unix.Getpgrp() {
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.owner) // it may have ended
	}
}

// redraw has the program that has the terminal draw its screen again. Many do so only if the size is another one, and an engine
// hands on nothing else; so it is, for a moment.
func (t *tty) redraw() {
	select {
	case <-t.over:
		return // it is about to end
	default:
	}
	size, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil || size.Row < 2 {
		return
	}
	other := *size
	other.Row--
	if unix.IoctlSetWinsize(t.fd, unix.TIOCSWINSZ, &other) != nil {
		return
	}
	time.Sleep(100 * time.Millisecond)
	if now, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ); err == nil && *now == other { // nobody has pulled at the window
		_ = unix.IoctlSetWinsize(t.fd, unix.TIOCSWINSZ, size)
	}
}

// What a program can have done to a terminal so that the next one's text is not seen, or seen as something else: begun an escape
// sequence that never ends (CAN, ST), held back the screen (synchronized output), sent all to a printer, set colours, another
// character set, insertion, no line ends, margins, a scrolling region of a line. Then the cursor goes to the last line. The
// keyboard may have been told to send sequences in place of characters (https://sw.kovidgoyal.net/kitty/keyboard-protocol/).
const (
	readable                = "\x18\x1b\\" + "\x1b[?2026l" + "\x1b[4i" + "\x1b[0m" + "\x1b(B\x0f" + "\x1b[4l" + "\x1b[?7h" + "\x1b[?6l\x1b[?69l\x1b[r" + "\x1b[999;1H"
	plainKeys, keysAsBefore = "\x1b[>0u", "\x1b[<u"

	// White on black by numbers that no theme uses, which are set back before: a program can make all other colours the same.
	ourColours    = "\x1b]104;16;231\x1b\\"
	ourColour     = "\x1b[0;38;5;231;48;5;16m"
	toTheEnd      = "\x1b[K"
	defaultColour = "\x1b[0m"
)

const allow = "Allow? [y/N] "

// ask shows the lines and returns whether the answer is yes.
func (t *tty) ask(ctx context.Context, lines []string) (yes bool, err error) {
	text := strings.Builder{}
	if t.pretty {
		text.WriteString(readable + plainKeys)
	}
	if t.colour {
		text.WriteString(ourColours)
	}
	text.WriteString("\r\n")
	for _, line := range lines {
		text.WriteString(t.paint(line) + "\r\n")
	}
	t.asked = true
	if err := t.write(text.String()); err != nil {
		return false, err
	}
	if t.pretty {
		defer func() { _ = t.write(keysAsBefore) }()
	}
	wait := readingTime
	for {
		if err := t.quiet(ctx, wait); err != nil {
			return false, err
		}
		if err := t.write("\r" + t.paint(allow)); err != nil {
			return false, err
		}
		var line typedLine
		for line.state == lineTyping {
			b, err := t.next(ctx, time.Hour)
			if err != nil {
				return false, err
			}
			if err := t.write(line.feed(b)); err != nil {
				return false, err
			}
		}
		if line.state == lineAnswered {
			return line.yes(), nil
		}
		wait = quietTime
	}
}

// say ends the question with what came of it.
func (t *tty) say(what string) {
	_ = t.write("\r\n" + t.paint("credproxy: "+what) + "\r\n")
}

func (t *tty) paint(s string) string {
	if !t.colour {
		return s
	}
	return ourColour + s + toTheEnd + defaultColour
}

// quiet drops input until at least has gone by and for quietTime there was none: what was typed ahead, and what the terminal
// answers to a program that has asked it something.
func (t *tty) quiet(ctx context.Context, atLeast time.Duration) error {
	begun := time.Now()
	for time.Since(begun) < noisyLimit {
		b, err := t.next(ctx, max(quietTime, atLeast-time.Since(begun)))
		if b == nil {
			return err
		}
	}
	return errNoisy
}

// next returns input, or neither that nor an error when there was none for so long.
func (t *tty) next(ctx context.Context, limit time.Duration) ([]byte, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if b, err := t.read(); b != nil || err != nil {
			return b, err
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return t.read() // what came since the last look was typed in time
		case <-t.over:
			return nil, errOver
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read returns what there is to read; nil: nothing.
func (t *tty) read() ([]byte, error) {
	buffer := make([]byte, 4096)
	n, err := unix.Read(t.fd, buffer)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("the terminal: %w", err)
	case n == 0:
		return nil, errHungUp
	}
	return buffer[:n], nil
}

// write shows s. A terminal that is held (Ctrl-S) must not hold this process.
func (t *tty) write(s string) error {
	deadline := time.Now().Add(writeLimit)
	for b := []byte(s); len(b) > 0; {
		n, err := unix.Write(t.fd, b)
		switch {
		case n > 0:
			b = b[n:]
		case err != nil && err != unix.EAGAIN && err != unix.EINTR:
			return fmt.Errorf("the terminal: %w", err)
		case time.Now().After(deadline):
			return errBlocked
		default:
			time.Sleep(pollEvery)
		}
	}
	return nil
}

// typedLine is the answer as it is typed.
type typedLine struct {
	text  []byte
	state int
}

const (
	lineTyping   = iota
	lineAnswered // text is the answer
	lineForeign  // something came that nobody types; whatever came with it does not count
)

// feed takes what has come at once, and returns what is to be shown of it. An escape sequence, from a key or from the terminal
// itself, spoils all that comes along, since nobody can tell where it ends; so does a line with more behind it.
func (l *typedLine) feed(typed []byte) (echo string) {
	for i, c := range typed {
		switch {
		case c == '\r' || c == '\n':
			if l.state = lineAnswered; strings.Trim(string(typed[i:]), "\r\n") != "" {
				l.state = lineForeign
			}
			return echo
		case c == 0x03 || c == 0x04: // Ctrl-C, Ctrl-D
			l.text, l.state = nil, lineAnswered
			return echo
		case c == 0x7f || c == '\b':
			if len(l.text) > 0 {
				l.text = l.text[:len(l.text)-1]
				echo += "\b \b"
			}
		case c == 0x15: // Ctrl-U
			echo += strings.Repeat("\b \b", len(l.text))
			l.text = nil
		case c < ' ':
			l.state = lineForeign
			return "\r\n"
		case len(l.text) < 60 && c < 0x7f:
			l.text = append(l.text, c)
			echo += string(rune(c))
		default:
			l.state = lineForeign
			return "\r\n"
		}
	}
	return echo
}

func (l *typedLine) yes() bool {
	answer := strings.ToLower(strings.TrimSpace(string(l.text)))
	return answer == "y" || answer == "yes"
}
