package file_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
)

// roles are what a child process does in the directory args[0]; a file for one system adds its own.
var roles = systest.Roles{}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// item is the item of most tests; its file is items/svc/acme%3adefault.age.
var item = store.Item{Service: "svc", Account: "acme:default"}

const itemPath = "items/svc/acme%3adefault.age"

func newDir(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "data", "store")
}

func open(t testing.TB, o file.Options) *file.Store {
	t.Helper()
	s, err := file.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openFile opens a store with its key in key.txt.
func openFile(t testing.TB, dir string) *file.Store {
	t.Helper()
	return open(t, file.Options{Dir: dir, Key: file.KeyFile})
}

func write(t testing.TB, s store.Store, it store.Item, value string) {
	t.Helper()
	if err := s.Write(t.Context(), it, secret.New(value)); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func wantValue(t testing.TB, s store.Store, it store.Item, want string) {
	t.Helper()
	if got, err := s.Read(t.Context(), it); err != nil {
		t.Fatalf("Read %s: %v", it, err)
	} else if got.Reveal() != want {
		t.Fatalf("Read %s: another value than was written", it)
	}
}

func wantError(t testing.TB, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

// files returns the paths below dir of all that is no directory.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t testing.TB, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// refusing is a keyring that answers everything with an error.
type refusing struct {
	store.Store
	err error
}

func (r refusing) Read(context.Context, store.Item) (secret.String, error) {
	return secret.String{}, fmt.Errorf("keyring: %w", r.err)
}

func (r refusing) Write(context.Context, store.Item, secret.String) error {
	return fmt.Errorf("keyring: %w", r.err)
}
