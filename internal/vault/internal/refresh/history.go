package refresh

import (
	"context"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// History is what can be said of a login's refreshes, to people.
type History struct {
	Refreshed time.Time // the last that succeeded; zero: none
	Issued    time.Time // when the stored token was issued; zero: nobody knows
	Outcome   journal.Outcome
	Refused   bool   // the provider has refused the refresh token that is stored, or it was removed for that
	Unsaved   bool   // the newest token is in the journal, and the store does not have it
	Detail    string // a sentence, or ""
}

// lookLimit tells a refresh that is running from one that was interrupted: the former has the lock. To take over the
// original client's lock from a dead process takes up to half of it. Resume, for which nobody waits, has more. Variables, because
// a test's machine may stand still for longer.
var (
	lookLimit   = 500 * time.Millisecond
	resumeLimit = 5 * time.Second
)

// History returns what is known of a login's refreshes; g is the login as it stands, nil if it cannot be read.
func (c *Coordinator) History(ctx context.Context, it store.Item, g *grant.Grant) History {
	r, err := c.record(ctx, it)
	h := History{Refreshed: r.Refreshed, Issued: r.Issued, Outcome: r.Outcome, Detail: Explain(r)}
	switch {
	case err != nil:
		h.Detail = err.Error()
	case r.Outcome == journal.Refused && g != nil && !c.concerns(ctx, it, r, g):
		h.Detail = "" // of another refresh token, or another client
	default:
		h.Refused = r.Outcome == journal.Refused && !clientRefused(r)
	}
	if r.Sealed == nil && r.Phase != journal.Called {
		return h
	}
	// What is younger than an attempt can be may be running; then somebody has the lock.
	if time.Since(r.Attempt) < attemptLimit+saveLimit && c.running(ctx, it, lookLimit) {
		h.Detail = "a refresh is running"
		return h
	}
	var s standing
	if r.Sealed != nil {
		s = c.stand(ctx, it, r)
	}
	switch {
	case s.closed != nil:
		h.Unsaved = true
		h.Detail = "the newest token waits in the recovery files, and the key that opens them is out of reach"
	case s.pending != nil:
		h.Unsaved = true
		h.Detail = "the store refuses the newest token: it is served from the recovery files, and storing it is tried again"
		if c.o.Journal.Held(it) {
			h.Detail = "the store refuses the newest token, and so does every place for recovery files: it is in memory only, and lost when this process ends"
		}
	case r.Phase == journal.Called:
		h.Detail = "a refresh was interrupted and may have used up the refresh token: the next one shows"
	}
	return h
}

// concerns reports whether the refusal in r would be the answer to a refresh of g now.
func (c *Coordinator) concerns(ctx context.Context, it store.Item, r journal.Record, g *grant.Grant) bool {
	if g.RefreshToken.IsZero() {
		return r.Revoked // it was removed for that
	}
	if g.RefreshToken.Fingerprint() != r.Sent {
		return false
	}
	p, ok := c.o.Provider(providerOf(it))
	if !ok {
		return true
	}
	clientSecret, err := c.o.Secret(ctx, p)
	return err != nil || p.RequestFingerprint(g, clientSecret) == r.Request
}

// running reports whether somebody has the login's lock, and keeps it for so long.
func (c *Coordinator) running(ctx context.Context, it store.Item, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	unlock, err := c.o.Store.Lock(ctx, it)
	if err != nil {
		return ctx.Err() != nil
	}
	unlock()
	return false
}

// Safe reports whether a place can be written where an answer would be safe before the store has it. The error says why the
// places that come first, or all, cannot.
func (c *Coordinator) Safe(ctx context.Context) (bool, error) {
	dir, err := c.o.Journal.Check(ctx)
	return dir != "", err
}

// Reserved reports whether the answer to a refresh of the login has its place in the journal already, so that it would be safe even
// if nothing new can be written.
func (c *Coordinator) Reserved(ctx context.Context, it store.Item) bool {
	wait, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	unlock, err := c.o.Store.Lock(wait, it)
	if err != nil {
		return false
	}
	defer unlock()
	g, err := c.read(ctx, it)
	if err != nil {
		return false
	}
	r, err := c.record(ctx, it)
	return err == nil && c.o.Journal.Reserved(it, room(g, c.basesOf(ctx, it, r, g)))
}
