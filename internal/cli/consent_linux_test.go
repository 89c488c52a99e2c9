package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/daemon"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

func init() {
	sandbox.Enter() // as the program in the sandboxes of these tests
	if len(os.Args) > 2 && os.Args[1] == "consent-test" {
		os.Exit(asksWhenTold(os.Args[2], os.Args[3:]))
	}
}

// What a test tells an asker, and hears from it.
const (
	orders  = 3
	answers = 4
)

// ordered is a context that ends when the test says so, and with the error that it says.
type ordered struct {
	context.Context
	done chan struct{}
	err  error // set before done is closed
}

func (o *ordered) Done() <-chan struct{} { return o.done }

func (o *ordered) Err() error {
	select {
	case <-o.done:
		return o.err
	default:
		return nil
	}
}

func (o *ordered) end(err error) {
	o.err = err
	close(o.done)
}

// asksWhenTold is a credproxy that runs a command in bwrap, or none, and does what it is told: "ask", "expire" (the time for that is
// over), "withdraw" (whoever wants the login goes away), "notice", and "leave", the terminal to another process group. It says
// what came of each question, and in the end the command's status.
func asksWhenTold(dir string, command []string) int {
	told, say := os.NewFile(orders, "orders"), os.NewFile(answers, "answers")
	c := &consent{log: slog.New(slog.NewTextHandler(say, nil)), mustPause: len(command) > 0}
	q := daemon.Question{Profile: "default", Provider: "acme", Bucket: "default", Flow: "device", Peer: socket.Peer{PID: 4711}}
	go func() {
		var asked *ordered
		for lines := bufio.NewScanner(told); lines.Scan(); {
			switch lines.Text() {
			case "ask":
				ctx := &ordered{Context: context.Background(), done: make(chan struct{})}
				asked = ctx
				go func() {
					agreed, err := c.ask(ctx, q)
					fmt.Fprintf(say, "%t %v\n", agreed, err)
				}()
			case "expire":
				asked.end(context.DeadlineExceeded)
			case "withdraw":
				asked.end(context.Canceled)
			case "notice":
				c.notice(q)
			case "leave":
				other := exec.Command("sleep", "60")
				other.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Pdeathsig: syscall.SIGKILL}
				err := other.Start()
				fmt.Fprintln(say, "left", err)
			}
		}
	}()
	if len(command) == 0 {
		select {}
	}
	status, err := func() (int, error) {
		path := filepath.Join(dir, "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			return 0, err
		}
		var greeting sync.WaitGroup
		defer greeting.Wait()
		defer l.Close()
		greeting.Go(func() { greet(l) })
		spec := sandbox.Spec{Command: command, Socket: path, UID: os.Getuid(), GID: os.Getgid(), Home: dir,
			Env:  []sandbox.EnvVar{{Name: "PS1", Value: "ready> "}},
			Host: sandbox.Host{Environ: os.Environ(), UID: os.Getuid()}}
		if spec.Engine, err = spec.Host.Select(context.Background(), sandbox.Bwrap, ""); err != nil {
			return 0, err
		}
		s, err := sandbox.Prepare(context.Background(), spec)
		if err != nil {
			return 0, err
		}
		c.runs(s)
		return s.Run(context.Background(), sandbox.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	}()
	fmt.Fprintf(say, "ended %d %v\n", status, err)
	return status
}

// greet answers handshakes, which is all that a sandbox wants before its command starts.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		reader := frame.NewReader(c, wire.MaxPayload(wire.MinVersion), nil)
		reader.SetDeadline(time.Now().Add(patient))
		if _, err := reader.Next(); err == nil {
			_, _ = c.Write(frame.Append(nil, wire.AppendHandshake(nil, wire.MinVersion)))
		}
		reader.Close()
		_ = c.Close()
	}
}

// asking is such a process on a terminal of its own, of which the test is the other end.
type asking struct {
	t       *testing.T
	cmd     *exec.Cmd
	master  *os.File
	orders  *os.File
	answers *bufio.Reader
	reader  sync.WaitGroup

	mu     sync.Mutex
	screen bytes.Buffer
	seen   int
	grown  chan struct{}             // capacity 1
	reply  func(shown string) string // what the terminal itself sends
}

func startAsker(t *testing.T, reply func(shown string) string, command ...string) *asking {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &asking{t: t, grown: make(chan struct{}, 1), reply: reply}
	var slave *os.File
	if a.master, slave, err = systest.OpenPTY(24, 80); err != nil {
		t.Fatal(err)
	}
	toldR, toldW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	saidR, saidW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a.orders, a.answers = toldW, bufio.NewReader(saidR)
	a.cmd = exec.Command(self, append([]string{"consent-test", dir}, command...)...)
	a.cmd.Stdin, a.cmd.Stdout, a.cmd.Stderr = slave, slave, slave
	a.cmd.ExtraFiles = []*os.File{toldR, saidW}
	a.cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "GORACE=atexit_sleep_ms=0")
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{slave, toldR, saidW} {
		f.Close()
	}
	a.reader.Go(a.read)
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
		a.master.Close()
		a.reader.Wait()
		toldW.Close()
		saidR.Close()
		if t.Failed() {
			t.Logf("the screen:\n%q", a.text(0))
		}
	})
	return a
}

func (a *asking) read() {
	buffer := make([]byte, 4096)
	for {
		n, err := a.master.Read(buffer)
		if a.reply != nil && n > 0 {
			if s := a.reply(string(buffer[:n])); s != "" {
				_, _ = a.master.WriteString(s)
			}
		}
		a.mu.Lock()
		a.screen.Write(buffer[:n])
		a.mu.Unlock()
		select {
		case a.grown <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// text is all that the screen has shown, from somewhere on.
func (a *asking) text(from int) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.screen.String()[from:]
}

// shows waits until the screen shows a text, behind the last one.
func (a *asking) shows(text string) {
	a.t.Helper()
	for limit := time.After(patient); ; {
		a.mu.Lock()
		i := strings.Index(a.screen.String()[a.seen:], text)
		if i >= 0 {
			a.seen += i + len(text)
		}
		a.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-a.grown:
		case <-limit:
			a.t.Fatalf("the screen never showed %q", text)
		}
	}
}

func (a *asking) types(keys string) {
	a.t.Helper()
	if _, err := a.master.WriteString(keys); err != nil {
		a.t.Fatal(err)
	}
}

// asks has it ask; says what came of it, or whatever else it says.
func (a *asking) asks() { a.orderTo("ask") }

func (a *asking) orderTo(do string) {
	a.t.Helper()
	if _, err := fmt.Fprintln(a.orders, do); err != nil {
		a.t.Fatal(err)
	}
}

func (a *asking) says(wants ...string) {
	a.t.Helper()
	var lines []string
	for range wants {
		line, err := a.answers.ReadString('\n')
		if err != nil {
			a.t.Fatal(err)
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	slices.Sort(lines) // two may come in any order
	if slices.Sort(wants); !slices.Equal(lines, wants) {
		a.t.Fatalf("it says %q; want %q", lines, wants)
	}
}

func (a *asking) modes() unix.Termios {
	a.t.Helper()
	modes, err := unix.IoctlGetTermios(int(a.master.Fd()), unix.TCGETS)
	if err != nil {
		a.t.Fatal(err)
	}
	return *modes
}

var shell = []string{"bash", "--norc", "--noprofile", "-i"}

// An interactive shell in the sandbox, with a program in its foreground that reads the terminal: the person is asked, and
// everything is as it was.
func TestConsentInAShell(t *testing.T) {
	t.Parallel()
	a := startAsker(t, nil, shell...)
	a.shows("ready> ")
	a.types("sh -c 'echo begun; exec cat'\r")
	a.shows("\rbegun\r\n")
	a.types("one\n")
	a.shows("one\r\none\r\n")
	before := a.modes()
	size := func() unix.Winsize { w, _ := unix.IoctlGetWinsize(int(a.master.Fd()), unix.TIOCGWINSZ); return *w }
	winsize := size()
	for _, c := range []struct{ keys, said, answer string }{
		{"y\r", "allowed", "true <nil>"},
		{"\x03", "not allowed", "false <nil>"},
	} {
		a.asks()
		a.shows("credproxy: a sandbox asks to log in")
		a.shows("pid 4711")
		a.shows("acme/default, by a device code")
		a.types("y\r") // too soon for anybody to have read that
		a.shows(allow)
		a.types(c.keys)
		a.shows("credproxy: " + c.said)
		a.says(c.answer)
		if a.modes() != before {
			t.Errorf("after %q the terminal's modes are others", c.keys)
		}
		if size() != winsize {
			t.Errorf("after %q the terminal's size is another", c.keys)
		}
		a.types("two\n")
		a.shows("two\r\ntwo\r\n") // what the terminal echoes, and cat
		a.orderTo("notice")
		if c.said == "not allowed" {
			a.shows("credproxy: the sandbox (pid 4711) asks to log in to acme/default\r")
		}
	}
	a.asks()
	a.shows(allow)
	a.orderTo("expire")
	a.says("false context deadline exceeded")
	a.types("\x04")
	a.shows("ready> ")
	a.types("jobs; echo end of jobs\r")
	a.shows("\rend of jobs\r\n")
	a.asks() // at the shell's own prompt, and a line half typed
	a.types("echo half of ")
	a.shows(allow)
	a.types("Yes\r")
	a.says("true <nil>")
	a.types("\x15echo a; jobs; exit 9\r")
	a.shows("\ra\r\n")
	a.says("ended 9 <nil>")
	for _, unwanted := range []string{"Stopped", "Continued", "\r\ny\r\n"} {
		if strings.Contains(a.text(0), unwanted) {
			t.Errorf("the screen shows %q", unwanted)
		}
	}
}

// A program in the sandbox asks the terminal things, which this terminal answers in the worst way there is, and reads every key
// there is, foreground or not. It neither answers the question nor gets what the person types.
func TestConsentAgainstASandbox(t *testing.T) {
	t.Parallel()
	const query = "\x1b[6n"
	worst := func(shown string) string {
		return strings.Repeat("y\r", strings.Count(shown, query))
	}
	a := startAsker(t, worst, "bash", "-c", `
		trap '' TTIN TTOU INT TSTP HUP
		exec 2>/dev/null
		ask() { while :; do printf '\033[6n'; for ((i = 0; i < 1000; i++)); do :; done; done; }
		take() { while :; do IFS= read -rsn1 -t 1 key </dev/tty && [ "$key" != y ] && [ -n "$key" ] && echo "got <$key>"; done; }
		set -m
		ask & take & take &
		set +m
		echo begun
		take`)
	a.shows("begun")
	for _, c := range []struct{ keys, said, answer string }{
		{"n\r", "not allowed", "false <nil>"},
		{"yes\r", "allowed", "true <nil>"},
	} {
		a.asks()
		a.shows("credproxy: a sandbox asks")
		begun := a.seen
		a.shows(allow) // most of a second later
		a.types(c.keys)
		a.shows("credproxy: " + c.said)
		asked := a.text(begun)[:a.seen-begun]
		if strings.Contains(asked, query) || strings.Contains(asked, "got <") {
			t.Errorf("the sandbox shows something while the person is asked: %q", asked)
		}
		a.says(c.answer)
	}
	a.types("#")
	a.shows("got <#>") // it goes on
	a.asks()
	a.shows(allow)
	a.orderTo("expire")
	a.shows("no answer: not allowed")
	a.says("false context deadline exceeded")
	a.asks()
	a.shows(allow)
	a.orderTo("withdraw")
	a.shows("credproxy: withdrawn")
	a.says("false context canceled")
	if s := a.text(0); strings.Contains(s, "got <n>") || strings.Contains(s, "got <e>") {
		t.Error("the sandbox got a key that answered the question")
	}
}

// A process that has run while the person was asked could have shown them another question: their answer does not count.
func TestConsentOfTheWoken(t *testing.T) {
	t.Parallel()
	a := startAsker(t, nil, "sh", "-c", "echo begun; cat")
	a.shows("begun")
	a.asks()
	a.shows(allow)
	for _, pid := range a.descendants() {
		_ = syscall.Kill(pid, syscall.SIGCONT)
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	a.types("y\r")
	a.shows("not allowed")
	line, _ := a.answers.ReadString('\n')
	if !strings.Contains(line, "does not stand still") {
		t.Errorf("the log has %q", line)
	}
	a.says("false <nil>")
	a.types("\x04")
	a.says("ended 0 <nil>")
}

// Whoever ends credproxy while a person is asked ends the question, and the command hears of it.
func TestConsentIsOver(t *testing.T) {
	t.Parallel()
	a := startAsker(t, nil, "sh", "-c", "trap 'echo told; exit 7' TERM; echo begun; while :; do sleep 0.01; done")
	a.shows("begun")
	before := a.modes()
	a.asks()
	a.shows(allow)
	if a.modes() == before {
		t.Error("the terminal is in no mode for a question")
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	a.shows("withdrawn")
	a.shows("told")
	a.says("false "+errOver.Error(), "ended 7 <nil>")
	if a.modes() != before {
		t.Error("the terminal's modes are others afterwards")
	}
}

// What is stopped does not survive credproxy.
func TestConsentKilled(t *testing.T) {
	t.Parallel()
	a := startAsker(t, nil, "sh", "-c", "sleep 1000 & echo begun; cat")
	a.shows("begun")
	a.asks()
	a.shows(allow)
	left := a.descendants()
	if len(left) < 4 {
		t.Fatalf("only %d processes", len(left))
	}
	_ = a.cmd.Process.Kill()
	for deadline := time.Now().Add(patient); len(left) > 0; time.Sleep(time.Millisecond) {
		left = slices.DeleteFunc(left, func(pid int) bool { return !isAlive(pid) })
		if time.Now().After(deadline) {
			t.Fatalf("%d processes are left", len(left))
		}
	}
}

// Without a sandbox on the terminal (serve) nothing is paused; where the terminal is another program's nobody is disturbed.
func TestConsentWithoutASandbox(t *testing.T) {
	t.Parallel()
	a := startAsker(t, nil)
	before := a.modes()
	a.asks()
	a.shows(allow)
	a.types("\x1b[A\x1bOAy\r") // keys that are no answer, and what comes with them
	a.shows(allow)
	a.types("x\x15Y\r")
	a.says("true <nil>")
	if a.modes() != before {
		t.Error("the terminal's modes are others afterwards")
	}
	a.orderTo("leave")
	a.says("left <nil>")
	a.asks()
	a.says("false " + errElsewhere.Error())
	a.orderTo("notice")
	a.shows("asks to log in to acme/default")
}

// descendants are the processes below the asker, by number.
func (a *asking) descendants() []int {
	children := map[string][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && len(fields) > 1 {
			children[fields[1]] = append(children[fields[1]], pid)
		}
	}
	found := []int{a.cmd.Process.Pid}
	for i := 0; i < len(found); i++ {
		found = append(found, children[strconv.Itoa(found[i])]...)
	}
	return found[1:]
}

// isAlive is false for zombies too.
func isAlive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}
