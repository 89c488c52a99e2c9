// Package memory is a store that ends with its process: [New]. Tests of the layers above use it, and whoever wants to
// run a proxy without leaving anything behind. [Store.Refuse] makes it one that is locked or full for a while.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store keeps items in memory. It is safe for concurrent use.
type Store struct {
	mu       sync.Mutex // guards all below
	values   map[store.Item]secret.String
	versions map[store.Item]uint64 // of every item that ever was, so that no version comes twice
	changes  uint64
	locks    map[store.Item]chan struct{} // holds one token while nobody has the lock

	reads, writes error // see Refuse
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{
		values:   make(map[store.Item]secret.String),
		versions: make(map[store.Item]uint64),
		locks:    make(map[store.Item]chan struct{}),
	}
}

// Name is "memory".
func (s *Store) Name() string { return "memory" }

// Refuse makes the store fail from now on, as one on a disk or in a keyring does: Read, List and Version with reads, Write and
// Delete with writes, Check with the first that is not nil. What is stored stays, and locks are not concerned, for they are
// no part of a keyring or of a full disk. Nil means that these work, so Refuse(nil, nil) ends it.
func (s *Store) Refuse(reads, writes error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads, s.writes = reads, writes
}

// refused is the error of an operation on an item that is refused with cause; nil if it is not.
func refused(it store.Item, cause error) error {
	if cause == nil {
		return nil
	}
	return fmt.Errorf("item %s: %w", it, cause)
}

// Read implements [store.Store].
func (s *Store) Read(ctx context.Context, it store.Item) (secret.String, error) {
	if err := begin(ctx, it); err != nil {
		return secret.String{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := refused(it, s.reads); err != nil {
		return secret.String{}, err
	}
	v, ok := s.values[it]
	if !ok {
		return secret.String{}, fmt.Errorf("item %s: %w", it, store.ErrNotFound)
	}
	return v, nil
}

// Write implements [store.Store].
func (s *Store) Write(ctx context.Context, it store.Item, value secret.String) error {
	if err := begin(ctx, it); err != nil {
		return err
	}
	if err := store.CheckValue(it, value); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := refused(it, s.writes); err != nil {
		return err
	}
	s.values[it] = value
	s.changedLocked(it)
	return nil
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, it store.Item) error {
	if err := begin(ctx, it); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := refused(it, s.writes); err != nil {
		return err
	}
	if _, ok := s.values[it]; ok {
		delete(s.values, it)
		s.changedLocked(it)
	}
	return nil
}

func (s *Store) changedLocked(it store.Item) {
	s.changes++
	s.versions[it] = s.changes
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, service string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads != nil {
		return nil, fmt.Errorf("items of %s: %w", service, s.reads)
	}
	var accounts []string
	for it := range maps.Keys(s.values) {
		if it.Service == service {
			accounts = append(accounts, it.Account)
		}
	}
	slices.Sort(accounts)
	return accounts, nil
}

// Version implements [store.Store].
func (s *Store) Version(ctx context.Context, it store.Item) (string, error) {
	if err := begin(ctx, it); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := refused(it, s.reads); err != nil {
		return "", err
	}
	return strconv.FormatUint(s.versions[it], 10), nil
}

// Lock implements [store.Store].
func (s *Store) Lock(ctx context.Context, it store.Item) (unlock func(), err error) {
	if err := begin(ctx, it); err != nil {
		return nil, err
	}
	s.mu.Lock()
	free, ok := s.locks[it]
	if !ok {
		free = make(chan struct{}, 1)
		free <- struct{}{}
		s.locks[it] = free
	}
	s.mu.Unlock()
	select {
	case <-free:
		return sync.OnceFunc(func() { free <- struct{}{} }), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("lock of %s: another request has it: %w", it, ctx.Err())
	}
}

// Check implements [store.Store]: memory is always there, unless it refuses.
func (s *Store) Check(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(ctx.Err(), s.reads, s.writes)
}

// Close does nothing: what is stored lives as long as s.
func (s *Store) Close() error { return nil }

func begin(ctx context.Context, it store.Item) error {
	if ctx.Err() != nil {
		return fmt.Errorf("item %s: %w", it, ctx.Err())
	}
	return store.CheckItem(it)
}
