//go:build !linux

package cli

import "golang.org/x/sys/unix"

// noKey stands for a key that there is not (_POSIX_VDISABLE).
const noKey = 0xff

// What reads a terminal's settings, changes them, and changes them after dropping what was typed.
const (
	getTermios      = unix.TIOCGETA
	setTermios      = unix.TIOCSETA
	setTermiosFlush = unix.TIOCSETAF
)
