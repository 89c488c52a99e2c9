package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

// onTerminal is a face on a terminal of its own; screen waits until the terminal has shown a text, and returns all of it.
func onTerminal(t *testing.T, rows uint16) (f *face, master *os.File, screen func(until string) string) {
	t.Helper()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	master, slave, err := systest.OpenPTY(rows, 80)
	if err != nil {
		t.Fatal(err)
	}
	shown := newLogBuffer()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			_, _ = shown.Write(buffer[:n])
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = slave.Close()
		_ = master.Close()
		<-read
	})
	screen = func(until string) string {
		t.Helper()
		limit := time.After(patient)
		for !strings.Contains(shown.String(), until) {
			select {
			case <-shown.grown:
			case <-limit:
				t.Fatalf("the terminal never showed %q:\n%q", until, shown)
			}
		}
		return shown.String()
	}
	return &face{app: &app{stdin: slave, stdout: slave, stderr: slave}, login: login{"acme", "default"}}, master, screen
}

type codeAnswer struct {
	code string
	err  error
}

func asked(ctx context.Context, f *face, problem string) <-chan codeAnswer {
	result := make(chan codeAnswer, 1)
	go func() {
		code, err := f.AskCode(ctx, problem)
		f.rest()
		result <- codeAnswer{code, err}
	}()
	return result
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func TestCodeIsHidden(t *testing.T) {
	f, master, screen := onTerminal(t, 40)
	before := termios(t, f.app.stdin)
	long := strings.Repeat("test-code-", 2000) // a terminal's own editing ends at 4096 bytes
	for _, c := range []struct{ typed, want string }{
		{long + "\n", long},
		{"\x1b[200~" + long[:9000] + "\r\n" + long[9000:] + "\x1b[201~\r", long},
	} {
		result := asked(t.Context(), f, "")
		if !quiet(master) {
			t.Fatal("the terminal echoes")
		}
		if _, err := master.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		if got := <-result; got.err != nil || got.code != c.want {
			t.Errorf("%d bytes, %v; want %d", len(got.code), got.err, len(c.want))
		}
		if now := termios(t, f.app.stdin); now != before {
			t.Errorf("the terminal is left as %+v, was %+v", now, before)
		}
	}
	_ = f.app.write("the end")
	shown := screen("the end")
	if !strings.Contains(shown, "20000 characters") {
		t.Error("it does not show how long the code is")
	}
	if strings.Contains(shown, "test-code") {
		t.Error("the code is on the screen")
	}
	if on, off := strings.Count(shown, "\x1b[?2004h"), strings.Count(shown, "\x1b[?2004l"); on != 2 || off != 2 {
		t.Errorf("bracketed paste was turned on %d times and off %d times", on, off)
	}
}

func TestPromptEnds(t *testing.T) {
	f, master, screen := onTerminal(t, 40)
	before := termios(t, f.app.stdin)

	result := asked(t.Context(), f, "that was no code")
	quiet(master)
	screen(codePrompt)
	if _, err := master.WriteString("half\x04"); err != nil {
		t.Fatal(err)
	}
	if got := <-result; !errors.Is(got.err, errCancelled) {
		t.Errorf("Ctrl-D: %v", got.err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	result = asked(ctx, f, "")
	quiet(master)
	// A shell that continues a job may put the terminal back; nothing may show for that.
	if err := unix.IoctlSetTermios(int(f.app.stdin.Fd()), unix.TCSETS, &before); err != nil {
		t.Fatal(err)
	}
	if !quiet(master) {
		t.Error("the terminal goes on echoing")
	}
	cancel()
	if got := <-result; !errors.Is(got.err, context.Canceled) {
		t.Errorf("cancelled: %v", got.err)
	}
	if now := termios(t, f.app.stdin); now != before {
		t.Errorf("the terminal is left as %+v, was %+v", now, before)
	}
}

func TestFaceOnTerminal(t *testing.T) {
	f, _, screen := onTerminal(t, 40)
	f.qr = true
	complete := page + "?user_code=HI"
	if err := f.ShowCode(t.Context(), page, complete, "HI"); err != nil {
		t.Fatal(err)
	}
	for _, minutes := range []int{9, 4} { // and a half, in which it shows them at the latest
		f.Waiting(time.Now().Add(time.Duration(minutes)*time.Minute + 30*time.Second))
		screen(fmt.Sprintf("waiting for the login in the browser, %dm", minutes))
	}
	f.rest()
	screen("s left; Ctrl-C cancels")
	shown := screen("enter this code there:")
	picture, err := qrCode(complete, true, 80, 0)
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"link":       link(complete, page) + "\n",
		"QR code":    picture,
		"big code":   "\x1b[1m  █  █  ███\x1b[0m\n\x1b[1m  █  █   █\x1b[0m\n",
		"plain code": "and enter this code there: \x1b[1mHI\x1b[0m\n",
	} {
		if !strings.Contains(shown, strings.ReplaceAll(want, "\n", "\r\n")) {
			t.Errorf("there is no %s:\n%s", what, shown)
		}
	}

	f, _, screen = onTerminal(t, 40)
	t.Setenv("TERM", "dumb")
	f.qr = true
	if err := f.ShowCode(t.Context(), page, complete, "HI"); err != nil {
		t.Fatal(err)
	}
	if shown := screen("enter this code there: HI"); strings.Contains(shown, "\x1b") || !strings.Contains(shown, "\r\n"+page+"\r\n") {
		t.Errorf("a dumb terminal got %q", shown)
	}
}

// Nothing pushes the address off the screen: the large letters go first, then the QR code.
func TestLowTerminal(t *testing.T) {
	for _, c := range []struct {
		rows            uint16
		picture, letter bool
	}{{40, true, true}, {24, true, false}, {16, false, true}} {
		f, _, screen := onTerminal(t, c.rows)
		f.qr = true
		if err := f.ShowCode(t.Context(), page, page+"?user_code=HI", "HI"); err != nil {
			t.Fatal(err)
		}
		shown := screen("enter this code there:")
		if strings.Contains(shown, "▄▄▄▄▄") != c.picture || strings.Contains(shown, "it needs") == c.picture || strings.Contains(shown, "  █  █  ███") != c.letter {
			t.Errorf("%d lines:\n%s", c.rows, shown)
		}
	}
	f, _, screen := onTerminal(t, 24)
	f.qr = true
	address := "https://auth.example/authorize?state=" + strings.Repeat("x", 300)
	if err := f.ShowURL(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	f.Waiting(time.Time{})
	f.rest()
	if shown := screen("waiting for"); !strings.Contains(shown, address) || !strings.Contains(shown, "the terminal is too low for the QR code: it needs ") {
		t.Errorf("a long address:\n%s", shown)
	}
}
