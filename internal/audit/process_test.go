package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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
		cmd := child(t, nil, "writer", path, strconv.Itoa(n), strconv.Itoa(limit))
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

// childForever PATH writes an event every millisecond and says so on stdout, with the time.
func childForever(args []string) error {
	l, err := Open(args[0], Options{})
	if err != nil {
		return err
	}
	ticker := time.NewTicker(time.Millisecond)
	for i := 0; ; i++ {
		<-ticker.C
		l.Record(numbered(i))
		fmt.Println(i, time.Now().UnixMilli())
	}
}

// kill -9 takes what was recorded in the last half second, and nothing else.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	cmd := child(t, nil, "forever", path)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var killed int64
	recorded := map[int]int64{}
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
		var i int
		var at int64
		if _, err := fmt.Sscan(scanner.Text(), &i, &at); err != nil {
			break // half a line
		}
		recorded[i] = at
		if killed == 0 && at > recorded[0]+1500 {
			killed = time.Now().UnixMilli()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok || err.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v", err)
	}
	by, torn := numbers(t, path)
	got := by[cmd.Process.Pid]
	wantSequence(t, "killed", got, 0, len(got))
	if len(torn) > 1 {
		t.Errorf("torn lines %q", torn)
	}
	// 500 ms are promised; the rest is for a machine that is busy with other tests.
	for i, at := range recorded {
		if at < killed-1000 && i >= len(got) {
			t.Errorf("event %d, %d ms old, was lost", i, killed-at)
		}
	}
}
