package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// hidden is a question on a terminal, answered with one line of up to maxCode bytes that is never on the screen. The
// terminal's own line editing cuts a line at 4096 bytes, so it is off, and this does without it what people expect:
// backspace, Ctrl-U, Ctrl-Z and `fg`. The other keys that send signals go on doing so.
type hidden struct {
	in, screen *os.File
	prompt     string
	fresh      bool // what was typed before the question does not count

	// Of a code: it may be pasted in brackets (https://invisible-island.net/xterm/xterm-paste64.html), in which line breaks
	// are where the address was wrapped; what is typed behind it does not count; and it shows how much there is.
	code bool

	before, raw unix.Termios
}

// lookAgain is how often a question looks whether it is to end, or whether a shell has changed the terminal meanwhile.
const lookAgain = 100 * time.Millisecond

// ask asks. The terminal is put back whenever it returns, and while the process is stopped.
func (h *hidden) ask(ctx context.Context) (string, error) {
	fd := int(h.in.Fd())
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	h.before, h.raw = *before, *before
	h.raw.Lflag &^= unix.ICANON | unix.ECHO | unix.ECHONL | unix.IEXTEN
	h.raw.Lflag |= unix.ISIG
	h.raw.Cc[unix.VMIN], h.raw.Cc[unix.VTIME] = 0, 0
	// Not a signal: the terminal has to be put back before the process stops.
	line := hiddenLine{stop: h.raw.Cc[unix.VSUSP]}
	h.raw.Cc[unix.VSUSP] = noKey
	set := uint(setTermios)
	if h.fresh {
		set = setTermiosFlush
	}
	if err := unix.IoctlSetTermios(fd, set, &h.raw); err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	defer h.leave()
	h.show()

	buffer := make([]byte, 4096)
	if !h.code {
		buffer = buffer[:1] // the rest is for who asks next
	}
	for ctx.Err() == nil {
		select {
		case <-continued:
			h.again(&line)
		default:
		}
		typed, err := h.read(buffer)
		switch {
		case err != nil:
			return "", err
		case len(typed) == 0:
			if h.changed() {
				h.again(&line)
			}
			continue
		}
		done, err := line.feed(typed)
		switch {
		case errors.Is(err, errStop):
			h.leave()
			stopJob(continued)
			h.again(&line)
			continue
		case err != nil:
			return "", err
		case h.code:
			line.report(h.screen, h.prompt)
		}
		if done {
			return string(line.text), nil
		}
	}
	return "", ctx.Err()
}

func (h *hidden) show() {
	brackets := ""
	if h.code && !dumb() {
		brackets = "\x1b[?2004h"
	}
	fmt.Fprint(h.screen, brackets+h.prompt)
}

// leave puts the terminal back as it was.
func (h *hidden) leave() {
	_ = unix.IoctlSetTermios(int(h.in.Fd()), setTermios, &h.before)
	unbracket := ""
	if h.code && !dumb() {
		unbracket = "\x1b[?2004l"
	}
	fmt.Fprint(h.screen, unbracket+"\n")
}

// again asks once more, after the process was stopped, or is in the background now: there this stops it until it is not.
func (h *hidden) again(line *hiddenLine) {
	_ = unix.IoctlSetTermios(int(h.in.Fd()), setTermios, &h.raw)
	if !dumb() {
		fmt.Fprint(h.screen, "\r\x1b[K")
	}
	h.show()
	line.pasting, line.escape = false, nil
	if line.reported = 0; h.code {
		line.report(h.screen, h.prompt)
	}
}

// changed reports whether somebody else has made the terminal echo: a shell that was told to continue us.
func (h *hidden) changed() bool {
	now, err := unix.IoctlGetTermios(int(h.in.Fd()), getTermios)
	return err == nil && now.Lflag&unix.ECHO != 0
}

// read returns what was typed, nothing after lookAgain. A terminal that belongs to another job is not read.
func (h *hidden) read(buffer []byte) ([]byte, error) {
	if !foreground(h.in) {
		time.Sleep(lookAgain)
		return nil, nil
	}
	fd := int(h.in.Fd())
	var ready unix.FdSet
	ready.Set(fd)
	limit := unix.NsecToTimeval(int64(lookAgain))
	n, err := unix.Select(fd+1, &ready, nil, nil, &limit)
	if n > 0 && err == nil && !h.changed() {
		if n, err = unix.Read(fd, buffer); n == 0 && err == nil {
			if _, err = unix.IoctlGetTermios(fd, getTermios); err != nil {
				return nil, errors.New("the terminal has gone")
			}
		}
	}
	switch {
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("asking on the terminal: %w", err)
	}
	return buffer[:max(0, n)], nil
}

// stopJob stops the job that this process is of, as the terminal does at Ctrl-Z, and returns when it goes on. A job that no
// shell could continue the system does not stop.
func stopJob(continued <-chan os.Signal) {
	select {
	case <-continued: // of another time
	default:
	}
	_ = syscall.Kill(0, syscall.SIGTSTP)
	select {
	case <-continued:
	case <-time.After(lookAgain):
	}
}

var (
	errCancelled = errors.New("cancelled") // Ctrl-D, or Ctrl-C where that sends no signal
	errStop      = errors.New("stopped")   // Ctrl-Z
)

// hiddenLine is a line that is being typed. Bytes come as they were read, so that an escape sequence may be in two parts.
type hiddenLine struct {
	text     []byte
	escape   []byte // the escape sequence that has begun, with its ESC
	pasting  bool   // between the brackets of a paste
	reported int    // characters, as the screen says
	stop     byte   // the key that stops the job; 0: none
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
		case c == l.stop && c != noKey:
			return false, errStop
		case c == 0x03 || c == 0x04:
			return false, errCancelled
		case c == 0x7f || c == '\b':
			_, size := utf8.DecodeLastRune(l.text)
			l.text = l.text[:len(l.text)-size]
		case c == 0x15 || c == 0x17: // Ctrl-U, and Ctrl-W of what is one word
			l.text = l.text[:0]
		case (c >= ' ' || c == '\t') && len(l.text) < maxCode:
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
