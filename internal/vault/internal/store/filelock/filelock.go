// Package filelock locks items between the processes of one user: [Lock] takes the lock of one item in a directory of
// lock files. It is what the stores on this machine have behind store.Store.Lock.
package filelock

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filename"
)

// Waiting asks again after these times: the kernel can wake a waiter only if it cannot be cancelled.
const (
	firstWait = 2 * time.Millisecond
	longWait  = 50 * time.Millisecond
)

// Lock takes the lock of it, a flock(2) on a file of its own in dir, and waits until ctx is done. Two calls exclude each
// other in one process as well. The kernel drops the lock when its process ends, however it ends. The returned function
// may be called more than once.
//
// Lock files stay when they are unlocked: to delete one safely, everybody would have to agree on when nobody waits. If
// a person deletes one, those who come later still exclude each other.
func Lock(ctx context.Context, dir *os.Root, it store.Item) (unlock func(), err error) {
	name := fileName(it)
	shown := filepath.Join(dir.Name(), name)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", shown, ctx.Err())
	}
	for wait := firstWait; ; {
		f, locked, err := try(dir, name)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", shown, err)
		}
		if locked {
			return sync.OnceFunc(func() {
				// Closing is not enough while a child process that was just forked still has the file open.
				_ = flock(f, syscall.LOCK_UN)
				_ = f.Close()
			}), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: another process or request has it: %w", shown, ctx.Err())
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, longWait)
	}
}

// try opens and locks the file without waiting. It reports false when someone else has the lock, or when the file that
// is locked now is no longer the one that others find under the name.
func try(dir *os.Root, name string) (_ *os.File, locked bool, err error) {
	f, err := dir.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, syscall.EROFS) {
		if there, openErr := dir.OpenFile(name, os.O_RDONLY, 0); openErr == nil { // which can be locked all the same
			f, err = there, nil
		}
	}
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if !locked {
			_ = f.Close()
		}
	}()
	opened, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if !opened.Mode().IsRegular() {
		return nil, false, errors.New("it is not a regular file")
	}
	switch err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	named, err := dir.Stat(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, err
	}
	return f, err == nil && os.SameFile(opened, named), nil
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// fileName is "SERVICE+ACCOUNT.lock" in escaped form ("+" does not occur in it), with a hash in place of the end of a
// name that is too long for a file. Nobody reads an item's name out of it.
func fileName(it store.Item) string {
	const longest = 200
	name := filename.Escape(it.Service) + "+" + filename.Escape(it.Account)
	if len(name) > longest {
		sum := sha256.Sum256([]byte(name))
		name = name[:longest-2*len(sum)-1] + "+" + hex.EncodeToString(sum[:])
	}
	return name + ".lock"
}
