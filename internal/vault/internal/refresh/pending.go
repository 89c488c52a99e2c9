package refresh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// payload is what the journal has of an answer until the store has it.
type payload struct {
	// bases are the fingerprints of the refresh tokens that the store may have without having anything newer: the one that
	// it had when the first answer which it refused was asked for, and those of the answers that it refused since, for a write
	// that failed may have been done all the same. The last is old's.
	bases  []string
	old    *grant.Grant // what answer is merged over
	answer provider.Answer
}

type payloadForm struct {
	Bases []string  `json:"bases"`
	Old   string    `json:"old"`
	Body  []byte    `json:"body"`
	Sent  time.Time `json:"sent"`
}

// sealPayload returns what [journal.Journal.Seal] does: with an error that wraps journal.ErrNotDurable, something that this
// process alone can open.
func (c *Coordinator) sealPayload(ctx context.Context, it store.Item, p payload) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a login full of "<" would be six times as long
	if err := enc.Encode(payloadForm{p.bases, p.old.Seal().Reveal(), p.answer.Body, p.answer.Sent}); err != nil {
		return nil, errors.New("an answer cannot be encoded for the journal")
	}
	return c.o.Journal.Seal(ctx, it, secret.New(b.String()))
}

func (c *Coordinator) openPayload(ctx context.Context, it store.Item, sealed []byte) (payload, error) {
	plain, err := c.o.Journal.Open(ctx, it, sealed)
	if err != nil {
		return payload{}, err
	}
	var f payloadForm
	if json.Unmarshal([]byte(plain.Reveal()), &f) != nil {
		return payload{}, errors.New("what the journal has of an answer is not in its form")
	}
	old, err := grant.Parse(secret.New(f.Old))
	if err != nil {
		return payload{}, err
	}
	return payload{f.Bases, old, provider.Answer{Body: f.Body, Sent: f.Sent}}, nil
}

// errNoAnswer: what the journal has is not a token response. The provider answered something else.
var errNoAnswer = errors.New("what the provider had answered is not a token")

// errStored: who wrote it to the store did not come to clear the journal.
var errStored = errors.New("the store has it")

// merged is the login that the payload makes. What the provider answered may turn out to be no token: then it is the login
// before it with the refresh token that can be read in the answer, or if there is none, the login before it if that is one
// that the store has refused too.
func (c *Coordinator) merged(it store.Item, p payload) (*grant.Grant, error) {
	described, ok := c.o.Provider(providerOf(it))
	if !ok {
		// It was in the configuration when the answer came. What every provider's answer has is kept.
		described = &provider.Provider{Name: providerOf(it), Fields: grant.DefaultFields}
	}
	answer, err := described.Parse(p.answer, p.old)
	salvaged := described.Salvage(p.answer, p.old)
	switch {
	case err != nil && !salvaged.IsZero():
		g := *p.old
		g.RefreshToken = salvaged
		return &g, nil
	case err != nil && len(p.bases) > 1:
		return p.old, nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return grant.Merge(p.old, answer), nil
}

// standing is how a login stands, between the store and an answer that waits in the journal.
type standing struct {
	stored  secret.String // what the store has; zero with err
	err     error         // the store's
	pending *grant.Grant  // the answer in the journal, if it is newer than what the store has
	useless error         // why the answer in the journal can be dropped
	closed  error         // why it cannot be opened
	absent  bool          // the store has no such login; the answer waits, and is not served
}

// stand compares the store with what the journal has. The answer counts as long as the store still has the login that it
// was asked for, or cannot say. A login that is gone is not brought back by its answer. But a logout clears the journal, so the
// store may have gone instead, a disk that is not mounted, another keyring: the answer waits for it.
func (c *Coordinator) stand(ctx context.Context, it store.Item, r journal.Record) standing {
	var s standing
	s.stored, s.err = c.o.Store.Read(ctx, it)
	if c.isAbsent(it, s.err) {
		s.absent = true
		return s
	}
	p, openErr := c.openPayload(ctx, it, r.Sealed)
	if openErr != nil {
		s.closed = openErr
		return s
	}
	merged, err := c.merged(it, p)
	if err != nil {
		s.useless = err
		return s
	}
	if s.err == nil {
		if stored, err := grant.Parse(s.stored); err == nil && supersedes(stored, merged, p.bases) {
			s.useless = errors.New("the store has a newer one")
			if stored.AccessToken.Equal(merged.AccessToken) && stored.RefreshToken.Equal(merged.RefreshToken) {
				s.useless = errStored
			}
			return s
		}
	}
	s.pending = merged
	return s
}

// isAbsent reports whether err, of a reading of it, means that there is no such login. A damaged item is set aside by the
// store, which then says that there is none; this process remembers.
func (c *Coordinator) isAbsent(it store.Item, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, store.ErrDamaged) {
		c.damaged[it] = struct{}{}
	}
	if err == nil {
		delete(c.damaged, it)
	}
	_, damaged := c.damaged[it]
	return errors.Is(err, store.ErrNotFound) && !damaged
}

// store writes a login to the store. What a client has saved into it does not make it too large to be stored.
func (c *Coordinator) store(ctx context.Context, it store.Item, g *grant.Grant) (*grant.Grant, error) {
	err := c.o.Store.Write(ctx, it, g.Seal())
	if errors.Is(err, store.ErrTooLarge) && len(g.Saved) > 0 {
		c.o.Logger.Warn("a login is too large to be stored: what clients have saved into it is dropped", "login", it.Account)
		g = g.WithoutSaved()
		err = c.o.Store.Write(ctx, it, g.Seal())
	}
	return g, err
}

// supersedes reports whether the store has what was pending, or something newer than all of bases. A provider that does not
// rotate leaves the refresh token as it is, so that it alone does not tell; then the later expiry does. It says nothing against
// a rotated refresh token: the one in the store is worthless, whatever expiry a client has saved beside it.
func supersedes(stored, pending *grant.Grant, bases []string) bool {
	switch {
	case !slices.Contains(bases, stored.RefreshToken.Fingerprint()):
		return true
	case !stored.RefreshToken.Equal(pending.RefreshToken):
		return false
	}
	return stored.AccessToken.Equal(pending.AccessToken) || pending.Expiry != 0 && stored.Expiry > pending.Expiry
}

// maxBases bounds the bases. Of more, those in the middle go: a store that refuses a hundred answers in a row and has one of
// them nevertheless has one of the first or of the last.
const maxBases = 100

// basesOf are the bases of an answer that is about to be asked for; old is the login as it stands.
func (c *Coordinator) basesOf(ctx context.Context, it store.Item, r journal.Record, old *grant.Grant) []string {
	var bases []string
	if r.Sealed != nil {
		if p, err := c.openPayload(ctx, it, r.Sealed); err == nil { // and it is pending: settle has left it
			bases = p.bases
		}
	}
	if len(bases) == maxBases {
		bases = slices.Delete(bases, maxBases/2, maxBases/2+1)
	}
	return append(bases, old.RefreshToken.Fingerprint())
}

// settle stores an answer that waits in the journal, or drops it if it is of no use any more, and returns the record as it
// is then. The login's lock is held. The error means that there is an answer which nobody can open now: the refresh token
// in the store was used for it, and must not be used again.
func (c *Coordinator) settle(ctx context.Context, it store.Item, r journal.Record) (journal.Record, error) {
	if r.Sealed == nil {
		return r, nil
	}
	s := c.stand(ctx, it, r)
	switch {
	case errors.Is(s.closed, store.ErrDamaged):
		c.o.Logger.Error("an answer in the journal is damaged and lost", "login", it.Account, "error", s.closed)
		r.Interrupted = true
	case s.closed != nil:
		return r, fmt.Errorf("a new token waits in the recovery files and cannot be opened: %w", s.closed)
	case s.useless != nil:
		c.o.Logger.Info("an answer in the journal is dropped", "login", it.Account, "reason", s.useless)
		switch {
		case errors.Is(s.useless, errNoAnswer) && r.Phase == journal.Received: // else it is known what it was
			r.Outcome, r.Reason = journal.Failed, errNoAnswer.Error()
		case errors.Is(s.useless, errStored):
			answered(&r)
		}
	case s.absent:
		return r, nil
	case s.pending != nil:
		if _, err := c.store(ctx, it, s.pending); err != nil {
			r = c.rescued(ctx, it, r)
			c.refusedByStore(it, err)
			c.keep(it, r)
			return r, nil
		}
		c.o.Logger.Info("a new token that was only in the journal is now in the store", "login", it.Account)
		answered(&r)
	}
	r.Sealed = nil
	if r.Phase == journal.Received {
		r.Phase = journal.Idle
	}
	if err := c.o.Journal.Write(ctx, it, r, 0); err != nil {
		c.o.Logger.Warn("the journal could not be written; the store has the token", "login", it.Account, "error", err)
	}
	c.o.Changed(it)
	return r, nil
}

// answered notes the success of the last attempt, for a process that did not come to it. In another phase than Received
// there was a later attempt, and the record is about that one.
func answered(r *journal.Record) {
	if r.Phase != journal.Received {
		return
	}
	r.Outcome, r.Reason, r.Code, r.Status, r.Revoked, r.Interrupted = journal.OK, "", "", 0, false, false
	r.Refreshed, r.Issued = r.Attempt, r.Attempt
}

// rescued writes an answer that is in memory alone to the journal, if that can be written by now.
func (c *Coordinator) rescued(ctx context.Context, it store.Item, r journal.Record) journal.Record {
	if !c.o.Journal.Held(it) {
		return r
	}
	// Sealed anew: there may have been no key.
	if p, err := c.openPayload(ctx, it, r.Sealed); err == nil {
		if sealed, err := c.sealPayload(ctx, it, p); err == nil {
			r.Sealed = sealed
		}
	}
	if err := c.o.Journal.Write(ctx, it, r, 0); err == nil {
		c.o.Logger.Info("a new token that was only in memory is now in the recovery files", "login", it.Account)
	}
	return r
}

// refusedByStore is loud: until the store takes the token, a lost journal is a lost login.
func (c *Coordinator) refusedByStore(it store.Item, err error) {
	text := "THE STORE REFUSED A NEW TOKEN: it is served, and kept in the recovery files; storing it will be tried again"
	if c.o.Journal.Held(it) {
		text = "THE STORE REFUSED A NEW TOKEN, AND NO RECOVERY FILE CAN BE WRITTEN: it is served, and lost when this process ends; storing it will be tried again"
	}
	c.o.Logger.Error(text, "login", it.Account, "store", c.o.Store.Name(), "error", err)
}

// Times of the saver.
const (
	firstSave = time.Second
	longSave  = 30 * time.Second
	saveWait  = 5 * time.Second // for the lock of one login
)

// keep makes the saver try to store the login's pending answer, which r has, until that is done, here or elsewhere.
func (c *Coordinator) keep(it store.Item, r journal.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.unsaved[it]
	c.unsaved[it] = r
	if ok {
		return
	}
	if len(c.unsaved) == 1 && !c.startLocked(c.save) {
		clear(c.unsaved)
	}
}

// save is the saver: one goroutine, which ends when nothing is unsaved.
func (c *Coordinator) save() {
	for wait := firstSave; ; wait = min(2*wait, longSave) {
		select {
		case <-time.After(wait):
		case <-c.waiting.Done():
			c.lastSave()
			return
		}
		if c.saveAll(c.waiting) == 0 {
			return
		}
	}
}

// saveAll tries all that is unsaved once, and returns how many are left. At none, the saver has ended.
func (c *Coordinator) saveAll(ctx context.Context) (left int) {
	c.mu.Lock()
	items := make([]store.Item, 0, len(c.unsaved))
	for it := range c.unsaved {
		items = append(items, it)
	}
	c.mu.Unlock()
	for _, it := range items {
		c.saved(ctx, it)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.unsaved)
}

// saved settles one login, and drops it from unsaved when nothing of it is any more.
func (c *Coordinator) saved(ctx context.Context, it store.Item) {
	ctx, cancel := context.WithTimeout(ctx, saveWait)
	defer cancel()
	unlock, err := c.o.Store.Lock(ctx, it)
	if err != nil {
		return
	}
	defer unlock()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), saveLimit)
	defer cancel()
	r, err := c.record(ctx, it)
	if err == nil {
		r, err = c.settle(ctx, it, r)
	}
	if err != nil {
		c.o.Logger.Warn("a new token cannot be stored yet", "login", it.Account, "error", err)
	}
	if err == nil && r.Sealed == nil {
		c.mu.Lock()
		delete(c.unsaved, it)
		c.mu.Unlock()
	}
}

// lastSave is for the end of the process, of which a token that is only in memory would not survive.
func (c *Coordinator) lastSave() {
	if c.saveAll(context.Background()) > 0 {
		c.o.Logger.Error("the store still refuses new tokens as this process ends: the next one stores what is in the recovery files")
	}
}

// Resume stores the answers that processes which have ended left in the journal. What the store refuses is tried again
// later.
func (c *Coordinator) Resume(ctx context.Context) error {
	items, err := c.o.Journal.List(ctx)
	if err != nil {
		return err
	}
	for _, it := range items {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch r, _ := c.record(ctx, it); {
		case r.Sealed != nil:
			c.saved(ctx, it)
		case r.Phase == journal.Called && !c.running(ctx, it, resumeLimit):
			c.o.Logger.Warn("a refresh was interrupted and may have used up the refresh token: the next one shows", "login", it.Account)
		}
	}
	return nil
}
