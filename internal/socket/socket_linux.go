package socket

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is sizeof(sockaddr_un.sun_path) less the terminating NUL.
const maxPath = 107

// bind makes the socket with mode 0600 from its first moment: the kernel gives the new inode the mode of the
// unbound socket, less the umask (unix_bind), so the mode is set there before bind.
func bind(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

// unmappedUID is the owner that this user namespace shows for a UID that it does not know: in a rootless container
// with the host's /tmp, that is the owner of /tmp.
var unmappedUID = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return -1
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return uid
})
