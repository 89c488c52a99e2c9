package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
)

// waker is a process that outlives this one if that is killed, and lets go on then what was stopped. What it is told comes through
// a pipe, a line a process, and the end of the pipe is the sign.
type waker struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startWaker(program string) (*waker, error) {
	closeOnExec()
	cmd := exec.Command(program, wakerWord, strconv.Itoa(os.Getpid())) // the number is for people who look at ps
	cmd.Dir, cmd.Env = "/", []string{}
	// Out of reach of what ends a whole process group or session.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("what wakes a stopped engine: %w", err)
	}
	return &waker{cmd, pipe}, nil
}

func (w *waker) add(p procID) error {
	if _, err := fmt.Fprintf(w.pipe, "%d %d\n", p.pid, p.start); err != nil {
		return fmt.Errorf("what wakes a stopped engine: %w", err)
	}
	return nil
}

// end ends the waker before it does anything.
func (w *waker) end() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // closes the pipe
}

// wakePaused is the waker itself.
func wakePaused(pipe io.Reader) int {
	var stopped []procID
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		var p procID
		if n, _ := fmt.Sscanf(lines.Text(), "%d %d", &p.pid, &p.start); n == 2 {
			stopped = append(stopped, p)
		}
	}
	for _, p := range slices.Backward(stopped) {
		_ = p.signal(syscall.SIGCONT)
	}
	return 0
}
