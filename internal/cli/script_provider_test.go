package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// oauth starts an authorization server and describes it as the provider acme: oauth [deny|ask] [FLOW…]. Without a flow the
// description has none either.
func oauth(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	o := oauthtest.Options{
		Clients: []oauthtest.Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
		Extra:   map[string]any{"account_id": "test-account"},

		DeviceInterval: time.Second,
	}
	var flows strings.Builder
	for _, a := range args {
		switch a {
		case "deny":
			o.Approval = oauthtest.DenyAll
		case "ask":
			o.Approval = oauthtest.AskUser
		case "browser", "device", "paste":
			flows.WriteString(strconv.Quote(a) + ", ")
		default:
			ts.Fatalf("usage: oauth [deny|ask] [FLOW…]")
		}
	}
	var err error
	s.devices = 0
	s.server, err = oauthtest.Start(o)
	ts.Check(err)
	described := ""
	if flows.String() != "" {
		described = fmt.Sprintf("flows = [%s]\ndevice_url = %q\n", flows.String(), s.server.EndpointURL(oauthtest.Device))
	}
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
%[2]s
[profiles.narrow]
keys = ["one"]
operations = ["get", "list"]
[profiles.narrow.providers]
acme = ["default"]
`, s.server.URL(), described)
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("CREDPROXY_HOME"), "config.toml"), []byte(text), 0o600))
}

// taken sets TAKEN to a port that another program has.
func taken(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv("TAKEN", port)
}

// loginCmd is a login that has to work: login acme/work.
func loginCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("credproxy", "auth", "login", args[0]))
}

// pasting runs a login by pasted code whose stdin is no terminal, answers with lines once the address is there, and compares
// the exit status: pasting STATUS LINE… -- COMMAND…. The line "(code)" is what the person copies; "(open)"
// is none: the person says yes, and the browser goes where the page sends it. Stdout and stderr of the
// command are in the files "pasted.out" and "pasted".
func pasting(ts *testscript.TestScript, _ bool, args []string) {
	at := slices.Index(args, "--")
	cmd := command(ts, args[at+1:])
	out, errs := new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stderr = errs
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines := bufio.NewReader(io.TeeReader(stdout, out))
	address, _ := lines.ReadString('\n')
	for _, line := range args[1:at] {
		switch line {
		case "(open)":
			opened(ts, address)
			continue
		case "(code)":
			line = copied(ts, address)
		}
		_, _ = io.WriteString(stdin, line+"\n")
	}
	_ = stdin.Close()
	_, _ = io.Copy(io.Discard, lines)
	_ = cmd.Wait()
	ts.Check(os.WriteFile(ts.MkAbs("pasted.out"), out.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("pasted"), errs.Bytes(), 0o600))
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("%s exited with status %s, not %s\n%s%s", strings.Join(args[at+1:], " "), got, args[0], out, errs)
	}
}

// copied is what a person copies who says yes on the page at an address.
func copied(ts *testscript.TestScript, address string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code, err := running(ts).server.Copy(ctx, strings.TrimSpace(address))
	ts.Check(err)
	return code
}

func opened(ts *testscript.TestScript, address string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	redirect, err := running(ts).server.Approve(ctx, strings.TrimSpace(address))
	ts.Check(err)
	status, _, err := running(ts).server.Follow(ctx, redirect)
	ts.Check(err)
	if status != http.StatusOK {
		ts.Fatalf("the page at the end has status %d", status)
	}
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
//	provider allow           (waits for one more login by device code) the person enters the code, and says yes
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
	case "allow":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.devices++
		ts.Check(s.server.WaitCalls(ctx, oauthtest.Device, s.devices))
		for codes := s.server.Issued().UserCodes; len(codes) == 0 || !s.server.Decide(codes[len(codes)-1], true); codes = s.server.Issued().UserCodes {
			ts.Check(ctx.Err())
			time.Sleep(time.Millisecond) // the request is counted before it is answered
		}
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
