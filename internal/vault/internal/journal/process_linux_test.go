package journal_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filelock"
)

func init() {
	roles["write for ever"] = writeForEver
	roles["take turns"] = takeTurns
	roles["fill the disk"] = fillTheDisk
	roles["read-only"] = readOnly
	roles["another user"] = anotherUser
}

// At every moment, and after kill -9 at any, a reader finds a whole record that is not older than the last one whose Write had
// returned when it began.
func TestKill(t *testing.T) {
	dir := newDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j := open(t, dir)
	read := func(atLeast int64) (n int) {
		t.Helper()
		r, err := j.Read(t.Context(), item)
		if err != nil {
			t.Fatal(err)
		}
		n, err = generationOf(r)
		if err != nil || int64(n) < atLeast {
			t.Fatalf("number %d after %d was written: %v", n, atLeast, err)
		}
		return n
	}
	for range 30 {
		cmd := roles.Command(t, "write for ever", dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var written atomic.Int64
		ended := make(chan struct{})
		begun := make(chan struct{})
		go func() {
			defer close(ended)
			for scanner := bufio.NewScanner(out); scanner.Scan(); {
				if n, err := strconv.Atoi(scanner.Text()); err == nil {
					if written.Swap(int64(n)) == 0 {
						close(begun)
					}
				}
			}
		}()
		<-begun
		start := time.Now()
		for wait := rand.N(20 * time.Millisecond); time.Since(start) < wait; {
			read(written.Load())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended // all that it has said
		_ = cmd.Wait()
		n := read(written.Load())
		write(t, j, item, generation(n+1, 80)) // the next process goes on
		read(int64(n + 1))
	}
	for name := range strings.FieldsSeq(names(t, dir)) {
		if name != itemFile && !strings.HasPrefix(name, ".atomicfile-") {
			t.Errorf("left: %s", name)
		}
	}
}

func writeForEver(args []string) error {
	dir := args[0]
	ctx := context.Background()
	j, err := newJournal(dir)
	if err != nil {
		return err
	}
	r, err := j.Read(ctx, item)
	if err != nil {
		return err
	}
	for n := r.Status + 1; ; n++ {
		if err := j.Write(ctx, item, generation(n, n*997%11000), n*n%9000); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// Processes that take turns lose no record of each other.
func TestProcessesTakeTurns(t *testing.T) {
	dir := t.TempDir()
	const n = 4
	var cmds []*exec.Cmd
	for range n {
		cmd := roles.Command(t, "take turns", dir)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	wantGeneration(t, open(t, filepath.Join(dir, "journal")), item, n*turns)
}

const turns = 25

func takeTurns(args []string) error {
	dir := args[0]
	ctx := context.Background()
	j, err := newJournal(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	for range turns {
		unlock, err := filelock.Lock(ctx, root, item)
		if err != nil {
			return err
		}
		r, err := j.Read(ctx, item)
		if err == nil && r.Status > 0 {
			_, err = generationOf(r)
		}
		if err == nil {
			err = j.Write(ctx, item, generation(r.Status+1, r.Status*100%9000), 0)
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func TestFullDisk(t *testing.T) {
	systest.RunInNamespace(t, roles.Command(t, "fill the disk", t.TempDir()), 0)
}

// punch makes a hole in a file.
func punch(path string, at, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
	return errors.Join(err, f.Close())
}

func fillTheDisk(args []string) error {
	dir := args[0]
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs: %v", err)
	}
	ctx := context.Background()
	dir = filepath.Join(dir, "journal")
	j, err := newJournal(dir)
	if err != nil {
		return err
	}
	other, err := newJournal(dir)
	if err != nil {
		return err
	}
	begun, late, broken, leaving, sparse := item, login("late:a"), login("broken:a"), login("leaving:a"), login("sparse:a")
	for n, it := range []store.Item{begun, broken, leaving, sparse} {
		if err := j.Write(ctx, it, generation(n+1, 8), 9000); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "broken%3aa.journal"), []byte(strings.Repeat("x", 2*half)), 0o600); err != nil {
		return err
	}
	// The place in it is none, as on file systems that never write in place.
	if err := punch(filepath.Join(dir, "sparse%3aa.journal"), half, half); err != nil {
		return err
	}
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		return err
	}
	for page := make([]byte, 4096); ; {
		if _, err := ballast.Write(page); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			return err
		}
	}
	steps := []struct {
		what string
		err  error
	}{
		{"the answer has its place", j.Write(ctx, begun, generation(3, 9000), 0)},
		{"and is durable", checkGeneration(other, begun, 3)},
		{"more room than there is is no failure", j.Write(ctx, begun, generation(4, 9000), 100_000)},
		{"and the record is durable", checkGeneration(other, begun, 4)},
		{"an intent that needs it fails", notDurable(j.Write(ctx, begun, intent(5), 100_000), "might not fit")},
		{"but is durable", checkGeneration(other, begun, 5)},
		{"one that has its room does not", j.Write(ctx, begun, intent(4), 9000)},
		{"a first record has none", notDurable(j.Write(ctx, late, generation(5, 8), 0), "no space left on device")},
		{"it is held", checkGeneration(j, late, 5)},
		{"by this process alone", checkGeneration(other, late, 0)},
		{"so is one that is too large", notDurable(j.Write(ctx, begun, generation(6, 40_000), 0), "no space left on device")},
		{"it is held too", checkGeneration(j, begun, 6)},
		{"the one before is on disk", checkGeneration(other, begun, 4)},
		{"a damaged file's blocks are used", j.Write(ctx, broken, generation(7, 9000), 0)},
		{"which is durable", checkGeneration(other, broken, 7)},
		{"what could be read is still there", checkGeneration(other, sparse, 4)},
	}
	if !j.Reserved(leaving, 9000) || j.Reserved(sparse, 9000) {
		return errors.New("Reserved: one login's file has its blocks, and the other's has not")
	}
	for _, s := range steps {
		if s.err != nil {
			return fmt.Errorf("%s: %v", s.what, s.err)
		}
	}
	if d, err := j.Check(ctx); d != "" || !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("Check = %q, %v", d, err)
	}
	if list, err := j.List(ctx); err != nil || len(list) != 5 {
		return fmt.Errorf("List = %v, %v", list, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 5 {
		return fmt.Errorf("left: %v, %v", entries, err)
	}
	for _, s := range []struct {
		what string
		err  error
	}{
		{"a login whose record is held", notDurable(j.Write(ctx, leaving, generation(8, 40_000), 0), "no space left on device")},
		{"is removed by another process", other.Remove(ctx, leaving)},
		{"and does not come back", checkGeneration(j, leaving, 0)},
	} {
		if s.err != nil {
			return fmt.Errorf("%s: %v", s.what, s.err)
		}
	}
	if err := ballast.Truncate(0); err != nil {
		return err
	}
	for _, s := range []struct {
		what string
		err  error
	}{
		{"with room again", j.Write(ctx, late, generation(8, 8), 0)},
		{"it is durable", checkGeneration(other, late, 8)},
		{"a large one", j.Write(ctx, begun, generation(9, 40_000), 0)},
		{"is durable", checkGeneration(other, begun, 9)},
		{"nothing is held", j.Close()},
	} {
		if s.err != nil {
			return fmt.Errorf("%s: %v", s.what, s.err)
		}
	}
	if d, err := j.Check(ctx); d != dir || err != nil {
		return fmt.Errorf("Check = %q, %v", d, err)
	}
	return nil
}

// intent is generation without an answer.
func intent(n int) journal.Record {
	r := generation(n, 0)
	r.Phase, r.Sealed = journal.Called, nil
	return r
}

func TestReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	write(t, open(t, filepath.Join(dir, "a")), item, generation(1, 8))
	write(t, open(t, filepath.Join(dir, "a")), login("gone:a"), generation(1, 8))
	systest.RunInNamespace(t, roles.Command(t, "read-only", dir), 0)
	// The one that is writable again has the older records.
	j := open(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	wantGeneration(t, j, item, 302)
	wantGeneration(t, j, login("gone:a"), 0)
}

// readOnly has a first directory that turns read-only and back again while readers look, and a second that does not.
func readOnly(args []string) error {
	dir := args[0]
	ctx := context.Background()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := systest.MountReadOnly(a); err != nil {
		return err
	}
	alone, err := newJournal(a)
	if err != nil {
		return err
	}
	j, err := newJournal(a, b)
	if err != nil {
		return err
	}
	other, err := newJournal(a, b)
	if err != nil {
		return err
	}
	gone := login("gone:a")
	for _, s := range []struct {
		what string
		err  error
	}{
		{"alone", notDurable(alone.Write(ctx, item, generation(2, 8), 0), "read-only file system")},
		{"it is held", checkGeneration(alone, item, 2)},
		{"a removal that is not durable", notDurable(alone.Remove(ctx, gone), "read-only file system")},
		{"holds here", checkGeneration(alone, gone, 0)},
		{"and here only", checkGeneration(other, gone, 1)},
		{"the second directory", j.Write(ctx, item, generation(2, 8), 0)},
		{"has the newest", checkGeneration(other, item, 2)},
		{"a removal", j.Remove(ctx, gone)},
		{"is durable", checkGeneration(other, gone, 0)},
	} {
		if s.err != nil {
			return fmt.Errorf("%s: %v", s.what, s.err)
		}
	}
	if d, err := j.Check(ctx); d != b || !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("Check = %q, %v", d, err)
	}
	if list, err := other.List(ctx); err != nil || len(list) != 1 || list[0] != item {
		return fmt.Errorf("List = %v, %v", list, err)
	}

	done, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for last := 2; ; {
			r, err := other.Read(ctx, item)
			n, broken := generationOf(r)
			if err != nil || broken != nil || n < last {
				failed <- fmt.Errorf("number %d after %d: %w, %w", n, last, err, broken)
				return
			}
			last = n
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	for n := 3; n <= 302; n++ {
		if n%10 == 0 {
			if err := systest.Remount(a, n%20 == 0); err != nil {
				return err
			}
		}
		if err := j.Write(ctx, item, generation(n, n*37%9000), 0); err != nil {
			return err
		}
	}
	close(done)
	if err := <-failed; err != nil {
		return err
	}
	return nil
}

// A directory that does not let a file be made or removed, with a file that can be written to.
func TestReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, open(t, filepath.Join(dir, "journal")), item, generation(1, 8))
	chmod(t, filepath.Join(dir, "journal"), 0o500)
	// Root, even of a namespace, may do anything.
	systest.RunInNamespace(t, roles.Command(t, "another user", dir), 1000)
	wantGeneration(t, open(t, filepath.Join(dir, "journal")), item, 0)
}

func anotherUser(args []string) error {
	dir := args[0]
	ctx := context.Background()
	dir = filepath.Join(dir, "journal")
	j, err := newJournal(dir)
	if err != nil {
		return err
	}
	other, err := newJournal(dir)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		what string
		err  error
	}{
		{"in place", j.Write(ctx, item, generation(2, 9000), 0)},
		{"is durable", checkGeneration(other, item, 2)},
		{"again", j.Write(ctx, item, generation(3, 9000), 0)},
		{"is durable", checkGeneration(other, item, 3)},
		{"more room than can be had is no failure", j.Write(ctx, item, generation(4, 8), 50_000)},
		{"a new file", notDurable(j.Write(ctx, login("new:a"), generation(5, 8), 0), "permission denied")},
		{"a removal", j.Remove(ctx, item)},
		{"is durable", checkGeneration(other, item, 0)},
	} {
		if s.err != nil {
			return fmt.Errorf("%s: %v", s.what, s.err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, itemFile))
	if err != nil || strings.Contains(string(data), "00000") || strings.Contains(string(data), "sealed") {
		return fmt.Errorf("the records are still in the file: %v", err)
	}
	if d, err := j.Check(ctx); d != "" || !errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("Check = %q, %v", d, err)
	}
	return nil
}
