package file_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

func sealer(t testing.TB, s *file.Store) *file.Sealer {
	t.Helper()
	k, err := s.Sealer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealer(t *testing.T) {
	dir := newDir(t)
	k := sealer(t, openFile(t, dir))
	for _, plain := range []string{"", "x", strings.Repeat("y", 2<<20)} {
		sealed, err := k.Seal([]byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sealer(t, openFile(t, dir)).Open(sealed); err != nil || string(got) != plain {
			t.Errorf("%d bytes: %v", len(plain), err)
		}
	}

	// The key is the one of the items, and what is sealed is an age file.
	sealed, err := k.Seal([]byte("test-refresh-token-1"))
	if err != nil {
		t.Fatal(err)
	}
	identities, err := age.ParseIdentities(bytes.NewReader(readFile(t, filepath.Join(dir, "key.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := age.Decrypt(bytes.NewReader(sealed), identities...); err != nil {
		t.Error(err)
	} else if got, err := io.ReadAll(r); err != nil || string(got) != "test-refresh-token-1" {
		t.Error(err)
	}
	write(t, openFile(t, dir), item, "v")
	wantValue(t, openFile(t, dir), item, "v")

	// From then on it needs no file.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	again, err := k.Seal([]byte("z"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(again); err != nil || string(got) != "z" {
		t.Errorf("Open: %v", err)
	}
	for i := 0; i < len(sealed); i += 7 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if got, err := k.Open(bad); err == nil || got != nil || strings.Contains(err.Error(), "test-refresh-token-1") {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := k.Open(sealed[:i]); err == nil {
			t.Errorf("the first %d bytes were taken", i)
		}
	}
	other, err := file.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(sealed); err == nil {
		t.Error("another key opens it")
	}
}

// The key that a Sealer has used is not replaced while it cannot be asked for, though there are no items.
func TestSealerWithTheKeyOutOfReach(t *testing.T) {
	o := file.Options{Dir: newDir(t), Keyring: memory.New()}
	sealed, err := sealer(t, open(t, o)).Seal([]byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	keyring := o.Keyring
	for _, why := range []error{store.ErrLocked, store.ErrUnavailable} {
		o.Keyring = refusing{err: why}
		_, err := open(t, o).Sealer(t.Context())
		wantError(t, err, file.ErrNoKey, o.Dir)
		wantError(t, err, why)
	}
	o.Keyring = keyring
	if got, err := sealer(t, open(t, o)).Open(sealed); err != nil || string(got) != "v" {
		t.Errorf("Open: %v", err)
	}
	if has(t, o.Dir, "key.txt") {
		t.Error("another key was made")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, o).Sealer(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkSealer(b *testing.B) {
	s := openFile(b, newDir(b))
	sealer(b, s)
	for b.Loop() {
		sealer(b, s)
	}
}
