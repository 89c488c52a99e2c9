package cli

import (
	"context"
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
or not. The token is not printed; credproxy token prints it.

A provider is asked at most every 30 seconds, whoever asks. A token that is still
valid is left as it is then, and the exit status is 0; one that has expired makes
it 6, with a hint when to try again. It is 4 if only a new login helps.

Ctrl-C ends the command once the provider has answered: its answer may hold the
only copy of the new refresh token.`,
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

func (a *app) refresh(ctx context.Context, l login) (err error) {
	source, done, err := a.openTokens(ctx)
	if err != nil {
		return err
	}
	unsaved := false
	defer func() {
		if closeErr := done(); closeErr != nil && unsaved && err == nil {
			err = errLost(closeErr)
		}
	}()
	// That the old token cannot be read, or not from here, is no reason not to ask for a new one.
	old, _ := source.Token(ctx, l.provider, l.bucket)
	before := loginStatus(ctx, source, l)
	t, err := a.newToken(ctx, source, l)
	if err != nil {
		return err
	}
	after := loginStatus(ctx, source, l)
	unsaved = a.warnUnsaved(source, after, l)
	if renewed(old, t, before, after) {
		fmt.Fprintf(a.stderr, "refreshed %s%s\n", l.full(), expires(": the new token expires ", t))
	} else {
		fmt.Fprintln(a.stderr, notAsked(l, t, after, time.Now()))
	}
	return nil
}

// expired reports whether a token is over; one without a known end is not.
func expired(t *wire.Token, now time.Time) bool { return t.Expiry != 0 && t.Expiry <= now.Unix() }

func expires(how string, t *wire.Token) string {
	if t.Expiry == 0 {
		return ""
	}
	return how + relative(time.Unix(t.Expiry, 0), time.Now())
}

// renewed tells a new token from the one that was there, which is answered when the provider was asked a moment ago. Some
// providers give the same access token a new life.
func renewed(old, t *wire.Token, before, after *wire.LoginStatus) bool {
	if old == nil || old.AccessToken != t.AccessToken || old.Expiry != t.Expiry {
		return true
	}
	return after != nil && (before == nil || after.LastRefresh > before.LastRefresh)
}

// notAsked says why the token is the one that was there.
func notAsked(l login, t *wire.Token, s *wire.LoginStatus, now time.Time) string {
	text := "still valid: " + l.full() + expires(" expires ", t)
	switch {
	case s == nil || s.LastOutcome == "" || s.LastRefresh == 0 && s.LastOutcome == "ok":
		return text + "; the provider was asked a moment ago"
	case s.LastOutcome == "ok":
		return text + "; the provider was asked " + relative(time.Unix(s.LastRefresh, 0), now)
	case s.Detail != "":
		return text + "; the provider was asked a moment ago and gave no new token: " + oneLine(s.Detail)
	}
	return text + "; the provider was asked a moment ago and gave no new token"
}
