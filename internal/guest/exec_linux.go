package guest

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

func enter(command []string) int {
	// A signal that is caught is back at its default in the next program; one that was ignored would stay so.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	runtime.LockOSThread() // the restriction is the thread's, and execve keeps that of the thread that calls it
	if err := restrictThread(); err != nil {
		fmt.Fprintf(os.Stderr, "credproxy: %v\n", err)
		return exitGuest
	}
	return become(command)
}

// become executes the command in place of this program. It returns if that fails, with the exit status for it, having said why.
func become(command []string) int {
	program, err := find(command[0], os.Getenv("PATH"))
	if err == nil {
		err = syscall.Exec(program, command, os.Environ())
	}
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as execvp(3) does it
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", program}, command[1:]...), os.Environ())
	}
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "credproxy: %s: command not found\n", command[0])
		return exitNotFound
	}
	fmt.Fprintf(os.Stderr, "credproxy: %s: %v\n", command[0], err)
	return exitCannotRun
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
