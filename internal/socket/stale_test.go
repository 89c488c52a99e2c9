package socket

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSweepAfterAKill(t *testing.T) {
	tempDir(t)
	live := mustListen(t)
	victim := start(t, nil, "listen")
	left := victim.Line(t)
	dir := filepath.Dir(left)

	if removed, err := SweepStale(dir); err != nil || len(removed) != 0 {
		t.Fatalf("while both live: removed %v, %v", removed, err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.End()
	if _, err := os.Lstat(left); err != nil {
		t.Fatalf("the test is off, the killed child's socket is gone: %v", err)
	}
	removed, err := SweepStale(dir)
	if err != nil || !slices.Equal(removed, []string{filepath.Base(left)}) {
		t.Errorf("removed %v, %v; want %s", removed, err, filepath.Base(left))
	}
	if _, err := os.Lstat(live.Path()); err != nil {
		t.Errorf("the living socket: %v", err)
	}
}

func TestSweepNothing(t *testing.T) {
	if removed, err := SweepStale(filepath.Join(tempDir(t), ownName())); err != nil || removed != nil {
		t.Errorf("missing directory: %v, %v", removed, err)
	}
}

// deadPID returns the id of a process that has just ended.
func deadPID(t *testing.T) int {
	p := start(t, nil, "leave", "/nowhere")
	_ = p.End()
	return p.Process.Pid
}

func TestSweepKinds(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(tempDir(t), ownName())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dead, own := strconv.Itoa(deadPID(t)), strconv.Itoa(os.Getpid())
	outside := filepath.Join(dir, "..", "outside.sock")
	abandon(t, outside)

	tests := []struct {
		name string
		make func(path string)
		gone bool
	}{
		{prefix + dead + "-0123456789abcdef.sock", func(p string) { abandon(t, p) }, true},
		{prefix + dead + "-01234567.sock", func(p string) { abandon(t, p) }, true},
		{prefix + dead + "-aaaaaaaa.sock", func(p string) { listenOn(t, p) }, false}, // another PID namespace's
		{prefix + dead + "-0123456.sock", func(p string) { abandon(t, p) }, false},   // nonce too short
		{prefix + dead + "-0123456X.sock", func(p string) { abandon(t, p) }, false},
		{prefix + "0" + dead + "-01234567.sock", func(p string) { abandon(t, p) }, false},
		{prefix + "-1-01234567.sock", func(p string) { abandon(t, p) }, false},
		{"other-" + dead + "-01234567.sock", func(p string) { abandon(t, p) }, false},
		{prefix + dead + "-bbbbbbbb.sock", func(p string) { write(t, p) }, false}, // a file
		{prefix + dead + "-cccccccc.sock", func(p string) { link(t, outside, p) }, false},
		{prefix + dead + "-dddddddd.sock", func(p string) { abandon(t, p); chown(t, p) }, false},
		{prefix + own + "-11111111.sock", func(p string) { abandon(t, p) }, false},
		{prefix + own + "-22222222.sock", func(p string) { abandon(t, p); age(t, p) }, true},
		{prefix + own + "-33333333.sock", func(p string) { listenOn(t, p); age(t, p) }, false},
	}
	for _, tt := range tests {
		tt.make(filepath.Join(dir, tt.name))
	}
	if _, err := SweepStale(dir); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		_, err := os.Lstat(filepath.Join(dir, tt.name))
		if gone := err != nil; gone != tt.gone {
			t.Errorf("%s: gone %v, want %v", tt.name, gone, tt.gone)
		}
	}
	if _, err := os.Lstat(outside); err != nil {
		t.Errorf("a symlink was followed: %v", err)
	}
}

// abandon leaves a socket on which nobody listens.
func abandon(t *testing.T, path string) {
	t.Helper()
	l := listenOn(t, path)
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

func listenOn(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string) {
	t.Helper()
	if err := os.Chown(path, otherUID, otherUID); err != nil {
		t.Fatal(err)
	}
}

// age makes the socket look two minutes old.
func age(t *testing.T, path string) {
	t.Helper()
	then := unix.NsecToTimespec(time.Now().Add(-2 * time.Minute).UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{then, then}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}
