package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// process is a started engine client.
type process struct {
	*os.Process
	done chan struct{} // closed once err is set
	err  error         // of exec.Cmd.Wait
}

// foreground reports whether the controlling terminal sends its signals (Ctrl-C) to this process.
func foreground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	pgrp, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// inBackground reports whether f is this process's controlling terminal and at present another's to read from.
func inBackground(f *os.File) bool {
	if f == nil {
		return false
	}
	pgrp, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP) // fails for every other file
	return err == nil && pgrp != unix.Getpgrp()
}

// canRead asks the kernel, which knows our groups.
func canRead(path string) bool { return unix.Access(path, unix.R_OK) == nil }
