package login

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/url"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/wire"
)

const (
	exchangeLimit = 45 * time.Second // above the provider package's own limits of a request
	storeLimit    = 90 * time.Second // above the wait for the login's lock
)

// phase is how far a session is. It only grows.
type phase int

const (
	open    phase = iota // it waits for the person
	busy                 // by pasted code: it has the code
	storing              // too late to cancel
	over
)

// session is one login. Its goroutine is [Sessions.run].
type session struct {
	id     string
	begin  Begin
	ends   deadline        // of the waiting for the person
	ctx    context.Context // of its work; ends with the session
	cancel context.CancelFunc
	pasted chan url.Values // room for one; filled by the one call of Exchange that marked the session as used
	done   chan struct{}   // closed when the goroutine has ended

	// Guarded by Sessions.mu.
	login  *Login // nil until it is begun, and when it has been closed
	phase  phase
	used   bool        // a code was taken, or the result told
	why    *wire.Error // what ended it other than a result: cancelled or expired
	result *wire.Poll  // how it ended, until it is told
	forget deadline
	polled bool // its flow is polled
}

func newSession(parent context.Context, b Begin, ends deadline) *session {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	n := &session{id: hex.EncodeToString(id[:]), begin: b, ends: ends, pasted: make(chan url.Values, 1), done: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(parent)
	return n
}

// operation is the one that finishes the session.
func (n *session) operation() wire.Op {
	if n.polled {
		return wire.OpOAuthPoll
	}
	return wire.OpOAuthExchange
}

// begun is the answer to who began the session.
func (n *session) begun(timeout time.Duration) *wire.Session {
	l := n.login
	a := &wire.Session{ID: n.id, Flow: wireFlows[l.Flow], PollIntervalMS: millis(l.PollInterval()), ExpiresInMS: millis(timeout)}
	if l.Flow == FlowDevice {
		a.VerificationURL, a.VerificationURLComplete, a.UserCode = l.URL, l.URLComplete, l.UserCode
		a.ExpiresInMS = millis(min(timeout, l.Lifetime))
	} else {
		a.AuthURL = l.URL
	}
	return a
}

func millis(d time.Duration) int { return int(d / time.Millisecond) }

// run does the work of a session, from its beginning to its end.
func (s *Sessions) run(n *session) {
	defer close(n.done)
	ctx, cancel := context.WithTimeout(n.ctx, n.ends.left(time.Now()))
	defer cancel()
	var (
		g   *grant.Grant
		err error
	)
	if n.polled {
		g, err = n.login.Wait(ctx)
	} else {
		g, err = s.takePasted(ctx, n)
	}
	s.conclude(n, g, err)
	n.login.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	// What is remembered has nothing of the flow, nor of who began it.
	n.login, n.begin.Start, n.begin.Allowed, n.begin.Ended = nil, nil, nil, nil
}

// takePasted waits for the pasted code and exchanges it. The session's time counts until it has one.
func (s *Sessions) takePasted(ctx context.Context, n *session) (*grant.Grant, error) {
	var q url.Values
	select {
	case q = <-n.pasted:
	case <-ctx.Done():
		select {
		case q = <-n.pasted: // both at once
		default:
			return nil, ErrTimeout
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, exchangeLimit)
	defer cancel()
	return n.login.finish(ctx, q)
}

// conclude stores the grant, if there is one, and ends the session, unless something else has ended it.
func (s *Sessions) conclude(n *session, g *grant.Grant, err error) {
	if err != nil && s.isOver(n, errors.Is(err, ErrTimeout)) {
		s.tellWhy(n)
		return
	}
	var (
		why *wire.Error
		r   = &wire.Poll{Status: wire.PollComplete}
	)
	if err != nil {
		r.Err = s.crossing(err)
		if n.polled && r.Err.Code == wire.CodeSessionExpired {
			why = r.Err
		}
	} else if r.Token, err = s.keep(n, g); errors.Is(err, errOver) {
		s.tellWhy(n)
		return
	} else {
		n.login.Told(err)
		if err != nil {
			r.Err = s.crossing(err)
		}
	}
	if r.Err != nil {
		r.Status, r.Token = wire.PollError, nil
		if n.polled && r.Err.Code == wire.CodeInternal {
			// The protocol has this code and the one of expiry for what becomes of a flow that is polled.
			r.Err = wire.E(wire.CodeExchangeFailed, r.Err.Message)
		}
	}
	s.mu.Lock()
	first := n.phase != over
	if first {
		s.endLocked(n, why, r)
	}
	s.mu.Unlock()
	if first {
		n.tell(r.Err)
	}
}

// tellWhy says why a session is over that something else has ended, unless that was its client.
func (s *Sessions) tellWhy(n *session) {
	s.mu.Lock()
	why := n.why
	s.mu.Unlock()
	if why != nil && why.Code != wire.CodeSessionNotFound {
		n.tell(why)
	}
}

// tell says how a session that is polled has ended.
func (n *session) tell(e *wire.Error) {
	if n.polled && n.begin.Ended != nil {
		n.begin.Ended(e)
	}
}

// isOver reports whether the session has ended. One that timed out ends now.
func (s *Sessions) isOver(n *session, timedOut bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timedOut && n.phase == open {
		s.endExpiredLocked(n)
	}
	return n.phase == over
}

// errOver: the session ended before its grant could be stored.
var errOver = errors.New("the session is over")

// keep stores a grant if its session is still wanted. Whoever cancels later finds it stored; the end of the proxy ends the
// waiting for the store's lock.
func (s *Sessions) keep(n *session, g *grant.Grant) (*wire.Token, error) {
	if n.begin.Allowed != nil && !n.begin.Allowed() {
		return nil, errNotAllowed()
	}
	s.mu.Lock()
	s.expireOneLocked(n, time.Now())
	if n.phase == over {
		s.mu.Unlock()
		return nil, errOver
	}
	n.phase = storing
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(n.ctx, storeLimit)
	defer cancel()
	return s.store(ctx, n.begin.Provider, n.begin.Bucket, g)
}
