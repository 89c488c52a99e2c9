package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
)

// What an engine says while it downloads is shown at once; why it fails is said once, by us.
func TestPullWords(t *testing.T) {
	for _, c := range []struct{ name, said, shown, failure, last string }{
		{"docker", "Error response from daemon: no such image\n", "", "Error response from daemon: no such image", ""},
		{"podman", "Trying to pull x...\ntime=1 level=warning msg=again\nError: initializing source: no such host\n",
			"Trying to pull x...\ntime=1 level=warning msg=again\n", "initializing source: no such host", "time=1 level=warning msg=again"},
		{"a bar", "10%\r20%\r", "10%\r20%\r", "", "20%"},
		{"without an end", "Error: cut off", "", "cut off", ""},
		{"other words", "permission denied\n\n", "permission denied\n\n", "", "permission denied"},
	} {
		for _, size := range []int{1, 7, len(c.said)} {
			var shown bytes.Buffer
			w := &pullWords{progress: &shown}
			for rest := c.said; rest != ""; {
				n, err := w.Write([]byte(rest[:min(size, len(rest))]))
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			w.end()
			if shown.String() != c.shown || w.failure != c.failure || w.last != c.last {
				t.Errorf("%s by %d: shown %q, failure %q, last %q", c.name, size, shown.String(), w.failure, w.last)
			}
		}
	}
	w := &pullWords{progress: &bytes.Buffer{}}
	for range 4 {
		_, _ = w.Write(bytes.Repeat([]byte("x"), mostOfLine))
	}
	if cap(w.line) > 4*mostOfLine {
		t.Errorf("%d bytes of a line without an end are kept", cap(w.line))
	}
}

func TestPullHint(t *testing.T) {
	if got := pullHint("docker", "x", "dial tcp: lookup registry.example: no such host"); !strings.Contains(got, "the network") {
		t.Error(got)
	}
	if got := pullHint("podman", "x", "unauthorized"); got != "check its name with: podman pull x" {
		t.Error(got)
	}
}

func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := limited(t.Context(), askLimit)
		defer cancel()
		<-ctx.Done()
		if err := context.Cause(ctx); err.Error() != "no answer within 30 s" || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Who ends the wait for an engine is told that, and nothing of the engine.
func TestSelectEnds(t *testing.T) {
	dir := t.TempDir()
	for _, k := range []Kind{Docker, Podman} {
		if err := os.WriteFile(filepath.Join(dir, string(k)), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, k := range []Kind{Auto, Docker} {
		if _, err := (Host{Environ: []string{"PATH=" + dir}}).Select(ctx, k, "x"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoEngine) {
			t.Errorf("%s: %v", k, err)
		}
	}
}

func TestJudge(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	for _, c := range []struct {
		status  int
		reached func() bool
		args    []string
		failed  bool
	}{
		{0, no, nil, false}, {126, nil, nil, false}, {126, yes, nil, false}, {127, yes, nil, false}, {1, yes, nil, false},
		{125, no, nil, false}, {143, no, nil, false}, // it, or the engine, has said why; somebody has ended it
		{126, no, nil, true}, {127, no, []string{"--memory=6m"}, true}, {1, no, nil, true},
	} {
		s := &Sandbox{engine: Engine{Kind: Podman}, plan: plan{args: c.args}, reached: c.reached}
		status, err := s.judge(c.status)
		if errors.Is(err, ErrStart) != c.failed || c.failed && status != ExitEngine || !c.failed && (err != nil || status != c.status) {
			t.Errorf("%d: %d, %v", c.status, status, err)
		}
		if e, ok := errors.AsType[*Error](err); ok && strings.Contains(e.Hint(), "--engine-arg") != (c.args != nil) {
			t.Errorf("%d: hint %q", c.status, e.Hint())
		}
	}
}
