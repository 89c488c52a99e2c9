package socket

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays other processes when this variable names a part.
const partVar = "CREDPROXY_SOCKET_TEST_PART"

func TestMain(m *testing.M) {
	if part := os.Getenv(partVar); part != "" {
		if err := play(part, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
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
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// process is a child that plays a part.
type process struct {
	*exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start runs the test binary in a part. /proc/self/exe reaches it although go test's directory is closed to other
// users.
func start(t *testing.T, attr *syscall.SysProcAttr, part string, args ...string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = "/"
	cmd.Env = []string{partVar + "=" + part, "TMPDIR=" + os.TempDir(), "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, stdin, bufio.NewReader(stdout)}
	t.Cleanup(p.end)
	return p
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the child said nothing: %v", err)
	}
	return strings.TrimSpace(s)
}

// end lets the child finish; a second call does nothing.
func (p *process) end() {
	_ = p.stdin.Close()
	_ = p.Wait()
}

// needRoot fails a test that needs a second UID. No test is skipped: a squatter that is never tried is no test.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test plays another user: run it as root, or as a user with a range in /etc/subuid under " +
			"`unshare --user --map-auto --map-root-user` (packages uidmap and util-linux)")
	}
}

func asUID(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
}

const otherUID = 1

// tempDir is a short temporary directory that every user can enter, and TMPDIR until the test ends.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
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
