package peerlock

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is USER_HZ, in which /proc counts: 100 on every architecture that Go has.
const ticks = 100

// process reports whether a process runs here, and when it began, in whole seconds as ps(1) says it (zero: not known).
// One that has ended and is still to be waited for does not run.
func process(pid int) (runs bool, start time.Time) {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false, start
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true, start
	}
	// proc(5): "pid (name) state …", the number of threads is field 20, the start field 22. The name can have spaces and
	// parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return true, start
	}
	// That is the state of the first thread. While there are others, they may still be at something.
	if (fields[0] == "Z" || fields[0] == "X") && (fields[17] == "0" || fields[17] == "1") {
		return false, start
	}
	since, err := strconv.ParseInt(fields[19], 10, 64)
	boot, bootErr := bootTime()
	if err != nil || bootErr != nil {
		return true, start
	}
	return true, time.Unix(boot+since/ticks, 0)
}

// bootTime is when the machine was started, in Unix seconds. It moves when the clock is set.
func bootTime() (int64, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(stat)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			return strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		}
	}
	return 0, errors.New("/proc/stat does not say when the machine was started")
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
	err = unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return unsupported(err)
	}
	return err
}
