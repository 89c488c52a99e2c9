package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	flows "github.com/credproxy/credproxy/internal/vault/internal/login"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// Flows of a login, as the configuration and the command line name them.
const (
	FlowBrowser = flows.FlowBrowser
	FlowDevice  = flows.FlowDevice
	FlowPaste   = flows.FlowPaste
)

// WireFlow is what the protocol calls a flow; "" for "", which leaves the choice to the provider.
func WireFlow(flow string) wire.FlowType { return flows.WireFlow(flow) }

// FlowNamed is the flow that the protocol calls f; "" for "". A *wire.Error when there is none.
func FlowNamed(f wire.FlowType) (string, error) {
	for _, flow := range append([]string{""}, config.Flows...) {
		if WireFlow(flow) == f {
			return flow, nil
		}
	}
	return "", wire.E(wire.CodeInvalidRequest, "flow is pkce_redirect, device_code or browser_redirect")
}

// ProviderError is a provider's refusal or failure, as it may be shown to a person.
type ProviderError = provider.Error

// PortError: there can be no listener for the browser.
type PortError = flows.ListenError

// NoFlowError: the provider cannot be logged in to by the wanted flow, or by any.
type NoFlowError = flows.NoFlowError

// Face is how a login talks to the person. Its methods are called one after the other, by the goroutine that logs in. An
// error of one ends the login.
type Face interface {
	// ShowURL shows an address to be opened in a browser. It may wait until that has its last page.
	ShowURL(ctx context.Context, url string) error
	// ShowCode shows the page of a device login and the code to type there; complete, if there is one, has the code in it.
	ShowCode(ctx context.Context, url, complete, userCode string) error
	// AskCode asks for the code that the provider's page shows at the end. problem is what was wrong with the last answer.
	AskCode(ctx context.Context, problem string) (string, error)
	// Waiting says until when the person has time to finish in the browser.
	Waiting(until time.Time)
}

// LoginOptions are a person's wishes for a login.
type LoginOptions struct {
	Flow string // "" is the first of the provider's flows that works here
	Face Face
}

// Login logs in to a provider on the host and stores the grant, replacing what was stored. It blocks until the person is
// done, ctx ends or the time for a login is over.
func (v *Vault) Login(ctx context.Context, providerName, bucket string, o LoginOptions) error {
	if !wire.ValidName(bucket) {
		return wire.E(wire.CodeInvalidRequest, "a bucket's name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
	}
	log, begun := v.log.With("provider", providerName, "bucket", bucket), time.Now()
	took := func() time.Duration { return time.Since(begun).Round(time.Millisecond) }
	log.Debug("a login begins", "wanted", o.Flow)
	l, err := v.startLogin(ctx, providerName, o.Flow)
	if err != nil {
		log.Debug("the login could not begin", "took", took(), "error", err)
		return err
	}
	defer l.Close()
	log = log.With("flow", l.Flow)
	log.Debug("the provider's page is shown", "at", host(l.URL), "took", took())
	limit := v.loginTimeout
	if l.Lifetime > 0 {
		limit = min(limit, l.Lifetime)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, flows.ErrTimeout)
	defer cancel()
	keep := func(g *grant.Grant) error {
		log.Debug("the provider has issued the login", "took", took())
		// The person is waiting, but a login that the provider has issued is stored even if they go away now.
		err := v.storeGrant(context.WithoutCancel(ctx), providerName, bucket, g)
		l.Told(err)
		return err
	}
	if err := finish(ctx, l, o.Face, time.Now().Add(limit), keep, log); err != nil {
		log.Debug("the login has failed", "took", took(), "error", err)
		return err
	}
	log.Debug("the login is stored", "took", took())
	return nil
}

// host is the part of an address that can be logged: there are secrets behind it.
func host(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// maxPastes is how often a code is asked for, as package client does: a face that answers by itself would go on forever.
const maxPastes = 10

// finish shows the login to the person, waits for its end and keeps what it brings.
func finish(ctx context.Context, l *flows.Login, face Face, until time.Time, keep func(*grant.Grant) error, log *slog.Logger) error {
	var g *grant.Grant
	var err error
	switch l.Flow {
	case FlowBrowser:
		return redirected(ctx, l, face, until, keep, log)
	case FlowDevice:
		if err = face.ShowCode(ctx, l.URL, l.URLComplete, l.UserCode); err == nil {
			log.Debug(saysWaiting, "until", until.Format(time.TimeOnly))
			face.Waiting(until)
			g, err = l.Wait(ctx)
		}
	case FlowPaste:
		if err = face.ShowURL(ctx, l.URL); err == nil {
			g, err = pasted(ctx, l, face, log)
		}
	}
	if err != nil {
		return err
	}
	return keep(g)
}

const saysWaiting = "waiting for the person in the browser"

// redirected waits for the browser, and keeps what it brings, while the address is shown: what shows it may be the browser
// itself, which runs until it has its last page, and that comes when the login is stored.
func redirected(ctx context.Context, l *flows.Login, face Face, until time.Time, keep func(*grant.Grant) error, log *slog.Logger) error {
	waiting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	ended := make(chan error, 1)
	go func() {
		g, err := l.Wait(waiting)
		if err == nil {
			err = keep(g)
		}
		ended <- err
	}()
	if showErr := face.ShowURL(ctx, l.URL); showErr != nil {
		giveUp()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err // it had come to its end
		}
		return showErr
	}
	log.Debug(saysWaiting, "until", until.Format(time.TimeOnly))
	face.Waiting(until)
	return <-ended
}

// pasted asks for the code until there is one.
func pasted(ctx context.Context, l *flows.Login, face Face, log *slog.Logger) (*grant.Grant, error) {
	problem := ""
	for asked := 1; ; asked++ {
		code, err := face.AskCode(ctx, problem)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, err
		}
		log.Debug("the person has pasted something", "time", asked, "bytes", len(code))
		g, err := l.Finish(ctx, code)
		if asked == maxPastes || !errors.Is(err, flows.ErrPaste) && !errors.Is(err, flows.ErrOtherLogin) {
			return g, err
		}
		problem = err.Error()
	}
}

var errNoProvider = wire.E(wire.CodeProviderNotFound, "no provider of this name is configured, and none is built in")

// startLogin begins a login to a provider that may be logged in to.
func (v *Vault) startLogin(ctx context.Context, providerName, flow string) (*flows.Login, error) {
	p, ok := v.provider(providerName)
	if !ok {
		return nil, errNoProvider
	}
	if _, accepted := v.Terms(providerName); !accepted {
		return nil, wire.E(wire.CodeUnauthorized, "its vendor does not permit such logins, and nobody has agreed on the host yet: credproxy auth login "+
			providerName+" there asks")
	}
	// A login that cannot be stored would be lost after all the person's work.
	if err := v.store.Check(ctx); err != nil {
		return nil, hostError(fmt.Errorf("the credential store: %w", err))
	}
	clientSecret, err := v.clientSecret(ctx, p)
	if err != nil {
		return nil, err
	}
	return flows.Start(ctx, v.client, flows.Request{Provider: p, Flow: flow, Secret: clientSecret, Told: true})
}

// clientSecret reads the stored key that a confidential client names.
func (v *Vault) clientSecret(ctx context.Context, p *provider.Provider) (secret.String, error) {
	if p.ClientSecretKey == "" {
		return secret.String{}, nil
	}
	s, err := v.store.Read(ctx, keyItem(p.ClientSecretKey))
	if errors.Is(err, store.ErrNotFound) {
		return secret.String{}, p.MissingSecret()
	}
	if err != nil {
		return secret.String{}, fmt.Errorf("the client secret of %s (the stored key %s): %w", p.Name, p.ClientSecretKey, hostError(err))
	}
	return s, nil
}

// storeGrant makes a new login durable. ctx ends the waiting for the login's lock, not a write that has begun.
func (v *Vault) storeGrant(ctx context.Context, providerName, bucket string, g *grant.Grant) error {
	it := loginItem(providerName, bucket)
	return v.underLockWithin(ctx, issuedLimit, it, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockLimit)
		defer cancel()
		if err := v.logins.Write(ctx, it, g.Seal()); err != nil {
			return hostError(fmt.Errorf("storing the login %s/%s: %w", providerName, bucket, err))
		}
		v.refresh.Begin(ctx, it, g)
		return nil
	})
}

// LogoutResult says what a logout did.
type LogoutResult struct {
	Revoked    bool  // the provider confirmed
	AccessOnly bool  // what it was asked to revoke was the access token: there was no refresh token any more
	RevokeErr  error // why it did not; nil when nobody asked it
}

// Logout removes a stored login; with revoke it asks the provider first to revoke it (RFC 7009), the refresh token if
// there is one. The login is removed in any case. A *wire.Error with wire.CodeNotFound when there is none.
func (v *Vault) Logout(ctx context.Context, providerName, bucket string, revoke bool) (LogoutResult, error) {
	var r LogoutResult
	it := loginItem(providerName, bucket)
	err := v.underLock(ctx, it, func() error {
		sealed, err := v.store.Read(ctx, it)
		if err != nil {
			return hostError(fmt.Errorf("login %s/%s: %w", providerName, bucket, err))
		}
		if revoke {
			r.AccessOnly, r.RevokeErr = v.revoke(ctx, providerName, sealed)
			r.Revoked = r.RevokeErr == nil
		}
		return v.forget(ctx, it)
	})
	return r, err
}

func (v *Vault) revoke(ctx context.Context, providerName string, sealed secret.String) (accessOnly bool, err error) {
	p, ok := v.provider(providerName)
	if !ok {
		return false, errors.New("no provider of this name is configured, so nobody knows where to revoke it")
	}
	g, err := grant.Parse(sealed)
	if err != nil {
		return false, err
	}
	clientSecret, err := v.clientSecret(ctx, p)
	if err != nil {
		return false, err
	}
	p = p.For(g)
	if !g.RefreshToken.IsZero() {
		return false, v.client.Revoke(ctx, p, g.RefreshToken, "refresh_token", clientSecret)
	}
	return true, v.client.Revoke(ctx, p, g.AccessToken, "access_token", clientSecret)
}

// LoginAdvice is what a person is told of a login that failed, in a sentence with what to do about it, as it also crosses
// the socket; "" when the error says all there is.
func LoginAdvice(err error) string {
	if e := flows.Crossing(err); e != nil {
		return e.Message
	}
	return ""
}
