package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

// serve listens at path and lets answer deal with each connection.
func serve(t *testing.T, path string, answer func(net.Conn)) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			answer(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
}

// guestWith runs a word of ours in this test's own namespaces.
func guestWith(t *testing.T, socket string, user int, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	if socket != "" {
		cmd.Env = append(cmd.Env, SocketEnv+"="+socket)
	}
	cmd.SysProcAttr = systest.AsUser(user)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestStartAndEnter(t *testing.T) {
	dir := newWorld(t).SocketDir
	path := func(name string) string { return filepath.Join(dir, name) }
	serve(t, path("proxy"), echo)
	serve(t, path("silent"), func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) })
	serve(t, path("web"), func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	})
	refusal := `{"v":1,"op":"handshake","ok":false,"code":"RATE_LIMITED","error":"too many connections are open","retryAfter":1}`
	serve(t, path("full"), func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write(append([]byte{0, 0, 0, byte(len(refusal))}, refusal...))
	})
	if err := os.WriteFile(path("file"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"silent", "web", "full"} {
		if err := os.Chmod(path(name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	const tls, why = "try --transport tls\n", "credproxy: the proxy's socket cannot be reached from the sandbox: "
	for _, tt := range []struct {
		socket string
		user   int
		stderr string // what it begins with; empty: the command runs
	}{
		{path("proxy"), 0, ""},
		{path("full"), 0, ""}, // it has been reached
		{path("gone"), 0, why + path("gone") + ": no such file or directory\nhint: "},
		{path("file"), 0, why + path("file") + ": connection refused\nhint: "},
		{path("proxy"), aUser, why + path("proxy") + ": permission denied\nhint: "},
		{path("silent"), aUser, why + path("silent") + ": the connection was closed without an answer\nhint: "},
		{path("web"), 0, why + path("web") + ": what answers is not the proxy\nhint: "},
		{path(strings.Repeat("x", 110)), 0, why + path(strings.Repeat("x", 110)) + ": invalid argument\nhint: "},
		{"", 0, "credproxy: the proxy's socket: " + SocketEnv + ` is "", and not an absolute path` + "\nhint: "},
		{"proxy", 0, "credproxy: the proxy's socket: " + SocketEnv + ` is "proxy", and not an absolute path` + "\nhint: "},
	} {
		for _, word := range []string{StartWord, EnterWord} {
			status, stdout, stderr := guestWith(t, tt.socket, tt.user, word, "sh", "-c", "echo ran; exit 7")
			switch {
			case tt.stderr == "":
				if status != 7 || stdout != "ran\n" || stderr != "" {
					t.Errorf("%s %s: status %d, %q, %q", word, tt.socket, status, stdout, stderr)
				}
				continue
			case status != exitGuest || stdout != "" || !strings.HasPrefix(stderr, tt.stderr) || strings.Count(stderr, "\n") != 2:
				t.Errorf("%s %s: status %d, %q, %q; want %q", word, tt.socket, status, stdout, stderr, tt.stderr)
			}
			if want := word == StartWord && filepath.IsAbs(tt.socket); strings.HasSuffix(stderr, tls) != want {
				t.Errorf("%s %s: %q", word, tt.socket, stderr)
			}
		}
	}
}

func TestProbeGivesUp(t *testing.T) {
	path := filepath.Join(newWorld(t).SocketDir, "stuck")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil { // nobody accepts
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := probe(ctx, path); !errors.Is(err, errNoAnswer) {
		t.Error(err)
	}
}

func TestStartStatus(t *testing.T) {
	dir := newWorld(t).SocketDir
	socket := filepath.Join(dir, "proxy")
	serve(t, socket, echo)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("echo \"$0 $1\"\nexit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{StartWord, EnterWord} {
		for _, tt := range []struct {
			command        string
			status         int
			stdout, stderr string
		}{
			{"no-such-command", 127, "", "credproxy: no-such-command: command not found\n"},
			{dir, 126, "", "credproxy: " + dir + ": permission denied\n"},
			{script, 5, script + " an argument\n", ""},
		} {
			status, stdout, stderr := guestWith(t, socket, 0, word, tt.command, "an argument")
			if status != tt.status || stdout != tt.stdout || stderr != tt.stderr {
				t.Errorf("%s %s: status %d, %q, %q; want %+v", word, tt.command, status, stdout, stderr, tt)
			}
		}
	}
}

// TestStartIsFirst: as process 1 it does for the command what it does over a bridge.
func TestStartIsFirst(t *testing.T) {
	socket := filepath.Join(newWorld(t).SocketDir, "proxy")
	serve(t, socket, echo)
	program, err := os.Executable() // self would be env's
	if err != nil {
		t.Fatal(err)
	}
	first := func(command ...string) []string {
		return append([]string{"/usr/bin/env", SocketEnv + "=" + socket, program, StartWord}, command...)
	}
	t.Run("orphans and signals", func(t *testing.T) {
		b := start(t, newWorld(t), nil, first("sh", "-c", "trap 'exit 33' TERM; (true & true); echo ready; while :; do sleep 0.01; done")...)
		b.says(t, "ready\n")
		b.waitFor(t, "the dead are buried", func() bool { _, n := children(t, b.Process.Pid); return n == 1 })
		if err := b.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.status(t); got != 33 {
			t.Errorf("status %d", got)
		}
	})
	t.Run("Ctrl-Z", func(t *testing.T) {
		b, keys := onTerminal(t, first("sh", "-c", "echo ready > /dev/tty; read line; echo got $line; exit 3")...)
		b.says(t, "ready\r\n")
		typeKeys(t, keys, "\x1a")
		b.says(t, "^Z")
		typeKeys(t, keys, "one\n")
		b.says(t, "got one\r\n")
		if got := b.status(t); got != 3 {
			t.Errorf("status %d", got)
		}
	})
	t.Run("told to end while the proxy is asked", func(t *testing.T) {
		stuck := filepath.Join(newWorld(t).SocketDir, "stuck")
		asked := make(chan struct{})
		once := sync.OnceFunc(func() { close(asked) })
		serve(t, stuck, func(c net.Conn) { once(); _, _ = io.Copy(io.Discard, c) })
		b := start(t, newWorld(t), nil, "/usr/bin/env", SocketEnv+"="+stuck, program, StartWord, "true")
		b.waitFor(t, "the question whether the proxy answers", func() bool {
			select {
			case <-asked:
				return true
			default:
				return false
			}
		})
		if err := b.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.status(t); got != 128+int(syscall.SIGTERM) {
			t.Errorf("status %d", got)
		}
	})
}

// TestWords: only our words are ours, and only with what they need.
func TestWords(t *testing.T) {
	for _, args := range [][]string{nil, {"run"}, {EnterWord}, {StartWord}, {BridgeWord}, {CarryWord, "x"}, {"token", EnterWord}} {
		if _, mine := Main(args); mine {
			t.Errorf("%q is taken", args)
		}
	}
}

// TestBareImage has a read-only root with our program, mount points and nothing else: no shell, no library, no /dev, no /tmp.
func TestBareImage(t *testing.T) {
	program := static(t)
	root := filepath.Dir(program)
	for _, dir := range []string{"proc", "run"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "script"), []byte("exit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		command string
		status  int
		stderr  string
	}{
		{"/guest", 9, ""},
		{"sh", 127, "credproxy: sh: command not found\n"},
		{"/script", 126, "credproxy: /script: exec format error\n"}, // there is no shell to read it
	} {
		w := world{SocketDir: "/run", Root: root, User: aUser}
		b := start(t, w, nil, "/guest", BridgeWord, tt.command)
		newHost(t).handover(t, b, "/guest")
		if tt.status == 9 {
			b.says(t, "holding Srw-------")
			_ = b.signal(t, syscall.SIGTERM)
		}
		if got := b.status(t); got != tt.status || b.errs.String() != tt.stderr {
			t.Errorf("%s: status %d, %q", tt.command, got, b.errs)
		}
	}
}
