package socket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

func TestIdentifySameUser(t *testing.T) {
	tempDir(t)
	l := mustListen(t)
	p := start(t, nil, "connect", l.Path())
	pid, _ := strconv.Atoi(p.Line(t))
	got, err := Identify(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	if got.UID != os.Geteuid() || got.PID != pid || pid != p.Process.Pid {
		t.Errorf("got %+v, want UID %d and PID %d", got, os.Geteuid(), pid)
	}
	if err := Authorize(got, os.Geteuid(), nil); err != nil {
		t.Errorf("our own UID: %v", err)
	}
}

// A process of another user reaches a socket that somebody has opened wide; the kernel tells who it is.
func TestIdentifyAnotherUser(t *testing.T) {
	needRoot(t)
	path := filepath.Join(tempDir(t), "wide.sock")
	l := listenOn(t, path)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	p := start(t, systest.AsUser(otherUID), "connect", path)
	if got := p.Line(t); got != strconv.Itoa(p.Process.Pid) {
		t.Fatal(got)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := Identify(c)
	if err != nil || got.UID != otherUID || got.PID != p.Process.Pid {
		t.Errorf("got %+v, %v; want UID %d and PID %d", got, err, otherUID, p.Process.Pid)
	}
	if err := Authorize(got, 0, nil); !errors.Is(err, ErrForeignPeer) {
		t.Errorf("another user was let in: %v", err)
	}
	if err := Authorize(got, 0, []int{7, otherUID}); err != nil {
		t.Errorf("an allowed UID: %v", err)
	}
}

// Our own socket is closed to another user before any code of ours is asked.
func TestAnotherUserCannotConnect(t *testing.T) {
	needRoot(t)
	tempDir(t)
	l := mustListen(t)
	p := start(t, systest.AsUser(otherUID), "connect", l.Path())
	if got := p.Line(t); !strings.Contains(got, "permission denied") {
		t.Errorf("another user's connect: %q, want permission denied", got)
	}
}

func TestAuthorizeRootIsNoException(t *testing.T) {
	if err := Authorize(Peer{UID: 0}, 1000, nil); !errors.Is(err, ErrForeignPeer) {
		t.Errorf("root against a server of UID 1000: %v, want ErrForeignPeer", err)
	}
	if err := Authorize(Peer{UID: 0}, 1000, []int{0}); err != nil {
		t.Errorf("root, allowed: %v", err)
	}
}

func TestIdentifyPIDNamespaces(t *testing.T) {
	needRoot(t)
	tmp := tempDir(t)
	elsewhere := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}

	l := mustListen(t)
	p := start(t, elsewhere, "connect", l.Path())
	if got := p.Line(t); got != "1" {
		t.Fatalf("the child's own id is %s, want 1 in a namespace of its own", got)
	}
	got, err := Identify(accept(t, l))
	if err != nil || got.PID != p.Process.Pid || !strings.HasPrefix(got.Container, "pidns:") && len(got.Container) != 12 {
		t.Errorf("peer in a namespace below: %+v, %v; want our view of its PID, %d, and its namespace", got, err, p.Process.Pid)
	}

	// The other way round the server cannot see the peer: the kernel says 0.
	path := filepath.Join(tmp, "below.sock")
	q := start(t, elsewhere, "identify", path)
	q.Line(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := q.Line(t); got != "0 <nil>" {
		t.Errorf("peer in a namespace above: %q, want PID 0 and no error", got)
	}
}

// The process that connected is gone when the server looks: its id may be anybody's by now.
func TestIdentifyAfterThePeerIsGone(t *testing.T) {
	tempDir(t)
	l := mustListen(t)
	p := start(t, &syscall.SysProcAttr{Cloneflags: cloneIfRoot()}, "leave", l.Path())
	c := accept(t, l)
	_ = p.End()
	got, err := Identify(c)
	if err != nil || got.PID != p.Process.Pid || got.UID != os.Geteuid() {
		t.Errorf("got %+v, %v", got, err)
	}
	if got.Container != "" {
		t.Errorf("container %q of a process that is gone", got.Container)
	}
}

func cloneIfRoot() uintptr {
	if os.Geteuid() == 0 {
		return syscall.CLONE_NEWPID
	}
	return 0
}

// The id in the socket's memory belongs to a living process of another namespace, but the pidfd says that the peer
// has exited: what stands under /proc/PID is somebody else's.
func TestContainerOfReusedPID(t *testing.T) {
	needRoot(t)
	gone := start(t, nil, "leave", "/nowhere")
	pidfd, err := unix.PidfdOpen(gone.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	_ = gone.End()

	tempDir(t)
	l := mustListen(t)
	now := start(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}, "connect", l.Path())
	now.Line(t)
	if got := containerOf(now.Process.Pid, pidfd); got != "" {
		t.Errorf("got %q from a process that is not the peer", got)
	}
	if got := containerOf(now.Process.Pid, -1); got == "" { // the way of older kernels
		t.Error("no container without a pidfd")
	}
	if got := containerOf(gone.Process.Pid, -1); got != "" {
		t.Errorf("got %q from a process that is gone", got)
	}
}

func TestIdentifyRefusesOtherConnections(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if p, err := Identify(a); err == nil {
		t.Errorf("a pipe: %+v", p)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, err := Identify(c); err == nil {
		t.Errorf("a TCP connection: %+v", p)
	}
}

func TestContainerID(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	other := strings.Repeat("f", 64)
	tests := []struct{ name, cgroup, want string }{
		{"docker, v1", "12:pids:/docker/" + id + "\n11:memory:/docker/" + id + "\n0::/\n", id[:12]},
		{"docker, v2 with systemd", "0::/system.slice/docker-" + id + ".scope\n", id[:12]},
		{"docker, v2 without systemd", "0::/docker/" + id + "\n", id[:12]},
		{"docker, v1 under systemd's names", "4:cpu:/system.slice:docker:" + id + "\n", id[:12]},
		{"podman, rootful", "0::/machine.slice/libpod-" + id + ".scope/container\n", id[:12]},
		{"podman, rootless", "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", id[:12]},
		{"podman, v1", "9:name=systemd:/libpod_parent/libpod-" + id + "\n", id[:12]},
		{"containerd", "0::/default/" + id + "\n", id[:12]},
		{"kubernetes", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b.slice/cri-containerd-" + id + ".scope\n", id[:12]},
		{"docker in docker", "0::/docker/" + id + "/docker/" + other + "\n", id[:12]},
		{"podman's monitor", "0::/machine.slice/libpod-conmon-" + id + ".scope\n", ""},
		{"a login", "0::/user.slice/user-1000.slice/session-2.scope\n", ""},
		{"too short", "0::/docker/" + id[:63] + "\n", ""},
		{"upper case", "0::/docker/" + strings.ToUpper(id) + "\n", ""},
		{"nothing", "", ""},
		{"nonsense", "docker\n::\n" + id, ""},
	}
	for _, tt := range tests {
		if got := containerID([]byte(tt.cgroup)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestStartTime(t *testing.T) {
	if got := startTime("/proc/self"); got == "" || strings.Trim(got, "0123456789") != "" {
		t.Errorf("our own start time: %q", got)
	}
	if got := startTime("/proc/0"); got != "" {
		t.Errorf("no process: %q", got)
	}
}
