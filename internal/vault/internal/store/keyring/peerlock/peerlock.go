// Package peerlock takes the locks that the original client of this protocol takes, so that it and we never refresh the
// same login at once, nor write the same item: [Locks.Refresh] and [Locks.Write]. They are files in the original's own
// directories, which it makes when it first needs them, and so do we.
//
// Two versions of the original are about. The older one keeps its refresh locks in ~/.llxprt, as {"pid","timestamp"},
// and breaks a lock that is older than 30 s. The newer one keeps them with its logs, as a record that tells a dead owner
// from a live one, and takes a dead owner's lock over under a second lock, the fence. Our record is the newer one's with
// the older one's timestamp in it. take.go says why no two can hold one lock.
package peerlock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// writeWait is how long Write waits, as the original does.
const writeWait = 5 * time.Second

// pace is how long a waiter waits between two looks at a lock: first, then twice as long each time.
type pace struct{ first, longest time.Duration }

var (
	refreshPace = pace{100 * time.Millisecond, 2 * time.Second}
	writePace   = pace{50 * time.Millisecond, 500 * time.Millisecond}
)

// Locks are the original's locks, in the places where it keeps them for this user.
type Locks struct {
	logger  *slog.Logger
	refresh []place
	write   []place

	mu     sync.Mutex
	warned map[string]string // guarded by mu: by directory, the reason that the log has last been given
}

// New looks up in the environment where the original keeps its locks. It touches nothing yet. A nil logger discards.
func New(logger *slog.Logger) *Locks {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	refresh, write := places()
	return &Locks{logger: logger, refresh: refresh, write: write, warned: make(map[string]string)}
}

// Refresh takes the refresh locks of a login (the account of store.ServiceLogins) in every place and waits for them
// until ctx is done; the error names the lock and who has it. An item that the original cannot have needs no lock.
//
// A place that cannot be used (its directory cannot be made or written, or is not safe) is passed over, and the log told
// so once: the original cannot take its lock there either, and nobody is to lose their tokens over it.
//
// The caller makes sure that only one of our processes is in here for a login (the lock of keyring.Store); the locks
// exclude each other without that too, but waiting for them is slower.
func (l *Locks) Refresh(ctx context.Context, it store.Item) (unlock func(), err error) {
	return l.takeAll(ctx, l.refresh, refreshName(it), refreshPace)
}

// Write takes the lock under which the original writes and deletes an item of one of its services, for which it waits
// 5 s; then the error is store.ErrUnavailable. Items of other services have none.
func (l *Locks) Write(ctx context.Context, it store.Item) (unlock func(), err error) {
	limited, cancel := context.WithTimeout(ctx, writeWait)
	defer cancel()
	unlock, err = l.takeAll(limited, l.write, writeName(it), writePace)
	if busy, ok := errors.AsType[*busyError](err); ok && ctx.Err() == nil {
		return nil, fmt.Errorf("%w: waited %d s for who else is writing the item: %s", store.ErrUnavailable, writeWait/time.Second, busy.who())
	}
	return unlock, err
}

// takeAll takes the lock in all places, always in the same order, and lets go of them in the reverse one.
func (l *Locks) takeAll(ctx context.Context, in []place, name string, p pace) (unlock func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	var all []*held
	release := func() {
		for _, h := range slices.Backward(all) {
			h.release()
		}
	}
	for _, place := range in {
		h, err := l.takeIn(ctx, place, name, p, all)
		if err != nil {
			release()
			return nil, err
		}
		if h != nil {
			all = append(all, h)
		}
	}
	return sync.OnceFunc(release), nil
}

// takeIn takes the lock in one place. It returns nil when there is none to take: the place cannot be used, or is one of
// those whose lock we hold already (two settings can name one directory).
func (l *Locks) takeIn(ctx context.Context, p place, name string, pace pace, all []*held) (*held, error) {
	dir, err := p.open()
	if err != nil {
		return nil, l.skip(p, err)
	}
	for _, h := range all {
		if sameDirectory(h.dir, dir) {
			return nil, dir.Close()
		}
	}
	h, err := take(ctx, dir, name, p.ages, pace)
	if err != nil {
		_ = dir.Close()
		return nil, l.skip(p, err)
	}
	l.mu.Lock()
	delete(l.warned, p.String())
	l.mu.Unlock()
	return h, nil
}

// skip sorts an error: nil if the place is to be passed over for it, after having told the log; otherwise the error.
func (l *Locks) skip(p place, err error) error {
	if p.ifThere && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, busy := errors.AsType[*busyError](err); busy {
		return err
	}
	for _, ours := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, ours) { // the original may well be able to take its lock
			return fmt.Errorf("lock of the original client: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if reason := err.Error(); l.warned[p.String()] != reason {
		l.warned[p.String()] = reason
		l.logger.Warn("passing over a lock of the original client, which cannot be taken", "directory", p.String(), "reason", reason)
	}
	return nil
}

func sameDirectory(a, b *os.Root) bool {
	infoA, errA := a.Stat(".")
	infoB, errB := b.Stat(".")
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// theirName reports whether the original takes s for the name of a provider or a bucket.
func theirName(s string) bool {
	const of = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-"
	return s != "" && len(s) <= 64 && strings.Trim(s, of) == ""
}

// refreshName is the name of a login's refresh lock, "" for what is no login of the original's.
func refreshName(it store.Item) string {
	provider, bucket, ok := strings.Cut(it.Account, ":")
	switch {
	case it.Service != store.ServiceLogins || !ok || !theirName(provider) || !theirName(bucket):
		return ""
	case bucket == "default":
		return provider + "-refresh.lock"
	}
	return provider + "-" + bucket + "-refresh.lock"
}

// longestWriteName is the longest name of a write lock that the original takes; it refuses the item then.
const longestWriteName = 220

// writeName is the name of an item's write lock, "" for what the original cannot have.
func writeName(it store.Item) string {
	if it.Service != store.ServiceLogins && it.Service != store.ServiceKeys {
		return ""
	}
	name := "cred-" + escape(it.Service) + "@" + escape(it.Account) + ".lock"
	if len(name) > longestWriteName {
		return ""
	}
	return name
}

// escape writes characters that some file system does not take, and all that are not ASCII, as "%" and hexadecimal
// digits. Of a character beyond the basic plane the original writes the first half only, and so do we.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r > 0xffff:
			fmt.Fprintf(&b, "%%%X", 0xd800+(r-0x10000)>>10)
		case r < ' ' || r > '~' || strings.ContainsRune(`*<>:"/\|?@%`, r):
			fmt.Fprintf(&b, "%%%02X", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
