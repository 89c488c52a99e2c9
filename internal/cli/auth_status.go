package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/vault"
)

// statusReport is what `auth status --json` prints.
type statusReport struct {
	Store  string        `json:"store"` // "keyring", "file", "memory", or "proxy" inside
	Logins []loginReport `json:"logins"`
}

// loginReport is one login in it. Times are Unix seconds, null when there is none or nobody knows.
type loginReport struct {
	Provider    string `json:"provider"`
	Bucket      string `json:"bucket"`
	Expiry      *int64 `json:"expiry"`
	State       string `json:"state"`
	RenewsAt    *int64 `json:"renews_at"`
	LastRefresh *int64 `json:"last_refresh"`
	Detail      string `json:"detail"`
}

func (a *app) authStatusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the stored logins: when they expire, what needs a new login",
		Long: `Show which store is in use and the logins in it. The states:

  ok             the access token is valid
  expired        it has expired; a refresh gives a new one
  login_needed   only a new login does
  unsaved        a new token could not be written to the store`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			report, err := a.status(c.Context())
			if err != nil {
				return failed("auth status", err)
			}
			if asJSON {
				return a.writeJSON(report)
			}
			return a.write(a.statusText(report, time.Now()))
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) status(ctx context.Context) (statusReport, error) {
	if inside() {
		return statusInside(ctx)
	}
	h, err := a.openHost(ctx)
	if err != nil {
		return statusReport{}, err
	}
	defer h.Close()
	report := statusReport{Store: h.StoreName(), Logins: []loginReport{}}
	list, err := h.Status(ctx)
	if err != nil {
		return report, err
	}
	for _, s := range list {
		report.Logins = append(report.Logins, loginReport{
			Provider: s.Provider, Bucket: s.Bucket, Expiry: known(s.Expiry), State: string(s.State), Detail: s.Detail,
		})
	}
	return report, nil
}

// known is nil for a time that is not.
func known(seconds int64) *int64 {
	if seconds == 0 {
		return nil
	}
	return &seconds
}

func (a *app) statusText(r statusReport, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "store: %s\n", r.Store)
	if len(r.Logins) == 0 {
		if inside() {
			b.WriteString("no login that this sandbox may use is stored; log in on the host: credproxy auth login PROVIDER\n")
		} else {
			b.WriteString("no logins are stored; log in with: credproxy auth login PROVIDER\n")
		}
		return b.String()
	}
	rows := [][]string{{"LOGIN", "STATE", "EXPIRES", "DETAIL"}}
	for _, l := range r.Logins {
		expires := "-"
		if l.Expiry != nil {
			expires = relative(time.Unix(*l.Expiry, 0), now)
		}
		rows = append(rows, []string{login{l.Provider, l.Bucket}.full(), l.State, expires, oneLine(l.Detail)})
	}
	p := a.paint(a.stdout)
	b.WriteByte('\n')
	b.WriteString(table(rows, func(row, column int, cell string) string {
		switch {
		case row == 0:
			return p.bold(cell)
		case column != 1:
			return cell
		case cell == string(vault.StateOK):
			return p.green(cell)
		case cell == string(vault.StateExpired):
			return p.yellow(cell)
		}
		return p.red(cell)
	}))
	return b.String()
}
