package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/file"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newVault is a vault over memory, with the provider acme at the authorisation server, if there is one.
func newVault(t *testing.T, s *oauthtest.Server, change func(*config.Provider)) (*Vault, *bytes.Buffer) {
	t.Helper()
	c := config.Default()
	if s != nil {
		acme := &config.Provider{
			Name: "acme", Dialect: "oauth2", ClientID: "test-client", Flows: []string{"browser"},
			AuthorizeURL: s.URL() + string(oauthtest.Authorize), TokenURL: s.URL() + string(oauthtest.Token), RevokeURL: s.URL() + string(oauthtest.Revoke),
		}
		if change != nil {
			change(acme)
		}
		c.Providers["acme"] = acme
	}
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	v := open(memory.New(), newJournal(t, t.TempDir(), log), provider.NewClient(), Options{Config: c, Dirs: config.Dirs{State: filepath.Join(t.TempDir(), "state")}, Logger: log})
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v, &logged
}

func newJournal(t *testing.T, dir string, log *slog.Logger) *journal.Journal {
	t.Helper()
	key := sync.OnceValues(file.NewSealer)
	j, err := journal.New(journal.Options{
		Dirs: []string{filepath.Join(dir, "recovery")}, Key: func(context.Context) (journal.Sealer, error) { return key() }, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func newServer(t *testing.T, o oauthtest.Options) *oauthtest.Server {
	t.Helper()
	s, err := oauthtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// person is a Face whose person approves everything: in a browser of theirs, or by copying the address that it led to.
type person struct {
	t      *testing.T
	opened sync.WaitGroup
	asked  []string // the problems that AskCode was called with
	answer func(asked int, address string) string
	url    string
	page   string // the last one; of a login by browser once opened is done
}

func (p *person) get(u string, follow bool) string {
	browser := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if !follow {
		browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	resp, err := browser.Get(u)
	if err != nil {
		p.t.Error(err)
		return ""
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	p.page = string(body)
	return resp.Header.Get("Location")
}

func (p *person) ShowURL(_ context.Context, u string) error {
	p.url = u
	if p.answer == nil {
		p.opened.Go(func() { p.get(u, true) })
	}
	return nil
}

func (p *person) ShowCode(context.Context, string, string, string) error { return nil }
func (p *person) Waiting(time.Time)                                      {}

func (p *person) AskCode(_ context.Context, problem string) (string, error) {
	p.asked = append(p.asked, problem)
	return p.answer(len(p.asked), p.get(p.url, false)), nil
}

// signIn logs in with a browser that approves by itself.
func signIn(t *testing.T, v *Vault, bucket string) error {
	t.Helper()
	face := &person{t: t}
	err := v.Login(context.Background(), "acme", bucket, LoginOptions{Face: face})
	face.opened.Wait()
	return err
}

func code(err error) wire.Code {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestLoginThenTokenThenLogout(t *testing.T) {
	s := newServer(t, oauthtest.Options{Extra: map[string]any{"account_id": "acc-1", "unnamed": "x"}})
	v, logged := newVault(t, s, nil)
	ctx := context.Background()

	if _, err := v.Token(ctx, "acme", "default"); code(err) != wire.CodeNotFound {
		t.Fatalf("before the login: %v", err)
	}
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	tok, err := v.Token(ctx, "acme", "default")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Valid(tok.AccessToken) || string(tok.Field("account_id")) != `"acc-1"` || tok.Field("unnamed") != nil {
		b, _ := json.Marshal(tok.Extra())
		t.Errorf("token: valid %v, extra %s", s.Valid(tok.AccessToken), b)
	}
	if cached, ok := v.CachedToken("acme", "default"); !ok || cached.AccessToken != tok.AccessToken {
		t.Error("a token that was just read is not in memory")
	}
	if err := signIn(t, v, "work"); err != nil {
		t.Fatal(err)
	}
	if p, _ := v.Providers(ctx); !slices.Equal(p, []string{"acme"}) {
		t.Errorf("providers: %q", p)
	}
	if b, _ := v.Buckets(ctx, "acme"); !slices.Equal(b, []string{"default", "work"}) {
		t.Errorf("buckets: %q", b)
	}
	status, err := v.Status(ctx)
	if err != nil || len(status) != 2 || status[0].State != StateOK || status[0].Expiry != tok.Expiry {
		t.Errorf("status: %+v, %v", status, err)
	}

	r, err := v.Logout(ctx, "acme", "work", true)
	if err != nil || !r.Revoked {
		t.Errorf("logout with revocation: %+v, %v", r, err)
	}
	if families := s.Families(); !families[1].Revoked || families[0].Revoked {
		t.Error("the wrong login was revoked")
	}
	if _, err := v.Token(ctx, "acme", "work"); code(err) != wire.CodeNotFound {
		t.Errorf("after the logout: %v", err)
	}
	if _, err := v.Logout(ctx, "acme", "work", false); code(err) != wire.CodeNotFound {
		t.Errorf("logging out twice: %v", err)
	}
	for _, secretValue := range s.Issued().All() {
		if strings.Contains(logged.String(), secretValue) {
			t.Error("a secret was logged")
		}
	}
}

// A revocation that fails does not keep the login on this machine.
func TestLogoutRemovesEvenIfRevocationFails(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, _ := newVault(t, s, nil)
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	s.Fault(oauthtest.Revoke, oauthtest.ErrorAnswer(http.StatusServiceUnavailable, "temporarily_unavailable"), 1)
	r, err := v.Logout(context.Background(), "acme", "default", true)
	if err != nil || r.Revoked || r.RevokeErr == nil {
		t.Errorf("logout: %+v, %v", r, err)
	}
	if _, err := v.Token(context.Background(), "acme", "default"); code(err) != wire.CodeNotFound {
		t.Errorf("the login is still there: %v", err)
	}
}

func TestSaveTokenKeepsTheStoredRefreshToken(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, _ := newVault(t, s, nil)
	ctx := context.Background()
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	refresh := s.Issued().RefreshTokens[0]
	saved, err := wire.DecodeToken([]byte(`{"access_token":"from-inside","expiry":1900000000,"token_type":"Bearer","refresh_token":"evil","note":{"refresh_token":"evil","n":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.SaveToken(ctx, "acme", "default", saved); err != nil {
		t.Fatal(err)
	}
	sealed, err := v.store.Read(ctx, loginItem("acme", "default"))
	if err != nil {
		t.Fatal(err)
	}
	if stored := sealed.Reveal(); !strings.Contains(stored, refresh) || strings.Contains(stored, "evil") {
		t.Error("what is stored is not the saved token with the stored refresh token")
	}
	tok, err := v.Token(ctx, "acme", "default")
	if err != nil || tok.AccessToken != "from-inside" || string(tok.Field("note")) != `{"n":1}` {
		t.Errorf("token after the save: %v", err)
	}
}

// Two processes that save to the same and to different logins lose neither's work: here two vaults over one store.
func TestConcurrentSaves(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	w := open(v.opened, newJournal(t, t.TempDir(), v.log), provider.NewClient(), Options{Config: config.Default(), Logger: v.log})
	ctx := context.Background()
	refresh := `{"access_token":"a","refresh_token":"test-refresh-canary","expiry":1,"token_type":"Bearer"}`
	if err := v.store.Write(ctx, loginItem("acme", "default"), secret.New(refresh)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, side := range []*Vault{v, w} {
		wg.Go(func() {
			for n := range 50 {
				tok := &wire.Token{AccessToken: "x", Expiry: 1900000000, TokenType: "Bearer"}
				if err := tok.Set([]string{"left", "right"}[i], json.RawMessage(`1`)); err != nil {
					t.Error(err)
				}
				if err := side.SaveToken(ctx, "acme", "default", tok); err != nil {
					t.Error(n, err)
				}
			}
		})
	}
	wg.Wait()
	sealed, err := v.store.Read(ctx, loginItem("acme", "default"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"test-refresh-canary", "left", "right"} {
		if !strings.Contains(sealed.Reveal(), want) {
			t.Errorf("%s was lost", want)
		}
	}
}

// A sandbox cannot fill the disk with logins of its own making; what is stored can still be saved to.
func TestNewLoginsFromInsideAreBounded(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	ctx := context.Background()
	big := &wire.Token{AccessToken: strings.Repeat("a", 900<<10), Expiry: 1900000000, TokenType: "Bearer"}
	v.created.Store(maxCreated - 8<<20) // the rest of it takes its time
	saved := 0
	for i := range 200 {
		err := v.SaveToken(ctx, "acme", "b"+strconv.Itoa(i), big)
		if err != nil {
			if code(err) != wire.CodeInternal {
				t.Fatal(err)
			}
			break
		}
		saved++
	}
	if saved < 8 || saved > 9 {
		t.Errorf("%d logins of 900 KiB were stored where 8 MiB are left", saved)
	}
	if err := v.SaveToken(ctx, "acme", "b0", big); err != nil {
		t.Errorf("saving to a login that is stored: %v", err)
	}
}

func TestAPIKeys(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	ctx := context.Background()
	if err := v.SetAPIKey(ctx, "openai", "  test-key-1\n"); err != nil {
		t.Fatal(err)
	}
	if key, err := v.APIKey(ctx, "openai"); err != nil || string(key) != "test-key-1" {
		t.Errorf("APIKey: %v", err)
	}
	if has, err := v.HasAPIKey(ctx, "other"); has || err != nil {
		t.Errorf("HasAPIKey(other): %v, %v", has, err)
	}
	if names, _ := v.APIKeys(ctx); !slices.Equal(names, []string{"openai"}) {
		t.Errorf("APIKeys: %q", names)
	}
	for name, value := range map[string]string{"a b": "x", "": "x", "empty": " \n", "long": strings.Repeat("k", MaxKeyLen+1), "binary": "\xff", "zero": "a\x00b"} {
		if err := v.SetAPIKey(ctx, name, value); code(err) != wire.CodeInvalidRequest {
			t.Errorf("SetAPIKey(%q): %v", name, err)
		}
	}
	if err := v.RemoveAPIKey(ctx, "openai"); err != nil {
		t.Error(err)
	}
	if err := v.RemoveAPIKey(ctx, "openai"); code(err) != wire.CodeNotFound {
		t.Errorf("removing twice: %v", err)
	}
	if _, ok := v.CachedAPIKey("openai"); ok {
		t.Error("a removed key is still in memory")
	}
}

// An edit of token_fields applies to what has been decoded already.
func TestSetProvidersNarrowsFields(t *testing.T) {
	s := newServer(t, oauthtest.Options{Extra: map[string]any{"account_id": "acc-1", "plan": "pro"}})
	v, _ := newVault(t, s, func(p *config.Provider) { p.TokenFields = []string{"account_id", "plan"} })
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if tok, _ := v.Token(ctx, "acme", "default"); tok == nil || tok.Field("plan") == nil {
		t.Fatal("a field that the description names is missing")
	}
	narrow := config.Default()
	narrow.Providers["acme"] = &config.Provider{Name: "acme", Dialect: "oauth2", TokenFields: []string{"account_id"}}
	v.SetProviders(narrow)
	if _, ok := v.CachedToken("acme", "default"); ok {
		t.Error("what was decoded under the old description is still served")
	}
	if tok, err := v.Token(ctx, "acme", "default"); err != nil || tok.Field("plan") != nil || tok.Field("account_id") == nil {
		t.Errorf("after the edit: %v", err)
	}
}

func TestConfidentialClientNeedsItsStoredKey(t *testing.T) {
	clients := []oauthtest.Client{{ID: "test-client", Secret: "test-client-secret", RedirectURIs: []string{"http://127.0.0.1/callback"}}}
	v, _ := newVault(t, newServer(t, oauthtest.Options{Clients: clients}), func(p *config.Provider) { p.ClientSecretKey = "acme-secret" })
	if err := signIn(t, v, "default"); err == nil || !strings.Contains(err.Error(), "key set acme-secret") {
		t.Errorf("without the key: %v", err)
	}
	if err := v.SetAPIKey(context.Background(), "acme-secret", "test-client-secret"); err != nil {
		t.Fatal(err)
	}
	if err := signIn(t, v, "default"); err != nil {
		t.Error(err)
	}
}

// What other programs keep in the store neither appears nor breaks anything.
func TestForeignItems(t *testing.T) {
	v, _ := newVault(t, nil, nil)
	ctx := context.Background()
	for account, value := range map[string]string{
		"main-account":  `{}`, // another program's, under the same service
		"we@ird:bucket": `{"access_token":"x"}`,
		"acme:default":  `not json test-secret-canary`,
		"good:default":  `{"access_token":"at","expiry":1,"token_type":"Bearer"}`,
	} {
		if err := v.store.Write(ctx, store.Item{Service: store.ServiceLogins, Account: account}, secret.New(value)); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := v.Providers(ctx); err != nil || !slices.Equal(p, []string{"acme", "good"}) {
		t.Errorf("providers: %q, %v", p, err)
	}
	_, err := v.Token(ctx, "acme", "default")
	if code(err) != wire.CodeInternal || strings.Contains(err.Error(), "canary") {
		t.Errorf("a damaged login: %v", err)
	}
	status, err := v.Status(ctx)
	if err != nil || len(status) != 2 || status[0].State != StateLoginNeeded || strings.Contains(status[0].Detail, "canary") {
		t.Errorf("status: %+v, %v", status, err)
	}
	if status[1].State != StateLoginNeeded {
		t.Errorf("expired without a refresh token: %+v", status[1])
	}
	if err := v.SaveToken(ctx, "acme", "default", &wire.Token{AccessToken: "new", Expiry: 1, TokenType: "Bearer"}); err != nil {
		t.Errorf("replacing a damaged login: %v", err)
	}
}

func TestErrorsOfTheStoreKeepTheirSafeText(t *testing.T) {
	for err, want := range map[error]string{
		store.ErrLocked:           "locked",
		store.ErrUnavailable:      "does not answer",
		store.ErrDamaged:          "damaged",
		context.DeadlineExceeded:  "in time",
		errors.New("secret-path"): "failed",
	} {
		crossing, ok := errors.AsType[*wire.Error](hostError(err))
		if !ok || crossing.Code != wire.CodeInternal || !strings.Contains(crossing.Message, want) || strings.Contains(crossing.Message, "secret-path") {
			t.Errorf("%v: crosses as %v", err, crossing)
		}
		if !errors.Is(hostError(err), err) {
			t.Errorf("%v: lost for the host", err)
		}
	}
}
