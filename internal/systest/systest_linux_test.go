package systest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["mount"] = func(args []string) error {
		file := filepath.Join(args[0], "file")
		write := func() error { return os.WriteFile(file, []byte("x"), 0o600) }
		if err := MountReadOnly(args[0]); err != nil {
			return err
		}
		if err := write(); !errors.Is(err, syscall.EROFS) {
			return fmt.Errorf("a write to what is read-only: %v", err)
		}
		if err := errors.Join(Remount(args[0], false), write()); err != nil {
			return err
		}
		fmt.Print("user ", os.Getuid())
		return nil
	}
	roles["who"] = func([]string) error { _, err := fmt.Println(os.Getuid(), os.Getgid()); return err }
}

func TestRunInNamespace(t *testing.T) {
	dir := t.TempDir()
	if got := RunInNamespace(t, roles.Command(t, "mount", dir), 0); got != "user 0" {
		t.Errorf("it says %q", got)
	}
	if got := RunInNamespace(t, roles.Command(t, "who"), 1000); got != "1000 1000\n" {
		t.Errorf("another user: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Errorf("the mount is seen outside: %v", err)
	}
}

func TestOpenPTY(t *testing.T) {
	master, slave, err := OpenPTY(24, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || size.Row != 24 || size.Col != 100 {
		t.Errorf("size %+v, %v", size, err)
	}
	if _, err := slave.WriteString("to the screen\n"); err != nil {
		t.Fatal(err)
	}
	if err := master.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 80)
	if n, err := master.Read(text); err != nil || string(text[:n]) != "to the screen\r\n" {
		t.Errorf("the screen shows %q, %v", text[:n], err)
	}
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := master.Read(text); !errors.Is(err, syscall.EIO) {
		t.Errorf("nobody has it open: %v", err)
	}
}
