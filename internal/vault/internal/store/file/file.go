// Package file is a store of encrypted files, one a credential: [Open].
//
// Below the directory of the store, which is private to the user (0700, files 0600):
//
//	items/SERVICE/ACCOUNT.age   the items: age files for one X25519 recipient, names escaped (package filename)
//	locks/                      lock files (package filelock)
//	key.txt or key.age          the key, unless it is in the keyring; see key.go
//	key.id                      a hash that tells whether a key is the one that the items were encrypted with
//
// A person can read an item with the age tool: age -d -i key.txt ACCOUNT.age prints a line that names the item, and
// then the value.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filelock"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filename"
)

// Options say where the store is and how its key is kept.
type Options struct {
	Dir string // absolute; made when it is first needed
	Key Key    // "" is KeyAuto

	// Keyring is the system's keyring, for a key that is kept there. nil: there is none.
	Keyring store.Store

	// Passphrase is asked at most once in the life of a Store, for KeyPassphrase: its answer, right or wrong, is final.
	// confirm is true when the key is being made, so that a typo must not lock it away. nil: nobody can be asked.
	Passphrase func(ctx context.Context, confirm bool) (string, error)
}

// Store is the file store. It is safe for concurrent use, and several processes may have the same directory open.
//
// It keeps no file or directory open between calls, so a directory that is restored from a backup or moved is used as
// it is found.
type Store struct {
	dir string
	key key

	sweep   sync.Once     // temporary files of killed processes are removed with the first write
	unquiet atomic.Uint64 // makes versions unique while a file has just changed
}

var _ store.Store = (*Store)(nil)

// Open returns the store in o.Dir. It reads nothing yet: the key is looked for when the first item is read or written.
func Open(o Options) (*Store, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("file store: %q is not an absolute path", o.Dir)
	}
	s := &Store{dir: filepath.Clean(o.Dir)}
	return s, s.key.init(s.dir, o)
}

// Name is "file".
func (s *Store) Name() string { return "file" }

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Close does nothing: no file is open between calls.
func (s *Store) Close() error { return nil }

// Check implements [store.Store]: the directories, also those of the items, are ours and can be written to, and the key, if there
// are items or a key, can be loaded.
func (s *Store) Check(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("file store: %w", ctx.Err())
	}
	unlock, err := s.lock(ctx, store.Item{Service: keyService, Account: "check"})
	if err != nil {
		return fmt.Errorf("file store: %w", err)
	}
	defer unlock()
	root, err := privatedir.Open(s.dir, true)
	if err != nil {
		return fmt.Errorf("file store: %w", atomicfile.Cause(err))
	}
	defer func() { _ = root.Close() }()
	err = probe(root)
	for _, service := range []string{store.ServiceLogins, store.ServiceKeys} {
		if err == nil {
			err = s.enter(store.Item{Service: service, Account: "check"}, false, func(_, dir *os.Root, _ string) error { return probe(dir) })
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // the first item makes it
		}
	}
	unlock() // the key may be asked for now
	if err != nil {
		return fmt.Errorf("file store: %w", atomicfile.Cause(err))
	}
	if _, err := s.key.existing(ctx, root); err != nil && !errors.Is(err, errNoKeyYet) {
		return fmt.Errorf("file store: %w", err)
	}
	return nil
}

// Check writes a file of this name, which is no item's, and as many bytes as a login may have, and removes it again.
const (
	checkFile = "check"
	checkSize = 16 << 10
)

func probe(dir *os.Root) error {
	err := atomicfile.WriteFile(dir, checkFile, make([]byte, checkSize))
	if err != nil {
		err = errors.Unwrap(err) // the system's; the file's name helps nobody
	} else {
		err = atomicfile.Cause(dir.Remove(checkFile))
	}
	if err != nil {
		return fmt.Errorf("writing to %s: %w", dir.Name(), err)
	}
	return nil
}

// Read implements [store.Store]. A file that cannot be decrypted or is not the item that its name says is renamed to
// ACCOUNT.age.damaged-TIME and reported as [store.ErrDamaged] once; then there is no such item.
func (s *Store) Read(ctx context.Context, it store.Item) (secret.String, error) {
	var v secret.String
	err := s.with(ctx, it, false, func(root, dir *os.Root, base string) error {
		for {
			data, info, err := readFile(dir, base, maxFile)
			if err != nil && !errors.Is(err, errTooLarge) {
				return err
			}
			var broken error
			if err != nil {
				broken = err
			} else {
				k, err := s.key.existing(ctx, root)
				if err != nil {
					return err
				}
				if v, broken = unseal(k.identity, it, data); broken == nil {
					return nil
				}
			}
			aside, err := setAside(dir, base, info)
			switch {
			case errors.Is(err, errReplaced):
				continue // by another process, while we read it: what is there now is what was asked for
			case err != nil:
				return fmt.Errorf("%w: %w; it is still there, for it could not be renamed: %w", store.ErrDamaged, broken, err)
			}
			return fmt.Errorf("%w: %w; it is now %s", store.ErrDamaged, broken, aside)
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		return secret.String{}, fmt.Errorf("item %s: %w", it, store.ErrNotFound)
	}
	return v, err
}

// Write implements [store.Store].
func (s *Store) Write(ctx context.Context, it store.Item, value secret.String) error {
	if err := store.CheckItem(it); err != nil {
		return err
	}
	if err := store.CheckValue(it, value); err != nil {
		return err
	}
	return s.with(ctx, it, true, func(root, dir *os.Root, base string) error {
		k, err := s.key.orNew(ctx, root, s.lock)
		if err != nil {
			return err
		}
		data, err := seal(k.recipient, it, value)
		if err != nil {
			return err
		}
		if err := atomicfile.WriteFile(dir, base, data); err != nil {
			return err
		}
		// An hour is longer than any write takes, so these belong to nobody. That they could not be removed is no
		// failure of this write.
		s.sweep.Do(func() { _, _ = atomicfile.RemoveTemps(root, time.Hour) })
		return nil
	})
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, it store.Item) error {
	err := s.with(ctx, it, false, func(_, dir *os.Root, base string) error {
		if err := dir.Remove(base); err != nil {
			return err
		}
		return privatedir.Sync(dir)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List implements [store.Store]. It decrypts nothing: the names of the files say it all.
func (s *Store) List(ctx context.Context, service string) ([]string, error) {
	any := store.Item{Service: service, Account: "any"}
	var accounts []string
	err := s.with(ctx, any, false, func(_, dir *os.Root, _ string) (err error) {
		accounts, err = listDir(dir, "", nil)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list of the %s store: %w", s.Name(), err)
	}
	slices.Sort(accounts)
	return accounts, nil
}

// settled is how long after a change a file's times can be trusted to change with the next one: some ticks of the clock
// that the kernel stamps files with.
const settled = 50 * time.Millisecond

// Version implements [store.Store]: the file's inode, size and times of modification and status change in nanoseconds,
// or "absent". Two changes within one tick of the kernel's clock may leave all of them equal (the inode of the file
// before last can be given out again), so the version of a file that has just changed is different each time.
func (s *Store) Version(ctx context.Context, it store.Item) (string, error) {
	version := "absent"
	err := s.with(ctx, it, false, func(_, dir *os.Root, base string) error {
		info, err := dir.Lstat(base)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			version = "" // not on a system that we know
			return nil
		}
		mtime, ctime := times(st)
		if ctime == 0 {
			version = ""
			return nil
		}
		version = fmt.Sprintf("%d-%d-%d-%d", st.Ino, st.Size, mtime, ctime)
		if age := time.Since(time.Unix(0, ctime)); age < settled {
			version += "+" + strconv.FormatUint(s.unquiet.Add(1), 10)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return version, nil
}

// Lock implements [store.Store].
func (s *Store) Lock(ctx context.Context, it store.Item) (unlock func(), err error) {
	if err := begin(ctx, it); err != nil {
		return nil, err
	}
	return s.lock(ctx, it)
}

func (s *Store) lock(ctx context.Context, it store.Item) (unlock func(), err error) {
	root, err := privatedir.Open(s.dir, true)
	if err != nil {
		return nil, atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	locks, err := privatedir.Sub(root, "locks", true)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.dir, "locks"), atomicfile.Cause(err))
	}
	defer func() { _ = locks.Close() }()
	return filelock.Lock(ctx, locks, it)
}

func begin(ctx context.Context, it store.Item) error {
	if ctx.Err() != nil {
		return fmt.Errorf("item %s: %w", it, ctx.Err())
	}
	return store.CheckItem(it)
}

// with opens the directories that lead to the item's file and calls f with the store's directory, the file's and the file's
// name. Errors get the file's path.
func (s *Store) with(ctx context.Context, it store.Item, create bool, f func(root, dir *os.Root, base string) error) error {
	if err := begin(ctx, it); err != nil {
		return err
	}
	err := s.enter(it, create, f)
	if err != nil {
		return fmt.Errorf("item %s in %s: %w", it, filepath.Join(s.dir, filepath.Join(parts(it)...)), atomicfile.Cause(err))
	}
	return nil
}

// enter opens one directory after the other, so that each is checked.
func (s *Store) enter(it store.Item, create bool, f func(root, dir *os.Root, base string) error) error {
	root, err := privatedir.Open(s.dir, create)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	dir, steps := root, parts(it)
	for _, step := range steps[:len(steps)-1] {
		sub, err := privatedir.Sub(dir, step, create)
		if err != nil {
			return err
		}
		defer func() { _ = sub.Close() }()
		dir = sub
	}
	return f(root, dir, steps[len(steps)-1])
}

// readFile reads a regular file of at most limit bytes. If it is larger, the error is errTooLarge and info is valid.
func readFile(dir *os.Root, name string, limit int64) (data []byte, info fs.FileInfo, err error) {
	if info, err = dir.Lstat(name); err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, info, err
}

// listDir adds the accounts that have a file in dir. Their names begin with prefix.
func listDir(dir *os.Root, prefix string, accounts []string) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() && len(name) == longest+1 && strings.HasSuffix(name, more) {
			sub, err := privatedir.Sub(dir, name, false)
			if err != nil {
				return nil, err
			}
			accounts, err = listDir(sub, prefix+strings.TrimSuffix(name, more), accounts)
			_ = sub.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		base, ok := strings.CutSuffix(name, suffix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		if account, ok := filename.Unescape(prefix + base); ok {
			accounts = append(accounts, account)
		}
	}
	return accounts, nil
}
