package refresh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// attempt is one refresh of one login, with the login's lock held, on one goroutine.
type attempt struct {
	c        *Coordinator
	it       store.Item
	provider *provider.Provider
	secret   secret.String
	old      *grant.Grant   // what is stored; its refresh token is sent
	record   journal.Record // what the journal has; written at every step
	bases    []string       // see payload
	answered bool           // record.Sealed is an answer to this attempt
}

// run asks the provider and makes its answer durable. ctx bounds the asking; what has been answered has a limit of its
// own.
func (a *attempt) run(ctx context.Context, request string) (result, error) {
	pending := a.record.Sealed // an answer that the store has refused so far stays in the journal until a newer one is there
	a.bases = a.c.basesOf(ctx, a.it, a.record, a.old)
	interrupted := a.record.Phase == journal.Called
	before := a.record
	now := time.Now()
	a.record.Phase = journal.Called
	a.record.Attempt, a.record.Next = now.Round(0), time.Time{}
	a.record.Sent, a.record.Request = a.old.RefreshToken.Fingerprint(), request
	a.record.Interrupted = a.record.Interrupted || interrupted
	if a.record.Outcome == journal.Refused {
		// That was another request. If this one is cut off, nobody is to think that it was refused.
		a.record.Outcome, a.record.Reason, a.record.Code, a.record.Status, a.record.Revoked = journal.Never, "", "", 0, false
	}
	if err := a.write(ctx, room(a.old, a.bases)); err != nil {
		if storeErr := a.c.o.Store.Check(ctx); storeErr != nil && valid(a.old) {
			a.record = before
			a.writeOrLog(ctx)
			return result{}, fmt.Errorf("%w: %w", ErrUnsafe, errors.Join(err, storeErr))
		}
		a.c.o.Logger.Error("before a refresh, no place could be made for the new token: if the store refuses it too, it is held in memory only",
			"login", a.it.Account, "error", err)
	}
	a.c.attempted(a.it, now)
	atStep("before the call")
	answer, err := a.ask()

	// The request's time may be used up; what was answered is kept all the same.
	ctx, cancel := context.WithTimeout(context.Background(), saveLimit)
	defer cancel()
	if err != nil {
		return a.failed(ctx, err, pending)
	}
	g, err := a.succeeded(ctx, answer)
	return result{grant: g}, err
}

// ask calls the provider, and again after failures that may pass. A call has a limit of its own; the attempt's decides about
// retries. Retries end with Close; a call does not.
func (a *attempt) ask() (*grant.Grant, error) {
	begun := time.Now()
	for n := 0; ; n++ {
		answer, err := a.call(attemptLimit - time.Since(begun))
		failure, ok := errors.AsType[*provider.Error](err)
		if !ok || failure.Kind != provider.Transient || n == len(retryDelays) {
			return answer, err
		}
		delay := max(retryDelays[n], failure.RetryAfter)
		if attemptLimit-time.Since(begun)-delay < leastCall {
			return nil, err
		}
		select {
		case <-time.After(delay):
		case <-a.c.waiting.Done():
			return nil, err
		}
	}
}

func (a *attempt) call(limit time.Duration) (*grant.Grant, error) {
	ctx, cancel := provider.WithRunningTimeout(context.Background(), limit)
	defer cancel()
	return a.c.o.Client.Refresh(ctx, a.provider, a.old, a.secret, a.received)
}

// received makes an answer durable as it came, before anything looks at it.
func (a *attempt) received(answer provider.Answer) {
	ctx, cancel := context.WithTimeout(context.Background(), saveLimit)
	defer cancel()
	atStep("after the answer was read")
	sealed, err := a.c.sealPayload(ctx, a.it, payload{bases: a.bases, old: a.old, answer: answer})
	if sealed != nil {
		a.record.Phase, a.record.Sealed, a.answered = journal.Received, sealed, true
		err = errors.Join(err, a.write(ctx, 0))
	}
	if err != nil {
		a.c.o.Logger.Error("a new token could not be written ahead: until the store has it, it is in memory only",
			"login", a.it.Account, "error", err)
	}
	atStep("after the write ahead")
}

// succeeded stores the merged login. If the store refuses, the login is served from the journal, or from memory, and
// storing it is tried again. The error is store.ErrNotFound.
func (a *attempt) succeeded(ctx context.Context, answer *grant.Grant) (*grant.Grant, error) {
	merged := grant.Merge(a.old, answer)
	if !grant.SameAccount(a.old, answer) { // kept all the same: the refresh token that was sent is used up
		a.c.o.Logger.Warn("the provider has renewed this login for another account than it was for", "login", a.it.Account)
	}
	a.record.Phase = journal.Received
	answered(&a.record)
	defer a.c.o.Changed(a.it)
	switch newer, err := a.overtaken(ctx); {
	case err != nil:
		a.c.o.Logger.Warn("the login is gone from the store since the provider was asked: its answer waits in the recovery files",
			"login", a.it.Account)
		a.writeOrLog(ctx)
		return nil, err
	case newer != nil:
		a.c.o.Logger.Info("an answer is dropped: the login was replaced while the provider was asked", "login", a.it.Account)
		a.record.Phase, a.record.Sealed = journal.Idle, nil
		a.writeOrLog(ctx)
		return newer, nil
	}
	merged, err := a.c.store(ctx, a.it, merged)
	if err != nil {
		a.writeOrLog(ctx)
		a.c.refusedByStore(a.it, err)
		a.c.keep(a.it, a.record)
		return merged, nil
	}
	atStep("after the save")
	a.record.Phase, a.record.Sealed = journal.Idle, nil
	a.writeOrLog(ctx)
	a.c.o.Logger.Info("refreshed", "login", a.it.Account, "expiry", merged.Expiry)
	return merged, nil
}

// overtaken looks whether a program that takes no lock has replaced the login while the provider was asked, then it returns
// what is stored, or removed it, then the error is store.ErrNotFound. A store that cannot be read says neither.
func (a *attempt) overtaken(ctx context.Context) (newer *grant.Grant, err error) {
	sealed, err := a.c.o.Store.Read(ctx, a.it)
	if a.c.isAbsent(a.it, err) {
		return nil, err
	}
	stored, parseErr := grant.Parse(sealed)
	if err != nil || parseErr != nil || slices.Contains(a.bases, stored.RefreshToken.Fingerprint()) {
		return nil, nil
	}
	return stored, nil
}

// failed records why there is no new token. What is known to be dead is not tried again, and is taken out of the store.
func (a *attempt) failed(ctx context.Context, err error, pending []byte) (result, error) {
	failure, ok := errors.AsType[*provider.Error](err)
	if !ok {
		failure = &provider.Error{Kind: provider.Unclear}
	}
	r := &a.record
	r.Phase = journal.Idle // not Received: this attempt has brought no token
	if !a.answered {
		r.Sealed = pending
	}
	r.Reason, r.Code, r.Status, r.Revoked = failure.Reason(), failure.Code, failure.Status, failure.Revoked
	r.Outcome = journal.Failed
	if failure.Kind == provider.Refused {
		r.Outcome = journal.Refused
	}
	if failure.RetryAfter > 0 {
		r.Next = time.Now().Round(0).Add(failure.RetryAfter)
	}
	a.writeOrLog(ctx)
	if a.answered {
		// The answer was no token, but it may have a refresh token, and then the stored one is used up. If it has none, what
		// was pending before is settled: the answer was sealed with it.
		if _, settleErr := a.c.settle(ctx, a.it, *r); settleErr != nil {
			err = errors.Join(err, settleErr)
		}
	}
	if failure.Kind != provider.Refused {
		return result{}, err
	}
	if failure.Revoked {
		if newer := a.clear(ctx); newer != nil {
			return result{grant: newer}, nil
		}
	}
	return result{}, refusal(*r)
}

// clear takes a dead refresh token out of the store, if it still is the one that was sent. If another program has stored
// a newer login meanwhile, that is returned: it is why this one was dead.
func (a *attempt) clear(ctx context.Context) (newer *grant.Grant) {
	stored, err := a.c.read(ctx, a.it)
	if err != nil {
		return nil // gone, or not readable: the journal remembers that this token is dead
	}
	if !stored.RefreshToken.Equal(a.old.RefreshToken) {
		if valid(stored) && !stored.AccessToken.Equal(a.old.AccessToken) {
			a.c.o.Changed(a.it)
			return stored
		}
		return nil
	}
	without := *stored
	without.RefreshToken = secret.String{}
	if err := a.c.Store().Write(ctx, a.it, without.Seal()); err != nil {
		a.c.o.Logger.Warn("a refresh token that the provider refused could not be removed from the store",
			"login", a.it.Account, "error", err)
		return nil
	}
	a.c.o.Changed(a.it)
	return nil
}

func (a *attempt) write(ctx context.Context, room int) error {
	return a.c.o.Journal.Write(ctx, a.it, a.record, room)
}

// writeOrLog is write where a failure changes nothing: what is in the journal now is older, and settled by what the
// store has.
func (a *attempt) writeOrLog(ctx context.Context) {
	if err := a.write(ctx, 0); err != nil {
		a.c.o.Logger.Warn("the outcome of a refresh could not be recorded", "login", a.it.Account, "error", err)
	}
}

// room is what an answer may need in the journal: providers' answers are about as long as the one before.
func room(g *grant.Grant, bases []string) int {
	return 4*len(g.Seal().Reveal()) + 50*len(bases) + 4<<10 // the old login is in it too, as a string in JSON
}
