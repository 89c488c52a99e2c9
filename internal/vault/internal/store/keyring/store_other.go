//go:build !linux && !darwin

package keyring

import (
	"context"
	"fmt"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store is a keyring that is not there.
type Store struct{ locks locks }

var errNone = fmt.Errorf("%w: credproxy knows no keyring on this system", store.ErrUnavailable)

func open(_ Options, l locks) *Store { return &Store{locks: l} }

// Close does nothing.
func (s *Store) Close() error { return nil }

// Read returns store.ErrUnavailable, like all below.
func (s *Store) Read(context.Context, store.Item) (secret.String, error) {
	return secret.String{}, errNone
}
func (s *Store) write(context.Context, store.Item, secret.String) error { return errNone }
func (s *Store) remove(context.Context, store.Item) error               { return errNone }
func (s *Store) List(context.Context, string) ([]string, error)         { return nil, errNone }
func (s *Store) Check(context.Context) error                            { return errNone }
