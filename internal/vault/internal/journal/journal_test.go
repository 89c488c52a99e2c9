package journal_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
)

func TestRecord(t *testing.T) {
	dir := newDir(t)
	j := open(t, dir)
	for _, err := range []error{
		func() error { _, err := j.Read(t.Context(), item); return err }(),
		func() error { _, err := j.Version(t.Context(), item); return err }(),
		func() error { _, err := j.List(t.Context()); return err }(),
		j.Remove(t.Context(), item),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made for reading: %v", err)
	}

	now := time.UnixMilli(time.Now().UnixMilli())
	want := journal.Record{
		Phase: journal.Received, Attempt: now, Next: now.Add(30 * time.Second), Refreshed: now.Add(-time.Hour),
		Sent: strings.Repeat("a1", 16), Request: strings.Repeat("b2", 16), Outcome: journal.Refused, Code: "invalid_grant",
		Status: 400, Revoked: true, Interrupted: true, Sealed: []byte{0, 1, 0xff},
	}
	write(t, j, item, want)
	for _, j := range []*journal.Journal{j, open(t, dir)} {
		if got, err := j.Read(t.Context(), item); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Read = %+v, %v, want %+v", got, err, want)
		}
	}
	write(t, j, item, journal.Record{})
	if got, err := j.Read(t.Context(), item); err != nil || !reflect.DeepEqual(got, journal.Record{}) {
		t.Errorf("Read = %+v, %v", got, err)
	}
	if got := names(t, dir); got != itemFile {
		t.Errorf("in the directory: %s", got)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, itemFile): 0o600} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestWrongUse(t *testing.T) {
	key := func(context.Context) (journal.Sealer, error) { return nil, errors.New("not asked") }
	for _, o := range []journal.Options{
		{}, {Dirs: []string{"/a"}}, {Key: key}, {Dirs: []string{"/a", "b"}, Key: key}, {Dirs: []string{""}, Key: key},
	} {
		if _, err := journal.New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	j := open(t, newDir(t))
	for _, it := range []store.Item{{}, {Service: store.ServiceKeys, Account: "a"}, login(""), login("a\x00b"), login(strings.Repeat("x", store.MaxName+1))} {
		_, err1 := j.Read(t.Context(), it)
		_, err2 := j.Version(t.Context(), it)
		_, err3 := j.Seal(t.Context(), it, secret.New("x"))
		_, err4 := j.Open(t.Context(), it, nil)
		for _, err := range []error{err1, err2, err3, err4, j.Write(t.Context(), it, journal.Record{}, 0), j.Remove(t.Context(), it)} {
			if err == nil || errors.Is(err, journal.ErrNotDurable) {
				t.Errorf("%s: %v", it, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.Read(ctx, item); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := j.Write(ctx, item, generation(1, 8), 0); err != nil {
		t.Errorf("a record was lost with its context: %v", err)
	}
}

// Records of all sizes, one after the other; what needs more room gets it, and what was reserved is there.
func TestSizes(t *testing.T) {
	dir := newDir(t)
	j := open(t, dir)
	size := func() int64 {
		info, err := os.Lstat(filepath.Join(dir, itemFile))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	n := 0
	for _, step := range []struct {
		sealed, room int
		want         int64
	}{
		{0, 0, 32 << 10}, {8000, 0, 32 << 10}, {8000, 8000, 32 << 10}, {0, 11000, 32 << 10},
		{0, 12000, 64 << 10}, {12000, 0, 64 << 10}, {0, 1 << 20, 4 << 20}, {1 << 20, 0, 4 << 20}, {8, 8, 4 << 20},
	} {
		n++
		if err := j.Write(t.Context(), item, generation(n, step.sealed), step.room); err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		wantGeneration(t, open(t, dir), item, n)
		if size() != step.want {
			t.Errorf("%+v: the file has %d bytes", step, size())
		}
	}
	// More than there can be: it is held, and a room like that is none.
	if err := j.Write(t.Context(), item, generation(n+1, 7<<20), 0); !errors.Is(err, journal.ErrNotDurable) {
		t.Errorf("too large: %v", err)
	}
	wantGeneration(t, j, item, n+1)
	if err := j.Write(t.Context(), item, generation(n+2, 8), 1<<30); err != nil {
		t.Error(err)
	}
	wantGeneration(t, open(t, dir), item, n+2)
}

func TestVersion(t *testing.T) {
	dir := newDir(t)
	a, b := open(t, dir), open(t, dir)
	seen := map[string]bool{}
	changed := func(what string) {
		t.Helper()
		va, err := a.Version(t.Context(), item)
		if err != nil {
			t.Fatal(err)
		}
		if vb, err := b.Version(t.Context(), item); err != nil || vb != va {
			t.Errorf("%s: %q in one process and %q in another, %v", what, va, vb, err)
		}
		if again, err := a.Version(t.Context(), item); err != nil || again != va {
			t.Errorf("%s: the version changes by itself", what)
		}
		if seen[va] {
			t.Errorf("%s: the version %q was there before", what, va)
		}
		seen[va] = va != "absent"
	}
	changed("absent")
	for range 20 {
		write(t, a, item, generation(1, 8))
		changed("Write")
		write(t, b, item, generation(1, 8))
		changed("the same Write, by another")
		if err := b.Remove(t.Context(), item); err != nil {
			t.Fatal(err)
		}
		changed("Remove")
	}
}

func TestList(t *testing.T) {
	first, second := newDir(t), newDir(t)
	long := strings.Repeat("ABCDEFGH", 8) + ":" + strings.Repeat("IJKLMNOP", 8) // escaped, 387 bytes
	longest := strings.Repeat("é", store.MaxName/2)
	write(t, open(t, second), login("z:late"), generation(4, 8))
	j := open(t, first, second)
	accounts := []string{item.Account, "B:b", "b:b", long, long + "x", longest, ".hidden", "a/b"}
	for i, account := range accounts {
		write(t, j, login(account), generation(i+1, 8))
	}
	for i, account := range accounts {
		wantGeneration(t, open(t, first), login(account), i+1)
	}
	writeFile(t, filepath.Join(first, "other.journal"), readFile(t, filepath.Join(first, itemFile))) // as a person does it
	writeFile(t, filepath.Join(first, "garbage.journal"), []byte("garbage"))
	writeFile(t, filepath.Join(first, "notes.txt"), []byte("notes"))
	want := []store.Item{login(".hidden"), login(long), login(long + "x"), login("B:b"), login("a/b"), item, login("b:b"), login("z:late"), login(longest)}
	if got, err := j.List(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("List = %v, %v\nwant %v", got, err, want)
	}
	for _, it := range want {
		if err := j.Remove(t.Context(), it); err != nil {
			t.Error(err)
		}
	}
	if got, err := j.List(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("List = %v, %v", got, err)
	}
	if got := names(t, first) + "; " + names(t, second); got != "garbage.journal notes.txt other.journal; " {
		t.Errorf("left: %s", got)
	}
}

// A directory that is open to others takes nothing and is not read.
func TestDirectoryThatIsRefused(t *testing.T) {
	first, second := newDir(t), newDir(t)
	j := open(t, first, second)
	write(t, j, item, generation(1, 8))
	chmod(t, first, 0o755)

	write(t, j, item, generation(2, 8))
	r, err := j.Read(t.Context(), item)
	if err == nil || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("Read: %v", err)
	}
	if n, err := generationOf(r); n != 2 {
		t.Errorf("with the error: number %d, %v", n, err)
	}
	if dir, err := j.Check(t.Context()); dir != second || err == nil || !strings.Contains(err.Error(), first) {
		t.Errorf("Check = %q, %v", dir, err)
	}
	if list, err := j.List(t.Context()); err == nil || len(list) != 1 {
		t.Errorf("List = %v, %v", list, err)
	}

	// It is as it should be again: the newer record wins, and moves there with the next Write.
	chmod(t, first, 0o700)
	wantGeneration(t, j, item, 2)
	write(t, j, item, generation(3, 8))
	wantGeneration(t, open(t, first), item, 3)
	if got := names(t, second); got != "" {
		t.Errorf("left: %s", got)
	}

	// Both refuse: it is held, here alone.
	chmod(t, first, 0o755)
	chmod(t, second, 0o755)
	if err := j.Write(t.Context(), item, generation(4, 8), 0); !errors.Is(err, journal.ErrNotDurable) || !strings.Contains(err.Error(), second) {
		t.Errorf("Write: %v", err)
	}
	if r, err := j.Read(t.Context(), item); err == nil || r.Status != 4 {
		t.Errorf("Read: number %d, %v", r.Status, err)
	}
	if dir, err := j.Check(t.Context()); dir != "" || err == nil {
		t.Errorf("Check = %q, %v", dir, err)
	}
	chmod(t, first, 0o700)
	chmod(t, second, 0o700)
	wantGeneration(t, j, item, 4)
	wantGeneration(t, open(t, first, second), item, 3)
	if err := j.Close(); !errors.Is(err, journal.ErrNotDurable) || !strings.Contains(err.Error(), item.Account) {
		t.Errorf("Close: %v", err)
	}
	if dir, err := j.Check(t.Context()); dir != first || err != nil {
		t.Errorf("Check = %q, %v", dir, err)
	}
}

func TestHeldRecordGivesWay(t *testing.T) {
	dir := newDir(t)
	other := open(t, dir)
	hold := func(j *journal.Journal, n int) {
		t.Helper()
		chmod(t, dir, 0o755)
		if err := j.Write(t.Context(), item, generation(n, 8), 0); !errors.Is(err, journal.ErrNotDurable) {
			t.Fatalf("Write: %v", err)
		}
		chmod(t, dir, 0o700)
		wantGeneration(t, j, item, n)
	}
	write(t, other, item, generation(1, 8))

	j := open(t, dir)
	hold(j, 2)
	write(t, other, item, generation(3, 8)) // of another process: newer
	wantGeneration(t, j, item, 3)
	if err := j.Close(); err != nil {
		t.Error(err)
	}

	hold(j, 4)
	write(t, j, item, generation(5, 8)) // its own
	wantGeneration(t, other, item, 5)
	if err := j.Close(); err != nil {
		t.Error(err)
	}

	hold(j, 6)
	if err := j.Remove(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, j, item, 0)

	hold(j, 7) // nothing was on disk, so nothing says that it was removed
	if err := other.Remove(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, j, item, 7)
	write(t, other, item, generation(8, 8))
	wantGeneration(t, j, item, 8)
}

// Many readers, which hold no lock, and one writer, whose records grow the file now and then. What is read never goes back, and
// belongs to the version around it.
func TestReadersAndAWriter(t *testing.T) {
	dir := newDir(t)
	writer := open(t, dir)
	write(t, writer, item, generation(1, 8))
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		j := open(t, dir)
		readers.Go(func() {
			numbers := map[string]int{}
			before, last := "", 0
			for {
				r, err := j.Read(t.Context(), item)
				n, broken := generationOf(r)
				after, err2 := j.Version(t.Context(), item)
				if err != nil || broken != nil || err2 != nil || n < last {
					t.Errorf("number %d after %d: %v, %v, %v", n, last, err, broken, err2)
					return
				}
				if before == after {
					if m, ok := numbers[after]; ok && m != n {
						t.Errorf("the version %s has numbers %d and %d", after, m, n)
						return
					}
					numbers[after] = n
				}
				before, last = after, n
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	const last = 200
	for n := 2; n <= last; n++ {
		write(t, writer, item, generation(n, n*37%9000+n*n/2))
	}
	close(done)
	readers.Wait()
	wantGeneration(t, open(t, dir), item, last)
	if got := names(t, dir); got != itemFile {
		t.Errorf("left: %s", got)
	}
}

func TestSeal(t *testing.T) {
	const token = "test-refresh-token-1"
	dir := newDir(t)
	j := open(t, dir)
	sealed, err := j.Seal(t.Context(), item, secret.New(token))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := j.Open(t.Context(), item, sealed); err != nil || v.Reveal() != token {
		t.Fatalf("Open: %v", err)
	}
	bad := bytes.Clone(sealed)
	bad[len(bad)-1] ^= 1
	for what, try := range map[string]func() (secret.String, error){
		"of another login": func() (secret.String, error) { return j.Open(t.Context(), login("acme:other"), sealed) },
		"another key":      func() (secret.String, error) { return open(t, dir).Open(t.Context(), item, sealed) },
		"damaged":          func() (secret.String, error) { return j.Open(t.Context(), item, bad) },
		"nothing":          func() (secret.String, error) { return j.Open(t.Context(), item, nil) },
	} {
		v, err := try()
		if !errors.Is(err, store.ErrDamaged) || !v.IsZero() || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", what, err)
		}
	}
	write(t, j, item, journal.Record{Phase: journal.Received, Sealed: sealed})
	data := readFile(t, filepath.Join(dir, itemFile))
	if bytes.Contains(data, []byte(token)) || bytes.Contains(data, []byte(hex.EncodeToString([]byte(token)))) {
		t.Error("the token is in the file")
	}
	r, err := open(t, dir).Read(t.Context(), item)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := j.Open(t.Context(), item, r.Sealed); err != nil || v.Reveal() != token {
		t.Errorf("Open of what was read: %v", err)
	}
}

// The key of a store that was replaced is not used for the next answer, and one that cannot be had is told before the provider is
// called.
func TestKey(t *testing.T) {
	first, _ := file.NewSealer()
	second, _ := file.NewSealer()
	var now journal.Sealer
	var failing error
	asked := 0
	dir := newDir(t)
	j, err := journal.New(journal.Options{Dirs: []string{dir}, Key: func(context.Context) (journal.Sealer, error) {
		asked++
		return now, failing
	}})
	if err != nil {
		t.Fatal(err)
	}
	failing = store.ErrLocked
	write(t, j, item, generation(1, 8))
	if asked != 0 {
		t.Error("the key was asked for when nothing had to be sealed")
	}
	err = j.Write(t.Context(), item, journal.Record{Phase: journal.Called}, 100)
	if !errors.Is(err, journal.ErrNotDurable) || !errors.Is(err, store.ErrLocked) {
		t.Errorf("an intent without a key: %v", err)
	}
	if r, err := j.Read(t.Context(), item); err != nil || r.Phase != journal.Called {
		t.Errorf("Read = %+v, %v", r, err)
	}
	lone, err := j.Seal(t.Context(), item, secret.New("x"))
	if !errors.Is(err, journal.ErrNotDurable) || !errors.Is(err, store.ErrLocked) {
		t.Errorf("Seal: %v", err)
	}
	if v, err := j.Open(t.Context(), item, lone); err != nil || v.Reveal() != "x" {
		t.Errorf("Open of what was sealed without a key: %v", err)
	}
	if _, err := open(t, dir).Open(t.Context(), item, lone); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Open of that in another process: %v", err)
	}
	if _, err := j.Open(t.Context(), item, []byte("x")); !errors.Is(err, store.ErrLocked) || errors.Is(err, store.ErrDamaged) {
		t.Errorf("Open: %v", err)
	}

	now, failing = first, nil
	write(t, j, item, journal.Record{Phase: journal.Called})
	before := asked
	old, err := j.Seal(t.Context(), item, secret.New("x"))
	if err != nil || asked != before {
		t.Errorf("Seal asked for the key: %d, %v", asked-before, err)
	}
	now = second
	write(t, j, item, journal.Record{Phase: journal.Called})
	if _, err := j.Open(t.Context(), item, old); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("the old key is still there: %v", err)
	}
	now = first // another process put it back
	if v, err := j.Open(t.Context(), item, old); err != nil || v.Reveal() != "x" {
		t.Errorf("Open with the key that there is now: %v", err)
	}
	now = nil
	if err := j.Write(t.Context(), item, journal.Record{Phase: journal.Called}, 0); !errors.Is(err, journal.ErrNotDurable) {
		t.Errorf("no key and no error: %v", err)
	}
}

// lines is a log.
type lines struct{ bytes.Buffer }

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func openLogged(t *testing.T, l *lines, dir string) *journal.Journal {
	t.Helper()
	s, err := file.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.New(journal.Options{Dirs: []string{dir}, Logger: l.logger(), Key: func(context.Context) (journal.Sealer, error) { return s, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// A file in the place of a directory has no records, and hides none; a directory that is open to others may have some.
func TestUnreadablePlaces(t *testing.T) {
	for name, spoil := range map[string]func(parent string) error{
		"a file in place of the directory": func(p string) error { return os.WriteFile(filepath.Join(p, "recovery"), nil, 0o600) },
		"a file in place of its parent":    func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, nil, 0o600)) },
		"a directory that is open to others": func(p string) error {
			return errors.Join(os.Mkdir(filepath.Join(p, "recovery"), 0o700), os.Chmod(filepath.Join(p, "recovery"), 0o755))
		},
		"a link in the place of the directory": func(p string) error { return os.Symlink("elsewhere", filepath.Join(p, "recovery")) },
	} {
		parent := filepath.Join(t.TempDir(), "state")
		if err := errors.Join(os.Mkdir(parent, 0o700), spoil(parent)); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, filepath.Join(parent, "recovery")).Read(t.Context(), item)
		if want := !strings.HasPrefix(name, "a file"); err == nil || errors.Is(err, journal.ErrUnreadable) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
