package config

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A follower runs Watch in a synctest bubble on a real file and records, in order, what it was told. The clock is the bubble's, so
// that a second passes at once.
type follower struct {
	t    *testing.T
	path string
	mu   sync.Mutex
	got  []string // "store=…" or "error …", the latter without the path
}

// follow runs f in a bubble while Watch follows a file that at first has the text given, or none.
func follow(t *testing.T, text *string, f func(*follower)) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if text != nil {
		rewrite(t, path, *text)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &follower{t: t, path: path}
		first, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			Watch(ctx, path, first,
				func(c *Config) { w.add("store=" + c.Store) },
				func(err error) { w.add("error " + strings.TrimPrefix(err.Error(), path)) })
		})
		f(w)
		cancel()
		wg.Wait()
	})
}

func (w *follower) add(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, s)
}

// expect checks what Watch said since the last time, one second from now.
func (w *follower) expect(want ...string) {
	w.t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.got, want) {
		w.t.Errorf("after a second: %q, want %q", w.got, want)
	}
	w.got = nil
}

const gone, empty = "error : the file is gone; the last good configuration stays in force",
	"error : the file is empty; the last good configuration stays in force (a comment alone stands for the defaults)"

func TestWatchEdits(t *testing.T) {
	follow(t, new("store = \"file\""), func(w *follower) {
		w.expect()
		rewrite(t, w.path, `store = "auto"`) // of the same length, and within one tick of the file system's clock
		w.expect("store=auto")
		w.expect()
		rewrite(t, w.path, `store = "file"`)
		w.expect("store=file")
		rewrite(t, w.path, `store = "file"`) // touched
		w.expect()

		next := filepath.Join(filepath.Dir(w.path), "next") // as editors save
		rewrite(t, next, `store = "auto"`)
		if err := os.Rename(next, w.path); err != nil {
			t.Fatal(err)
		}
		w.expect("store=auto")
	})
}

func TestWatchKeepsLastGood(t *testing.T) {
	follow(t, new("store = \"file\""), func(w *follower) {
		const broken = `error :1: unknown key "stroe" at the top level; did you mean "store"?`
		rewrite(t, w.path, "stroe = 1")
		w.expect(broken)
		w.expect()
		w.expect() // once for each broken state
		rewrite(t, w.path, "stroe = 2")
		w.expect(broken)
		rewrite(t, w.path, "store = 2")
		w.expect("error :1: store at the top level must be a string, not an integer")
		rewrite(t, w.path, `store = "file"`)
		w.expect("store=file") // people want to hear that it is good again
		w.expect()

		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.expect(gone)
		w.expect()
		rewrite(t, w.path, "")
		w.expect(empty)
		rewrite(t, w.path, "\n \n")
		w.expect(empty)
		rewrite(t, w.path, "# nothing")
		w.expect("store=auto")
		if err := os.Chmod(w.path, 0o622); err != nil {
			t.Fatal(err)
		}
		w.expect("error : can be written by other users (mode 0622), who could change what a sandbox may use; run: chmod go-w '" + w.path + "'")
		if err := os.Chmod(w.path, 0o600); err != nil {
			t.Fatal(err)
		}
		w.expect("store=auto")
	})
}

// The directory's mode does not show in the file's times.
func TestWatchDirectoryRepaired(t *testing.T) {
	follow(t, new("store = \"file\""), func(w *follower) {
		dir := filepath.Dir(w.path)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		rewrite(t, w.path, `store = "auto"`)
		w.expect("error : its directory " + dir + " can be written by other users (mode 0777), who could change what a sandbox may use; run: chmod go-w '" + dir + "'")
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		w.expect("store=auto")
	})
}

func TestWatchFromNothing(t *testing.T) {
	follow(t, nil, func(w *follower) {
		w.expect()
		rewrite(t, w.path, "store = 1")
		w.expect("error :1: store at the top level must be a string, not an integer")
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.expect("store=auto") // as good as it was
		rewrite(t, w.path, "")
		w.expect("store=auto") // an empty file allows what no file allowed
		rewrite(t, w.path, `store = "file"`)
		w.expect("store=file")
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.expect(gone)
	})
}

// An empty file that was there from the start is what it is.
func TestWatchFromEmpty(t *testing.T) {
	follow(t, new(""), func(w *follower) {
		w.expect()
		rewrite(t, w.path, `store = "file"`)
		w.expect("store=file")
	})
}

// Half a file that an editor leaves for a moment is never applied, even if it is valid and allows more.
func TestWatchSettles(t *testing.T) {
	follow(t, new("[profiles.default]"), func(w *follower) {
		time.Sleep(pollInterval / 2)
		for i := range 20 {
			// No two of one size: real time stands still here, and the file system's clock may be as coarse as 10 ms.
			pad := strings.Repeat("#", 100*i)
			rewrite(t, w.path, "store = \"keyring\"\n"+pad)
			time.Sleep(settleTime / 2)
			rewrite(t, w.path, "store = \"keyring\"\n[profiles.default]"+pad)
			time.Sleep(settleTime / 2)
		}
		rewrite(t, w.path, `store = "file"`)
		w.expect("store=file")
	})
}

// The file system's clock may be too coarse to tell two changes apart: of a file that has just changed, the bytes count.
func TestWatchSameStamp(t *testing.T) {
	path := write(t, `store = "file"`)
	first, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	w := watcher{path: path, good: first, onChange: func(c *Config) { got = append(got, c.Store) }, onError: func(err error) { t.Error(err) }}
	rewrite(t, path, `store = "auto"`)
	w.checked, w.valid = stampOf(path), true // as if the file had looked like this before
	for range 3 {
		w.poll()
	}
	if !slices.Equal(got, []string{"auto"}) {
		t.Errorf("got %q", got)
	}
}

// A change between Load and Watch is not lost.
func TestWatchStart(t *testing.T) {
	path := write(t, `store = "file"`)
	first, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, `store = "auto"`)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := time.Now()
		var got *Config
		Watch(ctx, path, first, func(c *Config) { got = c; cancel() }, func(err error) { t.Error(err); cancel() })
		if got == nil || got.Store != "auto" {
			t.Errorf("got %+v", got)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func BenchmarkPoll(b *testing.B) {
	path := filepath.Join(b.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(full), 0o600); err != nil {
		b.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		b.Fatal(err)
	}
	w := watcher{path: path, good: c}
	for b.Loop() {
		w.poll()
	}
}
