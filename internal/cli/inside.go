package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/credproxy/credproxy"
	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// socketVariable names the proxy's socket inside a sandbox.
const socketVariable = credproxy.SocketVariable

// inside reports whether this process runs in a sandbox, where everything goes through the proxy's socket.
func inside() bool { return os.Getenv(socketVariable) != "" }

// insideTokens is the proxy's token store.
func insideTokens(ctx context.Context) (client.Tokens, error) { return credproxy.Tokens(ctx) }

type insideKeys struct{ client.Keys }

func openInsideKeys(ctx context.Context) (keys, error) {
	k, err := credproxy.Keys(ctx)
	return insideKeys{k}, err
}

func (k insideKeys) read(ctx context.Context, name string) (wire.APIKey, bool, error) {
	return k.APIKey(ctx, name)
}

func (k insideKeys) names(ctx context.Context) ([]string, error) { return k.APIKeys(ctx) }

// loginInside has the host make a login, and shows the person what to do.
func (a *app) loginInside(ctx context.Context, l login, o loginWishes) error {
	c := client.New(client.Options{Socket: os.Getenv(socketVariable)})
	defer c.Close()
	if p, ok := describe(config.Default(), l.provider); ok { // what is built in is known here too
		a.printStatus(p)
	}
	f := &face{app: a, login: l, inside: true, qr: o.qr}
	defer f.rest()
	f.asking("the host (a person there may be asked)", providerLimit)
	_, err := c.Login(ctx, client.LoginOptions{Provider: l.provider, Bucket: l.bucket, Flow: vault.WireFlow(o.flow), Face: f})
	f.rest()
	if err != nil {
		return notLoggedInInside(err, l)
	}
	fmt.Fprintf(a.stderr, "%s stored on the host as %s\n", a.paint(a.stderr).green("logged in:"), l.full())
	return nil
}

// notLoggedInInside says what to do about a login that failed, where the error's own words do not.
func notLoggedInInside(err error, l login) error {
	crossing, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return err
	}
	switch crossing.Code {
	case wire.CodeUnauthorized:
		return &failure{err: err, hint: "the host decides: log in there, with credproxy auth login " + l.String() + ", or see credproxy profile show there"}
	case wire.CodeProviderNotFound:
		return &failure{err: err, hint: "describe it on the host, in [providers." + shown(l.provider, "NAME") + "] of the configuration; credproxy providers there lists those that there are"}
	case wire.CodeRateLimited:
		if crossing.RetryAfter > 0 {
			return &failure{err: err, hint: "try again in " + atMost(time.Duration(crossing.RetryAfter)*time.Second)}
		}
	case wire.CodeSessionExpired, wire.CodeSessionNotFound, wire.CodeSessionAlreadyUsed, wire.CodeExchangeFailed:
		return &failure{err: err, hint: "begin again: credproxy auth login " + l.String()}
	case wire.CodeInternal, wire.CodeInvalidRequest:
		return &failure{err: err, hint: "on the host, where more can be said: credproxy auth login " + l.String()}
	}
	return err
}

// logoutInside has the proxy remove a login. One that is not there counts as removed, as for every client of the proxy.
func (a *app) logoutInside(ctx context.Context, l login) error {
	t, err := insideTokens(ctx)
	if err != nil {
		return err
	}
	return t.RemoveToken(ctx, l.provider, l.bucket)
}

// reportInside is what the proxy tells of the logins that this sandbox may use. The store is the host's, or "proxy" from a
// proxy that does not say. With an error, the report has the logins before it.
func reportInside(ctx context.Context, t client.Tokens) (statusReport, error) {
	report := statusReport{Store: "proxy", Logins: []loginReport{}}
	providers, err := t.Providers(ctx)
	if err != nil {
		return report, err
	}
	for _, p := range providers {
		buckets, err := t.Buckets(ctx, p)
		if err != nil {
			return report, err
		}
		for _, b := range buckets {
			r, store, err := reportOneInside(ctx, t, login{p, b})
			if err != nil {
				return report, err
			}
			if r != nil {
				report.Logins = append(report.Logins, *r)
			}
			if store != "" {
				report.Store = store
			}
		}
	}
	return report, nil
}

// reportOneInside asks how one login stands. The report is nil when it was removed since it was listed; an error ends the
// questions.
func reportOneInside(ctx context.Context, t client.Tokens, l login) (_ *loginReport, store string, err error) {
	if extended, ok := t.(*client.TokenStore); ok {
		s, err := extended.Status(ctx, l.provider, l.bucket)
		if err != nil {
			return unknownInside(ctx, l, err)
		}
		if s != nil {
			return reportOf(l, s), s.Store, nil
		}
	}
	token, err := t.Token(ctx, l.provider, l.bucket)
	if err != nil {
		return unknownInside(ctx, l, err)
	}
	if token == nil {
		return nil, "", nil
	}
	r := &loginReport{Provider: l.provider, Bucket: l.bucket, Expiry: known(token.Expiry), State: string(vault.StateOK)}
	if expired(token, time.Now()) {
		r.State = string(vault.StateExpired)
	}
	return r, "", nil
}

// unknownInside is the report of a login of which the proxy does not tell how it stands, or the error when it would not
// tell of others either.
func unknownInside(ctx context.Context, l login, err error) (*loginReport, string, error) {
	r := &loginReport{Provider: l.provider, Bucket: l.bucket, State: string(vault.StateLoginNeeded), Detail: "the stored login cannot be read: " + err.Error()}
	switch {
	case ctx.Err() != nil, statusOf(err) == exitUnreachable, errors.Is(err, wire.ErrRateLimited):
		return nil, "", err
	case errors.Is(err, wire.ErrUnauthorized): // it may be listed, and nothing else
		r.State, r.Detail = string(vault.StateOK), err.Error()
	}
	return r, "", nil
}
