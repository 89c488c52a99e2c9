package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestRemoveFails: an engine that will not remove a container is asked again with pauses, and not for ever.
func TestRemoveFails(t *testing.T) {
	dir := t.TempDir()
	engine, log := filepath.Join(dir, "podman"), filepath.Join(dir, "log")
	script := "#!/bin/sh\necho \"$1\" >> " + log + "\ncase $1 in ps) echo 0123456789ab;; rm) echo 'Error: device or resource busy' >&2; exit 1;; esac\n"
	if err := os.WriteFile(engine, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "rm\n")
	}
	const enough = 4
	begun := time.Now()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		for deadline := begun.Add(time.Minute); asked() < enough && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		}
		cancel()
	})
	existed, err := Host{Environ: []string{"PATH=/usr/bin:/bin"}}.remove(ctx, Engine{Kind: Podman, Path: engine}, "credproxy-1-0123456789abcdef")
	e, ok := errors.AsType[*Error](err)
	if !existed || !ok || !errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), "device or resource busy") || !strings.Contains(e.Hint(), "podman rm") {
		t.Errorf("existed %v, %v", existed, err)
	}
	// With pauses of 100, 200 and 400 ms between them.
	if n, took := asked(), time.Since(begun); n < enough || took < 700*time.Millisecond {
		t.Errorf("asked %d times in %v", n, took)
	}
}

// An engine that goes away leaves the container behind, and the command's own status is never taken for that.
func TestEngineThatGoesAway(t *testing.T) {
	gone, left := errors.New("cannot connect"), &Error{ErrLeft, "it", "still listed", ""}
	const name = "credproxy-1-0123456789abcdef"
	killed := exec.Command("/bin/sh", "-c", "kill -9 $$").Run()
	for _, c := range []struct {
		status int
		client error
		told   syscall.Signal
		left   error
		want   int
		says   string
	}{
		{0, nil, 0, nil, 0, ""}, {ExitEngine, nil, 0, nil, ExitEngine, ""}, {0, nil, 0, gone, 0, ""}, {3, nil, 0, gone, 3, ""},
		{0, nil, 0, left, ExitEngine, "still listed"}, {ExitEngine, nil, 0, gone, ExitEngine, name + " may still run: cannot connect"},
		{137, killed, 0, nil, 137, ""}, {137, killed, 0, gone, ExitEngine, name + " may still run"},
		{143, nil, syscall.SIGTERM, nil, 143, ""}, {143, nil, syscall.SIGTERM, gone, ExitEngine, name + " may still run"},
	} {
		r := &run{plan: plan{name: name, engine: Engine{Kind: Docker}}, proc: &process{err: c.client}, told: c.told}
		status, err := r.leaving(c.status, c.left)
		if status != c.want || (err != nil) != (c.says != "") || err != nil && !(errors.Is(err, ErrLeft) && strings.Contains(err.Error(), c.says)) {
			t.Errorf("%d, %v: %d, %v", c.status, c.left, status, err)
		}
	}
}
