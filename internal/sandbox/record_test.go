package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	r := &run{plan: plan{name: "credproxy-1-0123456789abcdef", engine: Engine{Kind: Docker}}}
	for _, c := range []struct {
		status int
		left   error
		want   int
		says   string
	}{
		{0, nil, 0, ""}, {ExitEngine, nil, ExitEngine, ""}, {0, gone, 0, ""}, {3, gone, 3, ""},
		{0, left, ExitEngine, "still listed"}, {ExitEngine, gone, ExitEngine, r.plan.name + " may still run: cannot connect"},
	} {
		status, err := r.leaving(c.status, c.left)
		if status != c.want || (err != nil) != (c.says != "") || err != nil && !(errors.Is(err, ErrLeft) && strings.Contains(err.Error(), c.says)) {
			t.Errorf("%d, %v: %d, %v", c.status, c.left, status, err)
		}
	}
}
