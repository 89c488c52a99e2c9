package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
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

// hostLimit is how long the host may take to begin a login.
const hostLimit = 30 * time.Second

// loginInside has the host make a login, and shows the person what to do.
func (a *app) loginInside(ctx context.Context, l login, o loginWishes) error {
	c := client.New(client.Options{Socket: os.Getenv(socketVariable)})
	defer c.Close()
	p, known := describe(config.Default(), l.provider) // what is built in is known here too
	if known {
		a.printStatus(p)
	}
	f := &face{app: a, login: l, inside: true, qr: o.qr}
	defer f.rest()
	begin := func(flow string) error {
		log, begun := a.log.With("provider", l.provider, "bucket", l.bucket, "wanted", flow), time.Now()
		log.Debug("the host is asked for a login")
		f.asking("the host (a person there may be asked)", hostLimit)
		_, err := c.Login(ctx, client.LoginOptions{Provider: l.provider, Bucket: l.bucket, Flow: vault.WireFlow(flow), Face: f})
		f.rest()
		log.Debug("the login has ended", "took", time.Since(begun).Round(time.Millisecond), "error", err)
		return err
	}
	flow := o.wanted(p.Flows)
	trying := flow == "" && o.qr && !known
	if trying { // only the host knows what there is for a phone, and asks nobody about a flow that there is not
		flow = vault.FlowDevice
	}
	err := begin(flow)
	if have := flowsIn(err); trying && len(have) > 0 {
		err = begin(o.wanted(have))
	}
	if err != nil {
		return notLoggedInInside(err, l, o.flow)
	}
	fmt.Fprintf(a.stderr, "%s stored on the host as %s\n", a.paint(a.stderr).green("logged in:"), l.full())
	return nil
}

// notLoggedInInside says what to do about a login that failed, where the error's own words do not.
func notLoggedInInside(err error, l login, flow string) error {
	crossing, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return err
	}
	switch crossing.Code {
	case wire.CodeUnauthorized:
		if strings.Contains(crossing.Message, "credproxy auth login") {
			return &failure{err: errors.New(crossing.Message), status: exitRefused} // it says all
		}
		return &failure{err: err, hint: "the host decides: log in there, with credproxy auth login " + l.String() + ", or see credproxy profile list there"}
	case wire.CodeProviderNotFound:
		return &failure{err: err, hint: "describe it on the host, in [providers." + shown(l.provider, "NAME") + "] of the configuration; credproxy providers there lists those that there are"}
	case wire.CodeRateLimited:
		if crossing.RetryAfter > 0 {
			return &failure{err: err, hint: "try again in " + atMost(time.Duration(crossing.RetryAfter)*time.Second)}
		}
	}
	if have := flowsIn(err); len(have) > 0 {
		return &failure{err: err, hint: flowFlags(have)}
	}
	if again := loginAgain(crossing.Message, l, flow); again != "" {
		return &failure{err: err, hint: again}
	}
	return &failure{err: err, hint: "on the host, where more can be said: credproxy auth login " + l.String()}
}

// flowsIn are the flows that a refusal names as those that there are.
func flowsIn(err error) []string {
	crossing, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return nil
	}
	_, named, found := strings.Cut(crossing.Message, "; it has ")
	if !found {
		_, named, _ = strings.Cut(crossing.Message, "ask for another flow: ")
	}
	var have []string
	for word := range strings.FieldsFuncSeq(named, func(r rune) bool { return strings.ContainsRune(" (),", r) }) {
		if slices.Contains(config.Flows, word) {
			have = append(have, word)
		}
	}
	return have
}

// logoutInside has the proxy remove a login. One that is not there counts as removed, as for every client of the proxy.
func (a *app) logoutInside(ctx context.Context, l login) error {
	t, err := insideTokens(ctx)
	if err != nil {
		return err
	}
	return t.RemoveToken(ctx, l.provider, l.bucket)
}

// patience is how long a command waits for a proxy that takes only so many requests a second.
const patience = 30 * time.Second

// pacer asks a proxy many things, as fast as it answers. It is for one command, and for one goroutine.
type pacer struct {
	app  *app
	left time.Duration
}

func (a *app) pacer() *pacer { return &pacer{a, patience} }

// ask asks, and once more when that was too fast, as long as there is patience left.
func (p *pacer) ask(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		busy, ok := errors.AsType[*wire.Error](err)
		if !ok || busy.Code != wire.CodeRateLimited {
			return err
		}
		pause := max(time.Second, time.Duration(busy.RetryAfter)*time.Second)
		if p.left -= pause; p.left < 0 {
			return err
		}
		stop := p.app.waiting(wait{what: "the proxy, which takes only so many requests a second", limit: pause, soon: true, ctrlC: cancels})
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if stop(); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// reportInside is what the proxy tells of the logins that this sandbox may use. The store is the host's, or "proxy" from a
// proxy that does not say.
func (a *app) reportInside(ctx context.Context, t client.Tokens) (statusReport, error) {
	report := statusReport{Store: "proxy", Logins: []loginReport{}}
	pace := a.pacer()
	logins, err := listLogins(ctx, t, pace)
	if err != nil {
		return statusReport{}, err
	}
	for _, p := range slices.Sorted(maps.Keys(logins)) {
		for _, b := range logins[p] {
			var r *loginReport
			var store string
			err := pace.ask(ctx, func() (err error) {
				r, store, err = reportOneInside(ctx, t, login{p, b})
				return err
			})
			if err != nil {
				return statusReport{}, err
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

// listLogins are the buckets that have a login, by provider; never nil without an error.
func listLogins(ctx context.Context, t interface {
	Providers(ctx context.Context) ([]string, error)
	Buckets(ctx context.Context, provider string) ([]string, error)
}, pace *pacer) (map[string][]string, error) {
	var providers []string
	err := pace.ask(ctx, func() (err error) {
		providers, err = t.Providers(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	logins := map[string][]string{}
	for _, p := range providers {
		err := pace.ask(ctx, func() (err error) {
			logins[p], err = t.Buckets(ctx, p)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return logins, nil
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
