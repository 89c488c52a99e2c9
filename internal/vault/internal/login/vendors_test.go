package login

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

// describeVendor describes the vendor that the server plays by its endpoints alone: the dialect knows the rest.
func (w *world) describeVendor(dialect string) secret.String {
	described := &config.Provider{
		Name: "acme", Dialect: dialect, AuthorizeURL: w.server.EndpointURL(oauthtest.Authorize), TokenURL: w.server.EndpointURL(oauthtest.Token),
		DeviceURL: w.server.EndpointURL(oauthtest.Device), RevokeURL: w.server.EndpointURL(oauthtest.Revoke),
	}
	var clientSecret secret.String
	if dialect == "gemini" {
		described.ClientSecretKey, clientSecret = "acme-secret", secret.New(oauthtest.ClientSecret)
	}
	w.p = provider.FromConfig(described)
	return clientSecret
}

// Every vendor's flows as its dialect is played, from a session's beginning to the stored login. Those that need the
// fixed ports of OpenAI are tested with the command, once for the whole machine.
func TestVendors(t *testing.T) {
	for _, c := range []struct{ dialect, flow string }{
		{"anthropic", FlowPaste}, {"gemini", FlowPaste},
		{"codex", FlowDevice}, {"qwen", FlowDevice}, {"github", FlowDevice}, {"xai", FlowDevice}, {"kimi", FlowDevice},
	} {
		t.Run(c.dialect+" "+c.flow, func(t *testing.T) {
			bubble(t, oauthtest.Options{Dialect: c.dialect, Approval: oauthtest.AskUser}, 0, func(t *testing.T, x *proxy) {
				clientSecret := x.w.describeVendor(c.dialect)
				x.begin = func(b *Begin) { b.Start = x.starts(c.flow, clientSecret) }
				s := x.session(t, "")
				if c.flow == FlowPaste {
					pasted, err := x.w.server.Copy(t.Context(), s.AuthURL)
					if err != nil {
						t.Fatal(err)
					}
					_, err = x.Exchange(t.Context(), me, s.ID, pasted)
					if err != nil || x.count() != 1 {
						t.Errorf("Exchange: %v", err)
					}
					return
				}
				time.Sleep(time.Duration(s.PollIntervalMS) * time.Millisecond)
				synctest.Wait()
				if p := x.state(t, s); p.Status != wire.PollPending {
					t.Fatalf("before the person is there: %s %v", p.Status, p.Err)
				}
				if !x.w.server.Decide(s.UserCode, true) {
					t.Fatal("no device waits for this code")
				}
				time.Sleep(time.Duration(x.state(t, s).PollIntervalMS) * time.Millisecond)
				synctest.Wait()
				if p := x.state(t, s); p.Status != wire.PollComplete || x.count() != 1 {
					t.Errorf("in the end: %s %v", p.Status, p.Err)
				}
			})
		})
	}
	for _, dialect := range []string{"anthropic", "gemini", "openrouter"} {
		t.Run(dialect+" browser", func(t *testing.T) {
			w := newWorld(t, oauthtest.Options{Dialect: dialect, Approval: oauthtest.AskUser})
			clientSecret := w.describeVendor(dialect)
			x := newProxy(w, 0)
			defer x.Close()
			x.begin = func(b *Begin) { b.Start = x.starts(FlowBrowser, clientSecret) }
			s := x.session(t, "")
			redirect, err := w.server.Approve(t.Context(), s.AuthURL)
			if err != nil {
				t.Fatal(err)
			}
			if status, _, err := w.server.Follow(t.Context(), redirect); err != nil || status != http.StatusOK {
				t.Fatalf("the page: HTTP %d %v", status, err)
			}
			<-x.byID[s.ID].done
			if p := x.state(t, s); p.Status != wire.PollComplete || x.count() != 1 {
				t.Errorf("in the end: %s %v", p.Status, p.Err)
			}
		})
	}
}
