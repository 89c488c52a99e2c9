//go:build !linux && !darwin

package peerlock

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// process reports whether a process runs here; when it began is not known.
func process(pid int) (runs bool, start time.Time) {
	return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH), start
}

// exchange is errors.ErrUnsupported here.
func exchange(*os.Root, string, string) error { return errors.ErrUnsupported }
