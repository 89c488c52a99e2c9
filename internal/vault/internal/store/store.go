// Package store is where credentials rest: a small interface, what every store must do (the conformance suite in
// storetest), and a [Cache] in front of any of them. The stores are in keyring (the system's), file (one encrypted file
// an item) and memory.
//
// A store knows items, not tokens: a service and an account name, as the system's keyrings do, and a sealed value.
// What the value means is grant's business.
package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// The services under which the original client of the protocol keeps its items, so that each finds what the other
// stored.
const (
	ServiceLogins = "llxprt-code-oauth"         // account "provider:bucket", value JSON
	ServiceKeys   = "llxprt-code-provider-keys" // account is the key's name, value the key
)

// Item names a stored value.
type Item struct {
	Service string
	Account string
}

// String is "service/account" for messages, quoted if it has characters that could forge a line of a log.
func (it Item) String() string {
	name := it.Service + "/" + it.Account
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return strconv.QuoteToASCII(name)
		}
	}
	return name
}

// Limits that every store has, so that an item can move from any store to any other.
const (
	MaxName  = 1024    // bytes of a service or an account
	MaxValue = 1 << 20 // bytes of a value
)

// CheckItem returns an error for a name that some store could not keep: empty, longer than [MaxName], not UTF-8, or
// with a zero byte. Every method of every store begins with it.
func CheckItem(it Item) error {
	for _, name := range []string{it.Service, it.Account} {
		switch {
		case name == "":
			return fmt.Errorf("item %s: a service and an account have at least one character", it)
		case len(name) > MaxName:
			return fmt.Errorf("item %.40q…: the name is longer than %d bytes", name, MaxName)
		case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
			return fmt.Errorf("item %s: the name is not text in UTF-8", it)
		}
	}
	return nil
}

// CheckValue returns an error for a value that no store keeps: an empty one, which could not be told from none, or one
// longer than [MaxValue].
func CheckValue(it Item, value secret.String) error {
	switch n := len(value.Reveal()); {
	case n == 0:
		return fmt.Errorf("item %s: there is nothing to store in it", it)
	case n > MaxValue:
		return fmt.Errorf("item %s: %w: %d bytes, and at most %d can be stored", it, ErrTooLarge, n, MaxValue)
	}
	return nil
}

// Errors of every store. They come wrapped with what was being done.
var (
	// ErrTooLarge: the value is longer than [MaxValue].
	ErrTooLarge = errors.New("the value is too large")
	// ErrNotFound: there is no such item.
	ErrNotFound = errors.New("not stored")
	// ErrLocked: the store is there but locked; unlocking it is up to the person.
	ErrLocked = errors.New("the keyring is locked")
	// ErrUnavailable: the store does not answer (no keyring service, no bus, time limit).
	ErrUnavailable = errors.New("the store does not answer")
	// ErrDamaged: the item is there and cannot be read; it was set aside, the error names where.
	ErrDamaged = errors.New("the stored item is damaged")
)

// A Store keeps items. All methods may be called concurrently, by several processes too.
type Store interface {
	// Name is "keyring", "file" or "memory".
	Name() string

	// Read returns the item's value, or ErrNotFound.
	Read(ctx context.Context, it Item) (secret.String, error)

	// Write creates or replaces the item. When it returns nil the value is durable; on an error the old value is
	// still there. It never touches another item.
	Write(ctx context.Context, it Item, value secret.String) error

	// Delete removes the item; removing what is not there is no error.
	Delete(ctx context.Context, it Item) error

	// List returns the accounts that service has, sorted, without reading any value.
	List(ctx context.Context, service string) ([]string, error)

	// Version returns a cheap marker that changes whenever the item's value does ("absent" counts as a value), or
	// "" from a store that has none, which makes [Cache] read the value again.
	Version(ctx context.Context, it Item) (string, error)

	// Lock takes the item's lock, shared by all processes of this user, and waits for it until ctx is done. The
	// lock dies with its process. It is held around read-merge-write; Write itself does not take it.
	Lock(ctx context.Context, it Item) (unlock func(), err error)

	// Check reports whether the store can be used now, for doctor: nil, ErrLocked, ErrUnavailable, …
	Check(ctx context.Context) error

	// Close releases what the store holds open.
	Close() error
}
