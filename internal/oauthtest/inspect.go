package oauthtest

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Request is one request that arrived at an endpoint. It holds what the client sent, secrets included.
type Request struct {
	Endpoint Endpoint
	Method   string
	Path     string
	Params   url.Values // of the query or the body; nil if that was refused
	Header   http.Header
	Faulted  bool
	Status   int // of the answer; 0 while the request is being processed
	Time     time.Time
}

// Outcome is what became of a refresh token that came in.
type Outcome string

const (
	Accepted    Outcome = "accepted"
	Reused      Outcome = "reused"      // it had been rotated away: its family is revoked
	Refused     Outcome = "refused"     // unknown, expired, revoked, another client's, or with a scope too wide
	Unprocessed Outcome = "unprocessed" // a Fault answered in the server's place, or the client did not authenticate
)

// RefreshUse is one refresh token that came in.
type RefreshUse struct {
	Token   string
	Outcome Outcome
	Time    time.Time
}

// Issued are all the secrets the server ever made, in order.
type Issued struct {
	AccessTokens, RefreshTokens, Codes, DeviceCodes, UserCodes []string
	Verifiers                                                  []string // dialect codex: made by the server for a device login
	IDTokens                                                   []string // JWTs that name the user
}

// All is every secret: what a search of bytes looks for. User codes are for the user's eyes and not among them, nor are
// ID tokens, which open nothing.
func (i Issued) All() []string {
	return slices.Concat(i.AccessTokens, i.RefreshTokens, i.Codes, i.DeviceCodes, i.Verifiers)
}

// Family is what came from one approval: its tokens, oldest first.
type Family struct {
	ClientID      string
	Scope         []string
	Revoked       bool
	Why           string // of the revocation
	AccessTokens  []string
	RefreshTokens []string
}

// Calls counts the requests that arrived at an endpoint, faulted ones included.
func (s *Server) Calls(e Endpoint) int { return len(s.Requests(e)) }

// Requests are those that arrived at an endpoint, oldest first.
func (s *Server) Requests(e Endpoint) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Request
	for _, r := range s.log {
		if r.Endpoint == e {
			out = append(out, *r)
		}
	}
	return out
}

// WaitCalls returns when at least n requests have arrived at an endpoint (they may still be in process), or when ctx ends.
func (s *Server) WaitCalls(ctx context.Context, e Endpoint, n int) error {
	for {
		s.mu.Lock()
		arrived := s.arrived
		s.mu.Unlock()
		if s.Calls(e) >= n {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// RefreshUses are the refresh tokens that came in, in order. "No refresh token was used twice" is: none of them has the
// outcome [Reused].
func (s *Server) RefreshUses() []RefreshUse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state.uses)
}

// useUnprocessed records a refresh token that came in and was not looked at.
func (s *Server) useUnprocessed(e Endpoint, values url.Values) {
	if e != Token || values.Get("grant_type") != GrantRefresh || values.Get("refresh_token") == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.uses = append(s.state.uses, RefreshUse{values.Get("refresh_token"), Unprocessed, time.Now()})
}

// Issued is everything issued so far.
func (s *Server) Issued() Issued {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.state.issued
	return Issued{
		AccessTokens: slices.Clone(i.AccessTokens), RefreshTokens: slices.Clone(i.RefreshTokens), Codes: slices.Clone(i.Codes),
		DeviceCodes: slices.Clone(i.DeviceCodes), UserCodes: slices.Clone(i.UserCodes),
		Verifiers: slices.Clone(i.Verifiers), IDTokens: slices.Clone(i.IDTokens),
	}
}

// Families are all approvals that led to tokens, oldest first.
func (s *Server) Families() []Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Family, len(s.state.families))
	for i, f := range s.state.families {
		out[i] = Family{
			ClientID: f.client, Scope: slices.Clone(f.scope), Revoked: f.revoked != "", Why: f.revoked,
			AccessTokens: slices.Clone(f.access), RefreshTokens: slices.Clone(f.refresh),
		}
	}
	return out
}

// Valid reports whether an access or refresh token would be accepted now.
func (s *Server) Valid(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(token)]
	return t != nil && t.live(time.Now())
}

// RevokeToken is what an administrator does: an access token ends, or a refresh token with its whole family. It
// reports whether the token is known.
func (s *Server) RevokeToken(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(token)]
	if t != nil {
		t.revokeLocked("revoked on the server")
	}
	return t != nil
}

// SetApproval changes who answers for the user from now on.
func (s *Server) SetApproval(a Approval) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opt.Approval = a
}
