package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/wire"
)

func (a *app) authRefreshCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh PROVIDER[/BUCKET]",
		Short: "Get a new access token from the provider now",
		Long: `Get a new access token from the provider now, whether the stored one has expired
or not. The token is not printed; credproxy token prints it.`,
		Args:              exactly("PROVIDER[/BUCKET]"),
		ValidArgsFunction: a.completeLogins,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := parseLogin(c, args[0])
			if err != nil {
				return err
			}
			return failed("refresh of "+l.String(), a.refresh(c.Context(), l))
		},
	}
}

func (a *app) refresh(ctx context.Context, l login) error {
	source, done, err := a.openTokens(ctx)
	if err != nil {
		return err
	}
	defer done()
	if !inside() {
		// The host can tell "not stored" from "cannot be refreshed" without asking the provider.
		if _, err := source.Token(ctx, l.provider, l.bucket); errors.Is(err, wire.ErrNotFound) {
			return &failure{err: errNotStored, status: exitNotFound, hint: loginHint(ctx, source, l)}
		}
	}
	t, err := source.RefreshToken(ctx, l.provider, l.bucket)
	if errors.Is(err, wire.ErrNotFound) || err == nil && t == nil {
		return &failure{err: errNotStored, status: exitNotFound, hint: loginHint(ctx, source, l)}
	}
	if err != nil {
		return err
	}
	if t.Expiry == 0 {
		fmt.Fprintf(a.stderr, "refreshed %s\n", l.full())
	} else {
		fmt.Fprintf(a.stderr, "refreshed %s: the new token expires %s\n", l.full(), relative(time.Unix(t.Expiry, 0), time.Now()))
	}
	return nil
}
