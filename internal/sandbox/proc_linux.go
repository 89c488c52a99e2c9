package sandbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// start starts cmd so that it gets deathSignal when this process dies. The kernel sends it when the thread ends that started the
// process, so one goroutine keeps that thread until the process has ended; then the goroutine ends too, and done says so.
func start(cmd *exec.Cmd, deathSignal syscall.Signal) (*process, error) {
	closeOnExec()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = deathSignal
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		p.Process = cmd.Process
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// closeOnExec keeps what this process inherited out of the sandbox: an open directory would be a way out of it.
func closeOnExec() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, _ := os.ReadDir("/proc/self/fd") // Linux before 5.11
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// memoryFile returns a file with this content that has no name anywhere.
func memoryFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("credproxy", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// terminalFilter returns a system call filter (seccomp(2)) that denies two things which namespaces do not part: typing into the
// terminal (ioctl TIOCSTI, TIOCLINUX) and the kernel's key rings (add_key, request_key, keyctl). It is empty on architectures
// whose numbers are not here.
func terminalFilter() []byte {
	type abi struct {
		arch              uint32
		ioctl             uint32
		keys              [3]uint32
		rejectX32, native bool
	}
	i386 := abi{arch: unix.AUDIT_ARCH_I386, ioctl: 54, keys: [3]uint32{286, 287, 288}}
	arm := abi{arch: unix.AUDIT_ARCH_ARM, ioctl: 54, keys: [3]uint32{309, 310, 311}}
	native := abi{ioctl: unix.SYS_IOCTL, keys: [3]uint32{unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL}, native: true}
	var abis []abi
	switch runtime.GOARCH {
	case "amd64":
		native.arch, native.rejectX32 = unix.AUDIT_ARCH_X86_64, true
		abis = []abi{native, i386}
	case "arm64":
		native.arch = unix.AUDIT_ARCH_AARCH64
		abis = []abi{native, arm}
	default:
		return nil
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		// Offsets in struct seccomp_data; the low half of the second argument on a little-endian machine.
		nr, arch, arg1 = 0, 4, 24
		allow          = unix.SECCOMP_RET_ALLOW
		deny           = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	var prog []unix.SockFilter
	add := func(code uint16, k uint32, jt, jf uint8) {
		prog = append(prog, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	for _, a := range abis {
		var block []unix.SockFilter
		outer := prog
		prog = nil
		add(load, nr, 0, 0)
		if a.rejectX32 {
			add(least, 0x40000000, 0, 1)
			add(ret, deny, 0, 0)
		}
		for _, k := range a.keys {
			add(equal, k, 0, 1)
			add(ret, deny, 0, 0)
		}
		add(equal, a.ioctl, 1, 0)
		add(ret, allow, 0, 0)
		add(load, arg1, 0, 0)
		add(equal, unix.TIOCSTI, 1, 0)
		add(equal, unix.TIOCLINUX, 0, 1)
		add(ret, deny, 0, 0)
		add(ret, allow, 0, 0)
		block, prog = prog, outer
		add(load, arch, 0, 0)
		add(equal, a.arch, 0, uint8(len(block)))
		prog = append(prog, block...)
	}
	add(ret, deny, 0, 0) // no other architecture's calls can run on these machines
	var b bytes.Buffer
	_ = binary.Write(&b, binary.NativeEndian, prog) // to memory
	return b.Bytes()
}

// handle refers to a process by pidfd, so that a signal never reaches another that got its number.
type handle int

func openHandle(pid int) (handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return handle(fd), err
}

// openChild returns a handle of the first child of process pid, which parent refers to: of the command that runs under
// bwrap's init.
func openChild(parent handle, pid int) (handle, error) {
	child, err := firstChild(pid)
	if err != nil {
		return -1, err
	}
	h, err := openHandle(child)
	if err != nil {
		return -1, err
	}
	// Either number may have changed hands. If pid still is the parent's, and the child still its child, then what we hold is
	// that child, or a process that has ended and that no signal can reach.
	now, err := firstChild(pid)
	if err != nil || now != child || parent.wait(0) {
		h.close()
		return -1, os.ErrProcessDone
	}
	return h, nil
}

func (h handle) signal(sig syscall.Signal) error {
	return unix.PidfdSendSignal(int(h), sig, nil, 0)
}

// wait reports whether the process has ended. It waits for that, at most ms milliseconds.
func (h handle) wait(ms int) bool {
	fds := []unix.PollFd{{Fd: int32(h), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, ms)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

func (h handle) close() { unix.Close(int(h)) }

func firstChild(parent int) (int, error) {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent)); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		if pid, err := strconv.Atoi(first); err == nil {
			return pid, nil
		}
		return 0, os.ErrProcessDone
	}
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // a kernel without CONFIG_PROC_CHILDREN
	for _, f := range files {
		b, _ := os.ReadFile(f)
		_, after, _ := strings.Cut(string(b), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			return strconv.Atoi(filepath.Base(filepath.Dir(f)))
		}
	}
	return 0, os.ErrProcessDone
}
