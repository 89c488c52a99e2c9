package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// namelessFile returns a file from which the content can be read once, from here or from a program that it is handed down to, for
// systems whose files all lie on a disk. What a pipe can hold (16 KiB at least) never gets to one; more goes to a temporary file
// that has lost its name before anything is in it.
func namelessFile(content []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	raw, err := w.SyscallConn()
	if err != nil {
		r.Close()
		return nil, err
	}
	var n int
	var writeErr error
	// It does not wait: nobody reads yet.
	err = raw.Write(func(fd uintptr) bool {
		for n < len(content) {
			var some int
			if some, writeErr = unix.Write(int(fd), content[n:]); writeErr == unix.EINTR {
				continue
			} else if writeErr != nil {
				break
			}
			n += some
		}
		return true
	})
	if err == nil && n == len(content) {
		return r, nil
	}
	r.Close()
	if err == nil && writeErr != unix.EAGAIN {
		err = writeErr
	}
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return unlinkedFile(content)
}

func unlinkedFile(content []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "credproxy-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		if _, err = f.Write(content); err == nil {
			_, err = f.Seek(0, 0)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
