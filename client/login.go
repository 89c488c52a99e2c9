package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/credproxy/credproxy/wire"
)

const (
	loginTime      = 15 * time.Minute // for a login whose proxy does not say how long it has
	loginGrace     = time.Second      // after that, for the proxy to say itself that it is over; and for its answer
	cancelTime     = 5 * time.Second  // to give a login up at the proxy, when there is nobody to wait for it any more
	deviceInterval = 5 * time.Second  // RFC 8628, section 3.2
	browserPause   = time.Second
	shortestPause  = 100 * time.Millisecond
	busyPause      = time.Second // when there were too many requests, and it is not said for how long

	// maxPastes is how often a code is asked for. A face that answers by itself would go on for as long as the login lasts.
	maxPastes = 10
)

var (
	errLoginOver = wire.E(wire.CodeSessionExpired, "the login was not finished in time; begin a new one")
	errNoCode    = wire.E(wire.CodeInvalidRequest, "no code that could be one was pasted; begin a new login")
)

// LoginFace shows a person what to do in a login, for [Client.Login]. All methods are called from Login's goroutine, one
// at a time. ctx is Login's, and ends with the login's own time besides; a method must return soon after it. An error
// ends the login and is what Login returns.
//
// In a sandbox there is no browser, and one that was started there could not finish a login: [wire.FlowBrowserRedirect]
// comes back to the loopback address of the host. An address has to be opened on the host, by the person who reads it.
type LoginFace interface {
	// ShowURL shows an address to be opened in a browser on the host. With [wire.FlowPKCERedirect] AskCode comes next; with
	// [wire.FlowBrowserRedirect] the browser tells the host by itself, and Waiting comes.
	ShowURL(ctx context.Context, url string) error
	// ShowCode shows an address and the code to be typed there ([wire.FlowDeviceCode]); any browser on any machine will do.
	// complete is the address with the code in it, for a link or a QR code, "" when there is none.
	ShowCode(ctx context.Context, url, complete, userCode string) error
	// AskCode returns what the person pasted: the code, code#state, or the address that the browser ended at. problem is
	// a sentence, what was wrong with the last one; "" at first.
	AskCode(ctx context.Context, problem string) (string, error)
	// Waiting is called when the waiting for the browser begins, and after each look whether it is done. until is when the
	// login is over. It must return at once.
	Waiting(until time.Time)
}

// LoginOptions says what to log in to.
type LoginOptions struct {
	Provider string
	Bucket   string        // "": the default one
	Flow     wire.FlowType // "": the provider's own
	Face     LoginFace
}

// Login logs a person in: it begins a login on the host, has the face show what to do, and returns the token when it is
// done. The token is stored on the host then, with what renews it. It takes as long as the person does, at most the
// lifetime of the login on the host (10 minutes, if nobody has changed it).
//
// On every error, and when ctx ends, the login is cancelled at the proxy before Login returns, which takes 5 s at most.
// What the proxy says is a [*wire.Error]: [wire.ErrExchangeFailed] when the provider or the person refused,
// [wire.ErrSessionExpired] when it took too long, [wire.ErrUnauthorized] when the sandbox must not log in. The error of
// the face, ctx's, and [ErrConnectionLost] are returned as they are.
//
// Logins are independent of each other: several may be made at the same time.
func (c *Client) Login(ctx context.Context, o LoginOptions) (*wire.Token, error) {
	if o.Face == nil {
		return nil, errors.New("a login needs a face: there is nobody to show it to")
	}
	s, err := c.beginLogin(ctx, &o)
	if err != nil {
		return nil, err
	}
	lifetime := time.Duration(s.ExpiresInMS) * time.Millisecond
	if lifetime == 0 {
		lifetime = loginTime
	}
	l := &login{c: c, face: o.Face, session: s, until: time.Now().Add(lifetime)}
	done := false
	defer func() { // also when a face panics
		if !done {
			c.cancelLogin(ctx, s.ID)
		}
	}()
	own, stop := context.WithDeadline(ctx, l.until.Add(2*loginGrace))
	defer stop()
	token, err := l.run(own)
	if err == nil {
		done = true
		return token, nil
	}
	if _, said := errors.AsType[*wire.Error](err); said || errors.Is(err, ErrConnectionLost) {
		return nil, err
	}
	switch {
	case ctx.Err() != nil:
		return nil, cause(ctx)
	case own.Err() != nil:
		return nil, errLoginOver
	}
	return nil, err
}

// beginLogin begins a login. One that began when nobody waited for it any more is cancelled: its listener or its polling
// would go on, and it counts among those that may be.
func (c *Client) beginLogin(ctx context.Context, o *LoginOptions) (*wire.Session, error) {
	r := &wire.Request{Op: wire.OpOAuthInitiate, Provider: o.Provider, Bucket: o.Bucket, Flow: o.Flow, Detail: true}
	raw, err := c.callFor(ctx, cancelTime, r)
	if raw == nil {
		return nil, err
	}
	s := new(wire.Session)
	if bad := s.UnmarshalJSON(raw); bad != nil {
		if err == nil {
			err = fmt.Errorf("credential proxy: answer to %s: %w", r.Op, bad)
		}
		var began struct {
			ID string `json:"session_id"`
		}
		if json.Unmarshal(raw, &began) == nil && began.ID != "" { // what is wrong is something else
			c.cancelLogin(ctx, began.ID)
		}
		return nil, err
	}
	if err != nil {
		c.cancelLogin(ctx, s.ID)
		return nil, err
	}
	return s, nil
}

// cancelLogin gives a login up, whatever has become of ctx. That it cannot is no news to who gives it up.
func (c *Client) cancelLogin(ctx context.Context, id string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer stop()
	_ = patiently(ctx, func() error { return c.OAuthCancel(ctx, id) })
}

// patiently asks again, a little later, what was refused because there were too many requests: their number is shared with
// whatever else uses the socket. A refusal for longer is returned.
func patiently(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		e, ok := errors.AsType[*wire.Error](err)
		if !ok || e.Code != wire.CodeRateLimited || e.RetryAfter > 5 {
			return err
		}
		if pause(ctx, max(busyPause, time.Duration(e.RetryAfter)*time.Second)) != nil {
			return err
		}
	}
}

// pause returns after d, or with ctx's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// login is one login that has begun.
type login struct {
	c       *Client
	face    LoginFace
	session *wire.Session
	until   time.Time // when it is over
}

var errUnusable = errors.New("credential proxy: the answer to oauth_initiate does not say what to do")

// run takes the login to its end. ctx ends a little after until.
func (l *login) run(ctx context.Context) (*wire.Token, error) {
	s := l.session
	switch s.Flow {
	case wire.FlowPKCERedirect, wire.FlowBrowserRedirect:
		if !isAddress(s.AuthURL) {
			return nil, errUnusable
		}
		if err := l.face.ShowURL(ctx, s.AuthURL); err != nil {
			return nil, err
		}
		if s.Flow == wire.FlowPKCERedirect {
			return l.paste(ctx)
		}
		return l.poll(ctx, browserPause)
	case wire.FlowDeviceCode:
		if !isAddress(s.VerificationURL) || s.UserCode == "" {
			return nil, errUnusable
		}
		complete := s.VerificationURLComplete
		if !isAddress(complete) {
			complete = ""
		}
		if err := l.face.ShowCode(ctx, s.VerificationURL, complete, s.UserCode); err != nil {
			return nil, err
		}
		return l.poll(ctx, deviceInterval)
	}
	return nil, errors.New("credential proxy: the login is of a kind that this client does not know")
}

// isAddress reports whether s is something for a browser: a face may hand it to one.
func isAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

// paste asks for the code until it gets one that the proxy takes.
func (l *login) paste(ctx context.Context) (*wire.Token, error) {
	problem := ""
	for range maxPastes {
		pasted, err := l.face.AskCode(ctx, problem)
		if err != nil {
			return nil, err
		}
		var code string
		if code, problem = checkPasted(pasted, l.session.AuthURL); problem != "" {
			continue
		}
		var token *wire.Token
		err = patiently(ctx, func() (err error) {
			token, err = l.c.OAuthExchange(ctx, l.session.ID, code)
			return err
		})
		if !errors.Is(err, wire.ErrInvalidRequest) {
			return token, err
		}
		problem = err.Error() // it is no code, and the login is as it was
	}
	return nil, errNoCode
}

// poll waits until the host is done with the login. usual is the interval of a proxy that names none.
func (l *login) poll(ctx context.Context, usual time.Duration) (*wire.Token, error) {
	interval := usual
	take := func(ms int) {
		if ms > 0 {
			interval = max(shortestPause, time.Duration(ms)*time.Millisecond)
		}
	}
	take(l.session.PollIntervalMS)
	wait := interval
	for {
		l.face.Waiting(l.until)
		// The last look is a moment after the end: the proxy has a word for it.
		if err := pause(ctx, min(wait, time.Until(l.until)+loginGrace)); err != nil {
			return nil, err
		}
		p, err := l.c.OAuthPoll(ctx, l.session.ID)
		e, said := errors.AsType[*wire.Error](err)
		switch {
		case said && e.Code == wire.CodeRateLimited:
			wait = max(interval, busyPause, time.Duration(e.RetryAfter)*time.Second)
		case err != nil:
			return nil, err
		case p.Status == wire.PollComplete:
			return p.Token, nil
		case p.Status == wire.PollError:
			return nil, p.Err
		default:
			take(p.PollIntervalMS)
			wait = interval
		}
		if !time.Now().Before(l.until) {
			return nil, errLoginOver
		}
	}
}

// OAuthInitiate begins a login on the host. flow may be "": the provider's own. What the user has to do is in the
// session; its ID is for the other OAuth calls. [Client.Login] does all of it.
func (c *Client) OAuthInitiate(ctx context.Context, provider, bucket string, flow wire.FlowType) (*wire.Session, error) {
	s := new(wire.Session)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthInitiate, Provider: provider, Bucket: bucket, Flow: flow}, s); err != nil {
		return nil, err
	}
	return s, nil
}

// OAuthExchange ends a login with the code that the user pasted ([wire.FlowPKCERedirect]).
func (c *Client) OAuthExchange(ctx context.Context, sessionID, code string) (*wire.Token, error) {
	t := new(wire.Token)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthExchange, SessionID: sessionID, Code: code}, t); err != nil {
		return nil, err
	}
	return t, nil
}

// OAuthPoll asks how a login stands ([wire.FlowDeviceCode], [wire.FlowBrowserRedirect]). A login that failed is an
// answer, not an error.
func (c *Client) OAuthPoll(ctx context.Context, sessionID string) (*wire.Poll, error) {
	p := new(wire.Poll)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthPoll, SessionID: sessionID}, p); err != nil {
		return nil, err
	}
	return p, nil
}

// OAuthCancel gives a login up.
func (c *Client) OAuthCancel(ctx context.Context, sessionID string) error {
	return c.tell(ctx, &wire.Request{Op: wire.OpOAuthCancel, SessionID: sessionID})
}
