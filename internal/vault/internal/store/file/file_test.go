package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/internal/vault/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		dir := newDir(t)
		return openFile(t, dir), openFile(t, dir)
	})
}

func TestConformanceKeyInKeyring(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		o := file.Options{Dir: newDir(t), Keyring: memory.New()}
		return open(t, o), open(t, o)
	})
}

func TestOpenTouchesNothing(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	if _, err := s.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	if list, err := s.List(t.Context(), item.Service); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if err := s.Delete(t.Context(), item); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("looking made the directory: %v", err)
	}
	for _, o := range []file.Options{{Dir: "relative"}, {}, {Dir: dir, Key: "paper"}} {
		if _, err := file.Open(o); err == nil {
			t.Errorf("Open(%+v) succeeded", o)
		}
	}
}

func TestLayout(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	const canary = "test-canary-in-a-value"
	write(t, s, item, canary)
	write(t, s, store.Item{Service: "svc", Account: strings.Repeat("A", 64) + ":" + strings.Repeat("B", 64)}, canary)
	unlock, err := s.Lock(t.Context(), item)
	if err != nil {
		t.Fatal(err)
	}
	unlock()

	all := files(t, dir)
	for _, want := range []string{itemPath, "key.txt", "key.id", "locks/svc+acme%3adefault.lock"} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is missing in %q", want, all)
		}
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = fs.ModeDir | 0o700
		} else if data := readFile(t, path); bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s has the value in clear", path)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
		if len(e.Name()) > 255 || strings.ToLower(e.Name()) != e.Name() {
			t.Errorf("%s is no name for every file system", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A person with nothing but age and the key gets at the value.
func TestRecoverWithAge(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "the value\nin lines\n")
	key, err := os.Open(filepath.Join(dir, "key.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	identities, err := age.ParseIdentities(key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(readFile(t, filepath.Join(dir, itemPath))), identities...)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if want := `{"credproxy_item":1,"service":"svc","account":"acme:default"}` + "\nthe value\nin lines\n"; err != nil || string(plain) != want {
		t.Errorf("decrypted: %q, %v", plain, err)
	}
}

// Whatever happens to a file, it is reported once with where it is now, and the rest works.
func TestDamagedFiles(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	other := store.Item{Service: "svc", Account: "acme:other"}
	path, otherPath := filepath.Join(dir, itemPath), filepath.Join(dir, "items/svc/acme%3aother.age")
	write(t, s, other, "other")
	write(t, s, item, "a value that is long enough to flip bits in")
	good := readFile(t, path)

	cases := map[string][]byte{
		"empty":       {},
		"zeros":       make([]byte, len(good)),
		"other item":  readFile(t, otherPath),
		"appended":    append(slices.Clone(good), 'x'),
		"twice":       append(slices.Clone(good), good...),
		"another":     sealFor(t, newIdentity(t).Recipient(), `{"credproxy_item":1,"service":"svc","account":"acme:default"}`+"\nv"),
		"no header":   sealFor(t, keyOf(t, dir).Recipient(), "v"),
		"empty value": sealFor(t, keyOf(t, dir).Recipient(), `{"credproxy_item":1,"service":"svc","account":"acme:default"}`+"\n"),
		"version 2":   sealFor(t, keyOf(t, dir).Recipient(), `{"credproxy_item":2,"service":"svc","account":"acme:default"}`+"\nv"),
		"too large":   bytes.Repeat([]byte("x"), 2<<20),
	}
	for n := 1; n < len(good); n += 7 {
		cases[fmt.Sprintf("cut to %d of %d bytes", n, len(good))] = good[:n]
	}
	for n := 0; n < len(good); n += 3 {
		flipped := slices.Clone(good)
		flipped[n] ^= 1
		cases[fmt.Sprintf("bit flipped in byte %d", n)] = flipped
	}
	isAside := regexp.MustCompile(`acme%3adefault\.age\.damaged-\d{8}T\d{6}\.\d{9}Z`)
	for name, data := range cases {
		writeFile(t, path, data, 0o600)
		v, err := s.Read(t.Context(), item)
		aside := isAside.FindString(fmt.Sprint(err))
		if !errors.Is(err, store.ErrDamaged) || aside == "" || !v.IsZero() {
			t.Fatalf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), "long enough") {
			t.Errorf("%s: the error has the value", name)
		}
		if got := readFile(t, filepath.Join(filepath.Dir(path), aside)); !bytes.Equal(got, data) {
			t.Errorf("%s: what was set aside is not what was there", name)
		}
		if _, err := s.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: read again: %v", name, err)
		}
		if err := os.Remove(filepath.Join(filepath.Dir(path), aside)); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, path+".damaged-by-hand", nil, 0o600)
	if list, err := s.List(t.Context(), "svc"); err != nil || !slices.Equal(list, []string{"acme:other"}) {
		t.Errorf("List = %q, %v", list, err)
	}
	wantValue(t, s, other, "other")
	write(t, s, item, "new")
	wantValue(t, s, item, "new")
}

func TestOddFiles(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"symbolic link": func(path string) error {
			return os.Symlink("acme%3aother.age", path)
		},
		"link to outside": func(path string) error { return os.Symlink("/etc/hostname", path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			s := openFile(t, dir)
			write(t, s, store.Item{Service: "svc", Account: "acme:other"}, "other")
			if err := make(filepath.Join(dir, itemPath)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(t.Context(), item); err == nil || !strings.Contains(err.Error(), "not a regular file") ||
				!strings.Contains(err.Error(), filepath.Join(dir, itemPath)) {
				t.Errorf("Read: %v", err)
			}
			if list, err := s.List(t.Context(), "svc"); err != nil || !slices.Equal(list, []string{"acme:other"}) {
				t.Errorf("List = %q, %v", list, err)
			}
		})
	}
}

func TestRefusedDirectories(t *testing.T) {
	for _, sub := range []string{"", "items", "items/svc", "locks"} {
		t.Run("link "+sub, func(t *testing.T) {
			dir := newDir(t)
			s := openFile(t, dir)
			write(t, s, item, "v")
			moved := filepath.Join(t.TempDir(), "moved")
			rename(t, filepath.Join(dir, sub), moved)
			if err := os.Symlink(moved, filepath.Join(dir, sub)); err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, s, sub, "symbolic link")
		})
		t.Run("open "+sub, func(t *testing.T) {
			dir := newDir(t)
			s := openFile(t, dir)
			write(t, s, item, "v")
			if err := os.Chmod(filepath.Join(dir, sub), 0o750); err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, s, sub, "mode 0750")
			if err := os.Chmod(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
			wantValue(t, s, item, "v")
		})
	}
}

func wantRefusal(t *testing.T, s *file.Store, sub, says string) {
	t.Helper()
	_, lockErr := s.Lock(t.Context(), item)
	errs := map[string]error{"Lock": lockErr, "Check": s.Check(t.Context())}
	if sub != "locks" {
		_, readErr := s.Read(t.Context(), item)
		_, listErr := s.List(t.Context(), item.Service)
		errs = map[string]error{"Read": readErr, "List": listErr, "Delete": s.Delete(t.Context(), item)}
	}
	for name, err := range errs {
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), filepath.Join(s.Dir(), sub)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTemporaryFilesAreSwept(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "v")
	old := filepath.Join(dir, "items/svc/.atomicfile-LEFTBYAKILLEDPROCESSLONGAGO.tmp")
	young := filepath.Join(dir, "items/svc/.atomicfile-OFAPROCESSTHATISATWORKNOWX.tmp")
	for _, path := range []string{old, young} {
		writeFile(t, path, []byte("x"), 0o600)
	}
	long := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	s := openFile(t, dir)
	if list, err := s.List(t.Context(), "svc"); err != nil || len(list) != 1 {
		t.Errorf("List = %q, %v", list, err)
	}
	write(t, s, item, "v2")
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Lstat(young); err != nil {
		t.Errorf("the young one: %v", err)
	}
}

// Two changes within one tick of the file system's clock may give a file the same inode, size and times.
func TestVersionOfAFreshFileIsNotTrusted(t *testing.T) {
	s := openFile(t, newDir(t))
	version := func() string {
		t.Helper()
		v, err := s.Version(t.Context(), item)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	write(t, s, item, "v")
	if a, b := version(), version(); a == b && !strings.Contains(a, "+") {
		t.Logf("the file is older than a tick already: %s", a)
	} else if a == b {
		t.Errorf("a version came twice: %s", a)
	}
	for deadline := time.Now().Add(5 * time.Second); strings.Contains(version(), "+"); {
		if time.Now().After(deadline) {
			t.Fatal("the version never settles")
		}
	}
	if a, b := version(), version(); a != b {
		t.Errorf("%s is not %s", a, b)
	}
}

func TestListIsCheapAndNeedsNoKey(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	write(t, s, item, "v")
	const n = 10_000
	want := []string{item.Account}
	for i := range n - 1 {
		account := fmt.Sprintf("acme:%05d", i)
		want = append(want, account)
		if err := os.Link(filepath.Join(dir, itemPath), filepath.Join(dir, "items/svc", strings.ReplaceAll(account, ":", "%3a")+".age")); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	if err := os.Remove(filepath.Join(dir, "key.txt")); err != nil {
		t.Fatal(err)
	}
	fresh := openFile(t, dir)
	list, err := fresh.List(t.Context(), "svc")
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("%d accounts, want %d; %v", len(list), len(want), err)
	}
}

func TestTheStoreMayMove(t *testing.T) {
	dir := newDir(t)
	s := openFile(t, dir)
	write(t, s, item, "old")
	rename(t, dir, dir+".away")
	if _, err := s.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read: %v", err)
	}
	// A new store in the same place has another key. What the running process knows of the old one must not spoil it.
	write(t, openFile(t, dir), item, "new")
	wantValue(t, s, item, "new")
	write(t, s, item, "newer")
	wantValue(t, openFile(t, dir), item, "newer")
	rename(t, dir, dir+".new")
	rename(t, dir+".away", dir)
	wantValue(t, s, item, "old")
	for _, path := range append(files(t, dir), files(t, dir+".new")...) {
		if strings.Contains(path, "damaged") {
			t.Errorf("set aside: %s", path)
		}
	}
}

func TestCheck(t *testing.T) {
	s := openFile(t, newDir(t))
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("empty: %v", err)
	}
	if slices.Contains(files(t, s.Dir()), "key.txt") {
		t.Error("Check made a key")
	}
	write(t, s, item, "v")
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("with an item: %v", err)
	}
	if err := os.Remove(filepath.Join(s.Dir(), "key.txt")); err != nil {
		t.Fatal(err)
	}
	wantError(t, openFile(t, s.Dir()).Check(t.Context()), file.ErrNoKey, "key.txt")
}

func sealFor(t *testing.T, r age.Recipient, plain string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, r)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(w, plain)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func keyOf(t *testing.T, dir string) *age.X25519Identity {
	t.Helper()
	identities, err := age.ParseIdentities(bytes.NewReader(readFile(t, filepath.Join(dir, "key.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	return identities[0].(*age.X25519Identity)
}

func BenchmarkRead(b *testing.B) {
	s := openFile(b, newDir(b))
	write(b, s, item, strings.Repeat("x", 2000))
	for b.Loop() {
		if _, err := s.Read(context.Background(), item); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersion(b *testing.B) {
	s := openFile(b, newDir(b))
	write(b, s, item, "v")
	for b.Loop() {
		if _, err := s.Version(context.Background(), item); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is the way of a new process to its first value, without a passphrase.
func BenchmarkOpen(b *testing.B) {
	dir := newDir(b)
	write(b, openFile(b, dir), item, "v")
	for b.Loop() {
		wantValue(b, openFile(b, dir), item, "v")
	}
}
