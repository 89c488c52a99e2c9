package client

import (
	"errors"
	"slices"
	"testing"

	"github.com/credproxy/credproxy/wire"
)

func TestTokenStore(t *testing.T) {
	px := &proxy{answer: vault}
	c := px.listen(t, Options{})
	s := c.Tokens()
	ctx := t.Context()

	for _, bucket := range []string{"", "default", "work"} {
		got, err := s.Token(ctx, "p", bucket)
		if err != nil || got == nil || got.AccessToken != "test-access-token-1" || got.Expiry != 1900000000 {
			t.Errorf("Token, bucket %q: %v, %v", bucket, got, err)
		}
		stats, err := s.BucketStats(ctx, "p", bucket)
		want := bucket
		if want == "" {
			want = "default"
		}
		if err != nil || stats == nil || *stats != (wire.BucketStats{Bucket: want}) {
			t.Errorf("BucketStats, bucket %q: %v, %v", bucket, stats, err)
		}
	}
	if got, err := s.Token(ctx, "none", ""); got != nil || err != nil {
		t.Errorf("Token that is not there: %v, %v", got, err)
	}
	if got, err := s.BucketStats(ctx, "none", ""); got != nil || err != nil {
		t.Errorf("BucketStats of what is not there: %v, %v", got, err)
	}
	if got, err := s.Token(ctx, "no/name", ""); got != nil || !errors.Is(err, wire.ErrInvalidRequest) {
		t.Errorf("Token with a bad name: %v, %v", got, err)
	}
	if err := s.SaveToken(ctx, "p", "", &wire.Token{AccessToken: "a", TokenType: "Bearer"}); err != nil {
		t.Errorf("SaveToken: %v", err)
	}
	for _, bad := range []*wire.Token{nil, {}} {
		if err := s.SaveToken(ctx, "p", "", bad); !errors.Is(err, wire.ErrInvalidRequest) {
			t.Errorf("SaveToken of %v: %v", bad, err)
		}
	}
	if err := errors.Join(s.RemoveToken(ctx, "p", ""), s.RemoveToken(ctx, "none", "")); err != nil {
		t.Errorf("RemoveToken: %v", err)
	}
	if got, err := s.Providers(ctx); err != nil || !slices.Equal(got, []string{"p"}) {
		t.Errorf("Providers: %v, %v", got, err)
	}
	if got, err := s.Buckets(ctx, "p"); err != nil || !slices.Equal(got, []string{"default", "work"}) {
		t.Errorf("Buckets: %v, %v", got, err)
	}
	if got, err := s.RefreshToken(ctx, "p", "work"); err != nil || got.AccessToken != "test-access-token-1" {
		t.Errorf("RefreshToken: %v, %v", got, err)
	}
	if got, err := s.RefreshToken(ctx, "none", ""); got != nil || !errors.Is(err, wire.ErrNotFound) {
		t.Errorf("RefreshToken of what is not there: %v, %v", got, err)
	}
	if got, err := s.Status(ctx, "p", "work"); err != nil || got == nil || *got != (wire.LoginStatus{State: "ok", Expiry: 1900000000, Store: "file"}) {
		t.Errorf("Status: %+v, %v", got, err)
	}
	for _, provider := range []string{"p", "none"} {
		if got, err := s.Status(ctx, provider, ""); got != nil || err != nil {
			t.Errorf("Status of %s: %+v, %v", provider, got, err)
		}
	}
	if got, err := s.Status(ctx, "no/name", ""); got != nil || !errors.Is(err, wire.ErrInvalidRequest) {
		t.Errorf("Status with a bad name: %+v, %v", got, err)
	}
	before := px.requests.Load()
	if err := errors.Join(s.LockToken(ctx, "p", ""), s.UnlockToken(ctx, "p", "")); err != nil || px.requests.Load() != before {
		t.Errorf("locks: %v, %d requests", err, px.requests.Load()-before)
	}
}

func TestKeyStore(t *testing.T) {
	px := &proxy{answer: vault}
	c := px.listen(t, Options{})
	var s Keys = c.Keys()
	ctx := t.Context()

	const message = "API key management is not available in sandbox mode. Manage keys on the host."
	for _, err := range []error{s.SetAPIKey(ctx, "k", "test-key-2"), s.RemoveAPIKey(ctx, "k")} {
		if !errors.Is(err, ErrSandboxKeys) || err.Error() != message {
			t.Errorf("changing keys: %v", err)
		}
	}
	if px.conns.Load() > 0 {
		t.Error("changing keys asked the host")
	}
	if key, ok, err := s.APIKey(ctx, "k"); err != nil || !ok || string(key) != "test-key-1" {
		t.Errorf("APIKey: %v, %v, %v", key, ok, err)
	}
	if key, ok, err := s.APIKey(ctx, "none"); err != nil || ok || key != "" {
		t.Errorf("APIKey that is not there: %v, %v, %v", key, ok, err)
	}
	if _, ok, err := s.APIKey(ctx, "no/name"); ok || !errors.Is(err, wire.ErrInvalidRequest) {
		t.Errorf("APIKey with a bad name: %v", err)
	}
	for name, want := range map[string]bool{"k": true, "none": false} {
		if got, err := s.HasAPIKey(ctx, name); err != nil || got != want {
			t.Errorf("HasAPIKey(%s): %v, %v", name, got, err)
		}
	}
	if got, err := s.APIKeys(ctx); err != nil || !slices.Equal(got, []string{"k"}) {
		t.Errorf("APIKeys: %v, %v", got, err)
	}
}

func TestLogin(t *testing.T) {
	c := (&proxy{answer: vault}).listen(t, Options{})
	ctx := t.Context()
	s, err := c.OAuthInitiate(ctx, "p", "", wire.FlowDeviceCode)
	if err != nil || s.ID != "s" || s.UserCode != "AB" || s.PollIntervalMS != 1000 {
		t.Errorf("OAuthInitiate: %+v, %v", s, err)
	}
	if _, err := c.OAuthInitiate(ctx, "p", "", "implicit"); !errors.Is(err, wire.ErrInvalidRequest) {
		t.Errorf("OAuthInitiate with an unknown flow: %v", err)
	}
	if p, err := c.OAuthPoll(ctx, "s"); err != nil || p.Status != wire.PollComplete || p.Token.AccessToken != "test-access-token-1" {
		t.Errorf("OAuthPoll: %v, %v", p, err)
	}
	if got, err := c.OAuthExchange(ctx, "s", "code"); err != nil || got.AccessToken != "test-access-token-1" {
		t.Errorf("OAuthExchange: %v, %v", got, err)
	}
	if err := c.OAuthCancel(ctx, "s"); err != nil {
		t.Errorf("OAuthCancel: %v", err)
	}
}
