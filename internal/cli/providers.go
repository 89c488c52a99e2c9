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
	Dialect  string   `json:"dialect"`   // "" when this version has none for it
	Flows    []string `json:"flows"`     // those that this version can log in with
	LoggedIn *bool    `json:"logged_in"` // null when the store does not answer
	Buckets  []string `json:"buckets"`   // of the stored logins
}

const (
	statusOK           = "ok"
	statusRestricted   = "restricted"
	statusDiscontinued = "discontinued"
)

// builtinStatus is what vendors say about logins that third parties keep; everything else is ok.
func builtinStatus(name string) string {
	switch name {
	case "anthropic":
		return statusRestricted
	case "qwen", "gemini":
		return statusDiscontinued
	}
	return statusOK
}

func (a *app) providersCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "providers",
		Short: "List the providers: their status, how to log in, what is stored",
		Long: `List the providers that the configuration describes and the built-in names. The
status is the vendor's word on logins that other programs keep:

  ok             nothing speaks against it
  restricted     the vendor does not permit third parties to keep such logins
  discontinued   the vendor has ended it for most accounts

This version logs in to providers from the configuration, by browser. A login of
any other name that is stored already is served all the same, and API keys need
no login.`,
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
				rows = append(rows, []string{p.Name, p.Source, p.Status, dash(p.Dialect), dash(strings.Join(p.Flows, " ")), stored})
			}
			return a.write(a.headed(rows))
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) providers(ctx context.Context) ([]providerReport, error) {
	var described map[string]*config.Provider
	var stored map[string][]string
	var err error
	if inside() {
		stored, err = storedLogins(ctx, a)
		if err != nil {
			return nil, err
		}
	} else {
		c, _, err := settings()
		if err != nil {
			return nil, err
		}
		described = c.Providers
		if stored, err = storedLogins(ctx, a); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			// The list is worth having without the store.
			fmt.Fprintf(a.stderr, "what is logged in is not known: %s\n", oneLine(err.Error()))
		}
	}
	reports := map[string]providerReport{}
	for _, name := range config.BuiltinProviders {
		r := providerReport{Name: name, Source: "builtin", Status: builtinStatus(name), Flows: []string{}}
		switch {
		case slices.Contains(config.Dialects, name):
			r.Dialect = name
		case name == "xai" || name == "kimi": // RFC 8628 as it stands
			r.Dialect = "oauth2"
		}
		reports[name] = r
	}
	for name, p := range described {
		r := providerReport{Name: name, Source: "config", Status: statusOK, Dialect: p.Dialect, Flows: []string{}}
		if p.Dialect == "oauth2" && p.AuthorizeURL != "" && slices.Contains(p.Flows, vault.FlowBrowser) {
			r.Flows = append(r.Flows, vault.FlowBrowser)
		}
		reports[name] = r
	}
	for name := range stored {
		if _, ok := reports[name]; !ok {
			reports[name] = providerReport{Name: name, Source: "store", Status: statusOK, Flows: []string{}}
		}
	}
	order := map[string]int{"config": 0, "store": 1, "builtin": 2}
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
	providers, err := source.Providers(ctx)
	if err != nil {
		return nil, err
	}
	stored := map[string][]string{}
	for _, p := range providers {
		if stored[p], err = source.Buckets(ctx, p); err != nil {
			return nil, err
		}
	}
	return stored, nil
}
