package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

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
	c.Flags().BoolVar(&o.qr, "qr", false, "print the address as a QR code too, on stderr, of a login that a phone can finish unless --flow says otherwise")
	_ = c.RegisterFlagCompletionFunc("flow", completeFlows)
	return c
}

// wanted is the flow to ask for, "" for the provider's first. A QR code is for a phone, which cannot finish a login that comes back
// to this machine.
func (o loginWishes) wanted(flows []string) string {
	if o.flow == "" && o.qr {
		for _, flow := range []string{vault.FlowDevice, vault.FlowPaste} {
			if slices.Contains(flows, flow) {
				return flow
			}
		}
	}
	return o.flow
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
		return noFlow(p.Flows, o.flow)
	}
	// A login that cannot be stored would be lost after all the person's work.
	if err := h.Check(ctx); err != nil {
		return failed("the credential store", err)
	}
	f := &face{app: a, login: l, open: !o.noBrowser, qr: o.qr, flows: p.Flows}
	defer f.rest()
	a.printStatus(p)
	if err := acceptTerms(ctx, f, h, p); err != nil {
		return err
	}
	limit := exchangeLimit
	if p.Issuer != "" { // is asked first, unless that was a moment ago
		limit *= 2
	}
	f.asking("the provider", limit)
	err = h.Login(ctx, l.provider, l.bucket, vault.LoginOptions{Flow: o.wanted(p.Flows), Face: f})
	f.rest()
	if err != nil {
		return notLoggedIn(err, h, l, o.flow)
	}
	fmt.Fprintf(a.stderr, "%s stored in the %s store as %s\n", a.paint(a.stderr).green("logged in:"), h.StoreName(), l.full())
	return nil
}

// describe finds what is known of a provider.
func describe(c *config.Config, name string) (vault.ProviderInfo, bool) {
	all := vault.Describe(c)
	if i := slices.IndexFunc(all, func(p vault.ProviderInfo) bool { return p.Name == name }); i >= 0 {
		return all[i], true
	}
	return vault.ProviderInfo{}, false
}

// printStatus says what the vendor's word is on logins like the one that begins, if there is one.
func (a *app) printStatus(p vault.ProviderInfo) {
	if p.Status == vault.StatusOK && p.Terms == "" {
		return
	}
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
	const hint = "API keys are not concerned: credproxy key set NAME stores one"
	yes, err := f.confirm(ctx, "log in all the same, at your own risk?")
	switch {
	case errors.Is(err, io.EOF):
		return &failure{err: errors.New("the vendor restricts such logins, and nobody has agreed to go on"), hint: hint}
	case err != nil:
		return err
	case !yes:
		return &failure{err: errors.New("not logged in: you did not agree"), hint: hint}
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
func noFlow(have []string, flow string) error {
	return &failure{err: fmt.Errorf("the provider has no flow %s", flow), status: exitFailed, hint: flowFlags(have)}
}

// notLoggedIn says why a login on the host failed, in the words that a sandbox would see and with what is known only here, and
// what to do.
func notLoggedIn(err error, h *host, l login, flow string) error {
	if errors.Is(err, wire.ErrProviderNotFound) {
		return unknownProvider(l.provider, h.config)
	}
	advice := vault.LoginAdvice(err)
	if advice == "" {
		return err
	}
	f := &failure{err: errors.New(advice), hint: loginAgain(advice, l, flow), status: exitFailed}
	if none, ok := errors.AsType[*vault.NoFlowError](err); ok && len(none.Have) > 0 && none.Flow != "" {
		return noFlow(none.Have, none.Flow)
	}
	port, isPort := errors.AsType[*vault.PortError](err)
	if isPort {
		f.err, f.hint = errors.New(inBrackets(advice, port.Address)), flowFlags(port.Instead)
	}
	asked, ok := errors.AsType[*vault.ProviderError](err)
	if !ok {
		return f
	}
	if advice = vault.LoginAdvice(asked); isPort {
		f.err, f.hint = fmt.Errorf("the port %s is taken, and by another flow: %s", port.Address, inBrackets(advice, saidBy(asked))), loginAgain(advice, l, flow)
	} else {
		f.err = errors.New(inBrackets(advice, saidBy(asked)))
	}
	section, described := "[providers."+shown(l.provider, "NAME")+"]", h.config.Providers[l.provider]
	switch {
	case asked.NoSecret() && described != nil:
		f.err, f.hint = errors.New(asked.Reason()), "credproxy key set "+described.ClientSecretKey+", then the login again"
	case asked.NoSecret():
		f.err, f.hint = asked, "then the login again: credproxy auth login "+l.String() // it says where the vendor publishes the secret
	case strings.HasPrefix(advice, saysClient):
		f.hint = clientHintIn(section, h.config.Path)
	case strings.HasPrefix(advice, saysScopes) && described != nil:
		f.hint = "mend scopes in " + section + " of " + h.config.Path
	case asked.RetryAfter > 0:
		f.hint = "try again in " + atMost(asked.RetryAfter)
	case strings.HasPrefix(advice, saysNetwork):
		if f.hint = "check the network"; described != nil {
			f.hint += ", or token_url/issuer in " + section + " of " + h.config.Path
		}
	}
	return f
}

// How what vault.LoginAdvice says begins, of failures that have a hint of their own; see also saysClient.
const (
	saysScopes  = "the provider does not grant these scopes"
	saysNetwork = "the provider cannot be reached"
)

// loginAgain is the hint to a failure after which another login may go well, by the flow that was asked for, "" to others.
func loginAgain(advice string, l login, flow string) string {
	if !strings.Contains(advice, "begin ") {
		return ""
	}
	again := "credproxy auth login " + l.String()
	if flow != "" {
		again += " --flow " + flow
	}
	return again
}

// inBrackets puts a detail behind what a sentence says, before what it advises.
func inBrackets(sentence, detail string) string {
	if detail == "" {
		return sentence
	}
	at := len(sentence)
	if i := strings.IndexAny(sentence, ":;"); i >= 0 {
		at = i
	}
	return sentence[:at] + " (" + detail + ")" + sentence[at:]
}

// saidBy is the provider's own word, or the network's.
func saidBy(e *vault.ProviderError) string {
	var words []string
	if e.Code != "" {
		words = append(words, e.Code)
	}
	if e.Status != 0 {
		words = append(words, fmt.Sprintf("HTTP %d", e.Status))
	}
	if cause := errors.Unwrap(e); cause != nil {
		words = append(words, cause.Error())
	}
	return strings.Join(words, ", ")
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
