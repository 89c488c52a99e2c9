package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/wire"
)

// profileReport is what `profile show --json` prints, and one of those in `profile list --json`.
type profileReport struct {
	Name       string              `json:"name"`
	Providers  map[string][]string `json:"providers"`  // buckets by provider; "*" stands for all
	Keys       []string            `json:"keys"`       // "*" stands for all
	Operations []string            `json:"operations"` // those allowed
	Login      string              `json:"login"`      // allow, ask or deny
	Image      string              `json:"image"`      // "" when the profile names none

	unset bool // nothing is said of logins
}

func reportProfile(p *config.Profile) profileReport {
	r := profileReport{
		Name: p.Name, Providers: p.Providers, Keys: p.Keys, Operations: p.Operations, Login: p.Login.String(), Image: p.Image, unset: p.Login == config.LoginUnset,
	}
	if r.Providers == nil {
		r.Providers = map[string][]string{}
	}
	if r.Keys == nil {
		r.Keys = []string{}
	}
	if r.Operations == nil {
		r.Operations = slices.Clone(config.Operations)
	}
	return r
}

func (a *app) profileCommand() *cobra.Command {
	return group("profile", "Show what sandboxes may use",
		`A profile says which logins and API keys a sandbox may use, and what it may do
with them. Profiles are in the configuration; an edit reaches running proxies
within a second.`,
		a.profileListCommand(), a.profileShowCommand())
}

func (a *app) profileListCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the profiles",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			settings, err := profiles()
			if err != nil {
				return err
			}
			list := []profileReport{}
			rows := [][]string{{"PROFILE", "PROVIDERS", "KEYS", "OPERATIONS", "LOGIN"}}
			for _, name := range profileNames(settings) {
				r := reportProfile(settings.Profiles[name])
				list = append(list, r)
				rows = append(rows, []string{r.Name, dash(providersText(r)), dash(strings.Join(r.Keys, " ")), dash(strings.Join(r.Operations, " ")), r.Login})
			}
			if asJSON {
				return a.writeJSON(list)
			}
			return a.write(a.headed(rows))
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) profileShowCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show [NAME]",
		Short: `Show one profile ("default" without a name)`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("too many arguments").about(c)
			}
			return nil
		},
		ValidArgsFunction: completeProfiles,
		RunE: func(c *cobra.Command, args []string) error {
			settings, err := profiles()
			if err != nil {
				return err
			}
			name := config.DefaultProfile
			if len(args) == 1 {
				name = args[0]
			}
			p, err := findProfile(settings, name)
			if err != nil {
				return failed("profile show", err)
			}
			r := reportProfile(p)
			if asJSON {
				return a.writeJSON(r)
			}
			var b strings.Builder
			bold := a.paint(a.stdout).bold
			fmt.Fprintf(&b, "%s %s\n", bold("profile"), r.Name)
			fmt.Fprintf(&b, "logins      %s\n", dash(providersText(r)))
			fmt.Fprintf(&b, "keys        %s\n", dash(strings.Join(r.Keys, " ")))
			fmt.Fprintf(&b, "operations  %s\n", dash(strings.Join(r.Operations, " ")))
			if fmt.Fprintf(&b, "login       %s", r.Login); r.unset {
				b.WriteString(" (ask in run on a terminal)")
			}
			b.WriteByte('\n')
			fmt.Fprintf(&b, "image       %s\n", dash(r.Image))
			return a.write(b.String())
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// profiles reads the configuration of the host; that of a sandbox, if there is any, says nothing about what it may use.
func profiles() (*config.Config, error) {
	if inside() {
		return nil, &failure{what: "profile", err: errors.New("this is a sandbox: profiles are on the host"), hint: "credproxy auth status and credproxy key list show what it may use"}
	}
	c, _, err := settings()
	return c, err
}

// findProfile returns the profile, or a failure that names the nearest one: with exit status 3, or 2 for what cannot be a
// profile's name.
func findProfile(c *config.Config, name string) (*config.Profile, error) {
	if !wire.ValidName(name) {
		return nil, &failure{err: errors.New("the profile's name is wrong: " + nameRule), hint: "credproxy profile list shows the profiles", status: exitUsage}
	}
	p, err := c.Profile(name)
	if err == nil {
		return p, nil
	}
	if shown(name, "") == "" {
		err = errors.New("there is no such profile")
	}
	return nil, &failure{err: err, status: exitNotFound, hint: "credproxy profile list shows them; add others in " + c.Path}
}

func profileNames(c *config.Config) []string {
	names := make([]string, 0, len(c.Profiles))
	for name := range c.Profiles {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// providersText is "acme/default acme/work *": the star for every bucket of every provider.
func providersText(r profileReport) string {
	names := make([]string, 0, len(r.Providers))
	for name := range r.Providers {
		names = append(names, name)
	}
	slices.Sort(names)
	var words []string
	for _, name := range names {
		for _, bucket := range r.Providers[name] {
			words = append(words, name+"/"+bucket)
		}
	}
	return strings.Join(words, " ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// headed is a table with a bold first row.
func (a *app) headed(rows [][]string) string {
	p := a.paint(a.stdout)
	return table(rows, func(row, _ int, cell string) string {
		if row == 0 {
			return p.bold(cell)
		}
		return cell
	})
}
