package peerlock_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/peerlock"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, tt := range []struct{ service, account, refresh, write string }{
		{store.ServiceLogins, "anthropic:default", "anthropic-refresh.lock", "cred-llxprt-code-oauth@anthropic%3Adefault.lock"},
		{store.ServiceLogins, "codex:me@example.com", "codex-me@example.com-refresh.lock", "cred-llxprt-code-oauth@codex%3Ame%40example.com.lock"},
		{store.ServiceLogins, long + ":" + long, long + "-" + long + "-refresh.lock", "cred-llxprt-code-oauth@" + long + "%3A" + long + ".lock"},
		{store.ServiceLogins, "acme", "", "cred-llxprt-code-oauth@acme.lock"},
		{store.ServiceLogins, "acme:", "", "cred-llxprt-code-oauth@acme%3A.lock"},
		{store.ServiceLogins, "../x:default", "", "cred-llxprt-code-oauth@..%2Fx%3Adefault.lock"},
		{store.ServiceLogins, "acme:a:b", "", "cred-llxprt-code-oauth@acme%3Aa%3Ab.lock"},
		{store.ServiceLogins, long + "x:default", "", "cred-llxprt-code-oauth@" + long + "x%3Adefault.lock"},
		{store.ServiceLogins, strings.Repeat("x", 300), "", ""},
		{store.ServiceKeys, "openai", "", "cred-llxprt-code-provider-keys@openai.lock"},
		{store.ServiceKeys, "a b*<>:\"/\\|?@%\n\u00e9\U0001f511", "", "cred-llxprt-code-provider-keys@a b%2A%3C%3E%3A%22%2F%5C%7C%3F%40%25%0A%E9%D83D.lock"},
		{"credproxy-file-store", "identity", "", ""},
		{"other", "acme:default", "", ""},
	} {
		it := store.Item{Service: tt.service, Account: tt.account}
		if got := peerlock.RefreshName(it); got != tt.refresh {
			t.Errorf("%s: refresh lock %q, want %q", it, got, tt.refresh)
		}
		if got := peerlock.WriteName(it); got != tt.write {
			t.Errorf("%s: write lock %q, want %q", it, got, tt.write)
		}
	}
}

func TestDirectories(t *testing.T) {
	const older, byDefault = "/h/.llxprt/oauth/locks", "/h/.local/state/llxprt-code"
	for name, tt := range map[string]struct {
		env  map[string]string
		logs []string
	}{
		"default":           {nil, []string{byDefault}},
		"log home":          {map[string]string{"LLXPRT_LOG_HOME": " /l/ ", "LLXPRT_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}, []string{"/l"}},
		"configuration":     {map[string]string{"LLXPRT_CONFIG_HOME": "/c"}, []string{"/c"}},
		"relative log home": {map[string]string{"LLXPRT_LOG_HOME": "l", "LLXPRT_CONFIG_HOME": "/c"}, []string{"/c"}},
		"nothing useful":    {map[string]string{"LLXPRT_LOG_HOME": "l", "LLXPRT_CONFIG_HOME": " ", "XDG_STATE_HOME": "s"}, []string{byDefault}},
		"state":             {map[string]string{"XDG_STATE_HOME": "/s"}, []string{"/s/llxprt-code", byDefault}},
		"state, default":    {map[string]string{"XDG_STATE_HOME": "/h/.local/state"}, []string{byDefault}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, name := range []string{"LLXPRT_LOG_HOME", "LLXPRT_CONFIG_HOME", "XDG_STATE_HOME"} {
				t.Setenv(name, tt.env[name])
			}
			t.Setenv("HOME", "/h")
			wantRefresh, wantWrite := []string{older}, []string(nil)
			for _, dir := range tt.logs {
				wantRefresh = append(wantRefresh, dir+"/oauth/locks")
				wantWrite = append(wantWrite, dir+"/secure-store/locks")
			}
			if refresh, write := peerlock.New(nil).Directories(); !slices.Equal(refresh, wantRefresh) || !slices.Equal(write, wantWrite) {
				t.Errorf("refresh %q, write %q", refresh, write)
			}
		})
	}
}

// The service may not have the XDG_STATE_HOME that a terminal has, or the other way round.
func TestBothStateDirectories(t *testing.T) {
	home, _, _ := isolate(t)
	t.Setenv("LLXPRT_LOG_HOME", "")
	t.Setenv("XDG_STATE_HOME", filepath.Join(home, "state"))
	byDefault := filepath.Join(home, ".local", "state", "llxprt-code")
	mustLock(t)()
	if _, err := os.Lstat(byDefault); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that nobody uses was made: %v", err)
	}
	path := filepath.Join(byDefault, "oauth", "locks", "acme-refresh.lock")
	plant(t, path, newerRecord(func(*owner) {}), 0)
	wantBusy(t, path)
}

// One directory under both names is locked once.
func TestPlacesThatAreOne(t *testing.T) {
	home, oldLock, _ := isolate(t)
	t.Setenv("LLXPRT_LOG_HOME", filepath.Join(home, ".llxprt"))
	unlock := mustLock(t)
	wantFiles(t, filepath.Dir(oldLock), "acme-refresh.lock")
	unlock()
	wantFiles(t, filepath.Dir(oldLock))
}

func TestOneLetsGoOfTheOther(t *testing.T) {
	_, oldLock, newLock := isolate(t)
	holder := hold(t, "newer")
	wantBusy(t, newLock)
	wantFiles(t, filepath.Dir(oldLock))
	kill(t, holder)
	mustLock(t)()
}

func TestEnded(t *testing.T) {
	isolate(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, lock := range map[string]func(context.Context, store.Item) (func(), error){
		"Refresh": peerlock.New(nil).Refresh, "Write": peerlock.New(nil).Write,
	} {
		if _, err := lock(ctx, login); !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is there in place of our lock when we release it is somebody else's, and stays.
func TestReleaseLeavesOthers(t *testing.T) {
	_, oldLock, newLock := isolate(t)
	theirs := newerRecord(func(*owner) {})
	unlock := mustLock(t)
	if err := os.Remove(oldLock); err != nil {
		t.Fatal(err)
	}
	plant(t, oldLock, olderRecord(os.Getppid(), 0), 0)
	if err := os.WriteFile(newLock, []byte(theirs), 0o600); err != nil { // the same file
		t.Fatal(err)
	}
	unlock()
	wantFiles(t, filepath.Dir(oldLock), filepath.Base(oldLock))
	if got, err := os.ReadFile(newLock); err != nil || string(got) != theirs {
		t.Errorf("the lock is %q, %v", got, err)
	}
}

// A lock that is held stays young for the older version, which breaks old ones.
func TestTimestampIsRenewed(t *testing.T) {
	_, oldLock, newLock := isolate(t)
	synctest.Test(t, func(t *testing.T) {
		unlock, err := peerlock.New(nil).Refresh(t.Context(), login)
		if err != nil {
			t.Fatal(err)
		}
		first, _ := os.Lstat(oldLock)
		begun := time.Now()
		time.Sleep(25 * time.Second)
		synctest.Wait()
		for _, path := range []string{oldLock, newLock} {
			text, err := os.ReadFile(path)
			if want := stampText(begun.Add(20 * time.Second)); err != nil || !strings.HasSuffix(string(text), want) {
				t.Errorf("%s, %v; want %s at its end", text, err, want)
			}
		}
		if now, err := os.Lstat(oldLock); err != nil || !os.SameFile(first, now) {
			t.Errorf("the lock is another file now: %v", err)
		}

		// Not if it is no longer ours.
		const theirs = `{"pid":1,"timestamp":1} and more than was there before, much more than a record of ours has for its length, so that something could be written into the middle of it`
		if err := os.WriteFile(oldLock, []byte(theirs), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if text, err := os.ReadFile(oldLock); err != nil || string(text) != theirs {
			t.Errorf("%s, %v", text, err)
		}
		unlock()
	})
}

func stampText(at time.Time) string { return fmt.Sprintf(`,"timestamp":%d}`, at.UnixMilli()) }

func TestWrite(t *testing.T) {
	home, _, _ := isolate(t)
	path := filepath.Join(home, "log", "secure-store", "locks", "cred-llxprt-code-oauth@acme%3Adefault.lock")
	locks := peerlock.New(nil)
	unlock, err := locks.Write(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, filepath.Dir(path), filepath.Base(path))
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := locks.Write(t.Context(), login)
		if took := time.Since(begun); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), path+": process ") || took != 5*time.Second {
			t.Errorf("Write: %v after %v, want store.ErrUnavailable after 5 s", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := locks.Write(ctx, login); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Write with a second: %v", err)
		}
	})
	if other, err := locks.Write(t.Context(), store.Item{Service: store.ServiceKeys, Account: "openai"}); err != nil {
		t.Error(err)
	} else {
		other()
	}
	unlock()
	wantFiles(t, filepath.Dir(path))
	if _, err := os.Lstat(filepath.Join(home, ".llxprt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the older version has no such lock: %v", err)
	}
}

func TestItemsWithoutLocks(t *testing.T) {
	home, _, _ := isolate(t)
	locks := peerlock.New(nil)
	for _, it := range []store.Item{{Service: "credproxy-file-store", Account: "identity"}, {Service: "other", Account: "acme:default"}} {
		for _, lock := range []func(context.Context, store.Item) (func(), error){locks.Refresh, locks.Write} {
			unlock, err := lock(t.Context(), it)
			if err != nil {
				t.Fatal(err)
			}
			unlock()
		}
	}
	wantFiles(t, home)
}

// A place that cannot be used is passed over, the log hears of it once, and the other place is used.
func TestPlacesThatCannotBeUsed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, home string) error
		says  string
	}{
		{"a file", func(_ *testing.T, home string) error { return os.WriteFile(home+"/.llxprt", nil, 0o600) }, "is not a directory"},
		{"a link", func(t *testing.T, home string) error { return os.Symlink(t.TempDir(), home+"/.llxprt") }, "is a symbolic link"},
		{"a link inside", func(t *testing.T, home string) error {
			return errors.Join(os.MkdirAll(home+"/.llxprt/oauth", 0o700), os.Symlink(t.TempDir(), home+"/.llxprt/oauth/locks"))
		}, "is a symbolic link"},
		{"writable by all", func(_ *testing.T, home string) error {
			return errors.Join(os.Mkdir(home+"/.llxprt", 0o700), os.Chmod(home+"/.llxprt", 0o777))
		}, "mode 0777"},
		{"writable by another group", func(_ *testing.T, home string) error {
			return errors.Join(os.Mkdir(home+"/.llxprt", 0o700), os.Chown(home+"/.llxprt", -1, 12345), os.Chmod(home+"/.llxprt", 0o770))
		}, "mode 0770"},
		{"of another user", func(_ *testing.T, home string) error {
			return errors.Join(os.Mkdir(home+"/.llxprt", 0o755), os.Chown(home+"/.llxprt", 12345, -1))
		}, "belongs to the user 12345"},
		{"a directory for a lock", func(_ *testing.T, home string) error {
			return os.MkdirAll(home+"/.llxprt/oauth/locks/acme-refresh.lock", 0o700)
		}, "there is a directory"},
		{"no home", func(t *testing.T, _ string) error { t.Setenv("HOME", ""); return nil }, "HOME is not set"},
		{"a home that is not there", func(t *testing.T, home string) error { t.Setenv("HOME", home+"/none"); return nil }, "no such file"},
		{"a home that takes no files", func(t *testing.T, _ string) error { t.Setenv("HOME", "/proc/self"); return nil }, "/proc/self"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home, _, newLock := isolate(t)
			if err := tt.spoil(t, home); err != nil {
				t.Fatalf("%v (only root can give a file away: run as root)", err)
			}
			var log strings.Builder
			locks := peerlock.New(slog.New(slog.NewTextHandler(&log, nil)))
			for range 2 {
				unlock, err := locks.Refresh(t.Context(), login)
				if err != nil {
					t.Fatal(err)
				}
				wantFiles(t, filepath.Dir(newLock), filepath.Base(newLock))
				unlock()
			}
			if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN") || !strings.Contains(text, tt.says) {
				t.Errorf("log: %s", text)
			}
		})
	}
}

// Directories that others can read, or that the user's own group can write, are fine. So are links above those that are
// the original's own.
func TestOtherModes(t *testing.T) {
	home, oldLock, _ := isolate(t)
	if err := os.Symlink(t.TempDir(), filepath.Join(home, ".local")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LLXPRT_LOG_HOME", "")
	for dir, mode := range map[string]os.FileMode{".llxprt": 0o755, ".llxprt/oauth": 0o775, ".llxprt/oauth/locks": 0o775} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(home, dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	unlock := mustLock(t)
	defer unlock()
	wantFiles(t, filepath.Dir(oldLock), filepath.Base(oldLock))
	wantFiles(t, filepath.Join(home, ".local", "state", "llxprt-code", "oauth", "locks"), filepath.Base(oldLock))
}

// That this process has no more files to open does not keep the original from taking its lock.
func TestOurOwnTroubleIsNoReasonToPassOver(t *testing.T) {
	isolate(t)
	locks := peerlock.New(nil)
	for err, passedOver := range map[error]bool{
		syscall.EMFILE: false, syscall.ENFILE: false, syscall.ENOMEM: false,
		syscall.EACCES: true, syscall.EROFS: true, syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.ENOTSUP: true,
	} {
		if got := locks.Skip(&os.PathError{Op: "open", Path: "lock", Err: err}); (got == nil) != passedOver || got != nil && !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}
