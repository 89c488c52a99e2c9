// Package keyring is the store in the system's keyring: [Open]. On Linux that is the Secret Service (GNOME Keyring,
// KWallet, KeePassXC) over the session's D-Bus, on macOS the login keychain through /usr/bin/security. Elsewhere it
// answers that there is none.
//
// Items are those of the original client of the protocol: attributes service and username on Linux, a generic password
// with service and account on macOS. Each finds what the other stored, and an item is changed in place, whoever made it.
// The locks of its items are taken as well (package peerlock), in directories below HOME.
//
// Not read: the kernel keyring (keyutils), in which the original keeps items on a Linux without a Secret Service. Those
// items cannot be listed, and vanish with the login session.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filelock"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/peerlock"
)

// limit is the time that the keyring has for one call, unless Options.Limit says otherwise. What does not answer in it is
// store.ErrUnavailable.
const limit = 3 * time.Second

// Options say how to reach the keyring.
type Options struct {
	// LockDir is the absolute path of the directory with the lock files behind Lock; made when it is first needed. All
	// processes of the user must name the same.
	LockDir string

	// Bus is the D-Bus address of the Secret Service, Linux only; "" is that of the session.
	Bus string

	// Limit is the time that the Secret Service has for one call, Linux only; 0 is 3 s. Tests that are not about a service
	// that hangs give one that a busy machine needs longer than that.
	Limit time.Duration

	// Logger is told when a lock of the original client cannot be taken; nil discards.
	Logger *slog.Logger
}

// locks are those of the items, the same for all systems.
type locks struct {
	dir   string // of ours
	peers *peerlock.Locks
}

// Open returns the system's keyring. It reaches out to nothing yet: see Check.
func Open(o Options) (*Store, error) {
	if !filepath.IsAbs(o.LockDir) {
		return nil, fmt.Errorf("keyring: the directory for locks, %q, is not an absolute path", o.LockDir)
	}
	return open(o, locks{o.LockDir, peerlock.New(o.Logger)}), nil
}

var _ store.Store = (*Store)(nil)

// Name is "keyring".
func (s *Store) Name() string { return "keyring" }

// Version is always "": a keyring has no version of an item that is cheaper than the item. (The Secret Service has the
// time of the last change in whole seconds, which two changes can share.)
func (s *Store) Version(ctx context.Context, it store.Item) (string, error) {
	return "", begin(ctx, it)
}

// Lock implements [store.Store] with a lock file, as no keyring has locks. For a login it then takes the lock that the
// original client takes when it refreshes one: in this order, so that of all our processes one at most waits for that.
func (s *Store) Lock(ctx context.Context, it store.Item) (unlock func(), err error) {
	if err := begin(ctx, it); err != nil {
		return nil, err
	}
	dir, err := privatedir.Open(s.locks.dir, true)
	if err != nil {
		return nil, fmt.Errorf("locks of the keyring: %w", err)
	}
	defer func() { _ = dir.Close() }()
	unlockOurs, err := filelock.Lock(ctx, dir, it)
	if err != nil {
		return nil, err
	}
	unlockTheirs, err := s.locks.peers.Refresh(ctx, it)
	if err != nil {
		unlockOurs()
		return nil, err
	}
	return sync.OnceFunc(func() {
		unlockTheirs()
		unlockOurs()
	}), nil
}

// Write implements [store.Store]. If several items have the name, all get the value: which one another program takes, if
// it does not give up, nobody knows, and a refresh token that was used up would be the worst to find.
func (s *Store) Write(ctx context.Context, it store.Item, value secret.String) error {
	if err := begin(ctx, it); err != nil {
		return err
	}
	if err := store.CheckValue(it, value); err != nil {
		return err
	}
	return s.change(ctx, it, func() error { return s.write(ctx, it, value) })
}

// Delete implements [store.Store]. It deletes all items that have the name.
func (s *Store) Delete(ctx context.Context, it store.Item) error {
	if err := begin(ctx, it); err != nil {
		return err
	}
	return s.change(ctx, it, func() error { return s.remove(ctx, it) })
}

// change runs f while the original client does not change the item.
func (s *Store) change(ctx context.Context, it store.Item, f func() error) error {
	unlock, err := s.locks.peers.Write(ctx, it)
	if err != nil {
		return wrap(it, err)
	}
	defer unlock()
	return wrap(it, f())
}

func begin(ctx context.Context, it store.Item) error {
	if ctx.Err() != nil {
		return fmt.Errorf("item %s in the keyring: %w", it, ctx.Err())
	}
	return store.CheckItem(it)
}

// errSilent is what a call that took longer than its limit ends with.
var errSilent = fmt.Errorf("%w: the keyring did not answer", store.ErrUnavailable)

// errLocked says what to do. No call of this package ever makes the keyring ask for its password: a sandbox that asks
// for tokens would make a storm of prompts of it, and train people to type their password into them.
var errLocked = fmt.Errorf("%w: unlock it in your desktop session (in \"Passwords and Keys\" or the like) and try again", store.ErrLocked)

// label is what people see in the programs that show their keyring; the original client writes the same.
func label(it store.Item) string { return "keyring:" + it.Account + "@" + it.Service }

// isProbe reports whether the account is one of those that the original client makes to see if the keyring works.
func isProbe(account string) bool { return strings.HasPrefix(account, "__securestore_probe__") }

// wrap gives an error the item that it is about.
func wrap(it store.Item, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("item %s in the keyring: %w", it, err)
}

// ended tells why a call with a limit of its own ended: because its caller went away, or because of the limit.
func ended(ctx context.Context, err error, limit time.Duration) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w within %d s", errSilent, limit/time.Second)
	}
	return err
}
