// Package refresh renews tokens: [Coordinator.Refresh]. However many ask at once, in this process and in others, one of
// them asks the provider and all get its answer; and a refresh token that the provider has rotated is durable before
// anything else is done with it. docs/refresh.md has the protocol step by step, and what holds after a crash at each.
//
// Everybody who reads or writes logins does so through [Coordinator.Store]: it shows a new token that the store has
// refused so far as if it were stored, and what is written or deleted through it settles that token.
package refresh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Times of a refresh.
const (
	// Cooldown is the least time between the beginnings of two attempts for one login, failed ones included.
	Cooldown = 30 * time.Second

	// attemptLimit is for one attempt with its retries and is the host's own: no caller's departure shortens it. With
	// the time to store the answer it stays below the 30 s that clients wait.
	attemptLimit = 28 * time.Second

	// leastCall is what a retry must have left: a call that is cut off may have rotated the refresh token.
	leastCall = 5 * time.Second

	// lockLimit is for waiting until another process has finished its attempt.
	lockLimit = 29 * time.Second

	// saveLimit is for making an answer that has arrived durable. It begins when the answer is there.
	saveLimit = 15 * time.Second
)

// retryDelays come before the second and the third call of an attempt.
var retryDelays = []time.Duration{time.Second, 3 * time.Second}

// Errors of a refresh beside those of the store and *provider.Error. They come wrapped.
var (
	// ErrNoProvider: nothing is known about the provider of a stored login.
	ErrNoProvider = errors.New("no provider of this name is configured, so nobody knows where to refresh it")

	// ErrUnsafe: neither the journal nor the store can be written, and the token is still valid: to ask the provider could
	// lose the login.
	ErrUnsafe = errors.New("nothing can be written where the new token would be safe, so the provider was not asked")

	errClosed = errors.New("the credentials were closed")
	errPanic  = errors.New("the refresh failed by a fault of credproxy; the log says where")
)

// LoginNeededError means that only a new login gives a new token. Its text has no part of any answer.
type LoginNeededError struct{ Reason string }

func (e *LoginNeededError) Error() string { return "a new login is needed: " + e.Reason }

// ClientRefusedError means that the provider does not accept this client, whatever the login: its description has to be
// mended. Its text has no part of any answer.
type ClientRefusedError struct{ Reason string }

func (e *ClientRefusedError) Error() string { return e.Reason }

// LimitedError means that the provider was asked a moment ago, and that the token has expired.
type LimitedError struct {
	After  time.Duration // until it may be asked again
	Reason string        // what the last attempt came to; "" if it gave a token
}

func (e *LimitedError) Error() string {
	text := fmt.Sprintf("the provider was asked a moment ago; again in %d s", (e.After+time.Second-1)/time.Second)
	if e.Reason != "" {
		text += "; " + e.Reason
	}
	return text
}

// Options are what a Coordinator works with. All are needed.
type Options struct {
	Store   store.Store // where logins rest
	Journal *journal.Journal
	Client  *provider.Client

	// Provider returns the description of a provider, Secret the client secret of one that has such.
	Provider func(name string) (*provider.Provider, bool)
	Secret   func(context.Context, *provider.Provider) (secret.String, error)

	// Changed is called after a login has changed through a refresh, for whoever keeps it in memory.
	Changed func(store.Item)

	Logger *slog.Logger
}

// Coordinator refreshes logins. It is safe for concurrent use.
type Coordinator struct {
	o       Options
	waiting context.Context // ends with Close, and with it all that waits; a call to a provider does not wait
	stop    context.CancelFunc
	workers sync.WaitGroup // flights, and the saver

	mu       sync.Mutex // guards all below
	closed   bool
	flights  map[store.Item]*flight
	attempts map[store.Item]time.Time      // of this process, with the monotonic clock; dropped after Cooldown
	unsaved  map[store.Item]journal.Record // what the saver retries, as it was last seen; it runs while there are any
	damaged  map[store.Item]struct{}       // items that the store has found damaged and set aside, so that they are not removed ones
}

// flight is one refresh that callers in this process share. Its goroutine sets result and err, then closes done.
type flight struct {
	done   chan struct{}
	result result
	err    error
}

// result is a token and how it came.
type result struct {
	grant  *grant.Grant
	asOfUs bool // it is another one than the first caller had seen, and that was the only reason to answer it
}

// New returns a coordinator. Close ends it.
func New(o Options) *Coordinator {
	c := &Coordinator{
		o:        o,
		flights:  make(map[store.Item]*flight),
		attempts: make(map[store.Item]time.Time),
		unsaved:  make(map[store.Item]journal.Record),
		damaged:  make(map[store.Item]struct{}),
	}
	c.waiting, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends what waits: for a lock, for a retry, for a store that refuses. It waits for calls that a provider is
// answering, and for their answers to be durable: to leave now could lose a refresh token.
func (c *Coordinator) Close() {
	c.mu.Lock()
	c.closed = true
	running := len(c.flights)
	c.mu.Unlock()
	c.stop()
	if running > 0 {
		c.o.Logger.Info("waiting for what a provider is answering; to leave now could lose a login", "refreshes", running)
	}
	c.workers.Wait()
}

// start runs f in a goroutine that Close waits for. The caller has c.mu.
func (c *Coordinator) startLocked(f func()) bool {
	if c.closed {
		return false
	}
	c.workers.Go(f)
	return true
}

// Refresh returns a token that is newer than seen, the one that the caller has found wanting: the stored one if it has
// changed since and is valid, or within the cooldown; a new one from the provider otherwise. Callers of one login share
// one refresh; each waits on its own ctx, and the refresh goes on without them.
//
// The error is store.ErrNotFound, *LoginNeededError, *ClientRefusedError, *LimitedError, ErrNoProvider, ErrUnsafe,
// journal.ErrUnreadable, *provider.Error, an error of the store, or ctx's.
func (c *Coordinator) Refresh(ctx context.Context, it store.Item, seen *grant.Grant) (*grant.Grant, error) {
	for {
		f, err := c.join(it, seen)
		if err != nil {
			return nil, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.err == nil && f.result.asOfUs && f.result.grant.AccessToken.Equal(seen.AccessToken) {
			continue // news to the one who began the flight, and not to us
		}
		return f.result.grant, f.err
	}
}

// join returns the login's flight, which it begins if there is none. What the flight works on it reads itself, behind the
// lock: a refresh token that was read here could be used up by then.
func (c *Coordinator) join(it store.Item, seen *grant.Grant) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.flights[it]; ok {
		return f, nil
	}
	f := &flight{done: make(chan struct{}), err: errClosed}
	if !c.startLocked(func() {
		defer func() {
			c.mu.Lock()
			delete(c.flights, it)
			c.mu.Unlock()
			close(f.done)
		}()
		defer c.recovered(it, &f.err)
		f.result, f.err = c.fly(it, seen)
	}) {
		return nil, errClosed
	}
	c.flights[it] = f
	return f, nil
}

// recovered turns a panic into an error: what a provider has answered is written ahead, and the other logins go on. Of a
// panic's value, which may hold a secret, only the type is logged, or the text if it is Go's own. It is deferred.
func (c *Coordinator) recovered(it store.Item, err *error) {
	v := recover()
	if v == nil {
		return
	}
	what := fmt.Sprintf("%T", v)
	if e, ok := v.(runtime.Error); ok {
		what = e.Error()
	}
	var places []string
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for f, more := frames.Next(); more; f, more = frames.Next() {
		places = append(places, fmt.Sprintf("%s:%d", f.Function, f.Line))
	}
	c.o.Logger.Error("panic in a refresh", "login", it.Account, "value", what, "places", places)
	*err = errPanic
}

// atStep is called where a process may die; tests stop it there.
var atStep = func(string) {}

// fly takes the lock that all processes take, and refreshes.
func (c *Coordinator) fly(it store.Item, seen *grant.Grant) (result, error) {
	wait, cancel := context.WithTimeout(c.waiting, lockLimit)
	defer cancel()
	unlock, err := c.o.Store.Lock(wait, it)
	switch {
	case c.waiting.Err() != nil && err != nil:
		return result{}, errClosed
	case errors.Is(err, context.DeadlineExceeded):
		return result{}, fmt.Errorf("another process has been refreshing %s for %d s: %w", it.Account, lockLimit/time.Second, err)
	case err != nil:
		return result{}, fmt.Errorf("taking the lock of %s: %w", it.Account, err)
	}
	defer unlock()
	atStep("after the lock")
	defer atStep("before the unlock")
	return c.locked(it, seen)
}

// locked refreshes with the login's lock held, unless the login or its history say that it is not to be.
func (c *Coordinator) locked(it store.Item, seen *grant.Grant) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), attemptLimit)
	defer cancel()
	r, err := c.record(ctx, it)
	if err == nil {
		r, err = c.settle(ctx, it, r)
	}
	if err != nil {
		return result{}, err
	}
	g, err := c.read(ctx, it)
	if err != nil {
		return result{}, err
	}
	// Compared with what the caller has seen, not by expiry: a renewal comes before the expiry, and who got a 401 for a
	// token that has not expired needs another one.
	if valid(g) && !g.AccessToken.Equal(seen.AccessToken) {
		return result{grant: g, asOfUs: true}, nil
	}
	if g.RefreshToken.IsZero() {
		return result{}, noRefreshToken(r)
	}
	p, ok := c.o.Provider(providerOf(it))
	if !ok {
		return result{}, fmt.Errorf("login %s: %w", it.Account, ErrNoProvider)
	}
	clientSecret, err := c.o.Secret(ctx, p)
	if err != nil {
		return result{}, err
	}
	request := p.RequestFingerprint(g, clientSecret)
	refused := r.Outcome == journal.Refused && r.Request == request
	wait := c.cooldown(it, r)
	switch {
	case refused:
		return result{}, refusal(r)
	case wait > 0 && valid(g):
		return result{grant: g}, nil
	case wait > 0:
		return result{}, &LimitedError{After: wait, Reason: Explain(r)}
	}
	a := &attempt{c: c, it: it, provider: p, secret: clientSecret, old: g, record: r}
	return a.run(ctx, request)
}

// record is what the journal has. If it cannot be read, what this process remembers is used. If that is no answer which the
// store refuses, the error wraps journal.ErrUnreadable: another process may have written one, and then the refresh token in
// the store is used up.
func (c *Coordinator) record(ctx context.Context, it store.Item) (journal.Record, error) {
	r, err := c.o.Journal.Read(ctx, it)
	if err == nil {
		return r, nil
	}
	c.o.Logger.Error("the record of a login's refreshes cannot be read", "login", it.Account, "error", err)
	r = c.remembered(it, r)
	if errors.Is(err, journal.ErrUnreadable) && r.Sealed == nil {
		return r, err
	}
	return r, nil
}

// remembered adds to r, which is what could be read of the journal, what this process knows: its record of an answer that the
// store refuses, and when it made its last attempt.
func (c *Coordinator) remembered(it store.Item, r journal.Record) journal.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept, ok := c.unsaved[it]; ok && !kept.Attempt.Before(r.Attempt) && r.Sealed == nil {
		r = kept
	}
	if mine, ok := c.attempts[it]; ok && r.Attempt.IsZero() {
		r.Attempt = mine.Round(0)
	}
	return r
}

// read reads the login as it stands, with an answer that the store has refused so far.
func (c *Coordinator) read(ctx context.Context, it store.Item) (*grant.Grant, error) {
	sealed, err := c.Store().Read(ctx, it)
	if err != nil {
		return nil, err
	}
	return grant.Parse(sealed)
}

// cooldown is how long the provider is not to be asked again, as the journal of all processes has it: from the
// beginning of the last attempt, or as long as the provider wanted.
func (c *Coordinator) cooldown(it store.Item, r journal.Record) time.Duration {
	if r.Attempt.IsZero() {
		return 0
	}
	until := r.Attempt.Add(Cooldown)
	if r.Next.After(until) {
		until = r.Next
	}
	now := time.Now()
	wait := until.Sub(now.Round(0))
	if wait <= until.Sub(r.Attempt) {
		return max(wait, 0)
	}
	// The clock was set back behind the attempt. Then only the process that made the attempt knows how long ago it was.
	return c.sinceOwn(it)
}

// sinceOwn is what is left of the cooldown after the last attempt of this process, by the monotonic clock.
func (c *Coordinator) sinceOwn(it store.Item) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mine, ok := c.attempts[it]; ok {
		return max(Cooldown-time.Since(mine), 0)
	}
	return 0
}

// Begin makes a record for a login that was just stored, with room for the first answer: the disk may be full by then. What
// was known of the login before is dropped. The login's lock is held.
func (c *Coordinator) Begin(ctx context.Context, it store.Item, g *grant.Grant) {
	c.Forget(ctx, it)
	if g.RefreshToken.IsZero() {
		return
	}
	r := journal.Record{Issued: time.Now().Round(0)}
	if err := c.o.Journal.Write(ctx, it, r, room(g, nil)); err != nil {
		c.o.Logger.Warn("no place could be made for what a refresh will bring", "login", it.Account, "error", err)
	}
}

// Forget drops what is known of a login's refreshes, for one that was removed. The login's lock is held.
func (c *Coordinator) Forget(ctx context.Context, it store.Item) {
	c.mu.Lock()
	delete(c.attempts, it)
	delete(c.damaged, it)
	c.mu.Unlock()
	if err := c.o.Journal.Remove(ctx, it); err != nil {
		c.o.Logger.Warn("the record of a login's refreshes could not be removed", "login", it.Account, "error", err)
	}
}

// attempted remembers an attempt of this process.
func (c *Coordinator) attempted(it store.Item, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other, then := range c.attempts {
		if at.Sub(then) > Cooldown {
			delete(c.attempts, other)
		}
	}
	c.attempts[it] = at
}

// valid reports whether an access token can still be used. One without a known end can.
func valid(g *grant.Grant) bool { return g.Expiry == 0 || g.Expiry > time.Now().Unix() }

func providerOf(it store.Item) string {
	name, _, _ := strings.Cut(it.Account, ":")
	return name
}

func noRefreshToken(r journal.Record) error {
	if r.Outcome == journal.Refused && r.Revoked {
		return refusal(r)
	}
	return &LoginNeededError{Reason: "there is no refresh token"}
}

// refusal says why the provider refused, of what the journal remembers.
func refusal(r journal.Record) error {
	if clientRefused(r) {
		return &ClientRefusedError{Reason: Explain(r)}
	}
	return &LoginNeededError{Reason: Explain(r)}
}

// clientRefused reports whether the refusal was of the client and not of the login (RFC 6749 section 5.2).
func clientRefused(r journal.Record) bool {
	return r.Outcome == journal.Refused && !r.Revoked && (r.Code == "invalid_client" || r.Code == "unauthorized_client")
}

// Explain is a sentence about the last attempt that ended, "" if there was none or it went well. All of it may be shown.
func Explain(r journal.Record) string {
	var text string
	switch {
	case clientRefused(r):
		text = "the provider does not accept this client: check client_id and client_secret_key in the configuration"
	case r.Outcome == journal.Refused && r.Revoked:
		text = "the provider says that the refresh token is no longer good"
	case r.Outcome == journal.Refused:
		text = "the provider refused the refresh"
	case r.Outcome == journal.Failed:
		text = "the last refresh failed"
		if r.Reason != "" {
			text += ": " + r.Reason
		}
	default:
		return ""
	}
	var reasons []string
	if r.Code != "" {
		reasons = append(reasons, r.Code)
	}
	if r.Status != 0 {
		reasons = append(reasons, fmt.Sprintf("HTTP %d", r.Status))
	}
	if len(reasons) > 0 {
		text += " (" + strings.Join(reasons, ", ") + ")"
	}
	if r.Outcome == journal.Refused && r.Interrupted {
		text += "; an earlier refresh was interrupted and may have used it up"
	}
	return text
}

// Wait is how long the login's provider is not to be asked again; 0: it may be.
func (c *Coordinator) Wait(ctx context.Context, it store.Item) time.Duration {
	r, _ := c.o.Journal.Read(ctx, it)
	return c.cooldown(it, c.remembered(it, r))
}
