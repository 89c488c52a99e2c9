// Package protect keeps what the process holds in memory inside it. A program that will hold credentials calls
// [Harden] first thing in main, before it reads any; on Linux, one that will start a sandbox's command inside calls [Conceal].
package protect

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden makes the process leave no core dump, whatever kills it, and closes its memory to debuggers and to other
// processes of the same user. Processes that it starts inherit the core limit and nothing else. It changes the whole
// process and cannot be undone.
//
// What it does not stop: root on the host, and a debugger that was attached before.
func Harden() error {
	// The hard limit too, so that nothing in the process can raise it again.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return undumpable()
}
