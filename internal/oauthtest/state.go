package oauthtest

import (
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"slices"
	"strings"
	"time"
)

// state is what was issued. Nothing is ever removed: a test asks about all of it, and a demo ends soon. Server.mu
// guards it; methods whose names end in Locked need that lock. Secrets are looked up by digest, so that the time of a
// lookup says nothing about how much of a guess was right.
type state struct {
	families []*family
	tokens   map[digest]*token
	codes    map[digest]*code
	devices  map[digest]*device
	byUser   map[string]*device // by user code without its dash
	clients  []*Client          // made by the server, beside those of Options
	consents map[string]bool    // client ids that the user said yes to before
	requests map[digest]*authRequest
	issued   Issued
	uses     []RefreshUse
}

type digest [sha256.Size]byte

func digestOf(s string) digest { return sha256.Sum256([]byte(s)) }

// family is everything that comes from one approval: RFC 9700 section 4.14.2 revokes it as a whole.
type family struct {
	client  string
	scope   []string
	params  map[string]string // of the authorisation request
	revoked string            // why, or empty
	access  []string
	refresh []string
}

type token struct {
	family  *family
	refresh bool
	scope   []string
	expires time.Time // zero: never
	spent   bool      // a refresh token that was rotated away
	revoked bool
}

func (t *token) live(now time.Time) bool {
	return !t.spent && !t.revoked && t.family.revoked == "" && (t.expires.IsZero() || now.Before(t.expires))
}

// authRequest is a validated authorisation request.
type authRequest struct {
	client      *Client
	redirect    string // where the answer goes
	redirectArg string // redirect_uri as it was sent, or empty
	state       string
	scope       []string
	challenge   string
	params      map[string]string // all that was sent
}

type code struct {
	authRequest
	expires time.Time
	spent   bool
	family  *family // set when spent successfully
}

type deviceStatus int

const (
	devicePending deviceStatus = iota
	deviceApproved
	deviceDenied
	deviceSpent
)

type device struct {
	client    string
	scope     []string
	challenge string
	expires   time.Time
	interval  time.Duration
	lastPoll  time.Time
	polls     int
	status    deviceStatus
	family    *family
}

func newState() state {
	return state{
		tokens: map[digest]*token{}, codes: map[digest]*code{}, devices: map[digest]*device{},
		byUser: map[string]*device{}, consents: map[string]bool{}, requests: map[digest]*authRequest{},
	}
}

func (s *Server) newFamilyLocked(client string, scope []string) *family {
	f := &family{client: client, scope: scope}
	s.state.families = append(s.state.families, f)
	return f
}

func (s *Server) newAccessLocked(f *family, scope []string) string {
	v := s.opt.Prefixes.Access + rand.Text()
	if s.vendor.accessLocked != nil {
		v = s.vendor.accessLocked(s, f, scope, v)
	}
	t := &token{family: f, scope: scope}
	if !s.lastsLocked(f) {
		t.expires = time.Now().Add(s.opt.AccessLifetime)
	}
	s.state.tokens[digestOf(v)] = t
	f.access = append(f.access, v)
	s.state.issued.AccessTokens = append(s.state.issued.AccessTokens, v)
	return v
}

// lastsLocked says that the access tokens of a family do not expire.
func (s *Server) lastsLocked(f *family) bool {
	return s.vendor.forever != nil && s.vendor.forever(s.clientByIDLocked(f.client))
}

func (s *Server) newRefreshLocked(f *family) string {
	v := s.opt.Prefixes.Refresh + rand.Text()
	t := &token{family: f, refresh: true, scope: f.scope}
	if s.opt.RefreshLifetime > 0 {
		t.expires = time.Now().Add(s.opt.RefreshLifetime)
	}
	s.state.tokens[digestOf(v)] = t
	f.refresh = append(f.refresh, v)
	s.state.issued.RefreshTokens = append(s.state.issued.RefreshTokens, v)
	return v
}

func (s *Server) newCodeLocked(a authRequest) string {
	v := s.opt.Prefixes.Code + rand.Text()
	s.state.codes[digestOf(v)] = &code{authRequest: a, expires: time.Now().Add(s.opt.CodeLifetime)}
	s.state.issued.Codes = append(s.state.issued.Codes, v)
	return v
}

func (f *family) revoke(why string) {
	if f.revoked == "" {
		f.revoked = why
	}
}

// revokeLocked revokes a refresh token with its family, or one access token: RFC 7009 section 2.1.
func (t *token) revokeLocked(why string) {
	t.revoked = true
	if t.refresh {
		t.family.revoke(why)
	}
}

// newUserCode has the alphabet and the length that RFC 8628 section 6.1 proposes.
func newUserCode() string {
	const alphabet = "BCDFGHJKLMNPQRSTVWXZ"
	b := make([]byte, 8)
	for i := range b {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			panic(err) // crypto/rand does not fail
		}
		b[i] = alphabet[n.Int64()]
	}
	return string(b[:4]) + "-" + string(b[4:])
}

// bareUserCode forgives what people do to a user code when they type it.
func bareUserCode(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToUpper(s))
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(x string) bool { return !slices.Contains(whole, x) })
}
