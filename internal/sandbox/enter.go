package sandbox

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/credproxy/credproxy/internal/guest"
)

// Words with which this program is started once more on the host, see Enter.
const (
	ignoreWord = "sandbox-ignore"
	wakerWord  = "sandbox-wake"
)

// Enter has to be the first thing in main of the program that is mounted into sandboxes. Started in a usual way, it returns at
// once. Started by Run, it takes a last step and becomes another program:
//
//   - as what runs inside, and first, it does what package guest says;
//   - as the parent of bwrap on a terminal, it makes bwrap ignore Ctrl-C and Ctrl-\, of which only the command is to know: bwrap
//     would die of them, and the sandbox with it.
//
// Started by Pause, it is what wakes the paused sandbox should this process be killed.
func Enter() {
	if status, mine := guest.Main(os.Args[1:]); mine {
		os.Exit(status)
	}
	if len(os.Args) < 3 {
		return
	}
	switch os.Args[1] {
	case ignoreWord:
		signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
		err := syscall.Exec(os.Args[2], os.Args[2:], os.Environ())
		fmt.Fprintf(os.Stderr, "credproxy: %s: %v\n", os.Args[2], err)
		os.Exit(ExitEngine)
	case wakerWord:
		os.Exit(wakePaused(os.Stdin))
	}
}
