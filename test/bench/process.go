//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// target is a server in a process of its own.
type target struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	socket string
	proxy  bool // it wants a handshake
}

// launch starts a server and reads the first line that it prints.
func launch(cmd *exec.Cmd) (*target, string, error) {
	t := &target{cmd: cmd}
	var err error
	if t.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, "", fmt.Errorf("%v ended before it listened: %w", cmd.Args, t.stop())
	}
	return t, line, nil
}

// serve starts the proxy of the machine. What it logs is the benchmark's stderr only when it fails.
func (m *machine) serve() (*target, error) {
	cmd := m.command("serve", "--json")
	log, err := os.Create(m.dir + "/serve.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	t, line, err := launch(cmd)
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	var ready struct{ Socket string }
	if err := json.Unmarshal([]byte(line), &ready); err != nil {
		return nil, fmt.Errorf("the first line of serve --json is %q: %w", line, err)
	}
	t.socket, t.proxy = ready.Socket, true
	return t, nil
}

// startEcho starts the echo, whose answers have size bytes.
func startEcho(dir string, size int) (*target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	path := dir + "/echo"
	_ = os.Remove(path)
	cmd := exec.Command(self, "echo", path, strconv.Itoa(size))
	cmd.Stderr = os.Stderr
	t, _, err := launch(cmd)
	if err != nil {
		return nil, err
	}
	t.socket = path
	return t, nil
}

// stop ends the server and waits for it.
func (t *target) stop() error {
	if t.proxy {
		_ = t.cmd.Process.Signal(syscall.SIGTERM)
	}
	_ = t.stdin.Close()
	slow := time.AfterFunc(10*time.Second, func() { _ = t.cmd.Process.Kill() })
	defer slow.Stop()
	return t.cmd.Wait()
}

// cpu is the processor time of the process so far, in nanoseconds: the clock that clock_getcpuclockid(3) names.
func (t *target) cpu() (float64, error) {
	var ts unix.Timespec
	clock := int32(^t.cmd.Process.Pid<<3 | 2) // CPUCLOCK_SCHED
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("the processor time of %v: %w", t.cmd.Args, err)
	}
	return float64(ts.Nano()), nil
}

// memory is a field of /proc/PID/status, in MiB: VmRSS now, VmHWM at most so far.
func (t *target) memory(field string) (float64, error) {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB`).FindSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%v has ended: no %s", t.cmd.Args, field)
	}
	kib, err := strconv.Atoi(string(m[1]))
	return float64(kib) / 1024, err
}
