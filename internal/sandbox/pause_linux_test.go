package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

var roles = systest.Roles{"pause-and-hang": pauseAndHang}

// The test binary is started once more as a waker, and as a process that is killed.
func init() {
	pauseLimit = time.Minute // a machine may stand still for seconds
	if len(os.Args) == 3 && os.Args[1] == wakerWord {
		os.Exit(wakePaused(os.Stdin))
	}
	roles.Play()
}

// script is a running shell script and a Sandbox that has started it as its client.
type script struct {
	*Sandbox
	client *process
	lines  *bufio.Reader
	stdin  io.Writer
}

func startScript(t *testing.T, text string) *script {
	t.Helper()
	cmd := exec.Command("bash", "-c", text)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	client, err := start(cmd, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	s := &script{&Sandbox{}, client, bufio.NewReader(out), stdin}
	s.pausing.begin(client, "")
	t.Cleanup(func() {
		for _, p := range descendants(newFamily(client, "").root) {
			_ = p.signal(syscall.SIGKILL)
		}
		<-client.done
		out.Close()
	})
	return s
}

func (s *script) line(t *testing.T) string {
	t.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// pid reads a process id that the script prints.
func (s *script) pid(t *testing.T) int {
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(s.line(t), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func isStopped(pid int) bool {
	s, err := readStat(pid)
	return err == nil && stopped(readThreads(s.procID))
}

func TestPause(t *testing.T) {
	s := startScript(t, `
		sleep 1000 & echo $!
		sleep 1000 & echo $!; kill -STOP $!
		bash -c 'sleep 1000 & echo $!; wait' &
		while read line; do echo "got $line"; done`)
	running, before, below := s.pid(t), s.pid(t), s.pid(t)
	systest.Until(t, "a job is stopped", func() bool { return isStopped(before) })
	p, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := []int{s.client.Pid, running, before, below}
	for _, pid := range all {
		if !isStopped(pid) {
			t.Errorf("process %d of %v runs", pid, all)
		}
	}
	if err := p.Still(); err != nil {
		t.Error(err)
	}
	if !p.Has(syscall.Getpgrp()) || p.Has(1) {
		t.Error("the groups of what is paused")
	}
	if _, err := s.Pause(t.Context()); err == nil {
		t.Error("paused twice")
	}
	p.Resume()
	p.Resume()
	fmt.Fprintln(s.stdin, "something")
	if got := s.line(t); got != "got something" {
		t.Errorf("afterwards: %q", got)
	}
	if isStopped(running) || isStopped(below) || !isStopped(before) {
		t.Errorf("stopped afterwards: %t, %t; before: %t", isStopped(running), isStopped(below), isStopped(before))
	}
	if p, err = s.Pause(t.Context()); err != nil {
		t.Fatalf("once more: %v", err)
	}
	p.Resume()
}

// A shell with job control says when a child stops; this one must not notice.
func TestPauseIsNoStopToAShell(t *testing.T) {
	s := startScript(t, `
		set -m
		trap 'echo child' CHLD
		sleep 1000 & echo $!
		while read line; do jobs -s; echo "got $line"; done`)
	s.pid(t)
	for range 5 {
		p, err := s.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Resume()
		fmt.Fprintln(s.stdin, "x")
		if got := s.line(t); got != "got x" {
			t.Fatalf("the shell has seen %q", got)
		}
	}
}

// A parent that has not got to stopping yet, on a busy machine, is waited for: else it would see its child stop.
func TestPauseAwaitsEach(t *testing.T) {
	s := startScript(t, "echo; read")
	s.line(t)
	f := newFamily(s.client, "")
	waited := make(chan struct{})
	go func() { f.await(t.Context(), nil, f.root); close(waited) }()
	select {
	case <-waited:
		t.Error("a process that has not stopped is taken for one that has")
	case <-time.After(100 * time.Millisecond):
	}
	if err := f.root.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-waited
	if !isStopped(s.client.Pid) {
		t.Error("it runs")
	}
	// One that cannot stop ends the wait with the pause.
	_ = f.root.signal(syscall.SIGCONT)
	over := make(chan struct{})
	close(over)
	f.await(t.Context(), over, f.root)
}

// What multiplies while it is being stopped is caught all the same.
func TestPauseForking(t *testing.T) {
	s := startScript(t, `
		echo begun
		f() { local n; for ((n = 0; n < 2000; n++)); do (:) & wait; done; }
		f & f & f & wait; echo done; read`)
	s.line(t)
	for range 3 {
		p, err := s.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first := threadsOf(descendants(p.family.root))
		time.Sleep(5 * time.Millisecond)
		if err := p.Still(); err != nil || !equal(first, threadsOf(descendants(p.family.root))) {
			t.Errorf("something runs: %v", err)
		}
		p.Resume()
	}
}

// Whoever wakes a process of the sandbox is noticed, also when it is asleep again.
func TestPausedIsWoken(t *testing.T) {
	s := startScript(t, `sleep 1000 & echo $!; read; echo end; read`)
	pid := s.pid(t)
	for _, then := range []syscall.Signal{syscall.SIGCONT, syscall.SIGSTOP} {
		p, err := s.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(pid, syscall.SIGCONT)
		systest.Until(t, "it is awake", func() bool { return !isStopped(pid) })
		_ = syscall.Kill(pid, then)
		systest.Until(t, "it does what it is told", func() bool { return isStopped(pid) == (then == syscall.SIGSTOP) })
		if err := p.Still(); !errors.Is(err, ErrRestless) {
			t.Errorf("a process has run: %v", err)
		}
		p.Resume()
		if isStopped(pid) {
			t.Error("it is left stopped")
		}
	}
}

func TestPauseNothing(t *testing.T) {
	var s Sandbox
	if _, err := s.Pause(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before a run: %v", err)
	}
	sc := startScript(t, "exit 3")
	<-sc.client.done
	if _, err := sc.Pause(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after its end: %v", err)
	}
	sc = startScript(t, "echo; read")
	sc.line(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := sc.Pause(gone); err == nil {
		p.Resume() // it stood still at once
	}
	if isStopped(sc.client.Pid) {
		t.Error("left stopped")
	}
}

// Run goes on when it has to: what is paused hears of it, and is let go if nobody does that.
func TestPauseIsOver(t *testing.T) {
	s := startScript(t, "echo; read; echo $REPLY; read")
	s.line(t)
	p, err := s.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan error)
	go func() { <-p.Over(); heard <- p.Still(); p.Resume() }()
	done := make(chan struct{})
	go func() { defer close(done); s.pausing.goOn(false, time.Hour) }()
	if err := <-heard; !errors.Is(err, ErrNotRunning) {
		t.Errorf("over, and Still says %v", err)
	}
	<-done
	fmt.Fprintln(s.stdin, "heard")
	if got := s.line(t); got != "heard" {
		t.Errorf("afterwards: %q", got)
	}

	if p, err = s.Pause(t.Context()); err != nil {
		t.Fatalf("a signal that ends nothing ends no later pause: %v", err)
	}
	s.pausing.goOn(true, 10*time.Millisecond)
	if isStopped(s.client.Pid) {
		t.Error("left stopped")
	}
	p.Resume()
	if _, err := s.Pause(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("told to end: %v", err)
	}
}

// pauseAndHang PROGRAM starts a client that says how it ends, pauses it, and waits to be killed.
func pauseAndHang(args []string) error {
	signal.Ignore(syscall.SIGHUP)
	cmd := exec.Command("bash", "-c", `trap 'echo terminated; exit' TERM; echo ready $$; while :; do sleep 0.05; done`)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	client, err := start(cmd, syscall.SIGTERM)
	if err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	var s Sandbox
	s.pausing.begin(client, args[0])
	if _, err := s.Pause(context.Background()); err != nil {
		return err
	}
	fmt.Println("paused")
	select {}
}

// If we are killed, a client that would have to do something then is woken for it.
func TestKilledWhilePaused(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := roles.Start(t, func(cmd *exec.Cmd) { cmd.Stderr = os.Stderr }, "pause-and-hang", self)
	t.Cleanup(func() { _ = p.Process.Kill() }) // it does not end when its input does
	expect := func(want string) (pid int) {
		t.Helper()
		line := p.Line(t)
		if _, err := fmt.Sscanf(line, want, &pid); err != nil && line != want {
			t.Fatalf("%q; want %q", line, want)
		}
		return pid
	}
	client := expect("ready %d")
	p.Say(t, "")
	expect("paused")
	if !isStopped(client) {
		t.Error("the client runs")
	}
	_ = p.Process.Kill()
	expect("terminated")
}

func TestParseThread(t *testing.T) {
	for _, c := range []struct {
		status string
		want   thread
	}{
		{"Name:\tState:\tT\nState:\tS (sleeping)\nShdPnd:\t0000000000000000\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n", thread{'S', false, 10}},
		{"State:\tD (disk sleep)\nSigPnd:\t0000000000040000\nShdPnd:\t0000000000000000\n", thread{'D', false, 0}},
		{"State:\tD (disk sleep)\nShdPnd:\t0000000000040000\nvoluntary_ctxt_switches:\t1\n", thread{'D', true, 1}},
		{"State:\tt (tracing stop)\n", thread{'t', false, 0}},
		{"", thread{}},
	} {
		if got := parseThread([]byte(c.status)); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.status, got, c.want)
		}
	}
}

func TestStands(t *testing.T) {
	for _, c := range []struct {
		name          string
		threads       map[int]thread
		soon, patient bool
	}{
		{"stopped", map[int]thread{1: {state: 'T'}, 2: {state: 't'}}, true, true},
		{"one runs", map[int]thread{1: {state: 'T'}, 2: {state: 'R'}}, false, false},
		{"one sleeps", map[int]thread{1: {state: 'S', stopping: true}}, false, false},
		{"in the kernel, about to stop", map[int]thread{1: {state: 'D', stopping: true}}, false, true},
		{"in the kernel, the others have stopped", map[int]thread{1: {state: 'D'}, 2: {state: 'T'}}, false, true},
		{"in the kernel, and not told to stop", map[int]thread{1: {state: 'D'}}, false, false},
	} {
		all := map[procID]map[int]thread{{pid: 1}: c.threads}
		if soon, patient := stands(all, false), stands(all, true); soon != c.soon || patient != c.patient {
			t.Errorf("%s: %t, and with patience %t", c.name, soon, patient)
		}
	}
}
