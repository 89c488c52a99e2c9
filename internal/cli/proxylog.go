package cli

import (
	"os"
	"sync"
	"syscall"
)

// proxyLogSize is how large the log of `run` grows before it is put aside, in bytes. One older file is kept.
const proxyLogSize = 1 << 20

// logFile is a log of bounded size that several processes may write to: each line in one write, at the end of the file.
// mu guards the fields.
type logFile struct {
	path string

	mu      sync.Mutex
	file    *os.File
	written int64
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.openLocked()
}

func (l *logFile) openLocked() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != 0o600 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	l.file, l.written = f, info.Size()
	return nil
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written+int64(len(b)) > proxyLogSize {
		l.turnLocked()
	}
	n, err := l.file.Write(b)
	l.written += int64(n)
	return n, err
}

// turnLocked puts the full file aside, unless another process has done so, and goes on in a new one. When that fails
// the old file is used further: a log that cannot be turned is better than none.
func (l *logFile) turnLocked() {
	ours, err := l.file.Stat()
	if err != nil {
		return
	}
	if there, err := os.Lstat(l.path); err == nil && os.SameFile(ours, there) {
		if os.Rename(l.path, l.path+".1") != nil {
			return
		}
	}
	old := l.file
	if l.openLocked() != nil {
		l.file = old
		return
	}
	_ = old.Close()
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
