package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// statusReport is what `auth status --json` prints.
type statusReport struct {
	Store  string        `json:"store"` // "keyring" or "file", the host's inside too; "proxy" when it does not say
	Logins []loginReport `json:"logins"`

	part bool // there may be more
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
		Long: `Show which store is in use and the logins in it: when each token expires, when a
proxy that serves it renews it, and when it was refreshed last. The states:

  ok             the access token is valid
  expired        it has expired; a refresh gives a new one
  login_needed   only a new login does
  unsaved        the store did not take a new token: it is served from the
                 recovery files, and storing it is tried again`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			report, err := a.status(c.Context())
			if err != nil && len(report.Logins) == 0 {
				return failed("auth status", err)
			}
			report.part = err != nil
			// What is known of the logins helps most when not all can be known.
			written := error(nil)
			if asJSON {
				written = a.writeJSON(report)
			} else {
				written = a.write(a.statusText(report, time.Now()))
			}
			if err != nil {
				return failed("auth status", err)
			}
			return failed("auth status", written)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// status is what is known. With an error, there may be logins in it all the same.
func (a *app) status(ctx context.Context) (statusReport, error) {
	if inside() {
		t, err := insideTokens(ctx)
		if err != nil {
			return statusReport{}, err
		}
		return a.reportInside(ctx, t)
	}
	h, err := a.openHost(ctx)
	if err != nil {
		return statusReport{}, err
	}
	defer h.Close()
	report := statusReport{Store: h.StoreName(), Logins: []loginReport{}}
	list, err := h.Status(ctx)
	for _, s := range list {
		report.Logins = append(report.Logins, *reportOf(login{s.Provider, s.Bucket}, &wire.LoginStatus{
			State: string(s.State), Expiry: s.Expiry, RenewsAt: s.RenewsAt, LastRefresh: s.LastRefresh, LastOutcome: s.LastOutcome, Detail: s.Detail,
		}))
	}
	switch degraded, noRecovery := h.CheckRecovery(ctx); {
	case ctx.Err() != nil:
	case noRecovery != nil:
		a.warn("a new token that the store refuses would be lost: "+noRecovery.Error(), recoveryHint)
	case degraded != nil:
		a.warn("a new token that the store refuses may not survive a restart of this machine: "+degraded.Error(), recoveryHint)
	}
	return report, err
}

// reportOf puts a login's status into the form of the report. How the last refresh ended is in the detail, unless it went
// well, which last_refresh says.
func reportOf(l login, s *wire.LoginStatus) *loginReport {
	r := &loginReport{
		Provider: l.provider, Bucket: l.bucket, State: s.State, Detail: s.Detail,
		Expiry: known(s.Expiry), RenewsAt: known(s.RenewsAt), LastRefresh: known(s.LastRefresh),
	}
	if r.Detail == "" && (s.LastOutcome == "failed" || s.LastOutcome == "refused") {
		r.Detail = "the last refresh " + map[string]string{"failed": "failed", "refused": "was refused"}[s.LastOutcome]
	}
	return r
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
	where := ""
	if inside() && r.Store != "proxy" {
		where = ", on the host"
	}
	fmt.Fprintf(&b, "store: %s%s\n", r.Store, where)
	if len(r.Logins) == 0 {
		if inside() {
			b.WriteString("no login that this sandbox may use is stored; log in on the host, or here: credproxy auth login PROVIDER\n")
		} else {
			b.WriteString("no logins are stored; log in with: credproxy auth login PROVIDER\n")
		}
		return b.String()
	}
	p := a.paint(a.stdout)
	b.WriteByte('\n')
	b.WriteString(table(statusRows(r, now), func(row, column int, cell string) string {
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
	if r.part {
		b.WriteString("\nthere may be more: the store does not list its logins\n")
	}
	gap := "\n"
	for _, l := range r.Logins { // below the table, which a sentence would make too wide to read
		if l.Detail != "" {
			fmt.Fprintf(&b, "%s%s: %s\n", gap, p.bold(login{l.Provider, l.Bucket}.full()), oneLine(l.Detail))
			gap = ""
		}
	}
	return b.String()
}

func statusRows(r statusReport, now time.Time) [][]string {
	when := func(seconds *int64) string {
		if seconds == nil {
			return "-"
		}
		return relative(time.Unix(*seconds, 0), now)
	}
	rows := [][]string{{"LOGIN", "STATE", "EXPIRES", "RENEWS", "LAST REFRESH"}}
	for _, l := range r.Logins {
		renews := when(l.RenewsAt)
		if l.RenewsAt != nil && *l.RenewsAt <= now.Unix() {
			renews = "due"
		}
		rows = append(rows, []string{login{l.Provider, l.Bucket}.full(), l.State, when(l.Expiry), renews, when(l.LastRefresh)})
	}
	return rows
}
