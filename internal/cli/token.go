package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/wire"
)

func (a *app) tokenCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "token PROVIDER[/BUCKET]",
		Short: "Print a valid access token",
		Long: `Print an access token and a newline on stdout, nothing else. A token that has
expired, or will within seconds, is refreshed first. If there is no valid token
then, the exit status is 4 when only a new login helps, 6 when the provider was
asked a moment ago (a hint says when to try again), and 1 for everything else.

With --json the whole token is printed as a sandbox gets it: access_token, expiry
(Unix seconds), token_type, scope and the provider's own fields. A refresh token
is never among them.`,
		Example: `  curl -H "Authorization: Bearer $(credproxy token acme)" https://api.acme.example/
  credproxy token acme/work --json`,
		Args:              exactly("PROVIDER[/BUCKET]"),
		ValidArgsFunction: a.completeLogins,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := parseLogin(c, args[0])
			if err != nil {
				return err
			}
			t, err := a.validToken(c.Context(), l)
			if err != nil {
				return err
			}
			if asJSON {
				// Not through json.Marshal, which would write < > & in another way than a sandbox gets them.
				b, err := t.MarshalJSON()
				if err != nil {
					return failed("token "+l.String(), err)
				}
				return a.write(string(b) + "\n")
			}
			return a.write(t.AccessToken + "\n")
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// tokens is what the vault and the proxy's client both can: a token that is nil, or an error with wire.CodeNotFound,
// means that there is none.
type tokens interface {
	Token(ctx context.Context, provider, bucket string) (*wire.Token, error)
	RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error)
	Providers(ctx context.Context) ([]string, error)
	Buckets(ctx context.Context, provider string) ([]string, error)
}

// openTokens opens the proxy's tokens inside, the vault's on the host.
func (a *app) openTokens(ctx context.Context) (_ tokens, done func() error, err error) {
	if inside() {
		t, err := insideTokens(ctx)
		return t, func() error { return nil }, err
	}
	h, err := a.openHost(ctx)
	if err != nil {
		return nil, nil, err
	}
	return h, func() error {
		defer a.waiting(wait{what: waitForAnswer, limit: answerLimit, soon: true})()
		return h.Close()
	}, nil
}

// nearlyOver is what a token has to have left for whoever asks for one to get something done with it.
const nearlyOver = 10 * time.Second

func (a *app) validToken(ctx context.Context, l login) (_ *wire.Token, err error) {
	what := "token " + l.String()
	source, done, err := a.openTokens(ctx)
	if err != nil {
		return nil, failed(what, err)
	}
	unsaved := false
	defer func() {
		if closeErr := done(); closeErr != nil && unsaved {
			a.warn(errLost(closeErr).Error(), "make room for the store and log in again")
		}
	}()
	t, err := source.Token(ctx, l.provider, l.bucket)
	if errors.Is(err, wire.ErrNotFound) || err == nil && t == nil {
		return nil, &failure{what: what, err: errNotStored, status: exitNotFound, hint: loginHint(ctx, source, l)}
	}
	if err != nil {
		return nil, failed(what, err)
	}
	if !expired(t, time.Now().Add(nearlyOver)) {
		return t, nil
	}
	fresh, err := a.newToken(ctx, source, l)
	switch {
	case ctx.Err() != nil:
		return nil, failed(what, ctx.Err())
	case err == nil:
		unsaved = !inside() && a.warnUnsaved(source, loginStatus(ctx, source, l), l)
		return fresh, nil
	case errors.Is(err, errNotStored): // removed meanwhile
		return nil, failed(what, err)
	case !expired(t, time.Now()):
		a.log.Info("the token is nearly over, and was not refreshed", "login", l.full(), "error", err)
		return t, nil
	}
	return nil, failed(what, fmt.Errorf("the token expired %s: %w", relative(time.Unix(t.Expiry, 0), time.Now()), err))
}

func loginCommand(l login) string {
	if inside() {
		return "log in on the host, or here: credproxy auth login " + l.String()
	}
	return "log in: credproxy auth login " + l.String()
}

// loginHint names the login that was probably meant, or says how to log in.
func loginHint(ctx context.Context, source tokens, l login) string {
	stored, err := source.Providers(ctx)
	if err != nil {
		return loginCommand(l)
	}
	if slices.Contains(stored, l.provider) {
		if buckets, err := source.Buckets(ctx, l.provider); err == nil && len(buckets) > 0 {
			return bucketHint(l, buckets)
		}
	}
	near := nearest(l.provider, stored)
	h, onHost := source.(*host)
	known := false
	if onHost {
		_, known = describe(h.config, l.provider)
	}
	if !onHost || known || slices.Contains(stored, l.provider) {
		if near != "" {
			return "did you mean " + near + "? it is logged in; else " + loginCommand(l)
		}
		return loginCommand(l)
	}
	if near != "" {
		return "did you mean " + near + "? it is logged in"
	}
	return unknownHint(l.provider, h.config)
}

// bucketHint is for a provider that has logins, in other buckets.
func bucketHint(l login, stored []string) string {
	first := login{l.provider, stored[0]}.full()
	switch bucket := nearest(l.bucket, stored); {
	case bucket != "":
		return "did you mean " + login{l.provider, bucket}.full() + "?"
	case len(stored) == 1:
		return "stored is " + first + "; " + loginCommand(l)
	}
	return fmt.Sprintf("stored are %s and %d more: credproxy auth status lists them; %s", first, len(stored)-1, loginCommand(l))
}

// unknownHint is for a provider that nobody can log in to as things are.
func unknownHint(name string, c *config.Config) string {
	configured := slices.Sorted(maps.Keys(c.Providers))
	describe := "describe it in [providers." + shown(name, "NAME") + "] of " + c.Path
	switch near := nearest(name, providerNames(c)); {
	case near != "":
		return "did you mean " + near + "? credproxy auth login " + near
	case len(configured) == 0:
		return "no provider is configured: " + describe
	case len(configured) <= 3:
		return "configured: " + strings.Join(configured, ", ") + " (credproxy providers says more); or " + describe
	}
	return fmt.Sprintf("%d providers are configured, and none is called so: credproxy providers lists them; or %s", len(configured), describe)
}
