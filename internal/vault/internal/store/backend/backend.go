// Package backend opens the store that a configuration names: [Open].
package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

// Options say what to open. Dir and LockDir are absolute paths, and the same in all processes of the user.
type Options struct {
	Kind       string // "auto", "keyring", "file", or for tests "memory"
	Dir        string // of the file store
	LockDir    string // of the keyring's lock files
	Key        string // where the file store's key is, a file.Key; "" is file.KeyAuto
	Passphrase func(ctx context.Context, confirm bool) (string, error)
	Bus        string // see keyring.Options
}

// Store is the store that was opened. Its Name says which it is.
type Store struct {
	store.Store

	// NotKeyring is why "auto" did not take the keyring; nil if it did or was not asked to.
	NotKeyring error

	keyring *keyring.Store // nil: not opened. It may have the file store's key.
}

// Open opens the store. For "auto" that is the keyring if it answers within its time limit, else the file store. A locked
// keyring answers: it is taken, and what is asked of it says store.ErrLocked until it is unlocked. To go on with files
// then would hide what is stored there and scatter new logins over two places.
func Open(ctx context.Context, o Options) (*Store, error) {
	switch o.Kind {
	case "memory":
		return &Store{Store: memory.New()}, nil
	case "auto", "keyring", "file":
	default:
		return nil, fmt.Errorf("there is no kind of store %q: take auto, keyring or file", o.Kind)
	}
	k, err := keyring.Open(keyring.Options{LockDir: o.LockDir, Bus: o.Bus})
	if err != nil {
		return nil, err
	}
	if o.Kind == "keyring" {
		return &Store{Store: k, keyring: k}, nil
	}
	var notKeyring error
	if o.Kind == "auto" {
		notKeyring = k.Check(ctx)
		switch {
		case ctx.Err() != nil:
			_ = k.Close()
			return nil, notKeyring
		case notKeyring == nil || errors.Is(notKeyring, store.ErrLocked):
			return &Store{Store: k, keyring: k}, nil
		}
	}
	f, err := file.Open(file.Options{Dir: o.Dir, Key: file.Key(o.Key), Keyring: k, Passphrase: o.Passphrase})
	if err != nil {
		_ = k.Close()
		return nil, err
	}
	return &Store{Store: f, NotKeyring: notKeyring, keyring: k}, nil
}

// Close releases what is open.
func (s *Store) Close() error {
	err := s.Store.Close()
	if s.keyring != nil {
		err = errors.Join(err, s.keyring.Close())
	}
	return err
}
