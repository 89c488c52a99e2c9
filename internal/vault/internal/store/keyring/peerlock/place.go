package peerlock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// place is a directory in which a version of the original keeps locks.
type place struct {
	base  string   // the topmost directory that is the original's own; "" if it is not known where it is
	home  string   // not "": base is in this home directory, which must be there
	rooms []string // the way from base to the locks

	ages    bool // it is the older version's, which breaks locks by their age and knows no fence
	ifThere bool // of interest only if base is there already
}

func (p place) String() string {
	if p.base == "" {
		return filepath.Join(append([]string{"~"}, p.rooms...)...)
	}
	return filepath.Join(append([]string{p.base}, p.rooms...)...)
}

// places says where the original keeps its refresh locks and its write locks. The older version has no write locks.
func places() (refresh, write []place) {
	home := os.Getenv("HOME")
	if !filepath.IsAbs(home) {
		home = ""
	}
	older := place{home: home, rooms: []string{"oauth", "locks"}, ages: true}
	if home != "" {
		older.base = filepath.Join(home, ".llxprt")
	}
	refresh = append(refresh, older)
	for _, logs := range logDirs(home) {
		refresh = append(refresh, logs.with("oauth", "locks"))
		write = append(write, logs.with("secure-store", "locks"))
	}
	return refresh, write
}

func (p place) with(rooms ...string) place {
	p.rooms = rooms
	return p
}

// logDirs says where the newer version keeps its logs. With XDG_STATE_HOME there are two: a service and the terminals of
// its user do not always have the same environment.
func logDirs(home string) []place {
	for _, name := range []string{"LLXPRT_LOG_HOME", "LLXPRT_CONFIG_HOME"} {
		if dir := strings.TrimSpace(os.Getenv(name)); filepath.IsAbs(dir) {
			return []place{{base: filepath.Clean(dir)}}
		}
	}
	const name = "llxprt-code"
	byDefault := place{home: home}
	if home != "" && runtime.GOOS == "darwin" {
		byDefault.base = filepath.Join(home, "Library", "Logs", name)
	} else if home != "" {
		byDefault.base = filepath.Join(home, ".local", "state", name)
	}
	state := os.Getenv("XDG_STATE_HOME")
	if runtime.GOOS == "darwin" || !filepath.IsAbs(state) {
		return []place{byDefault}
	}
	chosen := place{base: filepath.Join(state, name)}
	if byDefault.base == "" || byDefault.base == chosen.base {
		return []place{chosen}
	}
	byDefault.ifThere = true
	return []place{chosen, byDefault}
}

// open opens the directory of the locks, and makes it and its parents, for this user alone, if they are not there.
// The original's own directories must not be symbolic links, nor belong to someone else or be writable by others: who
// can change them could have us write elsewhere, and could make and remove locks at will. Being readable does no harm:
// there is no secret in a lock.
func (p place) open() (*os.Root, error) {
	if p.base == "" {
		return nil, errors.New("HOME is not set to an absolute path")
	}
	parent := filepath.Dir(p.base)
	if p.home != "" {
		info, err := os.Stat(p.home)
		if err == nil {
			err = safe(p.home, info) // as root with a user's HOME, we would make directories that the user cannot use
		}
		if err != nil {
			return nil, fmt.Errorf("home directory: %w", err)
		}
	}
	if p.ifThere {
		if _, err := os.Lstat(p.base); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(parent)
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{filepath.Base(p.base)}, p.rooms...) {
		next, err := enter(dir, name)
		_ = dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// enter opens the directory name in dir. What was opened is checked, not only what was found before: the name could
// have been given to another directory in between.
func enter(dir *os.Root, name string) (*os.Root, error) {
	shown := filepath.Join(dir.Name(), name)
	found, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := dir.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		found, err = dir.Lstat(name)
	}
	if err != nil {
		return nil, err
	}
	if err := safe(shown, found); err != nil {
		return nil, err
	}
	next, err := dir.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	opened, err := next.Stat(".")
	if err == nil {
		err = safe(shown, opened)
	}
	if err == nil && !os.SameFile(found, opened) {
		err = fmt.Errorf("directory %s was replaced while it was being opened", shown)
	}
	if err != nil {
		_ = next.Close()
		return nil, err
	}
	return next, nil
}

func safe(shown string, info fs.FileInfo) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link", shown)
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", shown)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("it is not known whose %s is", shown)
	}
	perm := info.Mode().Perm()
	switch {
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("directory %s belongs to the user %d, not to us (%d)", shown, st.Uid, os.Geteuid())
	// Where each user has a group of their own, a umask of 002 is usual, and directories have mode 0775.
	case perm&0o002 != 0, perm&0o020 != 0 && int(st.Gid) != os.Getegid():
		return fmt.Errorf("directory %s can be written by other users (mode %04o)", shown, perm)
	}
	return nil
}
