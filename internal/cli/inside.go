package cli

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/credproxy/credproxy"
	"github.com/credproxy/credproxy/client"
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

// flowTypes are the protocol's names of the flows.
var flowTypes = map[string]wire.FlowType{
	vault.FlowPaste: wire.FlowPKCERedirect, vault.FlowDevice: wire.FlowDeviceCode, vault.FlowBrowser: wire.FlowBrowserRedirect,
}

// beginInside asks the proxy to begin a login. This version has no way to go on with one, and no proxy of this version
// begins any.
func (a *app) beginInside(ctx context.Context, l login, flow string) error {
	c := client.New(client.Options{Socket: os.Getenv(socketVariable)})
	defer c.Close()
	hint := "log in on the host: credproxy auth login " + l.String()
	session, err := c.OAuthInitiate(ctx, l.provider, l.bucket, flowTypes[flow])
	if err == nil {
		_ = c.OAuthCancel(ctx, session.ID)
		err = errors.New("the proxy began a login that this version of credproxy cannot finish from inside")
	}
	if errors.Is(err, wire.ErrUnauthorized) || statusOf(err) == exitUnreachable {
		return err
	}
	return &failure{err: err, hint: hint}
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
			r, store, err := loginInside(ctx, t, login{p, b})
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

// loginInside asks how one login stands. The report is nil when it was removed since it was listed; an error ends the
// questions.
func loginInside(ctx context.Context, t client.Tokens, l login) (_ *loginReport, store string, err error) {
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
