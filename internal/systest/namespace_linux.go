package systest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// RunInNamespace runs a command in a user and mount namespace of its own, as the user uid of it, who is the test's user outside:
// 0 may mount, anyone else has no power at all. It returns what the command wrote; one that fails fails the test.
func RunInNamespace(t testing.TB, cmd *exec.Cmd, uid int) string {
	t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		t.Fatalf("this test needs a user namespace of its own: run as root, or set the sysctls kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// MountReadOnly covers a directory with a read-only view of it. Files that are open stay as they are.
func MountReadOnly(dir string) error {
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return Remount(dir, true)
}

// Remount makes what MountReadOnly has made writable, or read-only again.
func Remount(dir string, readOnly bool) error {
	// The flags that the file system has already cannot be taken away in a user namespace.
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	flags := uintptr(st.Flags) & (syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME | syscall.MS_NODIRATIME)
	flags |= syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RELATIME
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	// A file that is open for writing this instant, by a process that works meanwhile or by the kernel that still closes it, makes
	// the mount busy.
	err := syscall.EBUSY
	for deadline := time.Now().Add(patience); err == syscall.EBUSY && time.Now().Before(deadline); runtime.Gosched() {
		err, _ = syscall.Mount("", dir, "", flags, "").(syscall.Errno)
	}
	if err != 0 {
		return fmt.Errorf("remount: %w", err)
	}
	return nil
}
