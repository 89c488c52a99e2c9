package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
)

// providerReport is one of the objects that `providers --json` prints.
type providerReport struct {
	Name     string   `json:"name"`
	Source   string   `json:"source"`    // "config", "builtin", or "store": only a login of that name is there
	Status   string   `json:"status"`    // "ok", "restricted" or "discontinued"
	Dialect  string   `json:"dialect"`   // "" when nobody here knows
	Flows    []string `json:"flows"`     // in the order in which they are tried; none when nobody here knows
	LoggedIn *bool    `json:"logged_in"` // null when the store does not answer
	Buckets  []string `json:"buckets"`   // of the stored logins

	terms  string
	issuer string // whose metadata may have what the description lacks
}

// Sources of what is known of a provider.
const (
	sourceConfig  = "config"
	sourceStore   = "store"
	sourceBuiltin = "builtin"
)

func (a *app) providersCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "providers",
		Short: "List the providers: their status, how to log in, what is stored",
		Long: `List the providers that the configuration describes and the built-in ones. The
status is the vendor's word on logins that other programs keep:

  ok             nothing speaks against it
  restricted     the vendor does not permit third parties to keep such logins;
                 credproxy auth login asks, once, whether to go on
  discontinued   the vendor has ended it for most accounts; it works for those
                 that are served

Inside a sandbox the configuration of the host cannot be seen, only what its
profile lets in. API keys need no login.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := a.providers(c.Context())
			if err != nil {
				return failed("providers", err)
			}
			if asJSON {
				return a.writeJSON(list)
			}
			rows := [][]string{{"PROVIDER", "SOURCE", "STATUS", "DIALECT", "LOG IN BY", "LOGGED IN"}}
			for _, p := range list {
				stored := "unknown"
				if p.LoggedIn != nil {
					stored = "no"
					if *p.LoggedIn {
						stored = strings.Join(p.Buckets, " ")
					}
				}
				flows := strings.Join(p.Flows, " ")
				if flows == "" && p.issuer != "" {
					flows = "by its issuer"
				}
				rows = append(rows, []string{p.Name, p.Source, p.Status, dash(p.Dialect), dash(flows), stored})
			}
			var text strings.Builder
			text.WriteString(a.headed(rows))
			for _, p := range list {
				if p.terms != "" {
					text.WriteString("\n" + p.Name + ": " + p.terms + "\n")
				}
			}
			return a.write(text.String())
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) providers(ctx context.Context) ([]providerReport, error) {
	c := config.Default()
	if !inside() {
		var err error
		if c, _, err = settings(); err != nil {
			return nil, err
		}
	}
	stored, err := storedLogins(ctx, a)
	if err != nil {
		if inside() || ctx.Err() != nil {
			return nil, err
		}
		// The list is worth having without the store.
		fmt.Fprintf(a.stderr, "what is logged in is not known: %s\n", oneLine(err.Error()))
	}
	reports := map[string]providerReport{}
	for _, p := range vault.Describe(c) {
		source := sourceConfig
		if p.Builtin {
			source = sourceBuiltin
		}
		reports[p.Name] = providerReport{
			Name: p.Name, Source: source, Status: p.Status, Dialect: p.Dialect, Flows: append([]string{}, p.Flows...), terms: p.Terms, issuer: p.Issuer,
		}
	}
	for name := range stored {
		if _, ok := reports[name]; !ok {
			reports[name] = providerReport{Name: name, Source: sourceStore, Status: vault.StatusOK, Flows: []string{}}
		}
	}
	order := map[string]int{sourceConfig: 0, sourceStore: 1, sourceBuiltin: 2}
	list := slices.Collect(maps.Values(reports))
	slices.SortFunc(list, func(x, y providerReport) int {
		if d := order[x.Source] - order[y.Source]; d != 0 {
			return d
		}
		return strings.Compare(x.Name, y.Name)
	})
	for i := range list {
		list[i].Buckets = []string{}
		if stored != nil {
			buckets := stored[list[i].Name]
			list[i].LoggedIn = new(len(buckets) > 0)
			list[i].Buckets = append(list[i].Buckets, buckets...)
		}
	}
	return list, nil
}

// storedLogins are the buckets that have a login, by provider; never nil without an error.
func storedLogins(ctx context.Context, a *app) (map[string][]string, error) {
	source, done, err := a.openTokens(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return listLogins(ctx, source, a.pacer())
}
