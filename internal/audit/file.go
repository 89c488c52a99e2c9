package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockWait is how long another proxy may hold the file. It needs well under a millisecond, unless it has been stopped.
	lockWait = time.Second
	lockPoll = 5 * time.Millisecond
)

// A file is the log on disk, shared with other processes that do the same to it. Whoever writes or rotates holds an flock on the file
// that path names at that moment. Only the writer's goroutine uses it.
type file struct {
	path   string
	max    int64
	keep   int
	logger *slog.Logger

	f     *os.File
	stuck bool // it was logged that rotation fails
}

// open opens or makes the file and refuses one that others could have written or could read.
func (w *file) open() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return fmt.Errorf("%s is a symbolic link; remove it", w.path)
	}
	if err != nil {
		return err
	}
	if err := private(w.path, f); err != nil {
		f.Close()
		return err
	}
	w.f = f
	return nil
}

func private(path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	switch uid := int(info.Sys().(*syscall.Stat_t).Uid); {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case uid != os.Geteuid():
		return fmt.Errorf("%s belongs to UID %d, not to this user; move it away", path, uid)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to other users (mode %04o); run: chmod 600 '%s'", path, info.Mode().Perm(), path)
	}
	return nil
}

// append writes lines at the end of the file, rotating it first if they do not fit. It returns how many bytes of lines are in the
// file, always whole lines: what a full disk took of a line is cut off again.
func (w *file) append(lines []byte) (int, error) {
	size, err := w.lock()
	if err != nil {
		return 0, err
	}
	defer w.unlock()
	for size > 0 && size+int64(len(lines)) > w.max && w.rotate() { // again, if others were faster to fill the new file
		if size, err = w.lock(); err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(lines)
	if err == nil {
		return n, nil
	}
	if n > 0 {
		if w.f.Truncate(size) == nil {
			n = 0
		} else {
			n = bytes.LastIndexByte(lines[:n], '\n') + 1 // lock ends the half line, whoever is next
		}
	}
	return n, err
}

// lock opens the file that path names now, takes its lock, ends a line that a killed process left half written, and returns the size.
func (w *file) lock() (size int64, err error) {
	// Each turn but the last means that another process rotated just then.
	for range 100 {
		if w.f == nil {
			if err := w.open(); err != nil {
				return 0, err
			}
		}
		if err := flock(w.f); err != nil {
			return 0, err
		}
		ours, err := w.f.Stat()
		if err != nil {
			w.unlock()
			return 0, err
		}
		named, err := os.Lstat(w.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.unlock()
			return 0, err
		}
		if err != nil || !os.SameFile(ours, named) {
			w.f.Close() // and the lock with it
			w.f = nil
			continue
		}
		size, err := w.endLine(ours.Size())
		if err != nil {
			w.unlock()
		}
		return size, err
	}
	return 0, fmt.Errorf("%s is replaced again and again", w.path)
}

func (w *file) endLine(size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	var last [1]byte
	if _, err := w.f.ReadAt(last[:], size-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return size, nil
	}
	_, err := w.f.Write([]byte{'\n'})
	return size + 1, err
}

// unlock releases by name and not by closing: a child that was just forked may hold the descriptor until it execs.
func (w *file) unlock() {
	if w.f != nil {
		_ = unix.Flock(int(w.f.Fd()), unix.LOCK_UN) // fails only for what is no lock
	}
}

func flock(f *os.File) error {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lock %s: another process holds it", f.Name())
		}
	}
}

// rotate, with the lock held, moves audit.log.1 to audit.log.2 and so on, as far as there is no gap, and the file itself last: until
// then no other process can begin a file of its own and rotate too. A rotation that fails is no reason to lose events: the file
// grows on, and because of the gap that it left the next attempt does not push out another old one.
func (w *file) rotate() bool {
	numbered := func(i int) string { return w.path + "." + strconv.Itoa(i) }
	gap := 1
	for gap < w.keep {
		if _, err := os.Lstat(numbered(gap)); err != nil {
			break
		}
		gap++
	}
	var err error
	for i := gap; i > 1 && err == nil; i-- {
		err = os.Rename(numbered(i-1), numbered(i))
	}
	if err == nil {
		err = os.Rename(w.path, numbered(1))
	}
	if err != nil {
		if !w.stuck {
			w.logger.Error("audit log cannot be rotated and grows on", "path", w.path, "error", err)
		}
		w.stuck = true
		return false
	}
	w.stuck = false
	w.unlock()
	w.f.Close()
	w.f = nil
	return true
}

// close syncs and closes. Errors of a sync are reported: until then the kernel may not have told that the disk refused.
func (w *file) close() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Sync()
	return errors.Join(err, w.f.Close())
}
