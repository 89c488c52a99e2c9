// Package login runs logins. [Start] begins one by any of a provider's three flows; its [Login] says what the person has
// to open or type. Then [Login.Finish] takes what they paste, or [Login.Wait] waits for what they do elsewhere, and
// [Login.Close] ends it in any case. [Sessions] are the logins that one sandbox drives over its socket, and [Crossing]
// says what of a failure may cross that.
//
// The PKCE verifier, the device code and the client secret leave this package for the provider only; the state is in the
// URL that the person opens, and nowhere else.
package login

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Flows, as the configuration and the command line name them.
const (
	FlowBrowser = provider.FlowBrowser // the provider redirects the browser to a listener on loopback (RFC 8252)
	FlowDevice  = provider.FlowDevice  // the person types a code on the provider's page (RFC 8628)
	FlowPaste   = provider.FlowPaste   // the person copies a code from the provider's page, or the address that it led to
)

// Request says what login is wanted.
type Request struct {
	Provider *provider.Provider
	Flow     string        // "": the first of the provider's flows that works here
	Secret   secret.String // of a confidential client; zero for a public one

	// Told: whoever waits says by [Login.Told] what has become of the grant, and the browser's page says that. Without it
	// the page can only say that the provider has issued one.
	Told bool
}

// Login is one login that is under way. Its exported fields do not change. It prints, formats and logs as a placeholder.
//
// One goroutine at a time calls Finish or Wait; Close and PollInterval may be called from any other meanwhile.
type Login struct {
	Flow string

	URL         string        // to be opened: the authorization URL, or the page on which UserCode is typed
	URLComplete string        // with FlowDevice: URL with the code in it, "" if the provider has no such address
	UserCode    string        // with FlowDevice
	Interval    time.Duration // with FlowDevice: between two polls, at first
	Lifetime    time.Duration // with FlowDevice: of the code; 0 with the other flows, which end with Close or Wait's context

	client *provider.Client
	secret secret.String

	authorization *provider.Authorization // FlowPaste, FlowBrowser
	device        *device                 // FlowDevice
	callback      *callback               // FlowBrowser
	told          chan error              // room for one; nil: nobody will say

	closing context.Context // ended by Close: what the login does for nobody in particular ends with it
	close   context.CancelFunc
}

const redacted = "login(redacted)"

func (Login) String() string               { return redacted }
func (Login) GoString() string             { return redacted }
func (Login) Format(s fmt.State, _ rune)   { _, _ = s.Write([]byte(redacted)) }
func (Login) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Login) MarshalJSON() ([]byte, error) { return nil, secret.ErrMarshal }

// Check says what can be said of a wanted flow before anybody is asked: a *NoFlowError, or nil, also where the provider's
// metadata has to tell.
func Check(p *provider.Provider, flow string) error {
	if p.Issuer != "" {
		return nil
	}
	_, err := choose(p, flow)
	return err
}

// choose returns the wanted flow, or all that the provider has, in its order.
func choose(p *provider.Provider, wanted string) ([]string, error) {
	var have []string
	for _, flow := range p.Flows {
		if p.Supports(flow) && !slices.Contains(have, flow) {
			have = append(have, flow)
		}
	}
	switch {
	case len(have) == 0, wanted != "" && !slices.Contains(have, wanted):
		return nil, &NoFlowError{Provider: p.Name, Flow: wanted, Have: have}
	case wanted != "":
		return []string{wanted}, nil
	}
	return have, nil
}

// Start begins a login. Its owner calls Close in any case. ctx is for the requests that the beginning takes (a device
// code, or finding the provider's endpoints), not for the login.
//
// Without a wanted flow, FlowBrowser is passed over when the ports of its redirect are taken, for a flow that does not send
// the browser there. Errors are *NoFlowError, *ListenError (which may be ErrPortTaken) and *provider.Error.
func Start(ctx context.Context, c *provider.Client, r Request) (*Login, error) {
	p, err := c.Resolve(ctx, r.Provider)
	if err != nil {
		return nil, err
	}
	wanted, err := choose(p, r.Flow)
	if err != nil {
		return nil, err
	}
	var taken error
	for _, flow := range wanted {
		if errors.Is(err, ErrPortTaken) && samePort(p, flow) {
			continue // whoever has the port would get the code
		}
		l := &Login{Flow: flow, client: c, secret: r.Secret}
		l.closing, l.close = context.WithCancel(context.Background())
		if r.Told {
			l.told = make(chan error, 1)
		}
		switch flow {
		case FlowBrowser:
			err = l.startBrowser(ctx, p)
		case FlowDevice:
			err = l.startDevice(ctx, p)
		case FlowPaste:
			err = l.startPaste(ctx, p)
		}
		if err == nil {
			return l, nil
		}
		l.close()
		if !errors.Is(err, ErrPortTaken) {
			if taken != nil {
				err = fmt.Errorf("%w; and by %s instead: %w", taken, flow, err)
			}
			break
		}
		taken = err
	}
	if failed, ok := errors.AsType[*ListenError](err); ok {
		have, _ := choose(p, "")
		failed.Instead = slices.DeleteFunc(have, func(flow string) bool { return flow == FlowBrowser || samePort(p, flow) })
	}
	return nil, err
}

// samePort reports whether a login by pasted code sends the browser to where FlowBrowser would listen.
func samePort(p *provider.Provider, flow string) bool {
	return flow == FlowPaste && slices.Contains(p.Redirects(), p.PasteRedirect())
}

// Wait returns the grant once the person has done their part elsewhere: with FlowDevice it polls the provider, with
// FlowBrowser it waits for the browser to come back. It is called once, and ends with ctx: ErrTimeout at its deadline.
// Further errors are *provider.Error, ErrExpired and, after Close, ErrClosed.
func (l *Login) Wait(ctx context.Context) (*grant.Grant, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.closing, func() { cancel(ErrClosed) })()
	var (
		g   *grant.Grant
		err error
	)
	switch l.Flow {
	case FlowDevice:
		g, err = l.poll(ctx)
	case FlowBrowser:
		g, err = l.callback.wait(ctx)
	default:
		return nil, errors.New("login: a login by pasted code is finished, not waited for")
	}
	if err != nil && ctx.Err() != nil {
		// Not the request's own words for being cut off.
		err = context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = ErrTimeout
		}
	}
	return g, err
}

// Told says what has become of the grant that Wait returned: nil, it is stored. It counts once.
func (l *Login) Told(err error) {
	select {
	case l.told <- err:
	default:
	}
}

// PollInterval is how long to wait now between two questions about the login: with FlowDevice the interval of the
// provider as it is after its latest answer, with FlowBrowser a second, with FlowPaste 0.
func (l *Login) PollInterval() time.Duration {
	switch l.Flow {
	case FlowDevice:
		return time.Duration(l.device.interval.Load())
	case FlowBrowser:
		return time.Second
	}
	return 0
}

// Close ends the login at once: nothing polls or listens any more when it returns, and a request to the provider that was
// under way has been cut off. A browser that has been here gets its last page. It may be called more than once.
func (l *Login) Close() {
	l.close()
	if l.callback != nil {
		l.callback.close()
	}
}
