package guest

import (
	"context"
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

// enter is EnterWord.
func enter(command []string) int {
	// A signal that is caught is back at its default in the next program; one that was ignored would stay so.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	path, err := socketPath()
	if err != nil {
		return fail(err)
	}
	if err := probe(context.Background(), path); err != nil {
		return fail(unreachable(path, err, false))
	}
	runtime.LockOSThread() // the restriction is the thread's, and execve keeps that of the thread that calls it
	if err := restrictThread(); err != nil {
		return fail(err)
	}
	return launch(command, become)
}

// startHere is StartWord.
func startHere(command []string) int {
	path, err := socketPath()
	if err != nil {
		return fail(err)
	}
	reach := func(ctx context.Context) (end func(), err error) {
		if err := probe(ctx, path); err != nil {
			return nil, unreachable(path, err, true)
		}
		return func() {}, nil
	}
	closeOnExec()
	if os.Getpid() == 1 {
		return lead(command, reach)
	}
	// There is an init of the engine's.
	if _, err := reach(context.Background()); err != nil {
		return fail(err)
	}
	return launch(command, become)
}

// become executes a program in place of this one. It returns only if that fails.
func become(program string, argv []string) error {
	return syscall.Exec(program, argv, os.Environ())
}

// launch looks the command up and has it executed. It returns 0 when execute returns nil; else it says why there is no command and
// returns the exit status for that, as a shell has it.
func launch(command []string, execute func(program string, argv []string) error) int {
	program, err := find(command[0], os.Getenv("PATH"))
	if err == nil {
		err = execute(program, command)
	}
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as execvp(3) does it
		const shell = "/bin/sh"
		if shErr := execute(shell, append([]string{shell, program}, command[1:]...)); !errors.Is(shErr, fs.ErrNotExist) {
			err = shErr
		}
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrNotExist):
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
