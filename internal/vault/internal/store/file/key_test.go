package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

var keyringItem = store.Item{Service: "credproxy-file-store", Account: "identity"}

func has(t *testing.T, dir, name string) bool {
	t.Helper()
	return slices.Contains(files(t, dir), name)
}

func TestAutoMakesTheKeyInAKeyringThatAnswers(t *testing.T) {
	for _, tt := range []struct {
		name      string
		keyring   store.Store
		inKeyring bool
	}{
		{"answers", memory.New(), true},
		{"none", nil, false},
		{"does not answer", refusing{err: store.ErrUnavailable}, false},
		{"locked", refusing{err: store.ErrLocked}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := file.Options{Dir: newDir(t), Keyring: tt.keyring}
			write(t, open(t, o), item, "v")
			wantValue(t, open(t, o), item, "v")
			if has(t, o.Dir, "key.txt") == tt.inKeyring {
				t.Errorf("files: %q", files(t, o.Dir))
			}
			if tt.inKeyring {
				v, err := tt.keyring.Read(t.Context(), keyringItem)
				if err != nil || !strings.HasPrefix(v.Reveal(), "AGE-SECRET-KEY-1") {
					t.Errorf("in the keyring: %v", err)
				}
			}
		})
	}
}

func TestAutoTakesTheKeyThatThereIs(t *testing.T) {
	ask := func(context.Context, bool) (string, error) { return "test-passphrase", nil }
	for _, kind := range []file.Key{file.KeyFile, file.KeyPassphrase, file.KeyKeyring} {
		t.Run(string(kind), func(t *testing.T) {
			keyring := memory.New()
			o := file.Options{Dir: newDir(t), Key: kind, Keyring: keyring, Passphrase: ask}
			s := open(t, o)
			s.SetWorkFactor(4)
			write(t, s, item, "v")
			before := files(t, o.Dir)

			o.Key = file.KeyAuto
			wantValue(t, open(t, o), item, "v")
			write(t, open(t, o), item, "v2")
			o.Key = kind
			wantValue(t, open(t, o), item, "v2")
			if after := files(t, o.Dir); !slices.Equal(before, after) {
				t.Errorf("files before %q, after %q", before, after)
			}
			if list, _ := keyring.List(t.Context(), keyringItem.Service); len(list) == 1 != (kind == file.KeyKeyring) {
				t.Errorf("in the keyring: %q", list)
			}
		})
	}
	// A key of some other store in the keyring is not in the way of key.txt, and the other way round.
	t.Run("two keys", func(t *testing.T) {
		keyring := memory.New()
		o := file.Options{Dir: newDir(t), Keyring: keyring}
		write(t, open(t, o), item, "v")
		writeFile(t, filepath.Join(o.Dir, "key.txt"), []byte(newIdentity(t).String()+"\n"), 0o600)
		wantValue(t, open(t, o), item, "v")
		write(t, open(t, o), item, "v2")
		wantValue(t, open(t, o), item, "v2")
	})
}

// With items and no key, no new key is made, whatever the kind: the items could never be read again beside new ones.
func TestMissingKey(t *testing.T) {
	ask := func(context.Context, bool) (string, error) { return "test-passphrase", nil }
	for _, tt := range []struct {
		kind   file.Key
		remove func(o *file.Options) error
		want   error
		says   string
	}{
		{file.KeyFile, func(o *file.Options) error { return os.Remove(filepath.Join(o.Dir, "key.txt")) }, file.ErrNoKey, "key.txt"},
		{file.KeyPassphrase, func(o *file.Options) error { return os.Remove(filepath.Join(o.Dir, "key.age")) }, file.ErrNoKey, "key.age"},
		{file.KeyKeyring, func(o *file.Options) error { return o.Keyring.Delete(context.Background(), keyringItem) }, file.ErrNoKey, "the keyring"},
		{file.KeyAuto, func(o *file.Options) error { return o.Keyring.Delete(context.Background(), keyringItem) }, file.ErrNoKey, "key.txt"},
		{file.KeyAuto, func(o *file.Options) error { o.Keyring = nil; return nil }, store.ErrUnavailable, "no keyring"},
		{file.KeyAuto, func(o *file.Options) error { o.Keyring = refusing{err: store.ErrLocked}; return nil }, store.ErrLocked, "key.txt"},
		{file.KeyKeyring, func(o *file.Options) error { o.Keyring = refusing{err: store.ErrLocked}; return nil }, store.ErrLocked, "the keyring"},
	} {
		o := file.Options{Dir: newDir(t), Key: tt.kind, Keyring: memory.New(), Passphrase: ask}
		s := open(t, o)
		s.SetWorkFactor(4)
		write(t, s, item, "v")
		original := o
		if err := tt.remove(&o); err != nil {
			t.Fatal(err)
		}
		before := files(t, o.Dir)
		s = open(t, o)
		_, err := s.Read(t.Context(), item)
		wantError(t, err, tt.want, tt.says)
		wantError(t, s.Write(t.Context(), store.Item{Service: "new", Account: "new"}, secret.New("v")), tt.want, tt.says)
		wantError(t, s.Write(t.Context(), item, secret.New("v")), tt.want)
		var after []string
		for _, f := range files(t, o.Dir) {
			if !strings.HasPrefix(f, "locks/") {
				after = append(after, f)
			}
		}
		before = slices.DeleteFunc(before, func(f string) bool { return strings.HasPrefix(f, "locks/") })
		if !slices.Equal(before, after) {
			t.Errorf("%s: files before %q, after %q", tt.kind, before, after)
		}
		if original.Keyring != o.Keyring { // the keyring is back
			wantValue(t, open(t, original), item, "v")
		}
	}
}

func TestWrongKey(t *testing.T) {
	for _, withID := range []bool{true, false} {
		dir := newDir(t)
		s := openFile(t, dir)
		other := store.Item{Service: "svc", Account: "acme:other"}
		write(t, s, item, "v")
		write(t, s, other, "w")
		rename(t, filepath.Join(dir, "key.txt"), filepath.Join(dir, "right"))
		writeFile(t, filepath.Join(dir, "key.txt"), []byte(newIdentity(t).String()+"\n"), 0o600)
		if !withID {
			if err := os.Remove(filepath.Join(dir, "key.id")); err != nil {
				t.Fatal(err)
			}
		}
		before := files(t, dir)
		wrong := openFile(t, dir)
		for _, it := range []store.Item{item, other} {
			_, err := wrong.Read(t.Context(), it)
			wantError(t, err, file.ErrWrongKey, filepath.Join(dir, "key.txt"))
			wantError(t, wrong.Write(t.Context(), it, secret.New("x")), file.ErrWrongKey)
		}
		wantError(t, wrong.Write(t.Context(), store.Item{Service: "svc", Account: "new"}, secret.New("x")), file.ErrWrongKey)
		if after := files(t, dir); !slices.Equal(before, after) {
			t.Errorf("files before %q, after %q", before, after)
		}
		rename(t, filepath.Join(dir, "right"), filepath.Join(dir, "key.txt"))
		wantValue(t, wrong, item, "v")
		wantValue(t, openFile(t, dir), other, "w")
		if !has(t, dir, "key.id") {
			t.Error("key.id was not made again")
		}
	}
}

func TestDamagedKeyID(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "v")
	for _, garbage := range []string{"", "x", "\x00\x00"} {
		writeFile(t, filepath.Join(dir, "key.id"), []byte(garbage), 0o600)
		wantValue(t, openFile(t, dir), item, "v")
	}
}

func TestRefusedKeyFiles(t *testing.T) {
	dir := newDir(t)
	write(t, openFile(t, dir), item, "v")
	path := filepath.Join(dir, "key.txt")
	good := readFile(t, path)
	for name, tt := range map[string]struct {
		data string
		mode os.FileMode
		says string
	}{
		"open to others": {string(good), 0o644, "mode 0644"},
		"empty":          {"", 0o600, "damaged"},
		"garbage":        {"AGE-SECRET-KEY-1TESTCANARY", 0o600, "damaged"},
		"cut":            {string(good[:len(good)-10]), 0o600, "damaged"},
	} {
		writeFile(t, path, []byte(tt.data), tt.mode)
		for kind, s := range map[string]*file.Store{"file": openFile(t, dir), "auto": open(t, file.Options{Dir: dir, Keyring: memory.New()})} {
			_, err := s.Read(t.Context(), item)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s, %s: %v", name, kind, err)
			} else if strings.Contains(strings.ToUpper(err.Error()), "CANARY") {
				t.Errorf("%s: the error quotes the file", name)
			}
			if err := s.Write(t.Context(), item, secret.New("x")); err == nil {
				t.Errorf("%s, %s: written", name, kind)
			}
		}
		if got := readFile(t, path); string(got) != tt.data {
			t.Errorf("%s: key.txt was changed", name)
		}
	}
	writeFile(t, path, good, 0o600)
	wantValue(t, openFile(t, dir), item, "v")
}

func TestPassphraseIsAskedOnce(t *testing.T) {
	dir := newDir(t)
	var asked, confirmed atomic.Int32
	answer := "test-passphrase"
	o := file.Options{Dir: dir, Key: file.KeyPassphrase, Passphrase: func(_ context.Context, confirm bool) (string, error) {
		asked.Add(1)
		if confirm {
			confirmed.Add(1)
		}
		return answer, nil
	}}
	s := open(t, o)
	s.SetWorkFactor(4)
	if _, err := s.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if asked.Load() != 0 {
		t.Error("asked for a passphrase before there was anything")
	}
	write(t, s, item, "v")
	wantValue(t, s, item, "v")
	if asked.Load() != 1 || confirmed.Load() != 1 {
		t.Errorf("asked %d times to make the key, %d to confirm", asked.Load(), confirmed.Load())
	}

	asked.Store(0)
	s = open(t, o)
	if _, err := s.List(t.Context(), item.Service); err != nil || asked.Load() != 0 {
		t.Errorf("List: %v, asked %d times", err, asked.Load())
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Read(t.Context(), item); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if asked.Load() != 1 || confirmed.Load() != 1 {
		t.Errorf("asked %d times, %d to confirm", asked.Load(), confirmed.Load())
	}

	asked.Store(0)
	answer = "test-passphrase-that-is-wrong"
	s = open(t, o)
	before := files(t, dir)
	for range 5 {
		_, err := s.Read(t.Context(), item)
		wantError(t, err, file.ErrPassphrase, "key.age")
		if strings.Contains(err.Error(), answer) {
			t.Error("the error has the passphrase")
		}
		wantError(t, s.Write(t.Context(), item, secret.New("x")), file.ErrPassphrase)
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times after a wrong answer", asked.Load())
	}
	if after := files(t, dir); !slices.Equal(before, after) {
		t.Errorf("files before %q, after %q", before, after)
	}
	o.Passphrase = nil
	if _, err := open(t, o).Read(t.Context(), item); err == nil || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("nobody to ask: %v", err)
	}
}

// A request that is cancelled while somebody types a passphrase goes away; the next one asks again.
func TestPassphraseAndCancel(t *testing.T) {
	dir := newDir(t)
	typing := make(chan struct{})
	o := file.Options{Dir: dir, Key: file.KeyPassphrase}
	o.Passphrase = func(context.Context, bool) (string, error) { return "test-passphrase", nil }
	s := open(t, o)
	s.SetWorkFactor(4)
	write(t, s, item, "v")

	ctx, cancel := context.WithCancel(t.Context())
	first := true
	o.Passphrase = func(ctx context.Context, _ bool) (string, error) {
		if first {
			first = false
			close(typing)
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "test-passphrase", nil
	}
	s = open(t, o)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Read(ctx, item)
		wantError(t, err, context.Canceled)
	})
	<-typing
	short, stop := context.WithCancel(t.Context())
	stop()
	_, err := s.Read(short, item)
	wantError(t, err, context.Canceled)
	cancel()
	wg.Wait()
	wantValue(t, s, item, "v")
}

func TestEmptyPassphraseIsRefused(t *testing.T) {
	o := file.Options{Dir: newDir(t), Key: file.KeyPassphrase, Passphrase: func(context.Context, bool) (string, error) { return "", nil }}
	if err := open(t, o).Write(t.Context(), item, secret.New("v")); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("Write: %v", err)
	}
}

// keyringMeanwhile is a keyring; once, when something was not in it, something happens before the answer arrives.
type keyringMeanwhile struct {
	store.Store
	once      sync.Once
	meanwhile func()
}

func (k *keyringMeanwhile) Read(ctx context.Context, it store.Item) (secret.String, error) {
	v, err := k.Store.Read(ctx, it)
	if err != nil {
		k.once.Do(k.meanwhile)
	}
	return v, err
}

// Another process makes the key and the first item while this one has looked for a key and not yet for items.
func TestKeyIsMadeMeanwhile(t *testing.T) {
	dir, keyring := newDir(t), memory.New()
	other := open(t, file.Options{Dir: dir, Keyring: keyring})
	theirs := store.Item{Service: item.Service, Account: "their:item"}
	s := open(t, file.Options{Dir: dir, Keyring: &keyringMeanwhile{Store: keyring, meanwhile: func() { write(t, other, theirs, "theirs") }}})
	write(t, s, item, "ours")
	wantValue(t, other, item, "ours")
	wantValue(t, s, theirs, "theirs")
}
