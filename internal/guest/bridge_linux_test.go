package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// roles are what a guest is made to start, and who starts one.
var roles = systest.Roles{
	"first": first, "powerless": powerless, "init": engineInit,
	"ask":   func([]string) error { return ask(os.Getenv(SocketEnv)) },
	"keep":  keep,
	"look":  look,
	"hold":  hold,
	"thief": thief,
}

// ask shakes hands, has a frame sent back, and says so.
func ask(path string) error {
	if err := probe(context.Background(), path); err != nil {
		return err
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, payload := range []string{"handshake", strings.Repeat("x", 1<<16)} {
		if _, err := c.Write(frame.Append(nil, []byte(payload))); err != nil {
			return err
		}
		r := frame.NewReader(c, wire.MaxPayload(wire.MaxVersion), nil)
		answer, err := r.Next()
		if err != nil {
			return err
		}
		if len(answer) == len(payload) {
			fmt.Println("answered")
		}
	}
	return nil
}

// keep has a connection, and says when it ends and what is left of the socket. Then it waits for its stdin and exits with args[0].
func keep(args []string) error {
	path := os.Getenv(SocketEnv)
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	fmt.Println("connected")
	_, err = c.Read(make([]byte, 1))
	fmt.Println("ended:", err)
	for { // the socket goes before or after its connections
		if _, err := os.Lstat(path); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	fmt.Println("left:", len(left), err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	n, _ := strconv.Atoi(args[0])
	os.Exit(n)
	return nil
}

// outlook is what a program finds when it starts.
type outlook struct {
	FDs          []int // that were open
	Env          []string
	Dir          string
	Umask        string
	Limits       string
	Signals      map[string]string // of /proc/self/status
	UID, GID     int
	Groups       []int
	Leads        bool // its session and its process group
	Dumpable     int
	NoNewPrivs   string
	Capabilities string
}

func look([]string) error {
	o := outlook{Signals: map[string]string{}, UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ()}
	o.Dir, _ = os.Getwd()
	o.Groups, _ = os.Getgroups()
	for fd := range 256 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 { // the Go runtime's close on exec
			o.FDs = append(o.FDs, fd)
		}
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); name {
		case "SigBlk", "SigIgn":
			o.Signals[name] = value
		case "Umask":
			o.Umask = value
		case "NoNewPrivs":
			o.NoNewPrivs = value
		case "CapEff", "CapBnd", "CapInh", "CapPrm", "CapAmb":
			o.Capabilities += line
		}
	}
	// The Go runtime has raised its own soft limit; a child of ours sees the one that we were given.
	limits, err := exec.Command("/bin/cat", "/proc/self/limits").Output()
	if err != nil {
		return err
	}
	o.Limits = string(limits)
	sid, _ := unix.Getsid(0)
	o.Leads = sid == os.Getpid() && unix.Getpgrp() == os.Getpid()
	if o.Dumpable, err = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// hold says which signals come, until SIGTERM. Before that it starts args and says the number of that process.
func hold(args []string) error {
	if len(args) > 0 {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println("started", cmd.Process.Pid)
		if args[0] == "sh" {
			if err := cmd.Wait(); err != nil {
				return err
			}
		}
	}
	caught := make(chan os.Signal, 64)
	signal.Notify(caught)
	signal.Reset(syscall.SIGURG, syscall.SIGCHLD) // the runtime's own, and none of ours
	fmt.Println("holding", os.Getpid(), unix.Getpgrp())
	for sig := range caught {
		if sig == syscall.SIGURG {
			continue
		}
		fmt.Println("signal", int(sig.(syscall.Signal)))
		if sig == syscall.SIGTERM {
			os.Exit(9)
		}
	}
	return nil
}

func TestBridge(t *testing.T) {
	for _, user := range []int{0, aUser} {
		w := newWorld(t)
		w.User = user
		b, h, c := bridged(t, w, nil, self, "ask")
		if got := b.status(t); got != 0 {
			t.Errorf("status %d", got)
		}
		if got := b.out.String(); got != "answered\n" {
			t.Errorf("the command said %q", got)
		}
		if got := b.errs.String(); got != "" {
			t.Errorf("and on stderr %q", got)
		}
		<-c.ended
		if c.err != nil && user == 0 { // it goes with process 1 of its namespace, by its own end or the kernel's
			t.Logf("the carrier: %v", c.err)
		}
		<-h.Lost()
	}
}

// TestDirect reaches the listener without the pipe, past an address where nobody listens and one that takes every connection and
// says nothing of ours.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	b := start(t, w, nil, self, BridgeWord, self, "hold")
	h := newHost(t)
	c := h.handover(t, b, self, "127.0.0.1:1", fmt.Sprintf("127.0.0.1:%d", h.Port()))
	b.says(t, "holding")
	select {
	case <-c.ended:
		if c.err != nil {
			t.Errorf("the carrier: %v", c.err)
		}
	case <-time.After(patient):
		t.Error("the carrier does not end while the bridge does without it")
	}
	_ = b.signal(t, syscall.SIGTERM)
	if got := b.status(t); got != 9 {
		t.Errorf("status %d", got)
	}
}

func TestDirectToSomethingElse(t *testing.T) {
	wrong, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for {
			c, err := wrong.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 mail.example ESMTP\r\n")
			_ = c.Close()
		}
	}()
	defer func() { _ = wrong.Close(); <-answered }()
	b := start(t, newWorld(t), nil, self, BridgeWord, self, "ask")
	h := newHost(t)
	h.handover(t, b, self, wrong.Addr().String())
	if got := b.status(t); got != 0 || b.out.String() != "answered\n" {
		t.Errorf("status %d, %q", got, b.out)
	}
}

func (b *box) signal(t *testing.T, sig syscall.Signal) error {
	t.Helper()
	if err := b.Process.Signal(sig); err != nil {
		t.Error(err)
		return err
	}
	return nil
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"script": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("exit 5\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		command []string
		status  int
		stderr  string
	}{
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"no-such-command"}, 127, "credproxy: no-such-command: command not found\n"},
		{[]string{"./no-such-command"}, 127, "credproxy: ./no-such-command: command not found\n"},
		{[]string{filepath.Join(dir, "plain")}, 126, "credproxy: " + filepath.Join(dir, "plain") + ": permission denied\n"},
		{[]string{dir}, 126, "credproxy: " + dir + ": permission denied\n"},
		{[]string{filepath.Join(dir, "script")}, 5, ""},
	} {
		b, _, _ := bridged(t, newWorld(t), nil, tt.command...)
		if got := b.status(t); got != tt.status || b.errs.String() != tt.stderr {
			t.Errorf("%q: status %d, stderr %q; want %d, %q", tt.command, got, b.errs, tt.status, tt.stderr)
		}
	}
}

// TestCommandFindsNothingChanged compares what a command finds with and without us.
func TestCommandFindsNothingChanged(t *testing.T) {
	for _, user := range []int{0, aUser} {
		var found [2]outlook
		for i, before := range [][]string{nil, {BridgeWord, self}} {
			w := newWorld(t)
			w.User, w.Workdir, w.Umask, w.Files = user, "/usr/share", 0o027, 512
			open, err := os.Open("/etc") // which no command may get
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			tune := func(c *exec.Cmd) {
				c.Stderr, c.Env = nil, append(c.Env, "ODD=a=b\nc", "EMPTY=")
				if i == 1 {
					c.ExtraFiles = []*os.File{open, open}
				}
			}
			var b *box
			if before == nil {
				b = start(t, w, tune, self, "look")
			} else {
				b, _, _ = bridged(t, w, tune, self, "look")
			}
			if got := b.status(t); got != 0 {
				t.Fatalf("status %d: %s", got, b.out)
			}
			if err := json.Unmarshal([]byte(b.out.String()), &found[i]); err != nil {
				t.Fatal(err)
			}
			f := &found[i]
			if i == 1 && !slices.Equal(f.FDs, []int{0, 1, 2}) {
				t.Errorf("open files: %v", f.FDs)
			}
			f.FDs = nil                                                                                          // those of the test itself come through where we are not
			f.Env = slices.DeleteFunc(f.Env, func(e string) bool { return strings.HasPrefix(e, SocketEnv+"=") }) // each its own
		}
		if !reflect.DeepEqual(found[0], found[1]) {
			t.Errorf("user %d: without us\n%+v\nwith us\n%+v", user, found[0], found[1])
		}
		if f := found[1]; !f.Leads || f.Umask != "0027" || f.Dir != "/usr/share" || f.Dumpable != 1 {
			t.Errorf("user %d: %+v", user, f)
		}
	}
}

func TestStdinIsTheCommands(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	if _, err := out.WriteString("first line\nsecond line\n"); err != nil {
		t.Fatal(err)
	}
	b, _, _ := bridged(t, newWorld(t), func(c *exec.Cmd) { c.Stdin = in }, "sh", "-c", "read line; echo got $line") // a shell reads a pipe byte by byte
	if got := b.status(t); got != 0 || b.out.String() != "got first line\n" {
		t.Errorf("status %d, %q", got, b.out)
	}
	if rest, err := bufio.NewReader(in).ReadString('\n'); err != nil || rest != "second line\n" {
		t.Errorf("left for the next: %q, %v", rest, err)
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	b, _, _ := bridged(t, newWorld(t), nil, self, "hold")
	b.says(t, "holding")
	for _, sig := range []syscall.Signal{1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14, 15 + 1, 18, 20, 21, 22, 24, 25, 26, 27, 28, 29, 30, 31, 34 + 1, 64} {
		if sig == syscall.SIGPROF || sig == 16 {
			continue // the runtime's of the test binary; a coprocessor's
		}
		_ = b.signal(t, sig)
		b.says(t, fmt.Sprintf("signal %d\n", sig))
	}
	// What only concerns our own sockets, our own runtime and our own children is not for the command.
	for _, sig := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGURG, syscall.SIGCHLD} {
		_ = b.signal(t, sig)
	}
	_ = b.signal(t, syscall.SIGTERM)
	if got := b.status(t); got != 9 {
		t.Errorf("status %d", got)
	}
	if strings.Contains(b.out.String(), "signal 13\n") {
		t.Error("SIGPIPE was handed on")
	}
}

// TestSignalBeforeTheCommand: process 1 has no default actions, so it ends by itself.
func TestSignalBeforeTheCommand(t *testing.T) {
	b := start(t, newWorld(t), nil, self, BridgeWord, "true")
	rendezvous := filepath.Join(fmt.Sprintf("/proc/%d/root", b.Process.Pid), b.SocketDir, handoverName)
	b.waitFor(t, "the rendezvous", func() bool { _, err := os.Lstat(rendezvous); return err == nil })
	_ = b.signal(t, syscall.SIGWINCH)
	_ = b.signal(t, syscall.SIGTERM)
	if got := b.status(t); got != 128+15 {
		t.Errorf("status %d", got)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	b, _, _ := bridged(t, newWorld(t), nil, self, "hold", "sh", "-c", `for i in 1 2 3 4 5 6 7 8; do (sh -c "sleep 0.01; exit 3" &); done`)
	b.says(t, "holding")
	b.waitFor(t, "the last of its orphans", func() bool {
		_, all := children(t, b.Process.Pid)
		return all == 1
	})
	_ = b.signal(t, syscall.SIGTERM)
	if got := b.status(t); got != 9 {
		t.Errorf("status %d", got)
	}
}

// children returns the first child of process pid, and how many there are, with those that nobody has waited for.
func children(t *testing.T, pid int) (first, n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("the children of process %d: %v, %v", pid, tasks, err)
	}
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(list)) {
			if n++; first == 0 {
				first, _ = strconv.Atoi(f)
			}
		}
	}
	return first, n
}

func TestLoss(t *testing.T) {
	for _, how := range []string{"the host ends", "the carrier is killed"} {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		b, h, c := bridged(t, newWorld(t), func(c *exec.Cmd) { c.Stdin = in }, self, "keep", "4")
		_ = in.Close()
		b.says(t, "connected")
		if how == "the host ends" {
			_ = h.Close()
		} else {
			_ = c.Process.Kill()
		}
		b.says(t, "ended: EOF\n")
		b.says(t, "left: 0 <nil>\n")
		_ = out.Close() // the command goes on until now
		if got := b.status(t); got != 4 || b.errs.String() != "" {
			t.Errorf("%s: status %d, %q", how, got, b.errs)
		}
	}
}
