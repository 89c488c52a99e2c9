package socket

import (
	"net"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// HungUp tells two kinds of end of file apart: it reports whether the peer has closed its end altogether, rather than
// said that it will send no more and still reads. Linux knows (unix_poll); elsewhere the answer is no, and a write
// will tell. A connection that is carried over something else has a HungUp of its own, which is asked.
func HungUp(c net.Conn) bool {
	if carried, ok := c.(interface{ HungUp() bool }); ok {
		return carried.HungUp()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	if runtime.GOOS != "linux" {
		return false
	}
	events, err := poll(sc, 0)
	return err != nil || events&unix.POLLHUP != 0
}

// Readable reports whether there is something to read, or to accept, without waiting.
func Readable(c syscall.Conn) bool {
	events, err := poll(c, unix.POLLIN)
	return err == nil && events&unix.POLLIN != 0
}

// poll returns which of the events, and of those that are always told, are so now. The error is that c is closed.
func poll(c syscall.Conn, events int16) (int16, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	fds := []unix.PollFd{{Events: events}}
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		if _, err := unix.Poll(fds, 0); err != nil {
			fds[0].Revents = 0
		}
	})
	return fds[0].Revents, err
}

// Discard reads away what has arrived on c already, up to max bytes, without waiting for more. A Unix socket that is
// closed with unread input tells its peer ECONNRESET instead of end of file; to call this first makes for a clean end.
func Discard(c net.Conn, max int) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, min(max, 16<<10))
	_ = raw.Read(func(fd uintptr) bool {
		for max > 0 {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				break
			}
			max -= n
		}
		return true // whatever came, do not wait
	})
}
