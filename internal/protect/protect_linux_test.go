package protect

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

var roles = systest.Roles{
	"hardened":  func([]string) error { return victim(Harden) },
	"concealed": func([]string) error { return victim(Conceal) },
	"plain":     func([]string) error { return victim(nil) },
	"pry":       func(args []string) error { return pry(args[0]) },
}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// victim raises the core limit as far as it may, protects itself or not, says so, and waits for its stdin to end.
func victim(protect func() error) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return err
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return err
	}
	if protect != nil {
		if err := protect(); err != nil {
			return err
		}
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	fmt.Println("dumpable", dumpable)
	systest.AwaitEnd()
	return nil
}

// pry plays a thief of the same user: it prints what it can open of the process.
func pry(pid string) error {
	for _, name := range []string{"mem", "environ", "maps", "auxv"} {
		f, err := os.Open(filepath.Join("/proc", pid, name))
		if err == nil {
			// environ, maps and auxv check on read as well; mem needs an address, and opening it is the check.
			if name != "mem" {
				_, err = f.Read(make([]byte, 1))
			}
			_ = f.Close()
		}
		fmt.Println(name, verdict(err))
	}
	n, _ := strconv.Atoi(pid)
	err := unix.PtraceSeize(n)
	fmt.Println("ptrace", verdict(err))
	return nil
}

func verdict(err error) string {
	switch {
	case err == nil:
		return "open"
	case errors.Is(err, os.ErrPermission):
		return "closed"
	}
	return err.Error()
}

const aUser = 12345

// start starts a role as a user who is not root (root may read everything, and the test would show nothing). As a user
// who is not root, it stays that user.
func start(t *testing.T, dir, role string, args ...string) *systest.Process {
	t.Helper()
	return roles.Start(t, func(cmd *exec.Cmd) {
		cmd.Dir = dir
		cmd.Env = []string{"GOTRACEBACK=crash", "GORACE=atexit_sleep_ms=0"}
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = systest.AsUser(aUser)
		}
	}, role, args...)
}

func TestHarden(t *testing.T) {
	p := start(t, "/", "hardened")
	if got := p.Line(t); got != "dumpable 0" {
		t.Errorf("prctl says %q, want dumpable 0", got)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("the core limit is not 0 soft and hard:\n%s", limits)
	}
}

func TestConceal(t *testing.T) {
	core := regexp.MustCompile(`(?m)^Max core file size.*$`)
	var limits []string
	for _, part := range []string{"plain", "concealed"} {
		p := start(t, "/", part)
		if got := p.Line(t); part == "concealed" && got != "dumpable 0" {
			t.Errorf("prctl says %q, want dumpable 0", got)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		limits = append(limits, core.FindString(string(b)))
	}
	if limits[0] != limits[1] {
		t.Errorf("the core limit is %q, and was %q", limits[1], limits[0])
	}
}

func TestSameUserCannotLookInside(t *testing.T) {
	for _, tt := range []struct{ part, want string }{
		{"plain", "open"}, // or the test would show nothing
		{"hardened", "closed"},
		{"concealed", "closed"},
	} {
		p := start(t, "/", tt.part)
		p.Line(t)
		thief := start(t, "/", "pry", strconv.Itoa(p.Process.Pid))
		for _, what := range []string{"mem", "environ", "maps", "auxv", "ptrace"} {
			got := thief.Line(t)
			if what == "ptrace" && tt.part == "plain" {
				continue // Yama may forbid it in any case
			}
			if got != what+" "+tt.want {
				t.Errorf("%s process: %s, want %s", tt.part, got, tt.want)
			}
		}
	}
}

func TestNoCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGSEGV, syscall.SIGQUIT, syscall.SIGABRT} {
		for _, part := range []string{"plain", "hardened", "concealed"} {
			dir := systest.SharedDir(t, 0o777)
			p := start(t, dir, part)
			p.Line(t)
			if err := p.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := p.Wait(); !errors.As(err, &exit) {
				t.Fatalf("%v: the child did not die: %v", sig, err)
			}
			ws := exit.Sys().(syscall.WaitStatus)
			if !ws.Signaled() {
				t.Fatalf("%v: the child exited with %v; it should die of a signal as in a crash", sig, exit)
			}
			left, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case part != "plain" && (ws.CoreDump() || len(left) != 0):
				t.Errorf("%v: core dumped: %v, files left: %v", sig, ws.CoreDump(), left)
			case part == "plain" && !ws.CoreDump():
				t.Logf("%v: without Harden there is no core either here (pattern %s); the limits are checked in TestHarden",
					sig, bytes.TrimSpace(pattern))
			}
		}
	}
}
