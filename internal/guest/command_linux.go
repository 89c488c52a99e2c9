package guest

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// signals are all that process 1 may be sent. None is ignored, for the command would inherit that; what is caught is at its default
// in the command.
type signals struct {
	child  chan os.Signal // SIGCHLD; one that is waiting stands for all
	others chan os.Signal // for the command
}

// catch catches every signal that can be. SIGPIPE and SIGURG are dropped: the first is about our own sockets, with the second the Go
// runtime interrupts itself.
func catch() *signals {
	s := &signals{child: make(chan os.Signal, 1), others: make(chan os.Signal, 64)}
	signal.Notify(s.child, syscall.SIGCHLD)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // read by nobody
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		switch sig {
		case syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGKILL, syscall.SIGSTOP:
		default:
			signal.Notify(s.others, sig)
		}
	}
	return s
}

// lead is process 1: it waits until everything is ready, starts the command, and returns the status to exit with. What ready has
// begun is ended by the function that it returns, after the command.
func lead(command []string, ready func(context.Context) (end func(), err error)) int {
	caught := catch()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type outcome struct {
		end func()
		err error
	}
	prepared := make(chan outcome, 1)
	go func() {
		end, err := ready(ctx)
		prepared <- outcome{end, err}
	}()
	for {
		select {
		case sig := <-caught.others: // process 1 has no default actions
			if !ends(sig) {
				continue
			}
			cancel()
			if o := <-prepared; o.err == nil {
				o.end()
			}
			return exitSignalShift + int(sig.(syscall.Signal))
		case o := <-prepared:
			if o.err != nil {
				return fail(o.err)
			}
			defer o.end()
			return run(command, caught)
		}
	}
}

// ends reports whether a signal asks a program to end. Before there is a command, only these are for us.
func ends(sig os.Signal) bool {
	switch sig {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		return true
	}
	return false
}

// child is the command that process 1 has started. Only the goroutine that waits for it sends it signals, so its number is its own.
type child struct {
	pid    int
	shares bool // the terminal sends its signals to the command and to us
}

// run starts the command and waits for its end. It returns the command's exit status, or 128 plus the number of the signal that
// ended it, or what launch says.
func run(command []string, caught *signals) int {
	var c child
	attr := &syscall.SysProcAttr{Setsid: true}
	if fd := terminal(); fd >= 0 {
		if attr.Setsid = caught.leaveTerminal(fd); attr.Setsid {
			attr.Setctty, attr.Ctty = true, fd
		}
		c.shares = !attr.Setsid
	}
	if status := launch(command, func(program string, argv []string) (err error) {
		c.pid, err = syscall.ForkExec(program, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attr})
		return err
	}); status != 0 {
		return status
	}
	for {
		select {
		case sig := <-caught.others:
			if c.shares && (sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGTSTP) {
				continue
			}
			_ = unix.Kill(c.pid, sig.(syscall.Signal))
		case <-caught.child:
			if status, ended := c.reap(); ended {
				return status
			}
		}
	}
}

// terminal returns which of standard input, output and error is the terminal that controls this session, or -1.
func terminal() int {
	own, err := unix.Getsid(0)
	if err != nil {
		return -1
	}
	for fd := range 3 {
		if sid, err := unix.IoctlGetInt(fd, unix.TIOCGSID); err == nil && sid == own {
			return fd
		}
	}
	return -1
}

// leaveTerminal gives the terminal up, so that the command can begin a session with it: it is then the first and in the foreground, as it
// would be without us, Ctrl-C is for it alone, and Ctrl-Z does not stop what nobody could continue (setpgid(2), orphaned process
// groups). It reports false when that cannot be, as under an init of the engine: the command then shares our session and group.
func (s *signals) leaveTerminal(fd int) bool {
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		return false
	}
	// The kernel sends these two to the group that the terminal had in its foreground, to us, before the call returns.
	signal.Ignore(syscall.SIGHUP, syscall.SIGCONT)
	defer signal.Notify(s.others, syscall.SIGHUP, syscall.SIGCONT)
	return unix.IoctlSetInt(fd, unix.TIOCNOTTY, 0) == nil
}

// reap waits for all processes that have ended, which as process 1 are also those that nobody else waits for. It returns the
// command's status when that is among them.
func (c *child) reap() (status int, ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG|syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid == 0:
			return 0, false
		case pid != c.pid:
		case ws.Exited():
			return ws.ExitStatus(), true
		case ws.Signaled():
			return exitSignalShift + int(ws.Signal()), true
		case ws.StopSignal() == syscall.SIGTSTP:
			if group, err := unix.Getpgid(pid); err == nil { // nobody else would
				_ = unix.Kill(-group, unix.SIGCONT)
			}
		}
	}
}
