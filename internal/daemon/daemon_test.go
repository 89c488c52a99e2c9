package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/wire"
)

// patience is how long a test waits for what has to come: a machine may stand still for seconds.
const patience = time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a proxy with a file store, a real authorisation server behind it and a real socket.
type running struct {
	*Proxy
	*client.Client
	oauth *oauthtest.Server
	dirs  config.Dirs
	path  string // of the configuration

	mu  sync.Mutex
	log bytes.Buffer
}

func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

// configure writes a configuration whose profile has these lines.
func (r *running) configure(t *testing.T, profile string) *config.Config {
	t.Helper()
	text := "store = \"file\"\nfile_store.key = \"file\"\n[providers.acme]\nclient_id = \"test-client\"\nflows = [\"paste\"]\nissuer = \"" + r.oauth.URL() + "\"\n" +
		"[profiles.default]\n" + profile + "\n[profiles.default.providers]\n\"*\" = [\"*\"]\n"
	if err := os.WriteFile(r.path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path+".new", r.path); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(r.path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, profile string, change func(*Options)) *running {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
	r := &running{path: filepath.Join(dir, "config.toml"), dirs: config.Dirs{Config: dir, State: filepath.Join(dir, "state"), Data: filepath.Join(dir, "data")}}
	if r.oauth, err = oauthtest.Start(oauthtest.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.oauth.Close(context.Background()) })
	o := Options{Config: r.configure(t, profile), Dirs: r.dirs, Profile: "default", Logger: slog.New(slog.NewTextHandler(r, nil))}
	if change != nil {
		change(&o)
	}
	if r.Proxy, err = Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.Client = client.New(client.Options{Socket: r.Socket()})
	t.Cleanup(func() { r.end(t) })
	return r
}

func (r *running) end(t *testing.T) {
	_ = r.Client.Close()
	if r.Proxy == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Proxy.Close(ctx); err != nil {
		t.Error(err)
	}
	r.Proxy = nil
}

// login logs in as a person does who pastes what the provider's page shows.
func (r *running) login(ctx context.Context, provider string) (*wire.Token, error) {
	s, err := r.OAuthInitiate(ctx, provider, "work", "")
	if err != nil {
		return nil, err
	}
	pasted, err := r.oauth.Copy(ctx, s.AuthURL)
	if err != nil {
		return nil, err
	}
	return r.OAuthExchange(ctx, s.ID, pasted)
}

// A login from inside, with a person who agrees, does not, and is not asked; and an edit of the profile.
func TestLoginFromInside(t *testing.T) {
	answers := make(chan bool, 2)
	asked := make(chan Question, 2)
	var mu sync.Mutex
	var notices []Question
	r := start(t, `login = "ask"`, func(o *Options) {
		o.Ask = func(_ context.Context, q Question) (bool, error) { asked <- q; return <-answers, nil }
		o.Notice = func(q Question) { mu.Lock(); defer mu.Unlock(); notices = append(notices, q) }
	})
	ctx := t.Context()
	answers <- true
	token, err := r.login(ctx, "acme")
	if err != nil || !r.oauth.Valid(token.AccessToken) {
		t.Fatalf("agreed: %v", err)
	}
	if q := <-asked; q.Provider != "acme" || q.Bucket != "work" || q.Replaces || q.Peer.PID != os.Getpid() || q.Profile != "default" {
		t.Errorf("asked %+v", q)
	}
	if got, err := r.Tokens().Token(ctx, "acme", "work"); err != nil || got == nil || got.AccessToken != token.AccessToken {
		t.Errorf("the token is not there: %v", err)
	}
	if _, err := r.login(ctx, "nobody"); !errors.Is(err, wire.ErrProviderNotFound) {
		t.Errorf("no such provider: %v", err)
	}
	answers <- false
	if _, err := r.login(ctx, "acme"); !errors.Is(err, wire.ErrUnauthorized) {
		t.Errorf("not agreed: %v", err)
	}
	if q := <-asked; !q.Replaces {
		t.Errorf("asked %+v", q)
	}
	if len(asked) != 0 || len(notices) != 1 {
		t.Errorf("%d questions more, and %d notices", len(asked), len(notices))
	}

	// A login that has begun when the profile is edited stores nothing.
	r.configure(t, `login = "allow"`)
	wait(t, "the profile is edited", func() bool { return r.scope.Load().Login == config.LoginAllow })
	s, err := r.OAuthInitiate(ctx, "acme", "late", "")
	if err != nil {
		t.Fatal(err)
	}
	r.configure(t, `login = "deny"`)
	wait(t, "the profile is edited again", func() bool { return r.scope.Load().Login == config.LoginDeny })
	pasted, err := r.oauth.Copy(ctx, s.AuthURL)
	if err != nil {
		t.Fatal(err)
	}
	calls := r.oauth.Calls(oauthtest.Token)
	if _, err := r.OAuthExchange(ctx, s.ID, pasted); !errors.Is(err, wire.ErrUnauthorized) {
		t.Errorf("exchanged after the edit: %v", err)
	}
	if _, err := r.login(ctx, "acme"); !errors.Is(err, wire.ErrUnauthorized) {
		t.Errorf("begun after the edit: %v", err)
	}
	if got, err := r.Tokens().Token(ctx, "acme", "late"); got != nil || err != nil || r.oauth.Calls(oauthtest.Token) != calls {
		t.Errorf("after the edit: a token is there, %v, or the provider was asked", err)
	}

	r.end(t)
	record, err := os.ReadFile(AuditPath(r.dirs))
	if err != nil {
		t.Fatal(err)
	}
	for op, want := range map[string]int{"oauth_initiate": 5, "oauth_exchange": 2} {
		if n := strings.Count(string(record), `"op":"`+op+`"`); n != want {
			t.Errorf("%d lines of %s, want %d:\n%s", n, op, want, record)
		}
	}
	said := r.log.String() + string(record)
	issued := r.oauth.Issued().All()
	for _, secret := range append(issued, s.ID, pasted, s.AuthURL, "state=") {
		if strings.Contains(said, secret) {
			t.Errorf("%.8s… is in the log or in the record", secret)
		}
	}
	if len(issued) < 3 {
		t.Errorf("only %d secrets were looked for", len(issued))
	}
}

// A proxy that ends does not wait for a person.
func TestCloseWhileAsking(t *testing.T) {
	asking := make(chan struct{})
	r := start(t, `login = "ask"`, func(o *Options) {
		o.Ask = func(ctx context.Context, _ Question) (bool, error) {
			close(asking)
			<-ctx.Done()
			return false, ctx.Err()
		}
	})
	failed := make(chan error, 1)
	go func() {
		_, err := r.OAuthInitiate(context.Background(), "acme", "", "")
		failed <- err
	}()
	<-asking
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Proxy.Close(ctx); err != nil { // ctx, if it had waited
		t.Error(err)
	}
	r.Proxy = nil
	if err := <-failed; err == nil {
		t.Error("a login began in a proxy that has ended")
	}
}

func TestNoLoginTimeout(t *testing.T) {
	t.Setenv("LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS", "soon")
	if _, err := Start(t.Context(), Options{Config: config.Default(), Profile: "default", Logger: slog.New(slog.DiscardHandler)}); err == nil ||
		!strings.Contains(err.Error(), `LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS: "soon"`) {
		t.Errorf("%v", err)
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
