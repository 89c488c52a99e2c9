package peerlock_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/peerlock"
)

// A lock of ours reads as the newer version's, and as the older one's as well.
func TestRecord(t *testing.T) {
	home, oldLock, newLock := isolate(t)
	before := time.Now().UnixMilli()
	unlock := mustLock(t)
	tokens := make(map[string]bool)
	for _, path := range []string{oldLock, newLock} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		host, _ := os.Hostname()
		if m["version"] != 1.0 || m["pid"] != float64(os.Getpid()) || m["hostname"] != host || m["startTimeSource"] != "canonical" || len(m) != 7 {
			t.Errorf("%s: %s", path, text)
		}
		if stamp, _ := m["timestamp"].(float64); stamp < float64(before) || stamp > float64(time.Now().UnixMilli()) {
			t.Errorf("timestamp %v", m["timestamp"])
		}
		token, _ := m["ownerToken"].(string)
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(token) || tokens[token] {
			t.Errorf("ownerToken %q", token)
		}
		tokens[token] = true
		wantMode(t, path, 0o600)
		for dir := filepath.Dir(path); dir != home; dir = filepath.Dir(dir) {
			wantMode(t, dir, fs.ModeDir|0o700)
		}
		wantFiles(t, filepath.Dir(path), filepath.Base(path))
	}
	unlock()
	unlock() // does nothing
	wantFiles(t, filepath.Dir(oldLock))
	wantFiles(t, filepath.Dir(newLock))
}

func TestStartIsThatOfPS(t *testing.T) {
	if _, err := exec.LookPath("ps"); err != nil {
		t.Fatal("this test needs ps: install the package procps (apt-get install procps)")
	}
	for _, pid := range []int{os.Getpid(), os.Getppid(), 1} {
		want, ok := psStart(pid)
		if got := peerlock.ProcessStart(pid); !ok || math.Abs(float64(got.UnixMilli())-want) > 2000 { // ps cuts off the fraction of a second, and the time of boot is in whole ones
			t.Errorf("process %d began at %v, ps says %v", pid, got, time.UnixMilli(int64(want)))
		}
	}
	if got := peerlock.ProcessStart(math.MaxInt32); !got.IsZero() {
		t.Errorf("a process that there is not began at %v", got)
	}
}

// plant puts a file in the place of a lock.
func plant(t *testing.T, path, content string, age time.Duration) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
		t.Fatal(err)
	}
}

// deadPID is the number of a process that has ended.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func newerRecord(change func(*owner)) string {
	o := thisOwner("test-owner-1")
	o.PID = os.Getppid()
	start, _ := psStart(o.PID)
	o.StartTimeMS = start
	change(&o)
	text, _ := json.Marshal(o)
	return string(text)
}

func olderRecord(pid int, age time.Duration) string { return olderRecordOf(pid, time.Now().Add(-age)) }

func olderRecordOf(pid int, at time.Time) string {
	return fmt.Sprintf(`{"pid":%d,"timestamp":%d}`, pid, at.UnixMilli())
}

// Time passes in a bubble only where a test waits: the ages of the locks are what they are said to be.
func TestStale(t *testing.T) {
	dead, live, self := deadPID(t), os.Getppid(), os.Getpid()
	begun := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when every bubble begins
	for _, tt := range []struct {
		name, content string
		age           time.Duration // of the file
		stale         bool
	}{
		{"newer, alive", newerRecord(func(*owner) {}), time.Hour, false},
		{"newer, start a second off", newerRecord(func(o *owner) { o.StartTimeMS += 1000 }), time.Hour, false},
		{"newer, dead", newerRecord(func(o *owner) { o.PID = dead }), 0, true},
		{"newer, no such process number", newerRecord(func(o *owner) { o.PID = 1 << 40 }), 0, true},
		{"newer, number used again", newerRecord(func(o *owner) { o.StartTimeMS -= 5000 }), 0, true},
		{"newer, number used again by us", newerRecord(func(o *owner) { o.PID = self; o.StartTimeMS -= 5000 }), 0, true},
		{"newer, our number and start but not ours", newerRecord(func(o *owner) { *o = thisOwner("test-owner-2") }), 0, true},
		{"newer, start not reliable", newerRecord(func(o *owner) { o.StartTimeMS -= 5000; o.StartTimeSource = "approximate" }), time.Hour, false},
		{"newer, start not known", newerRecord(func(o *owner) { o.StartTimeMS = 0; o.StartTimeSource = "" }), time.Hour, false},
		{"newer, dead, start not known", newerRecord(func(o *owner) { o.PID = dead; o.StartTimeSource = "unavailable" }), 0, true},
		{"newer, dead on another machine", newerRecord(func(o *owner) { o.PID = dead; o.Hostname = "other.example" }), time.Hour, false},
		{"older, alive", olderRecordOf(live, begun.Add(-25*time.Second)), time.Hour, false},
		{"older, old", olderRecordOf(live, begun.Add(-31*time.Second)), 0, true},
		{"older, dead", olderRecord(dead, 0), 0, true},
		{"older, our number", olderRecord(self, 0), 0, true},
		{"between the two, alive", fmt.Sprintf(`{"pid":%d,"token":"t"}`, live), 25 * time.Second, false},
		{"between the two, old", fmt.Sprintf(`{"pid":%d,"token":"t"}`, live), 31 * time.Second, true},
		{"between the two, dead", fmt.Sprintf(`{"pid":%d,"token":"t"}`, dead), 0, true},
		{"empty", "", 0, false},
		{"empty, old", "", 31 * time.Second, true},
		{"half", `{"version":1,"own`, 0, false},
		{"half, old", `{"version":1,"own`, 31 * time.Second, true},
		{"no object, old", `[]`, 31 * time.Second, true},
		{"null, old", `null`, 31 * time.Second, true},
		{"names in another case", strings.ReplaceAll(olderRecord(dead, time.Hour), "pid", "PID"), 0, false},
		{"a process number that is none", `{"pid":-1,"timestamp":1}`, 0, false},
		{"a fraction of a process number", `{"pid":1.5,"timestamp":1}`, 0, false},
		{"another version", newerRecord(func(o *owner) { o.Version = 2; o.PID = dead }), 0, false},
		{"another version, old", newerRecord(func(o *owner) { o.Version = 2; o.PID = dead }), 31 * time.Second, true},
		{"huge", `{"pid":1,"x":"` + strings.Repeat("x", 10_000) + `"}`, 0, false},
		{"huge, old", strings.Repeat("x", 10_000), 31 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, oldLock, newLock := isolate(t)
			judge := func(t *testing.T, path string) {
				plant(t, path, tt.content, tt.age)
				if !tt.stale {
					wantBusy(t, path)
				} else {
					mustLock(t)()
				}
				left := []string{filepath.Base(path)}
				if tt.stale {
					left = nil
				}
				wantFiles(t, filepath.Dir(path), left...)
				if got, _ := os.ReadFile(path); !tt.stale && string(got) != tt.content {
					t.Errorf("the lock is %q now", got)
				}
				_ = os.Remove(path)
			}
			for _, path := range []string{oldLock, newLock} {
				synctest.Test(t, func(t *testing.T) { judge(t, path) })
			}
			if !tt.stale {
				return
			}
			synctest.Test(t, func(t *testing.T) { // a fence is judged alike
				plant(t, newLock+".fence", tt.content, tt.age)
				plant(t, newLock, newerRecord(func(o *owner) { o.PID = dead }), 0)
				mustLock(t)()
				wantFiles(t, filepath.Dir(newLock))
			})
		})
	}
}

// What cannot be read may be just being written: by the older version for a moment, for it breaks such a lock at once itself. The newer
// one never leaves half a record.
func TestUnreadable(t *testing.T) {
	for _, content := range []string{"", `{"pid":4`, "{}"} {
		_, oldLock, newLock := isolate(t)
		synctest.Test(t, func(t *testing.T) {
			plant(t, oldLock, content, 6*time.Second)
			mustLock(t)()
			wantFiles(t, filepath.Dir(oldLock))
			plant(t, newLock, content, 25*time.Second)
			wantBusy(t, newLock)
		})
	}
	// What nobody here may read, or is no file, may be whole.
	_, oldLock, _ := isolate(t)
	synctest.Test(t, func(t *testing.T) {
		plant(t, oldLock, "", 0)
		err := errors.Join(os.Remove(oldLock), unix.Mkfifo(oldLock, 0o600), os.Chtimes(oldLock, time.Time{}, time.Now().Add(-25*time.Second)))
		if err != nil {
			t.Fatal(err)
		}
		wantBusy(t, oldLock)
	})
}

func TestLiveFenceIsHonoured(t *testing.T) {
	_, oldLock, newLock := isolate(t)
	fence := newerRecord(func(*owner) {})
	for _, path := range []string{oldLock, newLock} {
		plant(t, path+".fence", fence, time.Hour)
		plant(t, path, newerRecord(func(o *owner) { o.PID = deadPID(t) }), 0)
		wantBusy(t, path)
		if got, _ := os.ReadFile(path + ".fence"); string(got) != fence {
			t.Errorf("the fence is %q now", got)
		}
		if err := os.Remove(path + ".fence"); err != nil {
			t.Fatal(err)
		}
		mustLock(t)()
	}
}

// Nothing is written or read through a link, and a pipe does not stop us.
func TestOddLocks(t *testing.T) {
	home, _, newLock := isolate(t)
	victim := filepath.Join(home, "victim")
	plant(t, victim, olderRecord(deadPID(t), time.Hour), time.Hour)
	before, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func() error{
		"link": func() error { return os.Symlink(victim, newLock) },
		"pipe": func() error { return unix.Mkfifo(newLock, 0o600) },
	} {
		mustLock(t)()
		if err := make(); err != nil {
			t.Fatal(err)
		}
		wantBusy(t, newLock)
		when := []unix.Timespec{unix.NsecToTimespec(time.Now().Add(-time.Minute).UnixNano())}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, newLock, append(when, when...), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		unlock := mustLock(t)
		if info, err := os.Lstat(newLock); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		unlock()
		wantFiles(t, filepath.Dir(newLock))
	}
	if after, err := os.ReadFile(victim); err != nil || string(after) != string(before) {
		t.Errorf("the link's target is %q now, %v", after, err)
	}
}

// What is no longer what was judged is not taken over, and stays.
func TestReplaceOnlyWhatWasSeen(t *testing.T) {
	for _, exchanging := range []bool{true, false} {
		for name, change := range map[string]func(path string) error{
			"nothing": func(string) error { return nil },
			"gone":    os.Remove,
			"another": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, []byte("b"), 0o600)) },
			"the same text": func(path string) error {
				return errors.Join(os.Rename(path, path+"x"), os.WriteFile(path, []byte("a"), 0o600))
			},
			"written once more": func(path string) error { return os.WriteFile(path, []byte("b"), 0o600) },
		} {
			t.Run(fmt.Sprintf("%s %v", name, exchanging), func(t *testing.T) {
				dir, err := os.OpenRoot(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				defer dir.Close()
				path := filepath.Join(dir.Name(), "lock")
				plant(t, path, "a", time.Hour)
				var before fs.FileInfo
				won, err := peerlock.Replace(dir, "lock", exchanging, func() {
					if err := change(path); err != nil {
						t.Fatal(err)
					}
					before, _ = os.Lstat(path)
				})
				if want := name == "nothing"; won != want || err != nil && !(name == "gone" && errors.Is(err, fs.ErrNotExist)) {
					t.Errorf("replaced: %v, %v", won, err)
				}
				after, err := os.Lstat(path)
				switch {
				case name == "gone":
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("there is one now: %v", err)
					}
				case err != nil:
					t.Error(err)
				case os.SameFile(before, after) == won:
					t.Errorf("replaced: %v, and it is the same file: %v", won, !won)
				}
				if temps, _ := filepath.Glob(path + ".*.tmp"); len(temps) != 0 {
					t.Errorf("left: %q", temps)
				}
			})
		}
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	if info, err := os.Lstat(path); err != nil || info.Mode() != want {
		t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
	}
}

// wantFiles checks what is in a directory.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("%s has %q, want %q", dir, names, want)
	}
}

// wantBusy checks that the lock cannot be had, because of the file at path.
func wantBusy(t *testing.T, path string) {
	t.Helper()
	var err error
	// If the time is over before it has come to that file it gets more.
	for limit := 150 * time.Millisecond; limit < time.Minute; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		var unlock func()
		unlock, err = peerlock.New(nil).Refresh(ctx, login)
		cancel()
		if err == nil {
			unlock()
		}
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "lock "+path+": ") {
			break
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lock "+path+": ") {
		t.Errorf("Refresh: %v, want that %s is taken", err, path)
	}
	if _, err := os.Lstat(path); err != nil { // who takes a lock over and has no time left to make sure of it is busy, too
		t.Errorf("it was taken away: %v", err)
	}
}
