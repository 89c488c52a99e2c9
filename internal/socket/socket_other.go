//go:build !linux

package socket

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// maxPath is sizeof(sockaddr_un.sun_path) of macOS and the BSDs less the terminating NUL.
const maxPath = darwinMaxPath

// umask guards the process-wide file mode mask while bind narrows it.
var umask sync.Mutex

// bind makes the socket with mode 0600 from its first moment. These systems take the mode from the umask alone, which
// belongs to the whole process: a file that another goroutine creates meanwhile can only come out narrower. The
// directory, which is 0700, keeps others out in any case.
func bind(path string) (*net.UnixListener, error) {
	umask.Lock()
	defer umask.Unlock()
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

func unmappedUID() int { return -1 }
