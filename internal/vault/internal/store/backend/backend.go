// Package backend opens the store that a configuration names: [Open].
package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

// Options say what to open. The directories are absolute paths, and the same in all processes of the user.
type Options struct {
	Kind        string // "auto", "keyring", "file", or for tests "memory"
	Dir         string // of the file store
	LockDir     string // of the keyring's lock files
	RecoveryDir string // of what Sealer needs beside a keyring; "": then a keyring has no Sealer
	Key         string // where the file store's key is, a file.Key; "" is file.KeyAuto
	Passphrase  func(ctx context.Context, confirm bool) (string, error)
	Bus         string        // see keyring.Options
	Limit       time.Duration // see keyring.Options
	Logger      *slog.Logger  // see keyring.Options
}

// Sealer encrypts and decrypts, with a key that it has in memory. It is safe for concurrent use.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// Store is the store that was opened. Its Name says which it is.
type Store struct {
	store.Store

	// NotKeyring is why "auto" did not take the keyring; nil if it did or was not asked to.
	NotKeyring error

	keyring *keyring.Store // nil: not opened. It may have the file store's key.
	key     func(context.Context) (Sealer, error)
}

// Sealer returns what encrypts that which belongs to this store and has to be kept outside of it for a while. It opens what any
// process has sealed that has opened the same store. It may take a prompt or a time limit of the keyring the first time, and
// is quick from then on; the Sealer itself does no I/O.
//
// The key is the file store's own. For a keyring, which seals nothing, it is an age key in it, in the item that a file store's
// key would have, or, if the keyring could not take it, in key.txt in Options.RecoveryDir. For memory it lives as long as the Store.
func (s *Store) Sealer(ctx context.Context) (Sealer, error) { return s.key(ctx) }

// Open opens the store. For "auto" that is the keyring if it answers within its time limit, else the file store. A locked
// keyring answers: it is taken, and what is asked of it says store.ErrLocked until it is unlocked. To go on with files
// then would hide what is stored there and scatter new logins over two places.
func Open(ctx context.Context, o Options) (*Store, error) {
	switch o.Kind {
	case "memory":
		key := sync.OnceValues(file.NewSealer)
		return &Store{Store: memory.New(), key: func(context.Context) (Sealer, error) { return sealer(key()) }}, nil
	case "auto", "keyring", "file":
	default:
		return nil, fmt.Errorf("there is no kind of store %q: take auto, keyring or file", o.Kind)
	}
	k, err := keyring.Open(keyring.Options{LockDir: o.LockDir, Bus: o.Bus, Limit: o.Limit, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	besides, err := besideKeyring(o, k)
	if err != nil {
		_ = k.Close()
		return nil, err
	}
	if o.Kind == "keyring" {
		return &Store{Store: k, keyring: k, key: besides}, nil
	}
	var notKeyring error
	if o.Kind == "auto" {
		notKeyring = k.Check(ctx)
		switch {
		case ctx.Err() != nil:
			_ = k.Close()
			return nil, notKeyring
		case notKeyring == nil || errors.Is(notKeyring, store.ErrLocked):
			return &Store{Store: k, keyring: k, key: besides}, nil
		}
	}
	f, err := file.Open(file.Options{Dir: o.Dir, Key: file.Key(o.Key), Keyring: k, Passphrase: o.Passphrase})
	if err != nil {
		_ = k.Close()
		return nil, err
	}
	own := func(ctx context.Context) (Sealer, error) { return sealer(f.Sealer(ctx)) }
	return &Store{Store: f, NotKeyring: notKeyring, keyring: k, key: own}, nil
}

// besideKeyring is Store.Sealer for a keyring: a file store without items has the key.
func besideKeyring(o Options, k *keyring.Store) (func(context.Context) (Sealer, error), error) {
	if o.RecoveryDir == "" {
		return func(context.Context) (Sealer, error) {
			return nil, errors.New("there is no directory for what the keyring does not take")
		}, nil
	}
	f, err := file.Open(file.Options{Dir: o.RecoveryDir, Key: file.KeyAuto, Keyring: k})
	if err != nil {
		return nil, fmt.Errorf("recovery directory: %w", err)
	}
	return func(ctx context.Context) (Sealer, error) { return sealer(f.Sealer(ctx)) }, nil
}

// sealer keeps a nil pointer from becoming a Sealer.
func sealer(s *file.Sealer, err error) (Sealer, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close releases what is open.
func (s *Store) Close() error {
	err := s.Store.Close()
	if s.keyring != nil {
		err = errors.Join(err, s.keyring.Close())
	}
	return err
}
