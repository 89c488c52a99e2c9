package backend_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/backend"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/keyringtest"
)

var item = store.Item{Service: store.ServiceLogins, Account: "acme:default"}

func options(t *testing.T, kind, bus string) backend.Options {
	t.Helper()
	dir := t.TempDir()
	return backend.Options{Kind: kind, Dir: filepath.Join(dir, "files"), LockDir: filepath.Join(dir, "locks"), Bus: bus}
}

func open(t *testing.T, o backend.Options) *backend.Store {
	t.Helper()
	s, err := backend.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func roundTrip(t *testing.T, o backend.Options) {
	t.Helper()
	if err := open(t, o).Write(t.Context(), item, secret.New("v")); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, o).Read(t.Context(), item); err != nil || got.Reveal() != "v" {
		t.Fatalf("Read: %v", err)
	}
}

func TestAuto(t *testing.T) {
	session := keyringtest.NewUnlocked(t)

	o := options(t, "auto", session.Address)
	if s := open(t, o); s.Name() != "keyring" || s.NotKeyring != nil {
		t.Errorf("with a keyring: %s, %v", s.Name(), s.NotKeyring)
	}
	roundTrip(t, o)
	if _, err := os.Lstat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file store was made: %v", err)
	}

	session.Lock(t)
	s := open(t, o)
	if s.Name() != "keyring" {
		t.Errorf("with a locked keyring: %s", s.Name())
	}
	if _, err := s.Read(t.Context(), item); !errors.Is(err, store.ErrLocked) {
		t.Errorf("with a locked keyring: %v", err)
	}

	keyringtest.End(session.Keyring)
	o = options(t, "auto", session.Address)
	if s := open(t, o); s.Name() != "file" || !errors.Is(s.NotKeyring, store.ErrUnavailable) {
		t.Errorf("without a keyring: %s, %v", s.Name(), s.NotKeyring)
	}
	roundTrip(t, o)
	if _, err := os.Lstat(filepath.Join(o.Dir, "key.txt")); err != nil {
		t.Errorf("the key: %v", err)
	}
}

func TestFileWithItsKeyInTheKeyring(t *testing.T) {
	session := keyringtest.NewUnlocked(t)
	o := options(t, "file", session.Address)
	roundTrip(t, o)
	if _, err := os.Lstat(filepath.Join(o.Dir, "key.txt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("key.txt: %v", err)
	}
	if key := session.Lookup(t, "service", "credproxy-file-store", "username", "identity"); key == "" {
		t.Error("there is no key in the keyring")
	}
	session.Lock(t)
	if _, err := open(t, o).Read(t.Context(), item); !errors.Is(err, store.ErrLocked) || !errors.Is(err, file.ErrNoKey) {
		t.Errorf("with a locked keyring: %v", err)
	}
	session.Unlock(t)
	if _, err := open(t, o).Read(t.Context(), item); err != nil {
		t.Error(err)
	}
}

func TestKinds(t *testing.T) {
	nowhere := "unix:path=" + filepath.Join(t.TempDir(), "none")
	for kind, name := range map[string]string{"memory": "memory", "keyring": "keyring", "file": "file", "auto": "file"} {
		if s := open(t, options(t, kind, nowhere)); s.Name() != name {
			t.Errorf("%s: %s", kind, s.Name())
		}
	}
	for _, o := range []backend.Options{
		{Kind: "paper", Dir: "/a", LockDir: "/b"}, {Dir: "/a", LockDir: "/b"}, {Kind: "file", Dir: "a", LockDir: "/b"},
		{Kind: "keyring", LockDir: "b"}, {Kind: "file", Dir: "/a", LockDir: "/b", Key: "paper"},
	} {
		if _, err := backend.Open(t.Context(), o); err == nil {
			t.Errorf("%+v was opened", o)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := backend.Open(ctx, options(t, "auto", nowhere)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
