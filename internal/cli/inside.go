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

// loginInside asks the proxy to begin a login. This version has no way to go on with one, and no proxy of this version
// begins any.
func (a *app) loginInside(ctx context.Context, l login, flow string) error {
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

// statusInside is what the proxy tells of the logins that this sandbox may use. It tells no refresh times, and it would
// refresh what has expired.
func statusInside(ctx context.Context) (statusReport, error) {
	report := statusReport{Store: "proxy", Logins: []loginReport{}}
	t, err := insideTokens(ctx)
	if err != nil {
		return report, err
	}
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
			r := loginReport{Provider: p, Bucket: b, State: string(vault.StateOK)}
			token, err := t.Token(ctx, p, b)
			switch {
			case errors.Is(err, client.ErrConnectionLost), errors.Is(err, client.ErrUnreachable), errors.Is(err, wire.ErrRateLimited):
				return report, err
			case err != nil:
				r.Detail = "the token cannot be had: " + err.Error()
			case token == nil: // removed since it was listed
				continue
			default:
				r.Expiry = known(token.Expiry)
				if token.Expiry != 0 && token.Expiry <= time.Now().Unix() {
					r.State = string(vault.StateExpired)
				}
			}
			report.Logins = append(report.Logins, r)
		}
	}
	return report, nil
}
