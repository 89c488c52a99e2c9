package filelock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filelock"
)

var item = store.Item{Service: "svc", Account: "acme:default"}

var roles = systest.Roles{"lock": func(args []string) error { // in the directory args[0]; it says so, and waits to be killed
	root, err := os.OpenRoot(args[0])
	if err != nil {
		return err
	}
	unlock, err := filelock.Lock(context.Background(), root, item)
	if err != nil {
		return err
	}
	fmt.Println("locked")
	systest.AwaitEnd()
	unlock()
	return nil
}}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func mustLock(t *testing.T, root *os.Root, it store.Item) (unlock func()) {
	t.Helper()
	unlock, err := filelock.Lock(t.Context(), root, it)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func wantBusy(t *testing.T, root *os.Root, it store.Item) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := filelock.Lock(ctx, root, it); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), root.Name()) {
		t.Fatalf("Lock: %v, want a lock that is taken", err)
	}
}

func TestLockDiesWithItsProcess(t *testing.T) {
	root := openRoot(t)
	p := roles.Start(t, nil, "lock", root.Name())
	p.Line(t)
	wantBusy(t, root, item)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.End()
	mustLock(t, root, item)()
}

// Someone who waits for a lock whose file is deleted meanwhile must end up on the same file as those who come later.
func TestDeletedLockFile(t *testing.T) {
	root := openRoot(t)
	first := mustLock(t, root, item)
	got := make(chan func())
	go func() {
		unlock, err := filelock.Lock(t.Context(), root, item)
		if err != nil {
			t.Error(err)
		}
		got <- unlock
	}()
	if err := root.Remove(lockFile(t, root)); err != nil {
		t.Fatal(err)
	}
	second := <-got // the file is another one: nothing holds it back
	wantBusy(t, root, item)
	first()
	wantBusy(t, root, item)
	second()
	mustLock(t, root, item)()
}

func TestLongNames(t *testing.T) {
	root := openRoot(t)
	long := store.Item{Service: strings.Repeat("S", store.MaxName), Account: strings.Repeat("A", store.MaxName)}
	other := store.Item{Service: long.Service, Account: long.Account[1:]}
	defer mustLock(t, root, long)()
	wantBusy(t, root, long)
	mustLock(t, root, other)()
}

func TestNamesDoNotMix(t *testing.T) {
	root := openRoot(t)
	for _, it := range []store.Item{{Service: "a", Account: "b"}, {Service: "a+b", Account: "c"}, {Service: "a", Account: "b+c"}, {Service: "A", Account: "b"}} {
		defer mustLock(t, root, it)()
	}
}

func TestOddLockFiles(t *testing.T) {
	root := openRoot(t)
	mustLock(t, root, item)()
	path := lockFile(t, root)
	if err := root.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(root.Name(), path)); err != nil {
		t.Fatal(err)
	}
	if _, err := filelock.Lock(t.Context(), root, item); err == nil {
		t.Error("a link out of the directory was locked")
	}
	if err := root.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := root.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := filelock.Lock(t.Context(), root, item); err == nil {
		t.Error("a directory was locked")
	}
}

func lockFile(t *testing.T, root *os.Root) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(root.Name(), "*.lock"))
	if err != nil || len(all) != 1 {
		t.Fatalf("lock files: %q, %v", all, err)
	}
	return filepath.Base(all[0])
}
