package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/wire"
)

// logoutLimit is how long a logout waits for a refresh that is running, and then for the provider.
const logoutLimit = 45 * time.Second

func (a *app) authLogoutCommand() *cobra.Command {
	var revoke bool
	c := &cobra.Command{
		Use:   "logout PROVIDER[/BUCKET]",
		Short: "Remove a stored login",
		Long: `Remove a stored login. With --revoke the provider is asked first to revoke it
(RFC 7009), so that copies of its tokens stop working too. The login is removed
from this machine in any case; a provider that did not confirm makes the exit
status 1.`,
		Args:              exactly("PROVIDER[/BUCKET]"),
		ValidArgsFunction: a.completeLogins,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := parseLogin(c, args[0])
			if err != nil {
				return err
			}
			if inside() {
				if revoke {
					f := usage("--revoke needs the refresh token, which is on the host only").about(c)
					f.hint = "run it on the host: credproxy auth logout " + l.String() + " --revoke"
					return f
				}
				return failed("logout of "+l.String(), a.logoutInside(c.Context(), l))
			}
			return failed("logout of "+l.String(), a.logout(c.Context(), l, revoke))
		},
	}
	c.Flags().BoolVar(&revoke, "revoke", false, "ask the provider to revoke the login too")
	return c
}

func (a *app) logout(ctx context.Context, l login, revoke bool) error {
	h, err := a.openHost(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	stop := a.waiting(wait{what: "a refresh that is running, or the provider", limit: logoutLimit, soon: true, ctrlC: cancels})
	r, err := h.Logout(ctx, l.provider, l.bucket, revoke)
	stop()
	if errors.Is(err, wire.ErrNotFound) {
		return &failure{err: errNotStored, status: exitNotFound, hint: notStoredHint(ctx, h, l)}
	}
	if err != nil {
		return err
	}
	if r.RevokeErr != nil {
		return &failure{
			err:    fmt.Errorf("removed from this machine, but not revoked: %w", r.RevokeErr),
			status: exitFailed,
			hint:   "end the login on the provider's own page if copies of its tokens must stop working",
		}
	}
	switch {
	case r.Revoked && r.AccessOnly:
		fmt.Fprintf(a.stderr, "removed the login %s and revoked the access token at the provider; there was no refresh token any more\n", l.full())
	case r.Revoked:
		fmt.Fprintf(a.stderr, "removed the login %s and revoked it at the provider\n", l.full())
	default:
		fmt.Fprintf(a.stderr, "removed the login %s\n", l.full())
	}
	return nil
}

func notStoredHint(ctx context.Context, source tokens, l login) string {
	if providers, err := source.Providers(ctx); err == nil {
		if near := nearest(l.provider, providers); near != "" {
			return "did you mean " + near + "?"
		}
	}
	return "credproxy auth status lists what is stored"
}
