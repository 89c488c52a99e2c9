package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// oauth starts an authorization server and describes it as the provider acme: oauth [deny|ask].
func oauth(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	o := oauthtest.Options{
		Clients: []oauthtest.Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
		Extra:   map[string]any{"account_id": "test-account"},
	}
	for _, a := range args {
		switch a {
		case "deny":
			o.Approval = oauthtest.DenyAll
		case "ask":
			o.Approval = oauthtest.AskUser
		default:
			ts.Fatalf("usage: oauth [deny|ask]")
		}
	}
	var err error
	s.server, err = oauthtest.Start(o)
	ts.Check(err)
	// A script asks faster than people do.
	text := fileStore + fmt.Sprintf(`
[limits]
requests_per_second = 1000

[providers.acme]
client_id = "test-client"
authorize_url = "%[1]s/authorize"
token_url = "%[1]s/token"
revoke_url = "%[1]s/revoke"
redirect_url = "http://127.0.0.1/callback"
token_fields = ["account_id"]

[profiles.narrow]
keys = ["one"]
operations = ["get", "list"]
[profiles.narrow.providers]
acme = ["default"]
`, s.server.URL())
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("CREDPROXY_HOME"), "config.toml"), []byte(text), 0o600))
}

// loginCmd is a login that has to work: login acme/work.
func loginCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("credproxy", "auth", "login", args[0]))
}

// expire moves the expiry of a stored login, as time would: an hour and a half into the past, or to a moment from now:
// expire acme default [5s]. Inside it does so through the proxy, which then knows at once.
func expire(ts *testscript.TestScript, _ bool, args []string) {
	left := -90 * time.Minute
	if len(args) > 2 {
		var err error
		left, err = time.ParseDuration(args[2])
		ts.Check(err)
	}
	var logins interface {
		Token(ctx context.Context, provider, bucket string) (*wire.Token, error)
		SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error
	}
	if socket := ts.Getenv(socketVariable); socket != "" {
		c := client.New(client.Options{Socket: socket})
		defer c.Close()
		logins = c.Tokens()
	} else {
		home := ts.Getenv("CREDPROXY_HOME")
		c, err := config.Load(filepath.Join(home, "config.toml"))
		ts.Check(err)
		v, err := vault.Open(context.Background(), vault.Options{
			Config: c, Logger: slog.New(slog.DiscardHandler),
			Dirs: config.Dirs{Config: home, State: filepath.Join(home, "state"), Data: filepath.Join(home, "data")},
		})
		ts.Check(err)
		defer v.Close()
		logins = v
	}
	t, err := logins.Token(context.Background(), args[0], args[1])
	ts.Check(err)
	moved := *t
	moved.Expiry = time.Now().Add(left).Unix()
	ts.Check(logins.SaveToken(context.Background(), args[0], args[1], &moved))
}

// provider says how the authorization server answers from now on:
//
//	provider refuse          no: the refresh token is dead
//	provider client          no: the client is not accepted
//	provider down SECONDS    not now, come back in so many seconds
//	provider wait            not before `provider open`; the tokens are issued
//	provider slow DURATION   after that, once
//	provider asked           (waits until it was asked since `provider wait`)
//	provider well            as it should
//	provider keeps           no login is revoked: it cannot do so now
//	provider revoked         (demands that the newest refresh token is what it was asked to revoke last)
func providerCmd(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	switch args[0] {
	case "refuse":
		s.server.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusBadRequest, "invalid_grant"), -1)
	case "client":
		s.server.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusUnauthorized, "invalid_client"), -1)
	case "down":
		f := oauthtest.RateLimited(args[1])
		f.Status = http.StatusServiceUnavailable
		s.server.Fault(oauthtest.Token, f, -1)
	case "wait":
		s.gate, s.calls = make(chan struct{}), s.server.Calls(oauthtest.Token)
		s.server.Fault(oauthtest.Token, oauthtest.Fault{Wait: s.gate}, 1)
	case "slow":
		delay, err := time.ParseDuration(args[1])
		ts.Check(err)
		s.server.Fault(oauthtest.Token, oauthtest.Fault{Delay: delay}, 1)
	case "asked":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		ts.Check(s.server.WaitCalls(ctx, oauthtest.Token, s.calls+1))
	case "open":
		close(s.gate)
	case "well":
		s.server.ClearFaults()
	case "keeps":
		s.server.Fault(oauthtest.Revoke, oauthtest.ErrorAnswer(http.StatusServiceUnavailable, "temporarily_unavailable"), -1)
	case "revoked":
		asked, issued := s.server.Requests(oauthtest.Revoke), s.server.Issued().RefreshTokens
		if len(asked) == 0 || asked[len(asked)-1].Params.Get("token") != issued[len(issued)-1] {
			ts.Fatalf("the newest refresh token was not revoked")
		}
	default:
		ts.Fatalf("unknown: provider %s", args[0])
	}
}

// refreshes compares how many refresh tokens the provider was sent in all; none twice: refreshes 2.
func refreshes(ts *testscript.TestScript, _ bool, args []string) {
	uses := running(ts).server.RefreshUses()
	for _, u := range uses {
		if u.Outcome == oauthtest.Reused {
			ts.Fatalf("a refresh token was used twice")
		}
	}
	if got := strconv.Itoa(len(uses)); got != args[0] {
		ts.Fatalf("the provider was sent %s refresh tokens, not %s", got, args[0])
	}
}
