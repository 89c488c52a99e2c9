package backend_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

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
	return backend.Options{Kind: kind, Dir: filepath.Join(dir, "files"), LockDir: filepath.Join(dir, "locks"), RecoveryDir: filepath.Join(dir, "recovery"), Bus: bus, Limit: time.Minute}
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

	session.EndKeyring(t)
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
		{Kind: "keyring", LockDir: "b"}, {Kind: "keyring", LockDir: "/b", RecoveryDir: "c"}, {Kind: "file", Dir: "/a", LockDir: "/b", Key: "paper"},
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

func seal(t *testing.T, s *backend.Store, plain string) []byte {
	t.Helper()
	sealer, err := s.Sealer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealer.Seal([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantSealed(t *testing.T, s *backend.Store, sealed []byte, want string) {
	t.Helper()
	sealer, err := s.Sealer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := sealer.Open(sealed); err != nil || string(plain) != want {
		t.Fatalf("Open: %v", err)
	}
}

func TestSealer(t *testing.T) {
	session := keyringtest.NewUnlocked(t)
	for _, kind := range []string{"auto", "keyring", "file"} {
		o := options(t, kind, session.Address)
		sealed := seal(t, open(t, o), kind)
		wantSealed(t, open(t, o), sealed, kind) // another process
		if _, err := os.Lstat(filepath.Join(o.RecoveryDir, "key.txt")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: key.txt although there is a keyring: %v", kind, err)
		}
	}
	if key := session.Lookup(t, "service", "credproxy-file-store", "username", "identity"); key == "" {
		t.Error("there is no key in the keyring")
	}
	o := options(t, "memory", "")
	s := open(t, o)
	sealed := seal(t, s, "m")
	wantSealed(t, s, sealed, "m")
	other, err := open(t, o).Sealer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(sealed); err == nil {
		t.Error("another memory has the key")
	}
	o = options(t, "keyring", session.Address)
	o.RecoveryDir = ""
	if sealer, err := open(t, o).Sealer(t.Context()); err == nil || sealer != nil {
		t.Errorf("without a directory: %v, %v", sealer, err)
	}
}

// What was sealed stays sealed while the keyring is locked, and no other key takes the place of the one in it.
func TestSealerBehindALockedKeyring(t *testing.T) {
	session := keyringtest.NewUnlocked(t)
	o := options(t, "keyring", session.Address)
	running := open(t, o)
	sealed := seal(t, running, "v")

	session.Lock(t)
	wantSealed(t, running, sealed, "v") // it has the key in memory
	later := seal(t, running, "w")
	started := open(t, o)
	if sealer, err := started.Sealer(t.Context()); !errors.Is(err, store.ErrLocked) || !errors.Is(err, file.ErrNoKey) || sealer != nil {
		t.Errorf("started while it is locked: %v, %v", sealer, err)
	}

	session.Unlock(t)
	wantSealed(t, started, sealed, "v")
	wantSealed(t, open(t, o), later, "w")
	if _, err := os.Lstat(filepath.Join(o.RecoveryDir, "key.txt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("key.txt: %v", err)
	}
}

// A keyring that could not take the key when it was needed: it is in a file from then on.
func TestSealerWithoutAKeyring(t *testing.T) {
	session := keyringtest.NewUnlocked(t)
	session.Lock(t)
	o := options(t, "keyring", session.Address)
	sealed := seal(t, open(t, o), "v")
	if info, err := os.Lstat(filepath.Join(o.RecoveryDir, "key.txt")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key.txt: %v, %v", info, err)
	}
	session.Unlock(t)
	wantSealed(t, open(t, o), sealed, "v")
	session.EndKeyring(t)
	wantSealed(t, open(t, o), sealed, "v")
}
