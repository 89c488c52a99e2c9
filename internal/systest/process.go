package systest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Roles are what the test binary does as a child process, by name. The first of its arguments is the name, the rest are args.
// A role that fails ends the child with status 1 and its error on standard error.
type Roles map[string]func(args []string) error

// Play plays the role that this process was started in, and ends it. If this is no child, it does nothing.
func (r Roles) Play() {
	if len(os.Args) < 2 {
		return
	}
	play, ok := r[os.Args[1]]
	if !ok {
		return
	}
	if err := play(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Command is the test binary in a role, for the caller to run. If it runs still when the test ends, it is killed.
func (r Roles) Command(t testing.TB, role string, args ...string) *exec.Cmd {
	t.Helper()
	if r[role] == nil { // it would run the tests, and this one once more
		t.Fatalf("no role %q", role)
	}
	self := "/proc/self/exe" // reached also by those to whom go test's directory is closed
	if runtime.GOOS != "linux" {
		var err error
		if self, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(self, append([]string{role}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else the race detector sleeps for a second
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	return cmd
}

// Process is a running child that exchanges lines with the test.
type Process struct {
	*exec.Cmd
	stdin  io.WriteCloser
	out    *bufio.Reader
	errors Buffer // its standard error, unless that was set
}

// Start starts the test binary in a role. What tune changes, if it is not nil, comes before. At the end of the test the child's
// standard input ends, for which it should wait, and it is waited for.
func (r Roles) Start(t testing.TB, tune func(*exec.Cmd), role string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: r.Command(t, role, args...)}
	if tune != nil {
		tune(p.Cmd)
	}
	if p.Stderr == nil {
		p.Stderr = &p.errors
	}
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.out = stdin, bufio.NewReader(stdout)
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.End() })
	return p
}

// Line is the next line that the child prints, without blanks around it. If it ends instead, the test fails.
func (p *Process) Line(t testing.TB) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the child said nothing: %v; it ended: %v", err, p.End())
	}
	return strings.TrimSpace(line)
}

// Say has the child read a line.
func (p *Process) Say(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// End ends the child's standard input and waits for the child. It returns why it failed, if it did: an *exec.ExitError, with
// what it wrote to its standard error. One that goes on for a minute is killed. Only the first call waits.
func (p *Process) End() error {
	_ = p.stdin.Close()
	defer time.AfterFunc(patience, func() { _ = p.Process.Kill() }).Stop()
	if err := p.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, &p.errors)
	}
	return nil
}

// AwaitEnd is the last thing that a role does that was begun with Start: it waits until the test has no more need of it.
func AwaitEnd() { _, _ = io.Copy(io.Discard, os.Stdin) }
