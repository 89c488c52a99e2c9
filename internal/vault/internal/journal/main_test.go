package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
)

// roles are what a child process does in the directory args[0]; a file for one system adds its own.
var roles = systest.Roles{}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// item is the login of most tests; its file is acme%3adefault.journal.
var item = login("acme:default")

const itemFile = "acme%3adefault.journal"

func login(account string) store.Item {
	return store.Item{Service: store.ServiceLogins, Account: account}
}

// newJournal is a journal with a key that no other has.
func newJournal(dirs ...string) (*journal.Journal, error) {
	s, err := file.NewSealer()
	if err != nil {
		return nil, err
	}
	return journal.New(journal.Options{Dirs: dirs, Key: func(context.Context) (journal.Sealer, error) { return s, nil }})
}

func open(t testing.TB, dirs ...string) *journal.Journal {
	t.Helper()
	j, err := newJournal(dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func newDir(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "state", "journal")
}

// generation is record number n: its parts say so too, so that a mixture of two is found.
func generation(n, size int) journal.Record {
	number := fmt.Sprintf("%08d", n)
	return journal.Record{Phase: journal.Received, Status: n, Code: number, Sealed: bytes.Repeat([]byte(number), size/8)}
}

// generationOf is the number of a record that generation made, or an error if it is not whole.
func generationOf(r journal.Record) (int, error) {
	number := fmt.Sprintf("%08d", r.Status)
	if r.Code != number || !bytes.Equal(r.Sealed, bytes.Repeat([]byte(number), len(r.Sealed)/8)) {
		return 0, fmt.Errorf("a record that nobody wrote: number %d, code %q, %d bytes", r.Status, r.Code, len(r.Sealed))
	}
	return r.Status, nil
}

func write(t testing.TB, j *journal.Journal, it store.Item, r journal.Record) {
	t.Helper()
	if err := j.Write(t.Context(), it, r, 0); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func wantGeneration(t testing.TB, j *journal.Journal, it store.Item, want int) {
	t.Helper()
	if err := checkGeneration(j, it, want); err != nil {
		t.Fatal(err)
	}
}

// checkGeneration is for roles; want 0 is no record.
func checkGeneration(j *journal.Journal, it store.Item, want int) error {
	r, err := j.Read(context.Background(), it)
	if err != nil {
		return fmt.Errorf("Read: %w", err)
	}
	if want == 0 {
		if r.Status != 0 || r.Code != "" {
			return fmt.Errorf("Read: number %d, where there should be no record", r.Status)
		}
		return nil
	}
	if got, err := generationOf(r); err != nil || got != want {
		return fmt.Errorf("Read: number %d, want %d: %v", got, want, err)
	}
	return nil
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// names are those in dir, "" if there is no dir.
func names(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func chmod(t testing.TB, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func notDurable(err error, says string) error {
	if !errors.Is(err, journal.ErrNotDurable) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
		return fmt.Errorf("error %w, want one that says %q", err, says)
	}
	return nil
}
