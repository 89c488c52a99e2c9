package cli

import "golang.org/x/sys/unix"

// What reads a terminal's settings, changes them, and changes them after dropping what was typed.
const (
	getTermios      = unix.TCGETS
	setTermios      = unix.TCSETS
	setTermiosFlush = unix.TCSETSF
)
