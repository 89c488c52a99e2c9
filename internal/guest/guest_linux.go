package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Main does what the word args[0] says; args is os.Args[1:]. If mine is false, it is no word of ours and nothing was done; else the
// program has to exit with the status: the command's own, or 125, 126, 127 as docker(1) has them. Where all goes well it does not
// return from EnterWord, and as something else than process 1 not from StartWord: the program has become the command.
func Main(args []string) (status int, mine bool) {
	switch {
	case len(args) >= 2 && args[0] == EnterWord:
		return enter(args[1:]), true
	case len(args) >= 2 && args[0] == StartWord:
		return startHere(args[1:]), true
	case len(args) >= 2 && args[0] == BridgeWord:
		return runBridge(args[1:]), true
	case len(args) == 1 && args[0] == CarryWord:
		return carry(os.Stdin, os.Stdout), true
	}
	return 0, false
}

// failure is an error with what did not work, and what to do about it.
type failure struct {
	what, hint string
	err        error
}

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fail says why there will be no command, and returns the status for it.
func fail(err error) int {
	fmt.Fprintf(os.Stderr, "credproxy: %v\n", err)
	if f, ok := errors.AsType[*failure](err); ok && f.hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", f.hint)
	}
	return exitGuest
}

// socketPath returns what SocketEnv says.
func socketPath() (string, error) {
	path := os.Getenv(SocketEnv)
	if !filepath.IsAbs(path) {
		return "", &failure{
			what: "the proxy's socket",
			err:  fmt.Errorf("%s is %q, and not an absolute path", SocketEnv, path),
			hint: "this program is started by `credproxy run`, which sets it; an image or an option must not change it",
		}
	}
	return path, nil
}

// closeOnExec keeps from the command what an engine left open for us, beyond standard input, output and error.
func closeOnExec() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, _ := os.ReadDir("/proc/self/fd") // Linux before 5.11
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
