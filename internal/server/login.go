package server

import (
	"context"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

// A LoginRequest is a sandbox's wish to log in, which is within its scope.
type LoginRequest struct {
	Provider, Bucket string
	Flow             wire.FlowType // "" leaves the choice to the vault
	Peer             socket.Peer
}

var (
	errSlowLogin    = wire.E(wire.CodeInternal, "the login did not begin in time: try again")
	errSlowExchange = wire.E(wire.CodeInternal, "the provider did not take the code in time; the host goes on with it: look later whether you are logged in")
	errNoSession    = wire.E(wire.CodeSessionNotFound, "there is no such login")
)

// ofSession reports whether an operation is about a login that has begun. What it is about is known by the session
// alone, so it is within the scope or not once the vault has said which provider and bucket that is.
func ofSession(op wire.Op) bool {
	return op == wire.OpOAuthExchange || op == wire.OpOAuthPoll || op == wire.OpOAuthCancel
}

// login answers the operations of a login. It notes in req which login it is, for the record.
func (s *Server) login(ctx context.Context, req *wire.Request, peer socket.Peer) (wire.Data, error) {
	if req.Op == wire.OpOAuthInitiate {
		return s.beginLogin(ctx, req, peer)
	}
	v := s.cfg.Vault
	provider, bucket, known := v.LoginOf(req.SessionID)
	if known {
		req.Provider, req.Bucket = provider, bucket
	}
	if e := allowed(s.cfg.Scope(), req); e != nil {
		if known {
			s.abandon(peer.UID, req.SessionID)
		}
		return nil, e
	}
	var data wire.Data
	var token *wire.Token
	var err error
	switch req.Op {
	case wire.OpOAuthCancel:
		return wire.Empty{}, v.CancelLogin(ctx, peer.UID, req.SessionID)
	case wire.OpOAuthExchange:
		token, err = v.ExchangeLogin(ctx, peer.UID, req.SessionID, req.Code)
		data = token
		if token == nil && err == nil {
			err = errNothing
		}
	default:
		var p *wire.Poll
		p, err = v.PollLogin(ctx, peer.UID, req.SessionID)
		data = p
		if p != nil {
			token = p.Token
		}
		if err == nil && (p == nil || p.Status == wire.PollComplete && token == nil) {
			err = errNothing
		}
	}
	if e := allowed(s.cfg.Scope(), req); e != nil {
		s.abandon(peer.UID, req.SessionID)
		return nil, e
	}
	switch {
	case err != nil:
		return nil, err
	case token != nil && !known: // whose token it is was not asked
		return nil, errNoSession
	}
	return data, nil
}

// beginLogin answers oauth_initiate. Whether the sandbox may log in is asked before anybody is bothered, when whoever
// had to agree has, when the login has begun, and by the vault before it stores something.
func (s *Server) beginLogin(ctx context.Context, req *wire.Request, peer socket.Peer) (wire.Data, error) {
	if agreed := s.cfg.Login; agreed != nil {
		if err := agreed(ctx, LoginRequest{Provider: req.Provider, Bucket: req.Bucket, Flow: req.Flow, Peer: peer}); err != nil {
			return nil, err
		}
		if e := allowed(s.cfg.Scope(), req); e != nil {
			return nil, e
		}
	}
	of := wire.Request{Op: req.Op, Provider: req.Provider, Bucket: req.Bucket} // outlives req
	within := func() bool { return allowed(s.cfg.Scope(), &of) == nil }
	begun := time.Now()
	ended := func(e *wire.Error) {
		code := codeOf(e)
		s.cfg.Audit.Record(&audit.Event{
			Time: time.Now(), Profile: s.cfg.Profile, Op: opLogin, Provider: of.Provider, Bucket: of.Bucket,
			Outcome: outcome(code), Code: string(code), Duration: time.Since(begun),
			UID: peer.UID, PID: peer.PID, Container: peer.Container,
		})
	}
	session, err := s.cfg.Vault.BeginLogin(ctx, peer.UID, req.Provider, req.Bucket, req.Flow, within, ended)
	if session == nil && err == nil {
		err = errNothing
	}
	if err == nil {
		req.SessionID = session.ID
	}
	if e := allowed(s.cfg.Scope(), req); e != nil {
		if err == nil {
			s.abandon(peer.UID, session.ID)
		}
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	if !req.Detail {
		plain := *session
		plain.ExpiresInMS, plain.VerificationURLComplete = 0, ""
		session = &plain
	}
	return session, nil
}

// abandon ends a login that the sandbox may not finish, or does not know of: no port stays taken and no provider is
// polled for it.
func (s *Server) abandon(uid int, id string) {
	ctx, cancel := context.WithTimeout(s.ctx, s.times.operation)
	defer cancel()
	var err error
	defer func() {
		if err != nil {
			s.log.Debug("a login was not ended", "session", shortID(id), "error", err)
		}
	}()
	var none wire.Data
	defer s.recovered(wire.OpOAuthCancel, &none, &err)
	err = s.cfg.Vault.CancelLogin(ctx, uid, id)
}

// opLogin is in the audit record the end of a login that nobody brings to an end by a request: by a device code or by the
// browser. Its duration is from the beginning.
const opLogin = "oauth_login"

// shortID is what may be logged of a session's id.
func shortID(id string) string { return id[:min(len(id), 8)] }

// recorded returns what the record says of an answer that is a success on the wire: the code of a login that has
// failed, and whether it is routine, of which the audit log has no line: that a login is still pending is asked for
// every second or more often, and says nothing.
func recorded(data wire.Data) (code wire.Code, routine bool) {
	p, ok := data.(*wire.Poll)
	switch {
	case !ok || p == nil || p.Status == wire.PollComplete:
		return "", false
	case p.Status == wire.PollError:
		return codeOf(p.Err), false
	}
	return "", true
}
