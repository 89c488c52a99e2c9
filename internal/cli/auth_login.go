package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

func (a *app) authLoginCommand() *cobra.Command {
	var flow string
	var noBrowser bool
	c := &cobra.Command{
		Use:   "login PROVIDER[/BUCKET]",
		Short: "Log in to a provider",
		Long: `Log in to a provider that the configuration describes, and store the login on
this machine. The address to open is printed alone on a line of stdout; unless
--no-browser is given a browser is opened too: $BROWSER if it is set (several
commands are separated by colons, %s in one stands for the address), else the
system's own.

Nothing is typed into credproxy: the browser comes back to an address on this
machine that only this login listens on.`,
		Example: `  credproxy auth login acme
  credproxy auth login acme/work --no-browser`,
		Args:              exactly("PROVIDER[/BUCKET]"),
		ValidArgsFunction: a.completeProviders,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := parseLogin(c, args[0])
			if err != nil {
				return err
			}
			if flow != "" && !slices.Contains(config.Flows, flow) {
				return usage("--flow is one of %s", strings.Join(config.Flows, ", ")).about(c)
			}
			if inside() {
				return failed("login to "+l.String(), a.beginInside(c.Context(), l, flow))
			}
			return failed("login to "+l.String(), a.login(c.Context(), l, flow, !noBrowser))
		},
	}
	c.Flags().StringVar(&flow, "flow", "", "how to log in: paste, device or browser (default: the provider's first)")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the address")
	_ = c.RegisterFlagCompletionFunc("flow", cobra.FixedCompletions(config.Flows, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) login(ctx context.Context, l login, flow string, open bool) error {
	h, err := a.openHost(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	// A login that cannot be stored would be lost after all the person's work.
	if err := h.Check(ctx); err != nil {
		return failed("the credential store", err)
	}
	f := &face{app: a, login: l, open: open}
	err = h.Login(ctx, l.provider, l.bucket, vault.LoginOptions{Flow: flow, Face: f})
	f.rest()
	switch {
	case err == nil:
		fmt.Fprintf(a.stderr, "%s stored in the %s store as %s\n", a.paint(a.stderr).green("logged in:"), h.StoreName(), l.full())
		return nil
	case errors.Is(err, wire.ErrProviderNotFound):
		return unknownProvider(err, l.provider, h.config)
	}
	return err
}

// unknownProvider tells a name that nobody knows from a provider that this version cannot log in to.
func unknownProvider(err error, name string, c *config.Config) error {
	if _, ok := c.Providers[name]; ok || slices.Contains(config.BuiltinProviders, name) {
		return &failure{err: err, status: exitFailed, hint: "credproxy providers lists the providers and how to log in to each"}
	}
	var names []string
	for n := range c.Providers {
		names = append(names, n)
	}
	slices.Sort(names)
	hint := fmt.Sprintf("describe it in [providers.%s] of %s", shown(name, "NAME"), c.Path)
	if near := nearest(name, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return &failure{err: err, status: exitNotFound, hint: hint}
}
