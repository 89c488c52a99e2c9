package cli

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

func init() {
	if len(os.Args) == 3 && os.Args[1] == "waiting-test" {
		stop := (&app{stderr: os.Stderr}).waiting(wait{what: "what comes", limit: time.Minute, ctrlC: cancels})
		_, _ = io.Copy(io.Discard, os.NewFile(map[string]uintptr{"first": 3, "second": 4}[os.Args[2]], "until the test closes it"))
		stop()
		os.Exit(0)
	}
}

// A job in the background says once what it waits for: what moves would be drawn over the shell's prompt, and it hears no Ctrl-C.
func TestWaitingInTheBackground(t *testing.T) {
	t.Parallel()
	master, slave, err := systest.OpenPTY(24, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	var holds [2]*os.File
	var held []*os.File
	for i := range holds {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		holds[i], held = w, append(held, r)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", `set -m; "$0" waiting-test first & wait; echo over; "$0" waiting-test second; echo over`, self)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.ExtraFiles = held
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for _, f := range append(held, slave) {
		_ = f.Close()
	}
	_ = master.SetReadDeadline(time.Now().Add(patient))
	shown := func(until string) string {
		t.Helper()
		screen, buffer := "", make([]byte, 4096)
		for !strings.HasSuffix(screen, until) {
			n, err := master.Read(buffer)
			if screen += string(buffer[:n]); err != nil {
				t.Fatalf("the terminal never showed %q: %v\n%q", until, err, screen)
			}
		}
		return screen
	}
	const plain = "waiting for what comes, for up to 60 seconds\r\n"
	screen := shown(plain)
	_ = holds[0].Close()
	if screen += shown("over\r\n"); !strings.HasPrefix(screen, plain) || strings.Contains(screen, "\x1b") {
		t.Errorf("in the background it shows %q", screen)
	}
	if screen = shown("; Ctrl-C cancels"); !strings.HasPrefix(screen, "\r\x1b[K⠋ waiting for what comes, ") {
		t.Errorf("in the foreground it shows %q", screen)
	}
	_ = holds[1].Close()
	shown("over\r\n")
}
