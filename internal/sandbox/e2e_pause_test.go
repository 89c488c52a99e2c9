//go:build e2e && linux

package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
)

// pauseWhenTold is part of the runner: SIGIO pauses what it runs, SIGPWR resumes that (those that Run does not hand on). It says so on stdout.
func pauseWhenTold(s *Sandbox) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGIO, syscall.SIGPWR)
	go func() {
		var p *Paused
		for sig := range told {
			if sig == syscall.SIGPWR {
				p.Resume()
				fmt.Print("resumed\r\n")
				continue
			}
			var err error
			if p, err = s.Pause(context.Background()); err == nil {
				err = p.Still()
			}
			fmt.Printf("paused: %v\r\n", err)
		}
	}()
}

// TestE2EPause: the command stands still and goes on, and nothing of it stays when credproxy is killed meanwhile.
func TestE2EPause(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		if f.kind != Bwrap {
			f.spec.Spec.EngineArgs = f.spec.Spec.EngineArgs[:2] // with a network, for which some engines start programs
		}
		master, slave := openTerminal(t)
		cmd := f.command(t, "credproxy", "talk")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		slave.Close()
		lines := readLines(master)
		expect := func(want string) {
			t.Helper()
			for line := range lines {
				if line = strings.TrimSpace(line); line == want {
					return
				}
				if strings.HasPrefix(line, "paused") {
					t.Error(line)
				}
			}
			t.Fatalf("the terminal ended before %q", want)
		}
		tell := func(sig syscall.Signal) {
			t.Helper()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		io.WriteString(master, "one\n")
		expect("one") // of the terminal
		expect(fmt.Sprintf("%d one", f.id.uid))
		tell(syscall.SIGIO)
		expect("paused: <nil>")
		var family []procStat
		if self, err := readStat(cmd.Process.Pid); err == nil {
			family = descendants(self.procID)[1:]
		}
		var carriers []int
		if f.transport == TransportTLS {
			carriers = carriersOf(t, cmd.Process.Pid)
		}
		running := 0
		for _, p := range family {
			if !stopped(readThreads(p.procID)) && !slices.Contains(carriers, p.pid) {
				running++
			}
		}
		// An engine has its client, and one more of our programs that would wake it. What carries goes on.
		if len(family) == 0 || running > 1 || (running == 1) == (f.kind == Bwrap) {
			t.Errorf("of %d processes %d run", len(family), running)
		}
		tell(syscall.SIGPWR)
		expect("resumed")
		io.WriteString(master, "two\n")
		expect("two")
		expect(fmt.Sprintf("%d two", f.id.uid)) // the socket has been left alone, whatever carries it

		tell(syscall.SIGIO)
		expect("paused: <nil>")
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// left counts those that are there, or those that are there and stand still.
		left := func(still bool) (n int) {
			for _, p := range family {
				if now, err := readStat(p.pid); err == nil && now.procID == p.procID {
					if threads := readThreads(p.procID); len(threads) > 0 && (!still || stopped(threads)) {
						n++
					}
				}
			}
			return n
		}
		systest.Until(t, "nothing stands still", func() bool { return left(true) == 0 })
		f.sweep(t, "*") // a client may not get its container to end, see TestE2EKilled
		systest.Until(t, "all processes are gone", func() bool { return left(false) == 0 })
		f.nothingLeft(t)
	})
}
