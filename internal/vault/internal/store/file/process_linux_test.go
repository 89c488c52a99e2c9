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

// inNamespace gives the child a user and mount namespace of its own, where anybody may mount; the mounts go with it.
func inNamespace(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

func run(t *testing.T, cmd *exec.Cmd, options ...func(*exec.Cmd)) {
	t.Helper()
	for _, o := range options {
		o(cmd)
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		t.Fatalf("this test needs a user namespace of its own: run as root, or set the sysctls kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Processes that find no key make one together, not one each.
func TestProcessesMakeOneKey(t *testing.T) {
	for range 5 {
		dir := newDir(t)
		const n = 4
		var cmds []*exec.Cmd
		for range n {
			cmd := child(t, "write an item", dir)
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

func writeAnItem(dir string) int {
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return complain("%v", err)
	}
	account := strconv.Itoa(os.Getpid())
	if err := s.Write(context.Background(), store.Item{Service: "svc", Account: account}, secret.New("of "+account)); err != nil {
		return complain("%v", err)
	}
	return 0
}

// Whenever a writer is killed, the item is the old or the new one, whole.
func TestKill(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	write(t, s, item, "0 ")
	for range 25 {
		cmd := child(t, "write for ever", dir)
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

func writeForEver(dir string) int {
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return complain("%v", err)
	}
	for n := 1; ; n++ {
		number := strconv.Itoa(n * 997)
		value := number + " " + strings.Repeat(number, n*997%5000)
		if err := s.Write(context.Background(), item, secret.New(value)); err != nil {
			return complain("%v", err)
		}
		if n == 1 {
			fmt.Print(".")
		}
	}
}

func TestFullDisk(t *testing.T) { run(t, child(t, "fill the disk", t.TempDir()), inNamespace) }

func fillTheDisk(dir string) int {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		return complain("mount a tmpfs: %v", err)
	}
	ctx := context.Background()
	s, err := file.Open(file.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		return complain("%v", err)
	}
	if err := s.Write(ctx, item, secret.New("old")); err != nil {
		return complain("%v", err)
	}
	large := secret.New(strings.Repeat("x", 200<<10))
	if err := s.Write(ctx, store.Item{Service: "svc", Account: "ballast"}, large); err != nil {
		return complain("%v", err)
	}
	err = s.Write(ctx, item, large)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "store", itemPath)) {
		return complain("on a full disk: %v", err)
	}
	if v, err := s.Read(ctx, item); err != nil || v.Reveal() != "old" {
		return complain("the old value: %v", err)
	}
	if err := s.Delete(ctx, store.Item{Service: "svc", Account: "ballast"}); err != nil {
		return complain("%v", err)
	}
	if err := s.Write(ctx, item, large); err != nil {
		return complain("with room again: %v", err)
	}
	return 0
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "old")
	run(t, child(t, "read-only", dir), inNamespace)
	wantValue(t, openFile(t, dir), item, "old")
	if err := os.Remove(filepath.Join(dir, "key.id")); err != nil { // as in a backup that somebody made by hand
		t.Fatal(err)
	}
	run(t, child(t, "read-only", dir), inNamespace)
}

func TestDamagedFileThatCannotBeRenamed(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "v")
	run(t, child(t, "damaged, read-only", dir), inNamespace)
}

func mountReadOnly(dir string) error {
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	// The flags that the file system has already cannot be taken away in a user namespace.
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	kept := uintptr(st.Flags) & (syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME | syscall.MS_NODIRATIME)
	if err := syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY|syscall.MS_RELATIME|kept, ""); err != nil {
		return fmt.Errorf("remount read-only: %w", err)
	}
	return nil
}

func readOnly(dir string) int {
	ctx := context.Background()
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return complain("%v", err)
	}
	// Whoever asks whether a new token would be safe must not be told that by the directory above.
	logins := filepath.Join(dir, "items", store.ServiceLogins)
	if err := s.Write(ctx, store.Item{Service: store.ServiceLogins, Account: "acme:default"}, secret.New("v")); err != nil {
		return complain("%v", err)
	}
	if err := mountReadOnly(logins); err != nil {
		return complain("%v", err)
	}
	if err := s.Check(ctx); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), logins) {
		return complain("Check where the logins are read-only: %v", err)
	}
	if err := mountReadOnly(dir); err != nil {
		return complain("%v", err)
	}
	for name, err := range map[string]error{
		"Write":  s.Write(ctx, item, secret.New("new")),
		"Delete": s.Delete(ctx, item),
	} {
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), filepath.Join(dir, itemPath)) {
			return complain("%s: %v", name, err)
		}
	}
	if err := s.Check(ctx); !errors.Is(err, syscall.EROFS) {
		return complain("Check: %v", err)
	}
	if _, err := s.Sealer(ctx); err != nil {
		return complain("Sealer: %v", err)
	}
	for range 2 {
		if v, err := s.Read(ctx, item); err != nil || v.Reveal() != "old" {
			return complain("Read: %v", err)
		}
	}
	return 0
}

func damagedReadOnly(dir string) int {
	path := filepath.Join(dir, itemPath)
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		return complain("%v", err)
	}
	if err := mountReadOnly(dir); err != nil {
		return complain("%v", err)
	}
	s, err := file.Open(file.Options{Dir: dir})
	if err != nil {
		return complain("%v", err)
	}
	for range 2 {
		if _, err := s.Read(context.Background(), item); !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), path) {
			return complain("Read: %v", err)
		}
	}
	return 0
}
