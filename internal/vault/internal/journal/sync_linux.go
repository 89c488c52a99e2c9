package journal

import (
	"errors"
	"os"
	"syscall"
)

// syncData makes what was written in place durable. The file has its size and blocks already, so its inode can wait.
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
