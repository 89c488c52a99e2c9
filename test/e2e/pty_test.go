//go:build e2e && linux

package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
)

// terminal is a command on a terminal of its own, of which the test is the other end. What it shows is in stdout.
type terminal struct {
	*background
	t      *testing.T
	master *os.File
	name   string // of the command's end
	seen   int    // of stdout, by shows
}

// onTerminal starts a prepared command on a new terminal, as its session's leader.
func (h *host) onTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, slave, err := systest.OpenPTY(24, 100)
	if err != nil {
		t.Fatal(err)
	}
	name := slave.Name()
	if err := slave.Chown(h.uid, h.uid); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "TERM=xterm")
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	b := &background{Cmd: cmd, h: h, stdout: newCollector(), stderr: newCollector(), ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(b.stdout, master) // ends with EIO when nobody has the terminal open any more
	}()
	go func() {
		_ = cmd.Wait()
		<-read
		h.said.record(b.stdout.String())
		close(b.ended)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		master.Close()
		<-b.ended
		if t.Failed() {
			t.Logf("the screen:\n%q", b.stdout)
		}
	})
	return &terminal{background: b, t: t, master: master, name: name}
}

// shows waits for a text behind the last one, and returns the groups of re.
func (s *terminal) shows(re *regexp.Regexp) []string {
	s.t.Helper()
	eventually(s.t, patience, "the screen shows "+re.String(), func() bool {
		return re.MatchString(s.stdout.String()[s.seen:]) || s.over()
	})
	text := s.stdout.String()[s.seen:]
	at := re.FindStringSubmatchIndex(text)
	if at == nil {
		s.t.Fatalf("the screen never showed %v: %q", re, text)
	}
	groups := re.FindStringSubmatch(text)
	s.seen += at[1]
	return groups
}

func (s *terminal) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

func (s *terminal) types(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// typesBefore types keys unless the screen shows a text already. The command stands still meanwhile: it could be quicker than this test.
func (s *terminal) typesBefore(re *regexp.Regexp, keys string) {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	eventually(s.t, patience, "the command stands still", func() bool { return stateOf(s.Process.Pid) == "T" })
	// What it has written comes before this.
	const mark = "\x1b[0mmark\x1b[0m"
	screen, err := os.OpenFile(s.name, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err == nil {
		_, err = screen.WriteString(mark)
		screen.Close()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	var text string
	eventually(s.t, patience, "the screen shows all that was written", func() bool {
		text = s.stdout.String()[s.seen:]
		return strings.Contains(text, mark)
	})
	if re.MatchString(text) {
		s.t.Logf("too late for %q", keys)
	} else {
		s.types(keys)
	}
	s.signal(syscall.SIGCONT)
}

// stateOf is the state of a process, as /proc has it.
func stateOf(pid int) (state string) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have blanks
	state, _, _ = strings.Cut(rest, " ")
	return state
}
