package login

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/wire"
)

// Limits of the sessions of one proxy.
const (
	DefaultTimeout = 10 * time.Minute // of a session
	MaxPending     = 16               // so that a sandbox cannot fill the host's memory
	maxRemembered  = 256              // sessions that have ended
	sweepEvery     = time.Minute
	maxRetryAfter  = 600 // seconds
)

// SessionsOptions say what sessions are made of.
type SessionsOptions struct {
	Timeout time.Duration // of a session; 0 is DefaultTimeout

	// Store makes a new login durable and returns what of it may go inside. Its context ends with a limit of its own and with
	// the proxy, not with the client or the session; a write that has begun should be finished in any case.
	Store func(ctx context.Context, provider, bucket string, g *grant.Grant) (*wire.Token, error)

	// Failure is what of a failure of Begin.Start, of the flow or of Store may cross the socket. nil, or a nil result, is
	// what Crossing makes of it.
	Failure func(error) *wire.Error
}

// Sessions are the logins that the clients of one proxy drive: the host keeps everything of them, a client only the id.
// All methods may be called from any goroutine. Their errors are *wire.Error, but for the context's own.
//
// A session has one goroutine, which does all its work: it polls or waits for the browser, exchanges the pasted code,
// stores the grant, and ends with the session. A method changes a session under mu and never waits for the network; only
// Exchange and Cancel wait, for that goroutine.
type Sessions struct {
	timeout time.Duration
	store   func(ctx context.Context, provider, bucket string, g *grant.Grant) (*wire.Token, error)
	failure func(error) *wire.Error

	ending context.Context // the parent of every session's; ended by Close
	end    context.CancelFunc
	work   sync.WaitGroup // Begin, and one goroutine a session

	mu     sync.Mutex // guards what follows, and the fields of a session that say so
	closed bool
	byID   map[string]*session // begun, and not forgotten
	live   []*session          // that take one of the MaxPending places: being begun, pending, being stored
	ended  []*session          // remembered, in the order in which they ended
}

// NewSessions makes the sessions of one proxy. Their owner runs Sweep and calls Close.
func NewSessions(o SessionsOptions) *Sessions {
	s := &Sessions{timeout: o.Timeout, store: o.Store, failure: o.Failure, byID: map[string]*session{}}
	if s.timeout <= 0 {
		s.timeout = DefaultTimeout
	}
	s.ending, s.end = context.WithCancel(context.Background())
	return s
}

const redactedSessions = "login.Sessions(redacted)"

// String, GoString, Format and LogValue keep the sessions' ids out of whatever prints them.
func (*Sessions) String() string             { return redactedSessions }
func (*Sessions) GoString() string           { return redactedSessions }
func (*Sessions) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedSessions)) }
func (*Sessions) LogValue() slog.Value       { return slog.StringValue(redactedSessions) }

// Begin says what session is wanted.
type Begin struct {
	UID              int // of the peer: nobody else gets at the session
	Provider, Bucket string

	// Allowed is asked again before the grant is stored. nil is always.
	Allowed func() bool

	// Ended is told how a login that is polled came to its end by itself: nil when its grant is stored. It is called once, by
	// the session's goroutine, and not for a login that was cancelled. nil is nobody.
	Ended func(*wire.Error)

	// Start begins the login; its context ends with the client. The session owns the Login from then on.
	Start func(ctx context.Context) (*Login, error)
}

// Begin begins a login and answers what the person has to do. With MaxPending sessions pending it refuses the next as
// RATE_LIMITED, before anything is asked of the provider.
func (s *Sessions) Begin(ctx context.Context, b Begin) (*wire.Session, error) {
	n, err := s.reserve(b)
	if err != nil {
		return nil, err
	}
	defer s.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()
	l, err := b.Start(ctx)
	if err == nil && ctx.Err() != nil { // nobody is left who could be told the id
		l.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		s.release(n)
		if s.ending.Err() != nil { // which has cut it off
			return nil, errEnding()
		}
		return nil, s.crossing(err)
	}
	answer := s.admit(n, l)
	if answer == nil {
		l.Close()
		return nil, errEnding()
	}
	return answer, nil
}

// Room reports whether a session could begin now.
func (s *Sessions) Room() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked(time.Now())
}

func (s *Sessions) roomLocked(now time.Time) error {
	s.expireLocked(now)
	switch {
	case s.closed:
		return errEnding()
	case len(s.live) >= MaxPending:
		e := wire.E(wire.CodeRateLimited, "too many logins are pending here: finish or cancel one of them")
		oldest := s.timeout
		for _, n := range s.live {
			oldest = min(oldest, n.ends.left(now))
		}
		e.RetryAfter = int(min(max(1, math.Ceil(oldest.Seconds())), maxRetryAfter))
		return e
	}
	return nil
}

// reserve takes a place for a session and counts the beginning as work.
func (s *Sessions) reserve(b Begin) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err := s.roomLocked(now); err != nil {
		return nil, err
	}
	n := newSession(s.ending, b, newDeadline(now, s.timeout))
	s.live = append(s.live, n)
	s.work.Add(1)
	return n, nil
}

// release gives back the place of a session that did not begin.
func (s *Sessions) release(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.cancel()
	s.live = slices.DeleteFunc(s.live, func(other *session) bool { return other == n })
}

// admit lets a session begin; nil when the proxy is ending.
func (s *Sessions) admit(n *session, l *Login) *wire.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	n.login = l
	n.polled = l.Flow != FlowPaste
	n.ends = newDeadline(time.Now(), s.timeout)
	s.byID[n.id] = n
	s.work.Go(func() { s.run(n) })
	return n.begun(s.timeout)
}

// Exchange finishes a session by the code that the person pasted. The session is marked as used before the code is sent;
// when ctx ends the exchange goes on, and its grant is stored.
func (s *Sessions) Exchange(ctx context.Context, uid int, id, code string) (*wire.Token, error) {
	n, err := s.use(uid, id, code)
	if err != nil {
		return nil, err
	}
	select {
	case <-n.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := n.result
	n.result = nil
	switch {
	case r == nil && n.why != nil:
		return nil, n.why
	case r == nil:
		return nil, cancelled()
	case r.Err != nil:
		return nil, r.Err
	}
	return r.Token, nil
}

// use marks the session and hands the code to its goroutine.
func (s *Sessions) use(uid int, id, code string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.findLocked(uid, id, wire.OpOAuthExchange)
	if err != nil {
		return nil, err
	}
	q, err := n.login.read(code)
	if err != nil {
		return nil, Crossing(err)
	}
	n.used, n.phase = true, busy
	n.pasted <- q // it has room for one, and nobody comes here twice
	return n, nil
}

// Poll answers how a session by device code or browser stands. Its end is told once.
func (s *Sessions) Poll(uid int, id string) (*wire.Poll, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.findLocked(uid, id, wire.OpOAuthPoll)
	if err != nil {
		return nil, err
	}
	if n.phase != over {
		return &wire.Poll{Status: wire.PollPending, PollIntervalMS: millis(n.login.PollInterval())}, nil
	}
	r := n.result
	n.result = nil
	n.used = n.why == nil
	return r, nil
}

// Cancel ends a session: nothing of it polls or listens any more when Cancel returns, and what the provider grants from
// now on is not stored. Only a grant that is being stored at this moment stays. A session that is unknown or over is
// cancelled already.
func (s *Sessions) Cancel(uid int, id string) error {
	s.mu.Lock()
	n := s.byID[id]
	switch {
	case n == nil:
		s.mu.Unlock()
		return nil
	case n.begin.UID != uid:
		s.mu.Unlock()
		return errOtherUser()
	case n.phase == storing:
		s.mu.Unlock()
		return nil
	case n.phase != over:
		s.endLocked(n, cancelled(), nil)
	}
	s.mu.Unlock()
	<-n.done
	return nil
}

// Of returns what a session is for, also after its end until it is forgotten.
func (s *Sessions) Of(id string) (provider, bucket string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.byID[id]; n != nil {
		return n.begin.Provider, n.begin.Bucket, true
	}
	return "", "", false
}

// Review ends the sessions that are not allowed any more: nothing polls or listens for a login that nobody may make.
func (s *Sessions) Review() {
	s.mu.Lock()
	pending := slices.Clone(s.live)
	s.mu.Unlock()
	for _, n := range pending {
		s.mu.Lock()
		allowed := n.begin.Allowed
		s.mu.Unlock()
		if allowed == nil || allowed() { // not under mu: it is somebody else's code
			continue
		}
		s.mu.Lock()
		if n.login != nil && n.phase < storing { // one that is only just beginning is looked at when it has begun
			s.endLocked(n, errNotAllowed(), nil)
		}
		s.mu.Unlock()
	}
}

// Sweep ends what is over by the wall clock and forgets what ended a lifetime ago, every minute until ctx ends.
func (s *Sessions) Sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ending.Done():
			return
		case now := <-ticker.C:
			s.mu.Lock()
			s.expireLocked(now)
			for len(s.ended) > 0 && s.ended[0].forget.passed(now) {
				s.forgetLocked()
			}
			s.mu.Unlock()
		}
	}
}

// Close ends all sessions and waits for their goroutines; a grant that is being stored is stored first.
func (s *Sessions) Close() {
	s.mu.Lock()
	s.closed = true
	for _, n := range slices.Clone(s.live) {
		if n.phase != storing {
			s.endLocked(n, cancelled(), nil)
		}
	}
	s.mu.Unlock()
	s.end()
	s.work.Wait()
}

// findLocked returns the session for an operation that it can be used with now.
func (s *Sessions) findLocked(uid int, id string, op wire.Op) (*session, error) {
	n := s.byID[id]
	if n == nil {
		return nil, wire.E(wire.CodeSessionNotFound, "there is no such login session: begin the login again")
	}
	if n.begin.UID != uid {
		return nil, errOtherUser()
	}
	s.expireOneLocked(n, time.Now())
	switch {
	case n.why != nil && n.why.Code == wire.CodeSessionNotFound:
		return nil, n.why
	case n.used:
		return nil, wire.E(wire.CodeSessionAlreadyUsed, "this login session has been used: begin the login again, or look whether it is stored already")
	case n.why != nil && (n.result == nil || op != wire.OpOAuthPoll):
		return nil, n.why
	case n.operation() != op:
		return nil, wire.E(wire.CodeInvalidRequest, "this login is finished by "+string(n.operation())+", not by "+string(op))
	}
	return n, nil
}

// expireLocked ends the sessions whose time is over.
func (s *Sessions) expireLocked(now time.Time) {
	for _, n := range slices.Clone(s.live) {
		s.expireOneLocked(n, now)
	}
}

func (s *Sessions) expireOneLocked(n *session, now time.Time) {
	if n.login != nil && n.phase == open && n.ends.passed(now) {
		s.endExpiredLocked(n)
	}
}

func (s *Sessions) endExpiredLocked(n *session) {
	e := wire.E(wire.CodeSessionExpired, "the time for this login is over: begin it again")
	s.endLocked(n, e, &wire.Poll{Status: wire.PollError, Err: e})
}

// endLocked ends a session, and with it the work of its goroutine: why is what it was ended for, nil when it came to a
// result of its own.
func (s *Sessions) endLocked(n *session, why *wire.Error, r *wire.Poll) {
	n.phase, n.why = over, why
	if n.operation() == wire.OpOAuthPoll || n.used {
		n.result = r
	}
	n.cancel()
	n.forget = newDeadline(time.Now(), s.timeout)
	s.live = slices.DeleteFunc(s.live, func(other *session) bool { return other == n })
	s.ended = append(s.ended, n)
	if len(s.ended) > maxRemembered {
		s.forgetLocked()
	}
}

// forgetLocked forgets the session that ended first.
func (s *Sessions) forgetLocked() {
	delete(s.byID, s.ended[0].id)
	s.ended = slices.Delete(s.ended, 0, 1)
}

// crossing is what of a failure goes to the client.
func (s *Sessions) crossing(err error) *wire.Error {
	var e *wire.Error
	if s.failure != nil {
		e = s.failure(err)
	}
	if e == nil {
		e = Crossing(err)
	}
	if e == nil && !errors.As(err, &e) {
		e = wire.E(wire.CodeInternal, "the login failed on the host: its log says why")
	}
	return e
}

func errNotAllowed() *wire.Error {
	return wire.E(wire.CodeUnauthorized, "this login is not allowed any more: nothing was stored")
}

func errOtherUser() *wire.Error {
	return wire.E(wire.CodeUnauthorized, "this login session was begun by another user")
}

func errEnding() *wire.Error {
	return wire.E(wire.CodeInternal, "the proxy is ending: no login can begin")
}
