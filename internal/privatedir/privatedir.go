// Package privatedir opens directories that belong to this user alone: [Open] and [Make] by path, [Sub] inside one that is open.
// What is not as it should be is refused with an error that says why, never repaired: someone else may have made it.
package privatedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Open opens the directory path for access below it. One that is a symbolic link, belongs to another user, or has any
// permission for others is refused. One that does not exist is made with its parents, mode 0700, or without create is
// fs.ErrNotExist.
func Open(path string, create bool) (*os.Root, error) {
	root, err := open(path, path, os.Lstat, os.OpenRoot)
	if !create || !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }()
	if err := Sync(parent); err != nil {
		return nil, err
	}
	return open(path, path, os.Lstat, os.OpenRoot)
}

// Make is Open with create, for callers that need the directory only to be there.
func Make(path string) error {
	root, err := Open(path, true)
	if err != nil {
		return err
	}
	return root.Close()
}

// Sub opens the directory name in root like Open.
func Sub(root *os.Root, name string, create bool) (*os.Root, error) {
	shown := filepath.Join(root.Name(), name)
	sub, err := open(name, shown, root.Lstat, root.OpenRoot)
	if !create || !errors.Is(err, fs.ErrNotExist) {
		return sub, err
	}
	if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := Sync(root); err != nil {
		return nil, err
	}
	return open(name, shown, root.Lstat, root.OpenRoot)
}

// open checks what lstat finds and opens it. What was opened is checked again: between the two calls the name could
// have been given to another directory.
func open(name, shown string, lstat func(string) (fs.FileInfo, error), openRoot func(string) (*os.Root, error)) (*os.Root, error) {
	found, err := lstat(name)
	if err != nil {
		return nil, err
	}
	if err := check(shown, found); err != nil {
		return nil, err
	}
	root, err := openRoot(name)
	if err != nil {
		return nil, err
	}
	opened, err := root.Stat(".")
	if err == nil {
		err = check(shown, opened)
	}
	if err == nil && !os.SameFile(found, opened) {
		err = fmt.Errorf("directory %s was replaced while it was being opened", shown)
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

func check(shown string, info fs.FileInfo) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("directory %s is a symbolic link: replace it by a directory, or configure its target", shown)
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", shown)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to the user %d, not to us (%d)", shown, st.Uid, os.Geteuid())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("directory %s is open to other users (mode %04o): look who has used it, then chmod 700 it", shown, perm)
	}
	return nil
}

// Sync makes durable what was made, renamed or removed in root.
func Sync(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil // or the file system has no sync of directories
}
