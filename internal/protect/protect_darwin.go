package protect

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// undumpable refuses debuggers from now on (ptrace(2), PT_DENY_ATTACH).
func undumpable() error {
	if err := unix.PtraceDenyAttach(); err != nil {
		return fmt.Errorf("refuse debuggers: %w", err)
	}
	return nil
}
