package vault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/wire"
)

func TestLoginThatCannotBegin(t *testing.T) {
	v, _ := newVault(t, newServer(t, oauthtest.Options{}), nil)
	for name, c := range map[string]struct {
		provider, bucket, flow string
		want                   wire.Code
		says                   string
	}{
		"unknown":            {"nobody", "default", "", wire.CodeProviderNotFound, "no provider of this name"},
		"terms not accepted": {"anthropic", "default", "", wire.CodeUnauthorized, "credproxy auth login anthropic"},
		"a bucket no name":   {"acme", "a b", "", wire.CodeInvalidRequest, "a bucket's name"},
		"no such flow":       {"acme", "default", FlowDevice, "", "it has browser"},
		"no client secret":   {"gemini", "default", "", "", "credproxy key set gemini-client-secret"},
	} {
		face := &person{t: t}
		err := v.Login(context.Background(), c.provider, c.bucket, LoginOptions{Flow: c.flow, Face: face})
		if code(err) != c.want || err == nil || !strings.Contains(err.Error(), c.says) || face.url != "" {
			t.Errorf("%s: %v, shown %q", name, err, face.url)
		}
	}
}

// What is pasted by mistake costs nothing: the person is asked again, and the code still works.
func TestPastedCode(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, _ := newVault(t, s, func(p *config.Provider) { p.Flows = []string{FlowPaste} })
	face := &person{t: t, answer: func(asked int, address string) string {
		switch asked {
		case 1:
			return " "
		case 2:
			return "some-code#of-another-login"
		}
		return address
	}}
	if err := v.Login(context.Background(), "acme", "default", LoginOptions{Face: face}); err != nil {
		t.Fatal(err)
	}
	if len(face.asked) != 3 || face.asked[0] != "" || !strings.Contains(face.asked[1], "nothing was pasted") || !strings.Contains(face.asked[2], "another login") {
		t.Errorf("asked with %q", face.asked)
	}
	if tok, err := v.Token(context.Background(), "acme", "default"); err != nil || !s.Valid(tok.AccessToken) {
		t.Errorf("stored: %v", err)
	}
}

// A face that answers by itself is not asked forever.
func TestPastedNonsense(t *testing.T) {
	v, _ := newVault(t, newServer(t, oauthtest.Options{}), func(p *config.Provider) { p.Flows = []string{FlowPaste} })
	face := &person{t: t, answer: func(asked int, _ string) string {
		if asked > 100 {
			panic("asked again and again")
		}
		return "no code"
	}}
	if err := v.Login(context.Background(), "acme", "default", LoginOptions{Face: face}); err == nil || !strings.Contains(err.Error(), "characters in it") || len(face.asked) != 10 {
		t.Errorf("asked %d times: %v", len(face.asked), err)
	}
}

// A store that would refuse the login refuses before the person has done anything.
func TestLoginWithoutAStore(t *testing.T) {
	v, _ := newVault(t, newServer(t, oauthtest.Options{}), nil)
	v.opened.(*memory.Store).Refuse(store.ErrLocked, store.ErrLocked)
	defer v.opened.(*memory.Store).Refuse(nil, nil)
	face := &person{t: t}
	if err := v.Login(context.Background(), "acme", "default", LoginOptions{Face: face}); !errors.Is(err, store.ErrLocked) || face.url != "" {
		t.Errorf("%v, shown %q", err, face.url)
	}
	if _, err := v.BeginLogin(context.Background(), 1, "acme", "default", "", nil, nil); code(err) != wire.CodeInternal || !strings.Contains(err.Error(), "locked") {
		t.Errorf("from inside: %v", err)
	}
	// It is the store that took too long, not the provider.
	slow := fmt.Errorf("%w: %w", store.ErrUnavailable, context.DeadlineExceeded)
	v.opened.(*memory.Store).Refuse(slow, slow)
	if _, err := v.BeginLogin(context.Background(), 1, "acme", "default", "", nil, nil); code(err) != wire.CodeInternal || !strings.Contains(err.Error(), "store") {
		t.Errorf("from inside, with a store that is too slow: %v", err)
	}
}

func TestTerms(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	for name, want := range map[string]struct{ said, accepted bool }{
		"anthropic": {true, false}, "qwen": {true, true}, "gemini": {true, true}, "github": {false, true}, "acme": {false, true},
	} {
		if sentence, accepted := v.Terms(name); (sentence != "") != want.said || accepted != want.accepted {
			t.Errorf("%s: %q, %v", name, sentence, accepted)
		}
	}
	if err := v.AcceptTerms("anthropic"); err != nil {
		t.Fatal(err)
	}
	w := open(v.opened, newJournal(t, t.TempDir(), v.log), provider.NewClient(), Options{Config: config.Default(), Dirs: config.Dirs{State: v.state}, Logger: v.log})
	if _, accepted := w.Terms("anthropic"); !accepted {
		t.Error("the answer is forgotten")
	}
	// Another wording is another question.
	file := filepath.Join(v.state, termsDir, "anthropic")
	if err := os.WriteFile(file, []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, accepted := w.Terms("anthropic"); accepted {
		t.Error("agreed to a sentence that nobody has read")
	}
}

func TestInstallation(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	id, err := v.install()
	again, err2 := v.install()
	if err != nil || err2 != nil || id != again || !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("%q, then %q: %v, %v", id, again, err, err2)
	}
	info, err := os.Stat(filepath.Join(v.state, installFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestFlowNames(t *testing.T) {
	for f, want := range map[wire.FlowType]string{"": "", wire.FlowPKCERedirect: "paste", wire.FlowBrowserRedirect: "browser", wire.FlowDeviceCode: "device"} {
		if got, err := FlowNamed(f); got != want || err != nil || WireFlow(want) != f {
			t.Errorf("%q is %q, %v, want %q", f, got, err, want)
		}
	}
	if _, err := FlowNamed("password"); code(err) != wire.CodeInvalidRequest {
		t.Errorf("a flow that there is not: %v", err)
	}
}

// A store that does not come to an end has its limit from the session, or nothing that waits for it would ever end.
func TestStoringHasALimit(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	over, cancel := context.WithDeadline(context.Background(), time.Now())
	defer cancel()
	g := &grant.Grant{AccessToken: secret.New("test-access-token-1")}
	if _, err := v.storeLogin(over, "acme", "default", g); !errors.Is(err, context.DeadlineExceeded) || v.HasLogin(context.Background(), "acme", "default") {
		t.Errorf("stored after the limit: %v", err)
	}
}

// The lists in config, which knows nothing of providers, say what there is.
func TestBuiltinsAreThoseOfTheConfiguration(t *testing.T) {
	list := Describe(config.Default())
	var names []string
	for _, p := range list {
		names = append(names, p.Name)
		if !p.Builtin || len(p.Flows) == 0 || !slices.Contains(config.Dialects, p.Name) || p.Dialect != p.Name || p.Terms == "" && p.Status != StatusOK {
			t.Errorf("%+v", p)
		}
		if b, _ := provider.Builtin(p.Name); b.ClientSecretKey != "" && config.BuiltinSecretKeys[b.ClientSecretKey] != p.Name {
			t.Errorf("the key %s of %s may go inside", b.ClientSecretKey, p.Name)
		}
	}
	if want := slices.Sorted(slices.Values(config.BuiltinProviders)); !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	for _, name := range config.Dialects {
		if name != "oauth2" && !slices.Contains(names, name) {
			t.Errorf("the dialect %s is of no provider", name)
		}
	}
}

// A whole login from inside: what is stored is what a login on the host would have stored.
func TestLoginFromInside(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, logged := newVault(t, s, func(p *config.Provider) { p.Flows = []string{FlowPaste, FlowBrowser} })
	ctx := context.Background()
	allowed, ends := true, make(chan *wire.Error, 10)
	begin := func(flow wire.FlowType) *wire.Session {
		t.Helper()
		session, err := v.BeginLogin(ctx, 7, "acme", "work", flow, func() bool { return allowed }, func(e *wire.Error) { ends <- e })
		if err != nil {
			t.Fatal(err)
		}
		if p, b, ok := v.LoginOf(session.ID); !ok || p != "acme" || b != "work" {
			t.Errorf("a login of %s/%s", p, b)
		}
		return session
	}
	browser := &person{t: t}

	if v.HasLogin(ctx, "acme", "work") {
		t.Error("there is a login before the first")
	}
	session := begin("")
	tok, err := v.ExchangeLogin(ctx, 7, session.ID, browser.get(session.AuthURL, false))
	if err != nil || !s.Valid(tok.AccessToken) || !v.HasLogin(ctx, "acme", "work") {
		t.Fatalf("pasted: %v", err)
	}
	if stored, err := v.Token(ctx, "acme", "work"); err != nil || stored.AccessToken != tok.AccessToken {
		t.Errorf("stored: %v", err)
	}
	if _, err := v.RefreshToken(ctx, "acme", "work"); err != nil {
		t.Errorf("a login from inside has no refresh token: %v", err)
	}

	session = begin(wire.FlowBrowserRedirect)
	browser.get(session.AuthURL, true)
	var poll *wire.Poll
	for until := time.Now().Add(time.Minute); ; {
		if poll, err = v.PollLogin(ctx, 7, session.ID); err != nil {
			t.Fatal(err)
		}
		if poll.Status != wire.PollPending || time.Now().After(until) {
			break
		}
	}
	if poll.Status != wire.PollComplete || !s.Valid(poll.Token.AccessToken) {
		t.Fatalf("%+v", poll)
	}
	if e := <-ends; e != nil {
		t.Errorf("ended with %v", e)
	}

	session = begin("")
	if err := v.CancelLogin(ctx, 7, session.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.ExchangeLogin(ctx, 7, session.ID, "x"); code(err) != wire.CodeSessionNotFound {
		t.Errorf("after the cancellation: %v", err)
	}

	// The profile is asked again when the person has finished.
	before, _ := v.Token(ctx, "acme", "work")
	session = begin("")
	allowed = false
	if _, err := v.ExchangeLogin(ctx, 7, session.ID, browser.get(session.AuthURL, false)); code(err) != wire.CodeUnauthorized {
		t.Errorf("taken away meanwhile: %v", err)
	}
	if after, _ := v.Token(ctx, "acme", "work"); after.AccessToken != before.AccessToken {
		t.Error("stored although it was taken away")
	}
	if _, err := v.BeginLogin(ctx, 7, "nobody", "default", "", nil, nil); code(err) != wire.CodeProviderNotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := v.BeginLogin(ctx, 7, "acme", "default", "some_flow", nil, nil); code(err) != wire.CodeInvalidRequest {
		t.Errorf("an unknown flow: %v", err)
	}
	session = begin(wire.FlowBrowserRedirect)
	browser.get(session.AuthURL, true)
	if e := <-ends; e == nil || e.Code != wire.CodeUnauthorized { // and nobody has polled
		t.Errorf("not stored: ended with %v", e)
	}
	if len(ends) > 0 {
		t.Errorf("a login that was pasted or cancelled ended with %v", <-ends)
	}
	for _, secret := range append(s.Issued().RefreshTokens, s.Issued().Codes...) {
		if strings.Contains(logged.String(), secret) {
			t.Error("a secret is in the log")
		}
	}
}

// When the browser has its page, the login is stored.
func TestPageComesAfterTheStore(t *testing.T) {
	v, _ := newVault(t, newServer(t, oauthtest.Options{}), nil)
	ctx := context.Background()
	const stored, unknown = "You are logged in", "could be stored"

	session, err := v.BeginLogin(ctx, 7, "acme", "inside", wire.FlowBrowserRedirect, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &person{t: t}
	browser.get(session.AuthURL, true)
	if !v.HasLogin(ctx, "acme", "inside") || !strings.Contains(browser.page, stored) || strings.Contains(browser.page, unknown) {
		t.Errorf("a sandbox's login: %s", browser.page)
	}

	browser = &person{t: t}
	if err := v.Login(ctx, "acme", "host", LoginOptions{Face: browser}); err != nil {
		t.Fatal(err)
	}
	browser.opened.Wait()
	if !strings.Contains(browser.page, stored) || strings.Contains(browser.page, unknown) {
		t.Errorf("a login on the host: %s", browser.page)
	}

	// As a command in $BROWSER that runs until it has the page.
	last := &itself{person{t: t}}
	if err := v.Login(ctx, "acme", "itself", LoginOptions{Face: last}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(last.page, stored) || strings.Contains(last.page, unknown) {
		t.Errorf("a browser that is waited for: %s", last.page)
	}
}

// itself is a person whose address is shown by what runs until the browser has its last page.
type itself struct{ person }

func (i *itself) ShowURL(ctx context.Context, u string) error {
	_ = i.person.ShowURL(ctx, u)
	i.opened.Wait()
	return nil
}

// A login that could not be served inside does not take the place of one that can.
func TestLoginThatCannotGoInside(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, logged := newVault(t, s, func(p *config.Provider) { p.Flows = []string{FlowPaste, FlowBrowser} })
	ctx := context.Background()
	browser := &person{t: t}
	paste := func() (*wire.Token, error) {
		session, err := v.BeginLogin(ctx, 7, "acme", "default", "", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v.ExchangeLogin(ctx, 7, session.ID, browser.get(session.AuthURL, false))
	}
	before, err := paste()
	if err != nil {
		t.Fatal(err)
	}
	same := oauthtest.Fault{Edit: func(a map[string]any) { a["access_token"] = a["refresh_token"] }}
	s.Fault(oauthtest.Token, same, 2*sparingMost)
	for range 2 * sparingMost {
		if _, err := paste(); code(err) != wire.CodeInternal {
			t.Fatalf("%v", err)
		}
	}
	if after, err := v.Token(ctx, "acme", "default"); err != nil || after.AccessToken != before.AccessToken {
		t.Errorf("what was stored before is gone: %v", err)
	}
	if n := strings.Count(logged.String(), "level=WARN msg=\"a login that a sandbox began has failed"); n != sparingMost {
		t.Errorf("%d warnings of %d failures", n, 2*sparingMost)
	}
}

func TestCanBegin(t *testing.T) {
	v, _ := newVault(t, newServer(t, oauthtest.Options{}), nil)
	for _, c := range []struct {
		provider, flow string
		want           wire.Code
	}{
		{"acme", "", ""}, {"acme", FlowBrowser, ""}, {"acme", FlowDevice, wire.CodeInvalidRequest},
		{"qwen", FlowBrowser, wire.CodeInvalidRequest}, {"qwen", "", ""}, {"nobody", "", wire.CodeProviderNotFound},
	} {
		if err := v.CanBegin(c.provider, c.flow); code(err) != c.want || err != nil && c.want == "" {
			t.Errorf("%s %q: %v", c.provider, c.flow, err)
		}
	}
	for range 16 {
		if _, err := v.BeginLogin(context.Background(), 7, "acme", "default", "", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.CanBegin("acme", ""); code(err) != wire.CodeRateLimited {
		t.Errorf("with 16 pending: %v", err)
	}
}
