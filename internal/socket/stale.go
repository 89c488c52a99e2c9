package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// staleAge is how old a socket of a living process must be before it counts as left over: the process may be another
// one under a reused id, or one that has bound its socket and not listened yet.
const staleAge = time.Minute

// SweepStale removes the sockets in dir whose processes are gone and returns their names. The socket of a living
// process goes only when nothing listens on it and it is older than a minute. A socket on which somebody does listen
// always stays: a process id means nothing across PID namespaces that share a temporary directory. Other names, other
// kinds of files and other users' files are left alone; symlinks are not followed. A directory that [Listen] would
// refuse is refused here too; one that does not exist is clean.
func SweepStale(dir string) (removed []string, err error) {
	d, err := openDir(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("socket directory %s: %w", dir, err)
	}
	var own unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &own); err != nil {
		return nil, fmt.Errorf("socket directory %s: %w", dir, err)
	}
	var failed error
	for _, name := range names {
		pid, ok := pidOf(name)
		if !ok {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil ||
			st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != own.Uid {
			continue
		}
		sec, nsec := st.Mtim.Unix()
		if alive(pid) && time.Since(time.Unix(sec, nsec)) < staleAge {
			continue
		}
		if listening(filepath.Join(dir, name)) {
			continue
		}
		switch err := unix.Unlinkat(int(d.Fd()), name, 0); err {
		case nil:
			removed = append(removed, name)
		case unix.ENOENT: // another proxy that starts now was quicker
		default:
			failed = errors.Join(failed, fmt.Errorf("remove stale socket %s: %w", filepath.Join(dir, name), err))
		}
	}
	return removed, failed
}

// alive reports whether a process with the id exists, whoever owns it.
func alive(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// listening reports whether somebody listens on the socket at path. It does not block; in doubt it says yes.
func listening(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return true
	}
	// EAGAIN is a listener whose queue is full.
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != unix.ECONNREFUSED
}
