package file_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
)

func init() {
	roles["write an item"] = writeAnItem
	roles["write for ever"] = writeForEver
	roles["fill the disk"] = fillTheDisk
	roles["read-only"] = readOnly
	roles["damaged, read-only"] = damagedReadOnly
}

// Processes that find no key make one together, not one each.
func TestProcessesMakeOneKey(t *testing.T) {
	for range 5 {
		dir := newDir(t)
		const n = 4
		var cmds []*exec.Cmd
		for range n {
			cmd := roles.Command(t, "write an item", dir)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			cmds = append(cmds, cmd)
		}
		for _, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		s := openFile(t, dir)
		list, err := s.List(t.Context(), "svc")
		if err != nil || len(list) != n {
			t.Fatalf("List = %q, %v", list, err)
		}
		for _, account := range list {
			wantValue(t, s, store.Item{Service: "svc", Account: account}, "of "+account)
		}
	}
}

func writeAnItem(args []string) error {
	dir := args[0]
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return err
	}
	account := strconv.Itoa(os.Getpid())
	if err := s.Write(context.Background(), store.Item{Service: "svc", Account: account}, secret.New("of "+account)); err != nil {
		return err
	}
	return nil
}

// Whenever a writer is killed, the item is the old or the new one, whole.
func TestKill(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	write(t, s, item, "0 ")
	for range 25 {
		cmd := roles.Command(t, "write for ever", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has written once
			t.Fatal(err)
		}
		begun := time.Now()
		for wait := rand.N(20 * time.Millisecond); time.Since(begun) < wait; {
			if _, err := s.Read(t.Context(), item); err != nil {
				t.Fatalf("while it writes: %v", err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		v, err := s.Read(t.Context(), item)
		if err != nil {
			t.Fatalf("after the kill: %v", err)
		}
		number, rest, _ := strings.Cut(v.Reveal(), " ")
		if n, err := strconv.Atoi(number); err != nil || rest != strings.Repeat(number, n%5000) {
			t.Fatalf("a value of %d bytes that nobody wrote", len(v.Reveal()))
		}
	}
	for _, path := range files(t, dir) {
		if strings.Contains(path, "damaged") {
			t.Errorf("set aside: %s", path)
		}
	}
}

func writeForEver(args []string) error {
	dir := args[0]
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		number := strconv.Itoa(n * 997)
		value := number + " " + strings.Repeat(number, n*997%5000)
		if err := s.Write(context.Background(), item, secret.New(value)); err != nil {
			return err
		}
		if n == 1 {
			fmt.Print(".")
		}
	}
}

func TestFullDisk(t *testing.T) {
	systest.RunInNamespace(t, roles.Command(t, "fill the disk", t.TempDir()), 0)
}

func fillTheDisk(args []string) error {
	dir := args[0]
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs: %v", err)
	}
	ctx := context.Background()
	s, err := file.Open(file.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		return err
	}
	if err := s.Write(ctx, item, secret.New("old")); err != nil {
		return err
	}
	large := secret.New(strings.Repeat("x", 200<<10))
	if err := s.Write(ctx, store.Item{Service: "svc", Account: "ballast"}, large); err != nil {
		return err
	}
	err = s.Write(ctx, item, large)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "store", itemPath)) {
		return fmt.Errorf("on a full disk: %v", err)
	}
	if v, err := s.Read(ctx, item); err != nil || v.Reveal() != "old" {
		return fmt.Errorf("the old value: %v", err)
	}
	if err := s.Delete(ctx, store.Item{Service: "svc", Account: "ballast"}); err != nil {
		return err
	}
	if err := s.Write(ctx, item, large); err != nil {
		return fmt.Errorf("with room again: %v", err)
	}
	return nil
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "old")
	systest.RunInNamespace(t, roles.Command(t, "read-only", dir), 0)
	wantValue(t, openFile(t, dir), item, "old")
	if err := os.Remove(filepath.Join(dir, "key.id")); err != nil { // as in a backup that somebody made by hand
		t.Fatal(err)
	}
	systest.RunInNamespace(t, roles.Command(t, "read-only", dir), 0)
}

func TestDamagedFileThatCannotBeRenamed(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "v")
	systest.RunInNamespace(t, roles.Command(t, "damaged, read-only", dir), 0)
}

func readOnly(args []string) error {
	dir := args[0]
	ctx := context.Background()
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return err
	}
	// Whoever asks whether a new token would be safe must not be told that by the directory above.
	logins := filepath.Join(dir, "items", store.ServiceLogins)
	if err := s.Write(ctx, store.Item{Service: store.ServiceLogins, Account: "acme:default"}, secret.New("v")); err != nil {
		return err
	}
	if err := systest.MountReadOnly(logins); err != nil {
		return err
	}
	if err := s.Check(ctx); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), logins) {
		return fmt.Errorf("Check where the logins are read-only: %v", err)
	}
	if err := systest.MountReadOnly(dir); err != nil {
		return err
	}
	for name, err := range map[string]error{
		"Write":  s.Write(ctx, item, secret.New("new")),
		"Delete": s.Delete(ctx, item),
	} {
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), filepath.Join(dir, itemPath)) {
			return fmt.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Check(ctx); !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("Check: %v", err)
	}
	if _, err := s.Sealer(ctx); err != nil {
		return fmt.Errorf("Sealer: %v", err)
	}
	for range 2 {
		if v, err := s.Read(ctx, item); err != nil || v.Reveal() != "old" {
			return fmt.Errorf("Read: %v", err)
		}
	}
	return nil
}

func damagedReadOnly(args []string) error {
	dir := args[0]
	path := filepath.Join(dir, itemPath)
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		return err
	}
	if err := systest.MountReadOnly(dir); err != nil {
		return err
	}
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := s.Read(context.Background(), item); !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), path) {
			return fmt.Errorf("Read: %v", err)
		}
	}
	return nil
}
