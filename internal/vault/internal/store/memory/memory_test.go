package memory_test

import (
	"context"
	"errors"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/internal/vault/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) (a, b store.Store) {
		s := memory.New()
		return s, s
	})
}

// A store that refuses says so with the error that it was given, keeps what it has, and works again when told.
func TestRefuse(t *testing.T) {
	ctx := context.Background()
	it := store.Item{Service: store.ServiceLogins, Account: "acme:default"}
	value := secret.New("test-value-1")
	s := memory.New()
	if err := s.Write(ctx, it, value); err != nil {
		t.Fatal(err)
	}
	before, err := s.Version(ctx, it)
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]func() error{
		"Read":    func() error { _, err := s.Read(ctx, it); return err },
		"List":    func() error { _, err := s.List(ctx, it.Service); return err },
		"Version": func() error { _, err := s.Version(ctx, it); return err },
		"Write":   func() error { return s.Write(ctx, it, secret.New("test-value-2")) },
		"Delete":  func() error { return s.Delete(ctx, it) },
		"Check":   func() error { return s.Check(ctx) },
		"Lock": func() error {
			unlock, err := s.Lock(ctx, it)
			if err == nil {
				unlock()
			}
			return err
		},
	}
	errFull := errors.New("no space left")
	for _, tt := range []struct {
		reads, writes error
		want          map[string]error
	}{
		{nil, errFull, map[string]error{"Write": errFull, "Delete": errFull, "Check": errFull}},
		{store.ErrLocked, errFull, map[string]error{
			"Read": store.ErrLocked, "List": store.ErrLocked, "Version": store.ErrLocked, "Write": errFull, "Delete": errFull, "Check": store.ErrLocked,
		}},
		{store.ErrLocked, nil, map[string]error{"Read": store.ErrLocked, "List": store.ErrLocked, "Version": store.ErrLocked, "Check": store.ErrLocked}},
	} {
		s.Refuse(tt.reads, tt.writes)
		for name, do := range operations {
			if tt.writes == nil && (name == "Write" || name == "Delete") {
				continue // they work
			}
			if err := do(); !errors.Is(err, tt.want[name]) {
				t.Errorf("reads %v, writes %v: %s: %v", tt.reads, tt.writes, name, err)
			}
		}
	}
	s.Refuse(nil, nil)
	after, err := s.Version(ctx, it)
	if err != nil || after != before {
		t.Errorf("the version changed from %q to %q: %v", before, after, err)
	}
	if v, err := s.Read(ctx, it); err != nil || !v.Equal(value) {
		t.Errorf("the value did not stay: %v", err)
	}
}
