package file

import "syscall"

// times returns the times of the last modification and status change in nanoseconds since 1970.
func times(st *syscall.Stat_t) (mtime, ctime int64) { return st.Mtimespec.Nano(), st.Ctimespec.Nano() }
