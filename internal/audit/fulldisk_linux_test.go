package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

func init() { roles["full"] = childFullDisk }

// A full disk: whole lines only, one line of complaint, and everything there once there is room.
func TestFullDisk(t *testing.T) {
	systest.RunInNamespace(t, roles.Command(t, "full", t.TempDir()), 0)
}

func childFullDisk(args []string) error {
	dir := args[0]
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 180<<10), 0o600); err != nil {
		return err
	}
	path := filepath.Join(dir, "audit.log")
	var logged logBuffer
	l, err := Open(path, Options{Logger: logged.logger()})
	if err != nil {
		return err
	}
	const n = 1000 // about 110 bytes each: more than is left, less than there will be
	for i := range n {
		l.Record(numbered(i))
		if i%50 == 0 {
			signal(l.full)
		}
	}
	for deadline := time.Now().Add(patience); logged.count("no space left on device") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("nothing was logged about the full disk")
		}
	}
	var data []byte
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // it may be trying once more just now
		if data, err = os.ReadFile(path); err != nil {
			return err
		}
		if len(data) == 0 || data[len(data)-1] == '\n' {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("half a line is left: %q", data[max(0, len(data)-50):])
		}
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	if err := l.Close(context.Background()); err != nil {
		return err
	}
	if data, err = os.ReadFile(path); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) != n {
		return fmt.Errorf("%d lines, want %d", len(lines), n)
	}
	for i, line := range lines {
		if !strings.Contains(line, `"key":"`+strconv.Itoa(i)+`"`) || !strings.HasSuffix(line, "}") {
			return fmt.Errorf("line %d is %q", i, line)
		}
	}
	if c := logged.count("level=ERROR"); c != 1 {
		return fmt.Errorf("%d errors were logged: %s", c, &logged)
	}
	return nil
}
