package guest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

// onTerminal starts argv as process 1 on a terminal of its own, as an engine does it. What is typed is written to keys.
func onTerminal(t *testing.T, argv ...string) (b *box, keys *os.File) {
	t.Helper()
	master, slave, err := systest.OpenPTY(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	b = start(t, newWorld(t), func(c *exec.Cmd) {
		c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
		c.SysProcAttr.Setctty = true
	}, argv...)
	_ = slave.Close()
	read := make(chan struct{})
	b.read = read
	go func() { // until nobody has the terminal open
		defer close(read)
		_, _ = io.Copy(b.out, master)
	}()
	t.Cleanup(func() {
		_ = b.Process.Kill()
		<-b.ended
		_ = master.Close()
		<-read
	})
	return b, master
}

func typeKeys(t *testing.T, keys *os.File, text string) {
	t.Helper()
	if _, err := keys.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// engineInit plays the init that an engine may put in front of us: it gives its child a process group in the foreground.
func engineInit(args []string) error {
	signal.Ignore(syscall.SIGTTOU)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Foreground: true}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	return err
}

func TestTerminal(t *testing.T) {
	for name, before := range map[string][]string{"process 1": nil, "under an init": {self, "init"}} {
		t.Run(name, func(t *testing.T) {
			b, keys := onTerminal(t, append(before, self, BridgeWord, self, "hold")...)
			newHost(t).handover(t, b, self)
			b.says(t, "holding")
			typeKeys(t, keys, "\x03")
			b.says(t, "signal 2\r\n")
			typeKeys(t, keys, "\x1c")
			b.says(t, "signal 3\r\n")
			typeKeys(t, keys, "\x1a")
			b.says(t, "signal 20\r\n") // which this command catches
			if err := unix.IoctlSetWinsize(int(keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 7, Col: 70}); err != nil {
				t.Fatal(err)
			}
			b.says(t, "signal 28\r\n")
			command, _ := children(t, b.Process.Pid)
			if before != nil {
				command, _ = children(t, command)
			}
			if err := unix.Kill(command, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if got := b.status(t); got != 9 {
				t.Errorf("status %d", got)
			}
			for _, s := range []string{"signal 1\r\n", "signal 2\r\n", "signal 3\r\n", "signal 20\r\n"} {
				want := 1
				if s == "signal 1\r\n" {
					want = 0 // the one that comes of leaving a terminal
				}
				if got := strings.Count(b.out.String(), s); got != want {
					t.Errorf("%q came %d times", s, got)
				}
			}
		})
	}
}

// TestCtrlZ: a command that does not catch it goes on, for nobody could continue it.
func TestCtrlZ(t *testing.T) {
	for name, before := range map[string][]string{"process 1": nil, "under an init": {self, "init"}} {
		t.Run(name, func(t *testing.T) {
			b, keys := onTerminal(t, append(before, self, BridgeWord, "sh", "-c", "echo ready > /dev/tty; read line; echo got $line; read line; exit 3")...)
			newHost(t).handover(t, b, self)
			b.says(t, "ready\r\n")
			typeKeys(t, keys, "\x1a")
			b.says(t, "^Z")
			typeKeys(t, keys, "one\n")
			b.says(t, "got one\r\n")
			typeKeys(t, keys, "two\n")
			if got := b.status(t); got != 3 {
				t.Errorf("status %d", got)
			}
		})
	}
}

func TestCommandHasTheForeground(t *testing.T) {
	b, keys := onTerminal(t, self, BridgeWord, self, "hold")
	newHost(t).handover(t, b, self)
	b.says(t, "holding")
	command, _ := children(t, b.Process.Pid)
	foreground, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPGRP)
	if err != nil || foreground != command {
		t.Errorf("the foreground is process group %d (%v), the command is %d", foreground, err, command)
	}
	if sid, err := unix.Getsid(command); err != nil || sid != command {
		t.Errorf("its session is %d, %v", sid, err)
	}
}

// TestHangup: a terminal that goes away ends the command as it would without us.
func TestHangup(t *testing.T) {
	b, keys := onTerminal(t, self, BridgeWord, "sh", "-c", "echo ready; read line; exit 3")
	newHost(t).handover(t, b, self)
	b.says(t, "ready\r\n")
	if err := keys.Close(); err != nil {
		t.Fatal(err)
	}
	if got := b.status(t); got != 128+1 && got != 3 { // by SIGHUP, or by the end of its input
		t.Errorf("status %d", got)
	}
}
