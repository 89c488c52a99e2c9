package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/credproxy/credproxy/wire"
)

// memLogin is a login that a sandbox has begun at a memVault. Its provider shows the code "test-code-1" for it.
type memLogin struct {
	id               string
	uid              int
	provider, bucket string
	flow             wire.FlowType
	allowed          func() bool
	ended            func(*wire.Error)
	over             bool
	outcome          *wire.Poll // what the provider said; nil: it waits for the user
}

const (
	memCode  = "test-code-1"
	memState = "test-state-1"
)

var (
	errUnknownLogin = wire.E(wire.CodeSessionNotFound, "no such login")
	errOtherUser    = wire.E(wire.CodeUnauthorized, "another user's login")
	errLoginUsed    = wire.E(wire.CodeSessionAlreadyUsed, "the login is over")
	errWrongOp      = wire.E(wire.CodeInvalidRequest, "not for this flow")
	errBadCode      = wire.E(wire.CodeExchangeFailed, "the provider refused the code")
	errNotAllowed   = wire.E(wire.CodeUnauthorized, "the login is no longer allowed")
)

func (v *memVault) BeginLogin(ctx context.Context, uid int, provider, bucket string, flow wire.FlowType, allowed func() bool, ended func(*wire.Error)) (*wire.Session, error) {
	v.mu.Lock()
	deaf := v.stubborn // the login has begun when ctx ends
	v.mu.Unlock()
	if err := v.work(ctx); err != nil && !deaf {
		return nil, err
	}
	if flow == "" {
		flow = wire.FlowPKCERedirect
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l := &memLogin{id: fmt.Sprintf("%032x", len(v.logins)+0xabcd), uid: uid, provider: provider, bucket: bucket, flow: flow, allowed: allowed, ended: ended}
	v.logins = append(v.logins, l)
	s := &wire.Session{ID: l.id, Flow: flow, ExpiresInMS: 600_000}
	if flow == wire.FlowDeviceCode {
		s.VerificationURL, s.UserCode, s.PollIntervalMS = "https://login.example/device", "WDJB-MJHT", 5000
		s.VerificationURLComplete = "https://login.example/device?code=WDJB-MJHT"
	} else {
		s.AuthURL = "https://login.example/authorize?state=" + memState
	}
	if provider == "long" {
		s.AuthURL += "&x=" + strings.Repeat("x", 1<<16)
	}
	return s, nil
}

func (v *memVault) find(uid int, id string) (*memLogin, error) {
	for _, l := range v.logins {
		switch {
		case l.id != id:
		case l.uid != uid:
			return nil, errOtherUser
		default:
			return l, nil
		}
	}
	return nil, errUnknownLogin
}

// ExchangeLogin goes on at the provider when ctx ends, as the real vault does.
func (v *memVault) ExchangeLogin(ctx context.Context, uid int, id, code string) (*wire.Token, error) {
	v.mu.Lock()
	l, err := v.find(uid, id)
	switch {
	case err != nil:
	case l.over:
		err = errLoginUsed
	case l.flow != wire.FlowPKCERedirect:
		err = errWrongOp
	default:
		l.over = true
	}
	v.mu.Unlock()
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	var token *wire.Token
	v.renewals.Go(func() {
		err := v.work(context.Background())
		switch {
		case err != nil:
		case code != memCode:
			err = errBadCode
		case !l.allowed():
			err = errNotAllowed
		default:
			token = v.login(l)
		}
		done <- err
	})
	select {
	case err := <-done:
		return token, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// login stores what the provider has issued.
func (v *memVault) login(l *memLogin) *wire.Token {
	t := &wire.Token{AccessToken: "test-access-token-login", Expiry: 1789007200, TokenType: "Bearer"}
	v.set(func() { v.tokens[[2]string{l.provider, l.bucket}] = t })
	return t
}

func (v *memVault) PollLogin(ctx context.Context, uid int, id string) (*wire.Poll, error) {
	if err := v.work(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l, err := v.find(uid, id)
	switch {
	case err != nil:
		return nil, err
	case l.over:
		return nil, errLoginUsed
	case l.flow == wire.FlowPKCERedirect:
		return nil, errWrongOp
	case l.outcome == nil:
		return &wire.Poll{Status: wire.PollPending, PollIntervalMS: 5000}, nil
	}
	l.over = true
	return l.outcome, nil
}

// approve lets the user of a login that is polled agree, or fail with e.
func (v *memVault) approve(id string, e *wire.Error) {
	v.mu.Lock()
	var l *memLogin
	for _, l = range v.logins {
		if l.id == id {
			break
		}
	}
	v.mu.Unlock()
	p := &wire.Poll{Status: wire.PollError, Err: e}
	switch {
	case e != nil:
	case !l.allowed():
		p.Err = errNotAllowed
	default:
		p = &wire.Poll{Status: wire.PollComplete, Token: v.login(l)}
	}
	v.set(func() { l.outcome = p })
	l.ended(p.Err)
}

func (v *memVault) CancelLogin(ctx context.Context, uid int, id string) error {
	if err := v.work(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l, err := v.find(uid, id)
	switch err {
	case nil:
		l.over = true
	case errOtherUser:
		return err
	}
	return nil
}

func (v *memVault) LoginOf(id string) (provider, bucket string, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range v.logins {
		if l.id == id {
			return l.provider, l.bucket, true
		}
	}
	return "", "", false
}

// pending returns how many logins have begun and are not over.
func (v *memVault) pending() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range v.logins {
		if !l.over {
			n++
		}
	}
	return n
}
