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

	"github.com/credproxy/credproxy/internal/systest"
)

func init() {
	roles["fill the disk"] = func(args []string) error { return fillDisk(args[0], "size=64k", "write") }
	roles["use up the inodes"] = func(args []string) error { return fillDisk(args[0], "nr_inodes=5", "create temporary file") }
}

func TestFullDisk(t *testing.T) {
	for _, role := range []string{"fill the disk", "use up the inodes"} {
		t.Run(role, func(t *testing.T) {
			systest.RunInNamespace(t, roles.Command(t, role, t.TempDir()), 0)
		})
	}
}

// fillDisk fills a small file system and checks that a failed write is told as such, changes nothing, leaves nothing,
// and succeeds once there is room.
func fillDisk(dir, options, step string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount a tmpfs (needs root or an unprivileged user namespace): %v", err)
	}
	old := bytes.Repeat([]byte("o"), 4096)
	if err := WriteFileIn(dir, "a", old); err != nil {
		return fmt.Errorf("the first write: %v", err)
	}
	ballast := 0
	for ; ; ballast++ {
		if err := WriteFileIn(dir, fmt.Sprint("ballast", ballast), old); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			return fmt.Errorf("ballast: %v", err)
		}
	}
	err := WriteFileIn(dir, "a", bytes.Repeat([]byte("n"), 8192))
	if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), "write a: "+step+": ") {
		return fmt.Errorf("on a full disk: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || !bytes.Equal(got, old) {
		return fmt.Errorf("the old content: %d bytes, %v", len(got), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); err != nil || len(left) != 0 {
		return fmt.Errorf("left: %v, %v", left, err)
	}
	for n := range min(2, ballast) {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint("ballast", n))); err != nil {
			return fmt.Errorf("make room: %v", err)
		}
	}
	if err := WriteFileIn(dir, "a", bytes.Repeat([]byte("n"), 8192)); err != nil {
		return fmt.Errorf("with room again: %v", err)
	}
	return nil
}
