package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Words with which this program is started once more, see Enter.
const (
	enterWord  = "sandbox-enter"
	ignoreWord = "sandbox-ignore"
	wakerWord  = "sandbox-wake"
)

// Enter has to be the first thing in main of the program that is mounted into sandboxes. Started in a usual way, it returns at
// once. Started by Run, it takes a last step and becomes another program:
//
//   - as the first program in bwrap, it parts the command from the abstract Unix sockets of the host, which belong to the
//     network namespace that both share, and then executes it, with the exit statuses of a shell where that fails;
//   - as the parent of bwrap on a terminal, it makes bwrap ignore Ctrl-C and Ctrl-\, of which only the command is to know: bwrap
//     would die of them, and the sandbox with it.
//
// Started by Pause, it is what wakes the paused sandbox should this process be killed.
func Enter() {
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
	case enterWord:
		os.Exit(enter(os.Args[2:]))
	}
}

func enter(command []string) int {
	// A signal that is caught is back at its default in the next program; one that was ignored would stay so.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	runtime.LockOSThread() // the restriction is the thread's, and execve keeps that of the thread that calls it
	if err := restrictThread(); err != nil {
		fmt.Fprintf(os.Stderr, "credproxy: %v\n", err)
		return ExitEngine
	}
	program, err := find(command[0], os.Getenv("PATH"))
	if err == nil {
		err = syscall.Exec(program, command, os.Environ())
	}
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as execvp(3) does it
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", program}, command[1:]...), os.Environ())
	}
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "credproxy: %s: command not found\n", command[0])
		return ExitNotFound
	}
	fmt.Fprintf(os.Stderr, "credproxy: %s: %v\n", command[0], err)
	return ExitCannotRun
}

// find looks a command up as execvp(3) does: what may not be executed counts only when nothing else is found.
func find(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	err := error(fs.ErrNotExist)
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if info, statErr := os.Stat(full); statErr == nil && !info.IsDir() {
			if info.Mode()&0o111 != 0 {
				return full, nil
			}
			err = fs.ErrPermission
		}
	}
	return "", err
}
