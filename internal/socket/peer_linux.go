package socket

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Identify returns who opened the connection c, a Unix socket. It does not read from c.
func Identify(c net.Conn) (Peer, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Peer{}, fmt.Errorf("peer credentials: %T is no socket", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	pidfd := -1
	cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		// Linux 6.5; ENOPROTOOPT before, ESRCH or the like when the peer has exited.
		if n, perr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); perr == nil {
			pidfd = n
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if cred.Uid == ^uint32(0) { // what the kernel answers for sockets that have no peer credentials
		return Peer{}, errors.New("peer credentials: not a Unix socket")
	}
	p := Peer{UID: int(cred.Uid), PID: int(cred.Pid)}
	if p.PID > 0 {
		p.Container = containerOf(p.PID, pidfd)
	}
	return p, nil
}

// containerOf reads where process pid runs. The id may have gone to another process between connect and now: with a
// pidfd of the peer, what was read counts only if the peer is still alive afterwards; without one (before Linux 6.5),
// only if the process did not change while it was read, which is weaker.
func containerOf(pid, pidfd int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	var started string
	if pidfd < 0 {
		started = startTime(dir)
	}
	var found string
	if b, err := os.ReadFile(dir + "/cgroup"); err == nil {
		found = containerID(b)
	}
	if found == "" {
		if ns, err := os.Readlink(dir + "/ns/pid"); err == nil && ns != ownPIDNamespace() {
			found = "pidns:" + strings.Trim(ns, "pid:[]")
		}
	}
	if pidfd < 0 {
		if started == "" || startTime(dir) != started {
			return ""
		}
		return found
	}
	// A pidfd becomes readable when its process exits.
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, 0); {
		case err == unix.EINTR:
			continue
		case err != nil || n != 0:
			return ""
		}
		return found
	}
}

var ownPIDNamespace = sync.OnceValue(func() string {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns
})

// startTime returns field 22 of /proc/PID/stat, or "".
func startTime(dir string) string {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return ""
	}
	// Field 2 is the command in parentheses and may hold anything; field 3 comes after the last one.
	_, rest, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return ""
	}
	return string(fields[19])
}

// containerID finds the container's short id in the content of /proc/PID/cgroup, of cgroup version 1
// ("4:memory:/docker/<id>") or 2 ("0::/user.slice/…/libpod-<id>.scope/container"). The outermost id counts: inside
// its container a process can name further groups as it likes.
func containerID(cgroup []byte) string {
	for line := range bytes.Lines(cgroup) {
		_, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		_, path, ok := bytes.Cut(rest, []byte(":"))
		if !ok {
			continue
		}
		for part := range bytes.SplitSeq(path, []byte("/")) {
			part = bytes.TrimSuffix(part, []byte(".scope"))
			if bytes.Contains(part, []byte("conmon")) { // podman's monitor, which runs on the host
				continue
			}
			if i := bytes.LastIndexAny(part, "-:"); i >= 0 { // docker-…, libpod-…, cri-containerd-…, slice:docker:…
				part = part[i+1:]
			}
			if len(part) == 64 && len(bytes.Trim(part, "0123456789abcdef")) == 0 {
				return string(part[:12])
			}
		}
	}
	return ""
}
