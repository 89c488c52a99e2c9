package journal_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/journal"
)

const half = 16 << 10

// twice leaves a file with the records number 1 and 2.
func twice(t *testing.T, dir string) (path string) {
	t.Helper()
	j := open(t, dir)
	write(t, j, item, generation(1, 80))
	write(t, j, item, generation(2, 80))
	return filepath.Join(dir, itemFile)
}

func TestDamagedHalf(t *testing.T) {
	zeros := make([]byte, half)
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
		want   int
	}{
		{"the older", func(b []byte) []byte { copy(b, zeros); return b }, 2},
		{"the newer", func(b []byte) []byte { copy(b[half:], zeros); return b }, 1},
		{"the newer, cut off", func(b []byte) []byte { return b[:half+100] }, 1},
		{"the newer, gone", func(b []byte) []byte { return b[:half] }, 1},
		{"nothing, with something after it", func(b []byte) []byte { return append(b, "x"...) }, 2},
	} {
		dir := newDir(t)
		path := twice(t, dir)
		writeFile(t, path, tt.damage(readFile(t, path)))
		var log lines
		j := openLogged(t, &log, dir)
		wantGeneration(t, j, item, tt.want)
		for n := 3; n < 6; n++ {
			write(t, j, item, generation(n, 80))
			wantGeneration(t, open(t, dir), item, n)
		}
		if got := names(t, dir); got != itemFile || log.Len() > 0 {
			t.Errorf("%s: left %s, logged %s", tt.name, got, &log)
		}
		if size := len(readFile(t, path)); size != 2*half {
			t.Errorf("%s: the file has %d bytes afterwards", tt.name, size)
		}
	}
}

// What is no journal at all counts as none, is told once, and is set aside by the next Write. A link is not followed.
func TestDamagedFile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for name, damage := range map[string]func(path string) error{
		"empty":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"garbage": func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 50000), 0o600) },
		"renamed": func(path string) error {
			write(t, open(t, filepath.Dir(path)), login("other:a"), generation(9, 8))
			return os.Rename(filepath.Join(filepath.Dir(path), "other%3aa.journal"), path)
		},
		"a link": func(path string) error {
			if err := os.Rename(path, outside); err != nil {
				return err
			}
			return os.Symlink(outside, path)
		},
		"a link inside": func(path string) error {
			if err := os.Rename(path, path+"x"); err != nil {
				return err
			}
			return os.Symlink(filepath.Base(path)+"x", path)
		},
		"a pipe": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return syscall.Mkfifo(path, 0o600)
		},
		"a directory": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(path, "with something"), 0o700)
		},
	} {
		dir := newDir(t)
		path := twice(t, dir)
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		var log lines
		j := openLogged(t, &log, dir)
		for range 3 {
			wantGeneration(t, j, item, 0)
			if v, err := j.Version(t.Context(), item); err != nil || v != "absent" {
				t.Errorf("%s: Version = %q, %v", name, v, err)
			}
			if list, err := j.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("%s: List = %v, %v", name, list, err)
			}
		}
		if n := strings.Count(log.String(), "journal file is damaged"); n != 1 || !strings.Contains(log.String(), path) {
			t.Errorf("%s: told %d times: %s", name, n, &log)
		}
		write(t, j, item, generation(3, 80))
		wantGeneration(t, open(t, dir), item, 3)
		aside := regexp.MustCompile(`^acme%3adefault\.journal acme%3adefault\.journal\.damaged-\d{8}T\d{6}\.\d{9}Z( acme%3adefault\.journalx)?$`)
		if got := names(t, dir); !aside.MatchString(got) || !strings.Contains(log.String(), "set aside") {
			t.Errorf("%s: left %s, logged %s", name, got, &log)
		}
	}
	if list, err := open(t, filepath.Dir(outside)).List(t.Context()); err == nil || list != nil {
		t.Errorf("a directory that is not private: %v, %v", list, err)
	}
	if !bytes.Contains(readFile(t, outside), []byte("00000002")) {
		t.Error("the target of the link was written to")
	}
}

func TestEnormousFile(t *testing.T) {
	dir := newDir(t)
	path := twice(t, dir)
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	j := open(t, dir)
	wantGeneration(t, j, item, 2)
	write(t, j, item, generation(3, 80))
	wantGeneration(t, j, item, 3)
	if size := len(readFile(t, path)); size != 2*half {
		t.Errorf("the file has %d bytes afterwards", size)
	}
}

// A file of a later version is neither read nor replaced, and goes with a logout.
func TestNewerVersion(t *testing.T) {
	first, second := newDir(t), newDir(t)
	path := twice(t, first)
	line := "credproxy-journal 2 16384 9000000000000000 2 "
	data := fmt.Appendf(nil, "%s%x\n{}", line, sha256.Sum256([]byte(line+"{}")))
	data = append(data, bytes.Repeat([]byte{' '}, 2*half-len(data))...)
	writeFile(t, path, data)

	j := open(t, first)
	if _, err := j.Read(t.Context(), item); err == nil || !strings.Contains(err.Error(), "newer version of credproxy") || !strings.Contains(err.Error(), path) {
		t.Errorf("Read: %v", err)
	}
	if list, err := j.List(t.Context()); err == nil || list != nil {
		t.Errorf("List = %v, %v", list, err)
	}
	wantNotDurable(t, j.Write(t.Context(), item, generation(3, 8), 0), "newer version of credproxy")
	if !bytes.Equal(readFile(t, path), data) {
		t.Error("the file has changed")
	}
	if err := open(t, first, second).Write(t.Context(), item, generation(4, 8), 0); err != nil {
		t.Errorf("another directory was not taken: %v", err)
	}
	if err := open(t, first, second).Remove(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, open(t, first, second), item, 0)
	if got := names(t, first) + names(t, second); got != "" {
		t.Errorf("left: %s", got)
	}
}

func wantNotDurable(t *testing.T, err error, says string) {
	t.Helper()
	if err := notDurable(err, says); err != nil {
		t.Error(err)
	}
}

// The place for an answer that was made with the intent is there, whatever becomes of the disk.
func TestReserved(t *testing.T) {
	dir := newDir(t)
	j := open(t, dir)
	reserved := func(room int, want bool, when string) {
		t.Helper()
		if got := j.Reserved(item, room); got != want {
			t.Errorf("%s: a place for %d bytes: %t", when, room, got)
		}
	}
	reserved(0, false, "nothing is written")
	if err := j.Write(t.Context(), item, journal.Record{Phase: journal.Called}, 100_000); err != nil {
		t.Fatal(err)
	}
	reserved(100_000, true, "after the intent")
	reserved(1_000_000, false, "after the intent")
	write(t, j, item, journal.Record{})
	reserved(100_000, true, "after the attempt")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	reserved(100_000, false, "the directory is open to others")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := j.Remove(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	reserved(0, false, "removed")
}
