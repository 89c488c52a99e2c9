package keyring_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/keyringtest"
)

// A connection that is given up, after a time limit or because it broke, must not leave its goroutines behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open has patience: on a busy machine a keyring takes longer for a call than people would wait.
func open(t *testing.T, s *keyringtest.Session) *keyring.Store {
	t.Helper()
	return openWithin(t, s, time.Minute)
}

// openWithin gives each call of the keyring so much time; 0 is what the program gives it.
func openWithin(t *testing.T, s *keyringtest.Session, limit time.Duration) *keyring.Store {
	t.Helper()
	k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(s.Dir, "locks"), Bus: s.Address, Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func write(t *testing.T, k store.Store, it store.Item, value string) {
	t.Helper()
	if err := k.Write(t.Context(), it, secret.New(value)); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func wantValue(t *testing.T, k store.Store, it store.Item, want string) {
	t.Helper()
	if got, err := k.Read(t.Context(), it); err != nil {
		t.Fatalf("Read: %v", err)
	} else if got.Reveal() != want {
		t.Fatalf("Read: %q, want %q", got.Reveal(), want)
	}
}

// wantAll checks that every operation fails with want, and not because its caller's time is over. All are asked at once but
// Delete: it waits for Write, whose lock is its own.
func wantAll(t *testing.T, k store.Store, it store.Item, want error, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	written := make(chan struct{})
	for name, f := range map[string]func(context.Context) error{
		"Read": func(ctx context.Context) error { _, err := k.Read(ctx, it); return err },
		"Write": func(ctx context.Context) error {
			defer close(written)
			return k.Write(ctx, it, secret.New("test-canary"))
		},
		"Delete": func(ctx context.Context) error { <-written; return k.Delete(ctx, it) },
		"List":   func(ctx context.Context) error { _, err := k.List(ctx, it.Service); return err },
		"Check":  k.Check,
	} {
		wg.Go(func() {
			err := f(ctx)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v, want %v saying %q", name, err, want, says)
			}
		})
	}
	wg.Wait()
}
