package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// How long things last in a [Cache].
const (
	freshFor    = 250 * time.Millisecond // an answer from memory is at most this old
	checkLimit  = 15 * time.Second       // one check of an item with the store, all of it
	idleFor     = 10 * time.Minute       // then a value that nobody asks for is dropped
	idleAbsent  = time.Minute            // the same for "there is none"; longer than checkLimit
	sweepAtOnce = 4                      // entries that each check and each change looks at to find idle ones
	maxHeld     = 32 << 20               // bytes that values in memory may take together
)

// errClosed is what a closed cache answers.
var errClosed = errors.New("the credential store was closed")

// A Cache stands in front of a store and keeps what it has read, decoded, in memory. [Cache.Peek] answers in
// nanoseconds, or not; [Cache.Read] asks the store when the last check is more than 250 ms ago, and decodes the value
// again only if its version has changed. So a change that another process made is seen within 250 ms and the time of
// one check, and the cost of an answer does not depend on how many items there are.
//
// Checks of one item are shared: they run in a goroutine of their own, apart from the requests that wait for them, with
// 15 s of their own. A request that goes away fails nobody else. Close waits for those goroutines.
//
// A write through the cache is seen by every read that begins after it has returned.
type Cache[T any] struct {
	store  Store
	decode func(Item, secret.String) (T, error)
	values slots[Item, T]
	lists  slots[string, []string]
	checks checks
}

// NewCache returns a cache of s. decode makes a T of an item's value; its errors are remembered like values, and must
// not contain any part of the value. A T is handed to many callers at once: they only read it.
func NewCache[T any](s Store, decode func(Item, secret.String) (T, error)) *Cache[T] {
	c := &Cache[T]{store: s, decode: decode}
	c.checks.running = make(map[*context.CancelFunc]struct{})
	return c
}

// Peek returns the item's decoded value if it was checked in the last 250 ms. It never blocks, never asks the store and
// does not allocate.
func (c *Cache[T]) Peek(it Item) (value T, ok bool) {
	s := c.values.peek(it)
	if s == nil {
		return value, false
	}
	last := s.last.Load()
	if !last.fresh() || last.err != nil {
		return value, false
	}
	return last.value, true
}

// Read returns the item's decoded value, from memory if it was checked in the last 250 ms. The error is the store's
// (ErrNotFound, …), decode's, or ctx's.
func (c *Cache[T]) Read(ctx context.Context, it Item) (T, error) { return c.read(ctx, it, false) }

// Reload is Read with a check that begins now: it sees every write that was complete before the call, of any process. It is
// what to call with the item's lock.
func (c *Cache[T]) Reload(ctx context.Context, it Item) (T, error) { return c.read(ctx, it, true) }

func (c *Cache[T]) read(ctx context.Context, it Item, now bool) (T, error) {
	s := c.values.get(it)
	defer c.values.shrink(it)
	return s.read(ctx, &c.checks, now, func(ctx context.Context, last *known[T]) *known[T] {
		c.values.sweep()
		return c.check(ctx, it, last)
	})
}

// check asks the store for the item. The version is asked for before the value: a change in between makes the version
// that is remembered too old, which costs another read, never too new.
func (c *Cache[T]) check(ctx context.Context, it Item, last *known[T]) *known[T] {
	now := &known[T]{checked: time.Now()}
	if now.version, now.err = c.store.Version(ctx, it); now.err != nil {
		now.failed = true
		return now
	}
	if last != nil && now.version != "" && now.version == last.version {
		now.value, now.err, now.size = last.value, last.err, last.size
		return now
	}
	sealed, err := c.store.Read(ctx, it)
	switch {
	case errors.Is(err, ErrNotFound):
		now.err = err
	case err != nil:
		now.err, now.failed = err, true
	default:
		now.value, now.err = c.decode(it, sealed)
		now.size = len(sealed.Reveal())
	}
	return now
}

// Write writes the item through to the store.
func (c *Cache[T]) Write(ctx context.Context, it Item, value secret.String) error {
	return c.change(it, func() (*known[T], error) {
		now := &known[T]{checked: time.Now()} // and no version: the next check reads the value
		if err := c.store.Write(ctx, it, value); err != nil {
			return nil, err
		}
		now.value, now.err = c.decode(it, value)
		now.size = len(value.Reveal())
		return now, nil
	})
}

// Delete deletes the item from the store.
func (c *Cache[T]) Delete(ctx context.Context, it Item) error {
	return c.change(it, func() (*known[T], error) { return nil, c.store.Delete(ctx, it) })
}

// Expire makes the item unknown: every read that begins after it has returned asks the store.
func (c *Cache[T]) Expire(it Item) {
	_ = c.change(it, func() (*known[T], error) { return nil, nil })
}

// change runs f and leaves in memory what f returns, nil for "ask the store". After an error nobody knows what the
// store has, so it is asked as well.
func (c *Cache[T]) change(it Item, f func() (*known[T], error)) error {
	s, l := c.values.get(it), c.lists.get(it.Service)
	begun, listBegun := s.begin(), l.begin()
	now, err := f()
	s.end(begun, now)
	l.end(listBegun, nil)
	c.values.sweep()
	c.values.shrink(it)
	return err
}

// List returns the service's accounts, sorted, at most 250 ms old. Callers share the slice and must not change it.
func (c *Cache[T]) List(ctx context.Context, service string) ([]string, error) {
	l := c.lists.get(service)
	return l.read(ctx, &c.checks, false, func(ctx context.Context, _ *known[[]string]) *known[[]string] {
		c.lists.sweep()
		now := &known[[]string]{checked: time.Now()}
		now.value, now.err = c.store.List(ctx, service)
		now.failed = now.err != nil
		return now
	})
}

// Forget drops all that is in memory, for when decode would now give something else.
func (c *Cache[T]) Forget() {
	c.values.forget()
	c.lists.forget()
}

// Close stops the checks that are running and waits for them. It does not close the store.
func (c *Cache[T]) Close() error {
	c.checks.close()
	return nil
}

// checks owns the goroutines that ask the store.
type checks struct {
	wg      sync.WaitGroup
	mu      sync.Mutex // guards all below
	closed  bool
	running map[*context.CancelFunc]struct{}
}

// start runs f in a goroutine, apart from ctx but with its values. It reports false after close.
func (c *checks) start(ctx context.Context, f func(context.Context)) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkLimit)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		cancel()
		return false
	}
	c.running[&cancel] = struct{}{}
	c.wg.Go(func() {
		f(ctx)
		cancel()
		c.mu.Lock()
		delete(c.running, &cancel)
		c.mu.Unlock()
	})
	return true
}

func (c *checks) close() {
	c.mu.Lock()
	c.closed = true
	for cancel := range c.running {
		(*cancel)()
	}
	c.mu.Unlock()
	c.wg.Wait()
}
