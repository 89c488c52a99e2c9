package peerlock

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process reports whether a process runs here, and when it began, in whole seconds as ps(1) says it (zero: not known).
// One that has ended and is still to be waited for does not run.
func process(pid int) (runs bool, start time.Time) {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false, start
	}
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil || int(info.Proc.P_pid) != pid {
		return true, start
	}
	const zombie = 5 // SZOMB of sys/proc.h
	if info.Proc.P_stat == zombie {
		return false, start
	}
	return true, time.Unix(info.Proc.P_starttime.Sec, 0)
}

// exchange gives each of two files the other's name, in one step. The error is errors.ErrUnsupported where that cannot
// be done.
func exchange(dir *os.Root, a, b string) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	fd := int(d.Fd())
	err = unix.RenameatxNp(fd, a, fd, b, unix.RENAME_SWAP)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) {
		return unsupported(err)
	}
	return err
}
