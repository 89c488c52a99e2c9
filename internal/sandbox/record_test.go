package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	existed, err := Host{Environ: []string{"PATH=/usr/bin:/bin"}}.remove(ctx, Engine{Kind: Podman, Path: engine}, "credproxy-1-0123456789abcdef")
	e, ok := errors.AsType[*Error](err)
	if !existed || !ok || !errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), "device or resource busy") || !strings.Contains(e.Hint(), "podman rm") {
		t.Errorf("existed %v, %v", existed, err)
	}
	b, err := os.ReadFile(log)
	if n := strings.Count(string(b), "rm\n"); err != nil || n < 2 || n > 6 {
		t.Errorf("asked %d times, %v", n, err)
	}
}
