// Package atomicfile writes files that are either the old or the new ones, whole, whatever happens in between: a full
// disk, kill -9, a power cut. Call [WriteFile] with an os.Root, or [WriteFileIn] with a directory; call [RemoveTemps]
// at start to clear what killed processes left.
//
// A write goes to a temporary file beside the target (0600, exclusive, random name), is synced, renamed over the
// target, and the directory is synced. On darwin os.File.Sync is F_FULLFSYNC, so the disk's own cache is included.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Temporary files are tempPrefix, 26 random characters, tempSuffix.
const (
	tempPrefix = ".atomicfile-"
	tempSuffix = ".tmp"
)

// IsTemp reports whether the last element of name is that of a temporary file of this package. A reader of a
// directory passes over such files.
func IsTemp(name string) bool {
	name = filepath.Base(name)
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// WriteFile makes data the content of name inside root, with mode 0600. A symlink in the place of name is replaced, not
// followed. Of concurrent writers of one name the last one wins, whole.
//
// An error names the step that failed and wraps the system's error (syscall.ENOSPC for a full disk). The old content is
// then still there, with one exception: after "sync directory" the new content is in place and only its survival of a
// power cut is not certain. Writing again is always right.
func WriteFile(root *os.Root, name string, data []byte) error {
	fail := func(step string, err error) error {
		return fmt.Errorf("write %s: %s: %w", name, step, Cause(err))
	}
	if IsTemp(name) {
		return fail("check name", errors.New("it is a name of a temporary file"))
	}
	dir := filepath.Dir(name)
	temp := filepath.Join(dir, tempPrefix+rand.Text()+tempSuffix)
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail("create temporary file", err)
	}
	step, err := fill(f, data)
	if err == nil {
		step, err = "rename", root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp) // if even that fails, RemoveTemps finds it later
		return fail(step, err)
	}
	if err := syncDir(root, dir); err != nil {
		return fail("sync directory", err)
	}
	return nil
}

// WriteFileIn is WriteFile for a directory given by its path. The directory must exist.
func WriteFileIn(dir, name string, data []byte) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("write %s: open directory %s: %w", name, dir, Cause(err))
	}
	defer func() { _ = root.Close() }() // only reading can be lost by that
	return WriteFile(root, name, data)
}

// fill writes, syncs and closes f, and names the first step that failed.
func fill(f *os.File, data []byte) (step string, err error) {
	_, err = f.Write(data)
	step = "write"
	if err == nil {
		step, err = "sync", f.Sync()
	}
	// Network file systems may report a failed write only here.
	if closeErr := f.Close(); err == nil {
		step, err = "close", closeErr
	}
	return step, err
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // this file system has no sync of directories; there is nothing more to ask of it
	}
	return errors.Join(err, d.Close())
}

// Cause drops the operation and the path that os puts around an error: the path may be that of a temporary file, or relative
// to some directory.
func Cause(err error) error {
	switch e := err.(type) {
	case *fs.PathError:
		return e.Err
	case *os.LinkError:
		return e.Err
	case *os.SyscallError:
		return e.Err
	}
	return err
}

// RemoveTemps removes temporary files anywhere below root whose last change is at least olderThan ago, and says how
// many. Choose olderThan longer than any write takes: a younger one may belong to a living process. It goes on after an
// error and returns all of them.
func RemoveTemps(root *os.Root, olderThan time.Duration) (removed int, err error) {
	var errs []error
	walkErr := fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // another process was faster
		case err != nil:
			errs = append(errs, fmt.Errorf("look for temporary files in %s: %w", path, Cause(err)))
			return nil
		case !entry.Type().IsRegular() || !IsTemp(path):
			return nil
		}
		info, err := entry.Info()
		if err == nil && time.Since(info.ModTime()) < olderThan {
			return nil
		}
		if err == nil {
			err = root.Remove(path)
		}
		if err == nil {
			removed++
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove temporary file %s: %w", path, Cause(err)))
		}
		return nil
	})
	return removed, errors.Join(append(errs, walkErr)...)
}
