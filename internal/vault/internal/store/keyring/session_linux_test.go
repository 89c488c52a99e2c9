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

func open(t *testing.T, s *keyringtest.Session) *keyring.Store {
	t.Helper()
	k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(s.Dir, "locks"), Bus: s.Address})
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

// wantAll checks that every operation fails with want, within the time, all of them asked at once.
func wantAll(t *testing.T, k store.Store, it store.Item, want error, within time.Duration, says string) {
	t.Helper()
	var wg sync.WaitGroup
	for name, f := range map[string]func(context.Context) error{
		"Read":   func(ctx context.Context) error { _, err := k.Read(ctx, it); return err },
		"Write":  func(ctx context.Context) error { return k.Write(ctx, it, secret.New("test-canary")) },
		"Delete": func(ctx context.Context) error { return k.Delete(ctx, it) },
		"List":   func(ctx context.Context) error { _, err := k.List(ctx, it.Service); return err },
		"Check":  k.Check,
	} {
		wg.Go(func() {
			begun := time.Now()
			err := f(t.Context())
			if !errors.Is(err, want) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v, want %v saying %q", name, err, want, says)
			}
			if took := time.Since(begun); took > within {
				t.Errorf("%s took %v", name, took)
			}
		})
	}
	wg.Wait()
}
