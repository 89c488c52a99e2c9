package vault

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

// A refresh whose provider drips its answer has the lock for longer than clients wait. A login that was issued meanwhile is not lost for
// that.
func TestLoginWaitsForALongRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := newVault(t, nil, nil)
		unlock, err := v.store.Lock(t.Context(), loginItem("acme", "default"))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(50*time.Second, unlock)
		if err := v.storeGrant(t.Context(), "acme", "default", &grant.Grant{AccessToken: secret.New("test-access-token-1")}); err != nil {
			t.Errorf("a login while a refresh is running: %v", err)
		}
		if got, err := v.Token(t.Context(), "acme", "default"); err != nil || got.AccessToken != "test-access-token-1" {
			t.Errorf("after it: %v", err)
		}
	})
}

// Sixteen ask at once: one call, one answer; the refresh token is rotated and does not come out.
func TestRefreshIsShared(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, _ := newVault(t, s, nil)
	ctx := context.Background()
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	old, err := v.Token(ctx, "acme", "default")
	if err != nil {
		t.Fatal(err)
	}
	before := s.Calls(oauthtest.Token)
	var wg sync.WaitGroup
	answers := make([]*wire.Token, 16)
	for i := range answers {
		wg.Go(func() {
			var err error
			if answers[i], err = v.RefreshToken(ctx, "acme", "default"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if n := s.Calls(oauthtest.Token) - before; n != 1 {
		t.Errorf("%d calls", n)
	}
	for _, a := range answers {
		if a.AccessToken != answers[0].AccessToken || a.AccessToken == old.AccessToken {
			t.Fatal("not one new token for all")
		}
	}
	if now, ok := v.CachedToken("acme", "default"); ok && now.AccessToken == old.AccessToken {
		t.Error("the old token is still in memory")
	}
	if now, err := v.Token(ctx, "acme", "default"); err != nil || now.AccessToken != answers[0].AccessToken || !s.Valid(now.AccessToken) {
		t.Errorf("after the refresh: %v", err)
	}
	again, err := v.RefreshToken(ctx, "acme", "default")
	if err != nil || again.AccessToken != answers[0].AccessToken || s.Calls(oauthtest.Token)-before != 1 {
		t.Errorf("within the cooldown: %v", err)
	}
	status, err := v.Status(ctx)
	if err != nil || len(status) != 1 || status[0].LastOutcome != "ok" || status[0].LastRefresh == 0 || status[0].RenewsAt == 0 || status[0].Detail != "" {
		t.Errorf("status: %+v, %v", status, err)
	}
}

// What the provider says is dead is not asked for again.
func TestRefusedRefreshIsRemembered(t *testing.T) {
	s := newServer(t, oauthtest.Options{})
	v, _ := newVault(t, s, nil)
	ctx := context.Background()
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	before := s.Calls(oauthtest.Token)
	s.Fault(oauthtest.Token, oauthtest.ErrorAnswer(http.StatusBadRequest, "invalid_grant"), -1)
	for range 3 {
		_, err := v.RefreshToken(ctx, "acme", "default")
		if e, ok := err.(*failure); !ok || !e.crossing.LoginNeeded() {
			t.Errorf("refused: %v", err)
		}
	}
	if n := s.Calls(oauthtest.Token) - before; n != 1 {
		t.Errorf("%d calls", n)
	}
	status, err := v.Status(ctx)
	if err != nil || status[0].State != StateLoginNeeded || status[0].LastOutcome != "refused" {
		t.Errorf("status: %+v, %v", status, err)
	}
	s.ClearFaults()
	if err := signIn(t, v, "default"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.RefreshToken(ctx, "acme", "default"); err != nil {
		t.Errorf("after a new login: %v", err)
	}
}
