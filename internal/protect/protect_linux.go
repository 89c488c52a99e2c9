package protect

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// undumpable clears the dumpable attribute (prctl(2), PR_SET_DUMPABLE): ptrace and /proc/PID/{mem,environ,maps,fd}
// are closed to other processes of this user without CAP_SYS_PTRACE. It also ends core dumps that go to a program
// (core(5), "Piping core dumps"), for which the limit does not count.
func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the dumpable attribute: %w", err)
	}
	return nil
}

// Conceal closes the process's memory to debuggers and to other processes of the same user, as [Harden] does, and leaves the core
// limit as it is: it is for a process that starts somebody else's program, which is to find its limits unchanged. A process that
// is not dumpable leaves no core dump either.
func Conceal() error { return undumpable() }
