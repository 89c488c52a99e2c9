package socket

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// roles has other processes, which play a part. What keeps one from it is the line that it prints.
var roles = systest.Roles{"play": func(args []string) error {
	err := play(args[0], args[1:])
	if err != nil {
		fmt.Println("error:", err)
	}
	return err
}}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// play runs one part, prints a line when it is ready and stays until its stdin ends.
func play(part string, args []string) error {
	switch part {
	case "listen": // prints its socket's path
		l, err := Listen()
		if err != nil {
			return err
		}
		fmt.Println(l.Path())
	case "connect": // to the socket in args[0]; prints its process id
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Println(os.Getpid())
	case "identify": // listens on args[0], prints the peer of one connection
		l, err := net.Listen("unix", args[0])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		c, err := l.Accept()
		if err != nil {
			return err
		}
		p, err := Identify(c)
		fmt.Println(p.PID, err)
	case "leave": // connects to args[0] and exits at once
		_, err := net.Dial("unix", args[0])
		return err
	}
	systest.AwaitEnd()
	return nil
}

// start starts a process that plays a part, with next to no environment.
func start(t *testing.T, attr *syscall.SysProcAttr, part string, args ...string) *systest.Process {
	t.Helper()
	return roles.Start(t, func(cmd *exec.Cmd) {
		cmd.Dir = "/"
		cmd.Env = []string{"TMPDIR=" + os.TempDir(), "GORACE=atexit_sleep_ms=0"}
		cmd.SysProcAttr = attr
	}, "play", append([]string{part}, args...)...)
}

// needRoot fails a test that needs a second UID. No test is skipped: a squatter that is never tried is no test.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test plays another user: run it as root, or as a user with a range in /etc/subuid under " +
			"`unshare --user --map-auto --map-root-user` (packages uidmap and util-linux)")
	}
}

const otherUID = 1

// tempDir is a short temporary directory that every user can enter, and TMPDIR until the test ends.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := systest.SharedDir(t, 0o777|os.ModeSticky)
	t.Setenv("TMPDIR", dir)
	return dir
}

func mustListen(t *testing.T) *Listener {
	t.Helper()
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept returns the next connection of l.
func accept(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(30 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func ownName() string { return prefix + strconv.Itoa(os.Geteuid()) }
