package refresh

import (
	"context"
	"errors"

	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store is the store as everybody is to see it: a login whose new token the store has refused so far reads as if it had
// not. In every process: the journal is shared.
func (c *Coordinator) Store() store.Store { return overlay{c.o.Store, c} }

// overlay adds the journal to a store. Its Write and Delete are called with the item's lock held, as those of any store.
type overlay struct {
	store.Store
	c *Coordinator
}

// Read implements [store.Store].
func (o overlay) Read(ctx context.Context, it store.Item) (secret.String, error) {
	if it.Service != store.ServiceLogins {
		return o.Store.Read(ctx, it)
	}
	// An error is of one place for the journal; another may have what counts, or this process.
	r, err := o.c.o.Journal.Read(ctx, it)
	if err != nil {
		r = o.c.remembered(it, r)
	}
	if r.Sealed == nil {
		return o.Store.Read(ctx, it)
	}
	s := o.c.stand(ctx, it, r)
	if s.pending == nil {
		return s.stored, s.err
	}
	o.c.keep(it, r)
	return s.pending.Seal(), nil
}

// Write implements [store.Store]. What was pending is older than what is written.
func (o overlay) Write(ctx context.Context, it store.Item, value secret.String) error {
	if err := o.Store.Write(ctx, it, value); err != nil || it.Service != store.ServiceLogins {
		return err
	}
	r, _ := o.c.record(ctx, it)
	if r.Sealed == nil {
		return nil
	}
	r.Sealed = nil
	if r.Phase == journal.Received {
		r.Phase = journal.Idle
	}
	if err := o.c.o.Journal.Write(ctx, it, r, 0); err != nil {
		// The store has a newer login, and so the old answer is of no use to anybody who compares.
		o.c.o.Logger.Warn("the journal could not be written", "login", it.Account, "error", err)
	}
	return nil
}

// Delete implements [store.Store]. A login that is removed has no history.
func (o overlay) Delete(ctx context.Context, it store.Item) error {
	if err := o.Store.Delete(ctx, it); err != nil || it.Service != store.ServiceLogins {
		return err
	}
	o.c.Forget(ctx, it)
	return nil
}

// Version implements [store.Store].
func (o overlay) Version(ctx context.Context, it store.Item) (string, error) {
	if it.Service != store.ServiceLogins {
		return o.Store.Version(ctx, it)
	}
	recorded, journalErr := o.c.o.Journal.Version(ctx, it)
	version, err := o.Store.Version(ctx, it)
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)):
		return "", err
	case err != nil && journalErr != nil && o.c.remembered(it, journal.Record{}).Sealed == nil:
		return "", err
	case err != nil:
		// The store does not answer: what it would say is not remembered, but a pending answer can be read, in the journal or in
		// this process's memory.
		return "", nil
	case version == "" || journalErr != nil:
		return "", nil
	}
	return version + " " + recorded, nil
}
