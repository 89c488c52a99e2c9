package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store is the Secret Service of the user's session. It is safe for concurrent use.
//
// It speaks the protocol itself: zalando/go-keyring, which finds the same items, cannot list them, looks into one
// collection only, and waits without a limit for a service that hangs.
type Store struct {
	locks   locks
	address string
	limit   time.Duration // of one call

	// turn is held by whoever uses conn itself (not what it points to). It is a channel so that waiting ends with the
	// waiter's ctx. conn is nil until the first call and after the connection broke.
	turn chan struct{}
	conn *service
}

func open(o Options, l locks) *Store {
	return &Store{locks: l, address: o.Bus, limit: cmp.Or(o.Limit, limit), turn: make(chan struct{}, 1)}
}

// Close closes the connection. A call after it connects again.
func (s *Store) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.conn == nil {
		return nil
	}
	err := s.conn.bus.Close()
	s.conn = nil
	return err
}

// service returns the connection, with broken that it is no longer this one.
func (s *Store) service(ctx context.Context, broken *service) (*service, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.turn }()
	if s.conn != nil && (s.conn == broken || !s.conn.bus.Connected()) {
		_ = s.conn.bus.Close()
		s.conn = nil
	}
	if s.conn == nil {
		conn, err := openService(ctx, s.address, s.limit)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

// do runs f with the connection. It runs f again when the connection broke (the keyring's program was started anew, say)
// or an item was deleted between being found and being used; everything f does can be done twice.
func (s *Store) do(ctx context.Context, f func(*service) error) error {
	var broken *service
	var err error
	for range 4 {
		var c *service
		if c, err = s.service(ctx, broken); err == nil {
			if err = f(c); errors.Is(err, errBroken) {
				broken = c
			}
		}
		if !errors.Is(err, errBroken) && !errors.Is(err, errGone) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// first returns the first of two errors that there is.
func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func attributes(it store.Item) map[string]string {
	return map[string]string{"service": it.Service, "username": it.Account}
}

// Read implements [store.Store]. If several items have the name, the one that was changed last counts.
func (s *Store) Read(ctx context.Context, it store.Item) (v secret.String, err error) {
	if err := begin(ctx, it); err != nil {
		return v, err
	}
	err = s.do(ctx, func(c *service) error {
		items, err := c.find(ctx, attributes(it))
		if err != nil {
			return err
		}
		if len(items) == 0 {
			return store.ErrNotFound
		}
		value, err := c.value(ctx, items[0])
		v = secret.New(string(value))
		return err
	})
	if err == nil && v.IsZero() {
		err = store.ErrNotFound // an item without a value; nobody stores one, and callers take it for none
	}
	return v, wrap(it, err)
}

func (s *Store) write(ctx context.Context, it store.Item, value secret.String) error {
	update := func(c *service) (found bool, err error) {
		items, err := c.find(ctx, attributes(it))
		for _, item := range items {
			err = first(err, c.setValue(ctx, item, value.Reveal()))
		}
		return len(items) > 0, err
	}
	return s.do(ctx, func(c *service) error {
		if found, err := update(c); found || err != nil {
			return err
		}
		// Two processes that find nothing must not make an item each.
		unlock, err := s.Lock(ctx, store.Item{Service: "credproxy-keyring", Account: "create"})
		if err != nil {
			return err
		}
		defer unlock()
		if found, err := update(c); found || err != nil {
			return err
		}
		return c.create(ctx, label(it), attributes(it), value.Reveal())
	})
}

func (s *Store) remove(ctx context.Context, it store.Item) error {
	return s.do(ctx, func(c *service) error {
		items, err := c.find(ctx, attributes(it))
		for _, item := range items {
			if removeErr := c.remove(ctx, item); !errors.Is(removeErr, errGone) {
				err = first(err, removeErr)
			}
		}
		return err
	})
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, name string) ([]string, error) {
	if err := begin(ctx, store.Item{Service: name, Account: "any"}); err != nil {
		return nil, err
	}
	var accounts []string
	err := s.do(ctx, func(c *service) error {
		accounts = nil
		items, err := c.list(ctx, name)
		if err != nil {
			return err
		}
		all, err := properties[map[string]string](ctx, c, items, "Attributes")
		for _, attributes := range all {
			if account := attributes["username"]; account != "" && !isProbe(account) {
				accounts = append(accounts, account)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list of the keyring: %w", err)
	}
	slices.Sort(accounts)
	return slices.Compact(accounts), nil
}

// list returns the items of a service. Those in a locked collection other than the default one are among them if the
// keyring knows their attributes.
func (s *service) list(ctx context.Context, name string) ([]dbus.ObjectPath, error) {
	if _, _, err := s.collection(ctx); err != nil {
		return nil, err
	}
	var items, locked []dbus.ObjectPath
	err := s.call(ctx, servicePath, serviceIface+".SearchItems", []any{map[string]string{"service": name}}, &items, &locked)
	return append(items, locked...), err
}

// Check implements [store.Store]: the keyring answers, has a place for new items, and that is not locked.
func (s *Store) Check(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("keyring: %w", ctx.Err())
	}
	err := s.do(ctx, func(c *service) error {
		collection, _, err := c.collection(ctx)
		if err == nil && collection == noPath {
			err = errNoCollection
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return nil
}
