package keyring_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/keyringtest"
)

// Where the original client has its locks of item, below HOME.
const (
	olderLock = ".llxprt/oauth/locks/acme-refresh.lock"
	newerLock = ".local/state/llxprt-code/oauth/locks/acme-refresh.lock"
	writeLock = ".local/state/llxprt-code/secure-store/locks/cred-llxprt-code-oauth@acme%3Adefault.lock"
)

// theirs is a lock that the original holds, on another machine with the same home.
const theirs = `{"version":1,"ownerToken":"test-owner-1","pid":1,"hostname":"other.example","startTimeMs":0,"startTimeSource":"canonical"}`

func TestLockIsThatOfTheOriginalClientToo(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	unlock, err := k.Lock(t.Context(), item)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{olderLock, newerLock} {
		if _, err := os.Lstat(inHome(path)); err != nil {
			t.Error(err)
		}
	}
	write(t, k, item, "v")
	unlock()
	for _, path := range []string{olderLock, newerLock, writeLock} {
		if _, err := os.Lstat(inHome(path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}

	own := store.Item{Service: "credproxy-file-store", Account: "acme:default"}
	for path, blocks := range map[string][]func(context.Context) error{
		olderLock: {func(ctx context.Context) error { _, err := k.Lock(ctx, item); return err }},
		newerLock: {func(ctx context.Context) error { _, err := k.Lock(ctx, item); return err }},
		writeLock: {
			func(ctx context.Context) error { return k.Write(ctx, item, secret.New("test-canary")) },
			func(ctx context.Context) error { return k.Delete(ctx, item) },
		},
	} {
		if err := os.WriteFile(inHome(path), []byte(theirs), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, f := range blocks {
			if err := untilNamed(t, path, f); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "canary") {
				t.Errorf("with %s: %v", path, err)
			}
		}
		// Reading waits for nobody, and our own item is nobody else's.
		wantValue(t, k, item, "v")
		unlock, err := k.Lock(t.Context(), own)
		if err != nil {
			t.Fatal(err)
		}
		write(t, k, own, "w")
		unlock()
		if err := os.Remove(inHome(path)); err != nil {
			t.Fatal(err)
		}
	}
	// What failed has left nothing locked.
	unlock, err = k.Lock(t.Context(), item)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestHomeThatTakesNoLocks(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	if err := os.WriteFile(inHome(".llxprt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(s.Dir, "locks"), Bus: s.Address, Limit: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for range 2 {
		unlock, err := k.Lock(t.Context(), item)
		if err != nil {
			t.Fatal(err)
		}
		write(t, k, item, "v")
		unlock()
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, ".llxprt is not a directory") {
		t.Errorf("log: %q", text)
	}
}

// untilNamed runs f with little time, and with more and more if that is over before f has come to the lock at path.
func untilNamed(t *testing.T, path string, f func(context.Context) error) (err error) {
	t.Helper()
	for limit := 100 * time.Millisecond; limit < time.Minute; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err = f(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), path) {
			break
		}
	}
	return err
}

func inHome(path string) string { return filepath.Join(os.Getenv("HOME"), path) }
