package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

func TestRenewedOrNotAsked(t *testing.T) {
	now := time.Unix(time.Now().Unix(), 0)
	token := func(access string, left time.Duration) *wire.Token {
		return &wire.Token{AccessToken: access, Expiry: now.Add(left).Unix()}
	}
	asked := func(ago time.Duration, outcome, detail string) *wire.LoginStatus {
		s := &wire.LoginStatus{State: "ok", LastOutcome: outcome, Detail: detail}
		if ago > 0 {
			s.LastRefresh = now.Add(-ago).Unix()
		}
		return s
	}
	old := token("test-access-token-1", time.Hour)
	for name, c := range map[string]struct {
		old, got      *wire.Token
		before, after *wire.LoginStatus
		want          string // "" for a new token
	}{
		"another token":               {old, token("test-access-token-2", time.Hour), nil, nil, ""},
		"the old one cannot be read":  {nil, old, nil, nil, ""},
		"the same with a longer life": {old, token("test-access-token-1", 2*time.Hour), nil, nil, ""},
		"the same, given again":       {old, old, asked(time.Hour, "ok", ""), asked(time.Second, "ok", ""), ""},
		"asked by another":            {old, old, asked(12*time.Second, "ok", ""), asked(12*time.Second, "ok", ""), "asked 12 seconds ago"},
		"an older proxy":              {old, old, nil, nil, "; the provider was asked a moment ago"},
		"asked in vain":               {old, old, asked(0, "failed", ""), asked(0, "failed", "the last refresh failed (HTTP 503)"), "gave no new token: the last refresh failed (HTTP 503)"},
		"in vain, before that not":    {old, old, asked(time.Hour, "failed", ""), asked(time.Hour, "failed", ""), "a moment ago and gave no new token"},
	} {
		got := ""
		if !renewed(c.old, c.got, c.before, c.after) {
			got = notAsked(login{"acme", "default"}, c.got, c.after, now)
		}
		if !strings.HasSuffix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// What a failed refresh says to people, with its exit status, is the same on both sides of the socket.
func TestNotRefreshed(t *testing.T) {
	limited := wire.E(wire.CodeRateLimited, "the provider was asked a moment ago")
	limited.RetryAfter = 12
	for _, c := range []struct {
		err    error
		status int
		text   string
		hint   string
	}{
		{wire.E(wire.CodeInternal, wire.LoginNeededPrefix+"there is no refresh token"), exitLoginNeeded, "a new login is needed: there is no refresh token", "log in: credproxy auth login acme"},
		{fmt.Errorf("refresh: %w", limited), exitRateLimited, "the provider was asked a moment ago", "try again in 12 seconds"},
		{wire.ErrRateLimited, exitRateLimited, "", "wait a second"},
		{wire.E(wire.CodeProviderNotFound, "no provider"), exitNotFound, "no provider", "describe it on the host, in [providers.acme]"},
		{wire.E(wire.CodeUnauthorized, "the profile does not"), exitRefused, "the profile does not", "the profile of this sandbox decides"},
		{wire.E(wire.CodeInternal, "the provider did not"), exitFailed, "the provider did not", ""},
		{errors.Join(&vault.ProviderError{Provider: "acme", Status: 503}, wire.ErrInternal), exitFailed, "provider acme: ", "try again later; "},
		{errors.Join(&vault.ProviderError{Provider: "acme", Status: 429, RetryAfter: 100 * time.Second}, wire.ErrInternal), exitFailed, "provider acme: ", "try again in 100 seconds; "},
		{errors.Join(&vault.ProviderError{Provider: "acme", Status: 429, RetryAfter: time.Second}, wire.ErrInternal), exitFailed, "provider acme: ", "try again in 30 seconds; "},
		{wire.E(wire.CodeInternal, "the provider does not accept this client: …"), exitFailed, "the provider does not accept this client: …", "on the host, mend [providers.acme]"},
		{wire.E(wire.CodeInternal, "nothing can be written where the new token would be safe, so …"), exitFailed, "nothing can be written", "on the host: make room"},
		{client.ErrConnectionLost, exitUnreachable, client.ErrConnectionLost.Error(), ""},
		{context.Canceled, exitFailed, "context canceled", ""},
	} {
		err := failed("token acme", notRefreshed(c.err, nil, login{"acme", "default"}))
		status, hint := judge(err)
		if status != c.status || !strings.HasPrefix(err.Error(), "token acme: "+c.text) || !strings.HasPrefix(hint, c.hint) || c.hint == "" && hint != "" {
			t.Errorf("%v: status %d, text %q, hint %q", c.err, status, err, hint)
		}
	}
}

func TestReportOfALogin(t *testing.T) {
	l := login{"acme", "work"}
	r := reportOf(l, &wire.LoginStatus{State: "expired", Expiry: 1, LastOutcome: "failed"})
	if r.Detail != "the last refresh failed" || r.RenewsAt != nil || r.LastRefresh != nil || *r.Expiry != 1 {
		t.Errorf("%+v", r)
	}
	r = reportOf(l, &wire.LoginStatus{State: "ok", RenewsAt: 2, LastRefresh: 3, LastOutcome: "ok"})
	if r.Detail != "" || *r.RenewsAt != 2 || *r.LastRefresh != 3 || r.Expiry != nil {
		t.Errorf("%+v", r)
	}
	now := time.Unix(1_800_000_000, 0)
	due := now.Unix()
	text := statusRows(statusReport{Logins: []loginReport{{Provider: "acme", Bucket: "work", State: "ok", RenewsAt: &due}}}, now)
	if got := strings.Join(text[1], "|"); got != "acme/work|ok|-|due|-" {
		t.Error(got)
	}
}

// A sentence does not make the table wider than a terminal.
func TestStatusWithLongDetails(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	t.Setenv(socketVariable, "")
	detail := strings.Repeat("why ", 50)
	a := &app{stdout: os.Stdout}
	text := a.statusText(statusReport{Store: "file", Logins: []loginReport{
		{Provider: "acme", Bucket: "default", State: "login_needed", Detail: detail}, {Provider: "acme", Bucket: "work", State: "ok"},
	}}, time.Now())
	if !strings.HasSuffix(text, "\n\nacme/default: "+strings.TrimSpace(detail)+"\n") {
		t.Errorf("%s", text)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "acme/default: ") && len(line) > 80 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
}

// A proxy that does not know the extension tells of a login what its token tells.
func TestStatusOfAnotherProxy(t *testing.T) {
	past := time.Now().Add(-time.Hour).Unix()
	path := filepath.Join(t.TempDir(), "s")
	serveOnce(t, path, func(r *wire.Request) wire.Data {
		switch r.Op {
		case wire.OpListProviders:
			return wire.Providers{"acme"}
		case wire.OpListBuckets:
			return wire.Buckets{"default"}
		case wire.OpGetToken:
			return &wire.Token{AccessToken: "test-access-token-1", Expiry: past, TokenType: "Bearer"}
		case wire.OpGetBucketStats:
			return wire.BucketStats{Bucket: r.Bucket}
		}
		return wire.Empty{}
	})
	c := client.New(client.Options{Socket: path})
	t.Cleanup(func() { _ = c.Close() })
	r, err := (&app{}).reportInside(t.Context(), c.Tokens())
	if err != nil || r.Store != "proxy" || len(r.Logins) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if l := r.Logins[0]; l.State != "expired" || *l.Expiry != past || l.RenewsAt != nil || l.LastRefresh != nil || l.Detail != "" {
		t.Errorf("%+v", l)
	}
}

// serveOnce is a proxy for one connection.
func serveOnce(t *testing.T, path string, answer func(*wire.Request) wire.Data) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		reader := frame.NewReader(conn, wire.MaxPayload(wire.MaxVersion), nil)
		write := func(payload []byte) { _, _ = conn.Write(frame.Append(nil, payload)) }
		if _, err := reader.Next(); err != nil {
			return
		}
		write(wire.AppendHandshake(nil, wire.Version2))
		for {
			payload, err := reader.Next()
			if err != nil {
				return
			}
			r, err := wire.DecodeRequest(payload, wire.Version2)
			if err != nil {
				return
			}
			write(wire.AppendResponse(nil, wire.Version2, r.ID, answer(&r)))
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
}

func interruptSelf(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// Only the first signal ends anything when somebody holds the process, and who holds it too late sees that.
func TestHeldSignals(t *testing.T) {
	arrived := make(chan os.Signal, 3)
	signal.Notify(arrived, syscall.SIGTERM)
	defer signal.Stop(arrived)
	ctx, s, stop := watchSignals(t.Context())
	defer stop()
	s.held.Store(true)
	interruptSelf(t)
	<-ctx.Done()
	if by := (interrupted{}); !errors.As(context.Cause(ctx), &by) {
		t.Errorf("ended by %v", context.Cause(ctx))
	}
	interruptSelf(t)
	<-s.hurry
	interruptSelf(t) // does nothing
	for range 3 {
		<-arrived // one that came when nobody listens any more would end the tests
	}
}
