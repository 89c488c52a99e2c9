package audit

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestFlush(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, path, Options{})
		for i := range 3 {
			start := time.Now()
			l.Record(numbered(2 * i))
			time.Sleep(flushDelay / 2)
			l.Record(numbered(2*i + 1))
			for len(numbers1(t, path)) < 2*i+2 {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
			if d := time.Since(start); d < flushDelay || d > 500*time.Millisecond {
				t.Errorf("written after %v", d)
			}
			time.Sleep(time.Hour)
		}
		for i := range 2 * flushSize / 100 { // too many to wait with
			l.Record(numbered(6 + i))
		}
		synctest.Wait()
		if n := size(t, path); n < flushSize {
			t.Errorf("%d bytes written of a full buffer", n)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	wantSequence(t, "all", numbers1(t, path), 0, 6+2*flushSize/100)
	if m := mode(t, path); m != 0o600 {
		t.Errorf("mode %04o", m)
	}
}

// numbers1 is numbers for one file that only this process wrote, whole.
func numbers1(t *testing.T, files ...string) []int {
	t.Helper()
	by, torn := numbers(t, files...)
	if len(torn) > 0 || len(by) > 1 {
		t.Errorf("torn lines %q, processes %d", torn, len(by))
	}
	return by[os.Getpid()]
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	var logged logBuffer
	l := open(t, path, Options{Logger: logged.logger()})
	const n = 1000
	for i := range n {
		l.Record(numbered(i))
	}
	for range 2 {
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantSequence(t, "after Close", numbers1(t, path), 0, n)
	if logged.String() != "" {
		t.Errorf("logged: %s", &logged)
	}
	l.Record(numbered(n))
	if logged.count("level=ERROR msg=\"audit event lost: the log is closed\"") != 1 {
		t.Errorf("an event after Close: logged %q", &logged)
	}
	l = open(t, path, Options{})
	l.Record(numbered(n))
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantSequence(t, "opened again", numbers1(t, path), 0, n+1)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.WriteFile(path("target"), nil, 0o600))
	do(os.Symlink(path("target"), path("link")))
	do(os.Symlink(path("nothing"), path("dangling")))
	do(os.WriteFile(path("open"), nil, 0o600))
	do(os.Chmod(path("open"), 0o640))
	do(syscall.Mkfifo(path("fifo"), 0o600))
	want := map[string]string{
		"link": "is a symbolic link", "dangling": "is a symbolic link", "open": "is open to other users (mode 0640); run: chmod 600 '" + path("open") + "'",
		"fifo": "is not a regular file", ".": "is a directory", "missing/audit.log": "no such file or directory",
	}
	if os.Geteuid() == 0 {
		do(os.WriteFile(path("foreign"), nil, 0o600))
		do(os.Chown(path("foreign"), 12345, -1))
		want["foreign"] = "belongs to UID 12345, not to this user"
	}
	for name, text := range want {
		l, err := Open(path(name), Options{})
		if err == nil {
			l.Close(t.Context())
		}
		if err == nil || !strings.HasPrefix(err.Error(), "audit log: ") || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want …%s…", name, err, text)
		}
	}
	if _, err := os.Lstat(path("nothing")); err == nil {
		t.Error("a file was made through a symbolic link")
	}
}

func TestRotate(t *testing.T) {
	const limit, keep, n = 8 << 10, 3, 1000
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) { // where no time passes: in two parts, a file would be rotated early
		l := open(t, path, Options{MaxSize: limit, Keep: keep})
		for i := range n {
			l.Record(numbered(i))
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	files := rotated(t, path)
	if len(files) != keep+1 {
		t.Errorf("files %q", files)
	}
	for _, file := range files {
		if s := size(t, file); s > limit || file != path && s < limit-1024 {
			t.Errorf("%s has %d bytes", file, s)
		}
		if m := mode(t, file); m != 0o600 {
			t.Errorf("%s has mode %v", file, m)
		}
	}
	got := numbers1(t, files...)
	wantSequence(t, "the newest", got, n-len(got), n)
}

// What cannot be rotated grows on, and the older files stay.
func TestRotateFails(t *testing.T) {
	const limit, n = 4 << 10, 200
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.MkdirAll(path+".4/x", 0o700); err != nil { // nothing can be renamed to it
		t.Fatal(err)
	}
	for _, older := range []string{".1", ".2", ".3"} {
		if err := os.WriteFile(path+older, []byte(older), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var logged logBuffer
	l := open(t, path, Options{MaxSize: limit, Logger: logged.logger()})
	for i := range n {
		l.Record(numbered(i))
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantSequence(t, "all", numbers1(t, path), 0, n)
	if logged.count("cannot be rotated") != 1 {
		t.Errorf("logged %q", &logged)
	}
	for _, older := range []string{".1", ".2", ".3"} {
		if data, err := os.ReadFile(path + older); string(data) != older {
			t.Errorf("%s has %q, %v", older, data, err)
		}
	}
}

// Someone moves or removes the file: the next flush makes a new one.
func TestFileMoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, path, Options{})
		l.Record(numbered(0))
		time.Sleep(time.Second)
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		l.Record(numbered(1))
		time.Sleep(time.Second)
		wantSequence(t, "moved", numbers1(t, path+".old"), 0, 1)
		wantSequence(t, "new", numbers1(t, path), 1, 2)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.Record(numbered(2))
		time.Sleep(time.Second)
		wantSequence(t, "new again", numbers1(t, path), 2, 3)
	})
}

func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	const half = `{"time":"2026-11-03T08:08:07.006Z","pro`
	if err := os.WriteFile(path, []byte(half), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, path, Options{})
	l.Record(numbered(0))
	l.Record(numbered(1))
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	by, torn := numbers(t, path)
	wantSequence(t, "after half a line", by[os.Getpid()], 0, 2)
	if len(torn) != 1 || torn[0] != half+"\n" {
		t.Errorf("torn %q", torn)
	}
}

// locked holds the log's lock as a proxy would that was stopped in the middle of a write.
func locked(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// While the file cannot be written nothing is lost and one line says so; from 1 MiB on Record waits.
func TestOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		var logged logBuffer
		l := open(t, path, Options{Logger: logged.logger()})
		release := locked(t, path)
		var wg sync.WaitGroup
		total := 0
		wg.Go(func() {
			for ; total < maxWaiting/400; total++ {
				l.Record(long(total))
			}
		})
		time.Sleep(time.Minute)
		synctest.Wait() // the recorder is blocked, or done
		l.mu.Lock()
		waiting := len(l.buf) + l.taken
		l.mu.Unlock()
		if waiting < maxWaiting || waiting > maxWaiting+1024 {
			t.Errorf("%d bytes wait", waiting)
		}
		if logged.count("level=ERROR") != 2 || logged.count("cannot be written; events are kept in memory") != 1 ||
			logged.count("requests wait until it can") != 1 || logged.count("another process holds it") != 2 {
			t.Errorf("logged %s", &logged)
		}
		if size(t, path) != 0 {
			t.Error("something was written past the lock")
		}
		release()
		time.Sleep(3 * time.Second)
		wg.Wait()
		if logged.count("can be written again") != 1 {
			t.Errorf("logged %s", &logged)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		wantSequence(t, "after the outage", numbers1(t, rotated(t, path)...), 0, total)
	})
}

// Close says what could not be written, in the time that it was given, and lets go of whoever waits.
func TestCloseGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		var logged logBuffer
		l := open(t, path, Options{Logger: logged.logger()})
		defer locked(t, path)()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for i := range maxWaiting / 400 {
					l.Record(long(i))
				}
			})
		}
		time.Sleep(10 * time.Second)
		l.mu.Lock()
		events := strings.Count(string(l.buf), "\n") + strings.Count(string(l.out), "\n")
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		err := l.Close(ctx)
		wg.Wait()
		if d := time.Since(start); d < 5*time.Second || d > 7*time.Second {
			t.Errorf("Close took %v", d)
		}
		want := "audit log: " + strconv.Itoa(events) + " events could not be written: lock " + path + ": another process holds it"
		if err == nil || err.Error() != want {
			t.Errorf("Close: %v, want %s", err, want)
		}
	})
}

func TestRecordDoesNotAllocate(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "audit.log"), Options{})
	l.mu.Lock()
	l.buf = make([]byte, 0, 1<<20)
	l.mu.Unlock()
	e := fullEvent
	if n := testing.AllocsPerRun(1000, func() { l.Record(&e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAppendEvent(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 1024)
	for b.Loop() {
		buf = appendEvent(buf[:0], &fullEvent, 42)
	}
}

// BenchmarkRecord includes what the writer does meanwhile, and waiting for it: it is faster than any disk for long.
func BenchmarkRecord(b *testing.B) {
	l, err := Open(filepath.Join(b.TempDir(), "audit.log"), Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Record(&fullEvent)
	}
	b.StopTimer()
	if err := l.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}
