//go:build !linux

package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// No engine is offered on this system yet (see Host.Select), so nothing below is reached.

var errLinuxOnly = errors.New("sandboxes run on Linux only")

type process struct {
	*os.Process
	done chan struct{}
	err  error
}

func start(*exec.Cmd, syscall.Signal) (*process, error) { return nil, errLinuxOnly }

func memoryFile([]byte) (*os.File, error) { return nil, errLinuxOnly }

func terminalFilter() []byte { return nil }

type handle int

func openHandle(int) (handle, error)        { return -1, errLinuxOnly }
func openChild(handle, int) (handle, error) { return -1, errLinuxOnly }
func (handle) signal(syscall.Signal) error  { return errLinuxOnly }
func (handle) wait(int) bool                { return true }
func (handle) close()                       {}

func foreground() bool { return false }

func inBackground(*os.File) bool { return false }

func canRead(string) bool { return false }
