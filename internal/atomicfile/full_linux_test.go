package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func init() {
	roles["fill the disk"] = func(dir string) int { return fillDisk(dir, "size=64k", "write") }
	roles["use up the inodes"] = func(dir string) int { return fillDisk(dir, "nr_inodes=5", "create temporary file") }
}

// TestFullDisk runs the writer in a user and mount namespace of its own, where anybody may mount a small tmpfs; the
// mount goes away with the process.
func TestFullDisk(t *testing.T) {
	for _, role := range []string{"fill the disk", "use up the inodes"} {
		t.Run(role, func(t *testing.T) {
			cmd := testRole(t, role, t.TempDir())
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			}
			out, err := cmd.CombinedOutput()
			if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
				t.Fatalf("this test needs a user namespace of its own: run as root, or set the sysctls kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0: %v", err)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

// fillDisk fills a small file system and checks that a failed write is told as such, changes nothing, leaves nothing,
// and succeeds once there is room.
func fillDisk(dir, options, step string) int {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		return complain("mount a tmpfs (needs root or an unprivileged user namespace): %v", err)
	}
	old := bytes.Repeat([]byte("o"), 4096)
	if err := WriteFileIn(dir, "a", old); err != nil {
		return complain("the first write: %v", err)
	}
	ballast := 0
	for ; ; ballast++ {
		if err := WriteFileIn(dir, fmt.Sprint("ballast", ballast), old); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			return complain("ballast: %v", err)
		}
	}
	err := WriteFileIn(dir, "a", bytes.Repeat([]byte("n"), 8192))
	if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), "write a: "+step+": ") {
		return complain("on a full disk: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || !bytes.Equal(got, old) {
		return complain("the old content: %d bytes, %v", len(got), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); err != nil || len(left) != 0 {
		return complain("left: %v, %v", left, err)
	}
	for n := range min(2, ballast) {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint("ballast", n))); err != nil {
			return complain("make room: %v", err)
		}
	}
	if err := WriteFileIn(dir, "a", bytes.Repeat([]byte("n"), 8192)); err != nil {
		return complain("with room again: %v", err)
	}
	return 0
}

func complain(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	return 1
}
