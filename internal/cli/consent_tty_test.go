package cli

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// What was typed before the question is open is no answer to it, not even what came after the last look at the terminal.
func TestLateInputIsDropped(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := int(r.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		screen := &tty{fd: fd}
		typed := time.AfterFunc(pollEvery/4, func() { _, _ = w.WriteString("y\r") })
		defer typed.Stop()
		// The wait is over before it is time for another look.
		if b, err := screen.next(t.Context(), pollEvery/2); string(b) != "y\r" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if b, err := screen.next(t.Context(), pollEvery/2); b != nil || err != nil {
			t.Errorf("nothing was typed: %q, %v", b, err)
		}
	})
}
