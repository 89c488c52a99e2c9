package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// loginWishes are the flags of a login.
type loginWishes struct {
	flow      string
	noBrowser bool
	qr        bool
}

func (a *app) authLoginCommand() *cobra.Command {
	var o loginWishes
	c := &cobra.Command{
		Use:   "login PROVIDER[/BUCKET]",
		Short: "Log in to a provider",
		Long: `Log in to a provider and store the login on the host, on which this command does
the same as in a sandbox. There are three ways; a provider has one or more, and
the first that works is taken:

  browser   a page in a browser on the host, which comes back to this login
  device    a page in any browser, and a code to be typed there
  paste     a page in any browser, which ends with a code to be pasted here; not
            on a terminal, it is read from a line of stdin

The address to open is alone on a line of stdout. On the host a browser opens it
too, unless --no-browser is given: $BROWSER if it is set (several commands are
separated by colons, %s in one stands for the address), else the system's own.`,
		Example: `  credproxy auth login acme
  credproxy auth login acme/work --flow device --qr`,
		Args:              exactly("PROVIDER[/BUCKET]"),
		ValidArgsFunction: a.completeProviders,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := parseLogin(c, args[0])
			if err != nil {
				return err
			}
			if o.flow != "" && !slices.Contains(config.Flows, o.flow) {
				return usage("--flow is one of %s", strings.Join(config.Flows, ", ")).about(c)
			}
			if inside() {
				return failed("login to "+l.String(), a.loginInside(c.Context(), l, o))
			}
			return failed("login to "+l.String(), a.login(c.Context(), l, o))
		},
	}
	c.Flags().StringVar(&o.flow, "flow", "", "how to log in: browser, device or paste (default: the first that works)")
	c.Flags().BoolVar(&o.noBrowser, "no-browser", false, "only print the address (a sandbox opens no browser in any case)")
	c.Flags().BoolVar(&o.qr, "qr", false, "print the address as a QR code too, on stderr")
	_ = c.RegisterFlagCompletionFunc("flow", completeFlows)
	return c
}

func (a *app) login(ctx context.Context, l login, o loginWishes) error {
	if _, err := config.LoginTimeout(); err != nil {
		return err
	}
	h, err := a.openHost(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	p, ok := describe(h.config, l.provider)
	switch {
	case !ok:
		return unknownProvider(l.provider, h.config)
	case o.flow != "" && len(p.Flows) > 0 && !slices.Contains(p.Flows, o.flow):
		return noFlow(p, o.flow)
	}
	// A login that cannot be stored would be lost after all the person's work.
	if err := h.Check(ctx); err != nil {
		return failed("the credential store", err)
	}
	f := &face{app: a, login: l, open: !o.noBrowser, qr: o.qr}
	defer f.rest()
	a.printStatus(p)
	if err := acceptTerms(ctx, f, h, p); err != nil {
		return err
	}
	f.asking("the provider", providerLimit)
	err = h.Login(ctx, l.provider, l.bucket, vault.LoginOptions{Flow: o.flow, Face: f})
	f.rest()
	if err != nil {
		return notLoggedIn(err, h, l)
	}
	fmt.Fprintf(a.stderr, "%s stored in the %s store as %s\n", a.paint(a.stderr).green("logged in:"), h.StoreName(), l.full())
	return nil
}

// providerLimit is how long it may take until a provider has said how to log in.
const providerLimit = 30 * time.Second

// describe finds what is known of a provider.
func describe(c *config.Config, name string) (vault.ProviderInfo, bool) {
	all := vault.Describe(c)
	if i := slices.IndexFunc(all, func(p vault.ProviderInfo) bool { return p.Name == name }); i >= 0 {
		return all[i], true
	}
	return vault.ProviderInfo{}, false
}

// printStatus says what the vendor's word is on logins like the one that begins.
func (a *app) printStatus(p vault.ProviderInfo) {
	paint := a.paint(a.stderr)
	status, sentence := paint.green(p.Status), ""
	if p.Status != vault.StatusOK {
		status = paint.yellow(p.Status)
	}
	if p.Terms != "" {
		sentence = ": " + oneLine(p.Terms)
	}
	fmt.Fprintf(a.stderr, "provider %s: %s%s\n", p.Name, status, sentence)
}

// acceptTerms asks, once for all logins to a provider whose vendor restricts them, whether to go on.
func acceptTerms(ctx context.Context, f *face, h *host, p vault.ProviderInfo) error {
	if p.Status != vault.StatusRestricted {
		return nil
	}
	if _, accepted := h.Terms(p.Name); accepted {
		return nil
	}
	yes, err := f.confirm(ctx, "log in all the same, at your own risk?")
	switch {
	case err != nil:
		return err
	case !yes:
		return &failure{err: errors.New("the vendor restricts such logins, and nobody has agreed to go on"), hint: "API keys are not concerned: credproxy key set NAME stores one"}
	}
	return h.AcceptTerms(p.Name)
}

// unknownProvider is a name that nobody has described.
func unknownProvider(name string, c *config.Config) error {
	hint := fmt.Sprintf("describe it in [providers.%s] of %s", shown(name, "NAME"), c.Path)
	if near := nearest(name, providerNames(c)); near != "" {
		hint = "did you mean " + near + "?"
	}
	return &failure{err: errors.New("no provider of this name is configured"), status: exitNotFound, hint: hint}
}

func providerNames(c *config.Config) []string {
	var names []string
	for _, p := range vault.Describe(c) {
		names = append(names, p.Name)
	}
	return names
}

// noFlow is a way to log in that the provider does not have.
func noFlow(p vault.ProviderInfo, flow string) error {
	return &failure{err: fmt.Errorf("the provider has no flow %s", flow), status: exitFailed, hint: "it has: " + strings.Join(p.Flows, ", ")}
}

// notLoggedIn says why a login on the host failed, and what to do.
func notLoggedIn(err error, h *host, l login) error {
	if errors.Is(err, wire.ErrProviderNotFound) {
		return unknownProvider(l.provider, h.config)
	}
	asked, ok := errors.AsType[*vault.ProviderError](err)
	switch {
	case !ok:
		return err
	case asked.Code == "invalid_client" || asked.Code == "unauthorized_client":
		return &failure{err: err, hint: clientHintIn("[providers."+shown(l.provider, "NAME")+"]", h.config.Path)}
	case asked.RetryAfter > 0:
		return &failure{err: err, hint: "try again in " + atMost(asked.RetryAfter)}
	case asked.Code == "access_denied" || asked.Code == "authorization_denied":
		return &failure{err: err, hint: "begin again and say yes on the provider's page: credproxy auth login " + l.String()}
	}
	return &failure{err: err, hint: "try again: credproxy auth login " + l.String()}
}

// completeFlows completes --flow: with those of the provider, once that has been typed.
func completeFlows(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	flows := config.Flows
	if len(args) > 0 {
		name, _, _ := strings.Cut(args[0], "/")
		if p, ok := describe(visibleConfig(), name); ok && len(p.Flows) > 0 {
			flows = p.Flows
		}
	}
	return flows, cobra.ShellCompDirectiveNoFileComp
}

// visibleConfig is the user's configuration on the host; the default one inside, which has no access to it, and when there is
// a mistake in it.
func visibleConfig() *config.Config {
	if !inside() {
		if c, _, err := settings(); err == nil {
			return c
		}
	}
	return config.Default()
}
