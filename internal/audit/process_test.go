package audit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// childWriter PATH N MAXSIZE writes N events, a hundred at a time.
func childWriter(args []string) error {
	n, _ := strconv.Atoi(args[1])
	limit, _ := strconv.ParseInt(args[2], 10, 64)
	l, err := Open(args[0], Options{MaxSize: limit, Keep: 10000})
	if err != nil {
		return err
	}
	for i := range n {
		l.Record(numbered(i))
		if i%100 == 99 {
			signal(l.full)
			l.mu.Lock()
			for l.taken+len(l.buf) > 0 {
				l.space.Wait()
			}
			l.mu.Unlock()
		}
	}
	return l.Close(context.Background())
}

// Several proxies write to one log and rotate it all the time: every event is there once, in the order of its process, on a line of
// its own, and no file is larger than allowed.
func TestProcesses(t *testing.T) {
	const processes, n, limit, batch = 4, 5000, 40 << 10, 16 << 10
	path := filepath.Join(t.TempDir(), "audit.log")
	var running []*exec.Cmd
	for range processes {
		cmd := roles.Command(t, "writer", path, strconv.Itoa(n), strconv.Itoa(limit))
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	files := rotated(t, path)
	by, torn := numbers(t, files...)
	if len(torn) > 0 {
		t.Errorf("%d torn lines, the first %q", len(torn), torn[0])
	}
	for _, cmd := range running {
		wantSequence(t, "process "+strconv.Itoa(cmd.Process.Pid), by[cmd.Process.Pid], 0, n)
	}
	for _, file := range files {
		// A second rotation of what another process had just rotated would leave a file that still had room.
		if s := size(t, file); s > limit || s < limit-batch && file != path {
			t.Errorf("%s has %d bytes", file, s)
		}
	}
}

// childForever PATH writes an event every millisecond.
func childForever(args []string) error {
	l, err := Open(args[0], Options{})
	if err != nil {
		return err
	}
	ticker := time.NewTicker(time.Millisecond)
	for i := 0; ; i++ {
		<-ticker.C
		l.Record(numbered(i))
	}
}

// kill -9 takes nothing of what stands in the file, and leaves half a line at most. That an event stands there within half a second is
// TestFlush's: by this clock a machine may take its time.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	cmd := roles.Command(t, "forever", path)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var before []byte
	for deadline := time.Now().Add(patience); len(before) < 10_000; time.Sleep(time.Millisecond) { // some flushes
		if time.Now().After(deadline) {
			t.Errorf("the child has written %d bytes", len(before))
			break
		}
		var err error
		if before, err = os.ReadFile(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok || err.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(after, before) {
		t.Errorf("what stood in the file is not there: %v", err)
	}
	by, torn := numbers(t, path)
	got := by[cmd.Process.Pid]
	wantSequence(t, "killed", got, 0, len(got))
	if len(torn) > 1 {
		t.Errorf("torn lines %q", torn)
	}
}
