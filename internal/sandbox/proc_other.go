//go:build !linux

package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// start starts cmd, and one goroutine that waits for its end. These systems tell no process of the death of its parent: should this
// one be killed, the client goes on, and the next Sweep removes its container; what the sandbox had of us ends at once.
func start(cmd *exec.Cmd, _ syscall.Signal) (*process, error) {
	closeOnExec()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{Process: cmd.Process, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// closeOnExec keeps what this process inherited away from the engine.
func closeOnExec() {
	entries, _ := os.ReadDir("/dev/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// memoryFile returns a file with this content that has no name anywhere.
func memoryFile(content []byte) (*os.File, error) { return namelessFile(content) }

// bwrap is for Linux only (see Host.Select), so nothing below is reached.

var errLinuxOnly = errors.New("bwrap runs on Linux only")

func terminalFilter() []byte { return nil }

type handle int

func openHandle(int) (handle, error)        { return -1, errLinuxOnly }
func openChild(handle, int) (handle, error) { return -1, errLinuxOnly }
func (handle) signal(syscall.Signal) error  { return errLinuxOnly }
func (handle) wait(int) bool                { return true }
func (handle) close()                       {}
