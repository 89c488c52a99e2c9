package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	errShared   = errors.New("it is neither a tmpfs of this sandbox nor a directory of its user's alone")
	errNotEmpty = errors.New("something is in it already")
)

// checkPlace makes sure that dir, where the sockets are to be, is what the engine was told to put there: a link of the image
// could lead it, and us, into a directory that others share. It is a tmpfs, or where the host covers something of
// its own with it, a directory that only this user can enter.
func checkPlace(dir string) error {
	fd, err := openPlain(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if int64(fs.Type) == unix.TMPFS_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return errShared
	}
	return nil
}

// openPlain opens a directory on whose path, from the root, there is no symbolic link. It walks: some engines' filters of system calls
// do not know openat2(2).
func openPlain(dir string) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if fd, err = unix.Open("/", flags, 0); err != nil {
		return -1, err
	}
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(dir), "/"), "/") {
		at = filepath.Join(at, name)
		next, err := unix.Openat(fd, name, flags, 0)
		var st unix.Stat_t
		if err != nil && unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = fmt.Errorf("%s is a symbolic link", at)
		}
		_ = unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return bare(err)
	}
	defer f.Close()
	switch names, err := f.Readdirnames(1); {
	case len(names) > 0:
		return errNotEmpty
	case err != io.EOF:
		return err
	}
	return nil
}
