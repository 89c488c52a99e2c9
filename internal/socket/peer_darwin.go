package socket

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// solLocal is SOL_LOCAL of <sys/un.h>: the level of the options of Unix sockets.
const solLocal = 0

// Identify returns who opened the connection c, a Unix socket. It does not read from c. Containers run in a virtual
// machine here, so Container is always "".
func Identify(c net.Conn) (Peer, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Peer{}, fmt.Errorf("peer credentials: %T is no socket", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Xucred
	var pid int
	cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED); err != nil {
			return
		}
		pid, _ = unix.GetsockoptInt(int(fd), solLocal, unix.LOCAL_PEERPID)
	})
	if err := errors.Join(cerr, err); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Peer{UID: int(cred.Uid), PID: pid}, nil
}
