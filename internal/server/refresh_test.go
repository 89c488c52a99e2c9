package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// What the vault says of a refresh reaches the peer as it is.
func TestRefreshErrors(t *testing.T) {
	p := start(t, nil)
	c := p.open(t, 1)
	for _, tt := range []struct {
		fault error
		want  string
	}{
		{&wire.Error{Code: wire.CodeRateLimited, Message: "refreshed a moment ago", RetryAfter: 24},
			`"code":"RATE_LIMITED","error":"refreshed a moment ago","retryAfter":24`},
		{fmt.Errorf("host: %w", &wire.Error{Code: wire.CodeRateLimited, Message: "refreshed a moment ago", RetryAfter: 1}),
			`"code":"RATE_LIMITED","error":"refreshed a moment ago","retryAfter":1`},
		{wire.E(wire.CodeInternal, wire.LoginNeededPrefix+"the provider has revoked the login"),
			`"code":"INTERNAL_ERROR","error":"login needed: the provider has revoked the login"`},
		{fmt.Errorf("test-detail-1: %w", wire.E(wire.CodeInternal, wire.LoginNeededPrefix+"there is no refresh token")),
			`"code":"INTERNAL_ERROR","error":"login needed: there is no refresh token"`},
		{fmt.Errorf("host: %w (%w)", context.DeadlineExceeded, wire.E(wire.CodeInternal, "the provider did not answer")),
			`"code":"INTERNAL_ERROR","error":"the provider did not answer"`},
		{wire.E(wire.CodeProviderNotFound, "no such provider"), `"code":"PROVIDER_NOT_FOUND","error":"no such provider"`},
		{errors.New("test-detail-1"), `"code":"INTERNAL_ERROR","error":"` + errNoStore.Message + `"`},
	} {
		p.vault.set(func() { p.vault.fault = tt.fault })
		c.send(request(1, "1", "refresh_token", `{"provider":"acme"}`))
		if got, want := c.recv(), `{"v":1,"id":"1","ok":false,`+tt.want+`}`; got != want {
			t.Errorf("%v answered\n%s, want\n%s", tt.fault, got, want)
		}
	}
	p.close(t)
	got := p.audit.all()
	for i, want := range []audit.Outcome{audit.Denied, audit.Denied, audit.Error, audit.Error, audit.Error, audit.Error, audit.Error} {
		if e := got[i]; e.Op != "refresh_token" || e.Provider != "acme" || e.Bucket != "default" || e.Outcome != want {
			t.Errorf("audit event %+v, want %v", e, want)
		}
	}
	if n := strings.Count(p.log.String(), "test-detail-1"); n != 2 {
		t.Errorf("the detail is %d times in the host's log, want 2", n)
	}
}

// A refresh is not answered to a sandbox that lost it meanwhile, and the token is renewed nevertheless.
func TestRefreshRevokedDuringTheCall(t *testing.T) {
	for name, edited := range map[string]*scope{
		"the operation": {ops: []string{"get_token"}},
		"the bucket":    {buckets: []string{"acme/work"}},
		"everything":    {ops: []string{}},
	} {
		for _, fault := range []error{nil, &wire.Error{Code: wire.CodeRateLimited, Message: "refreshed a moment ago", RetryAfter: 24}} {
			gate := make(chan struct{})
			p := start(t, func(_ *Config, p *proxy) { p.vault.gate, p.vault.fault = gate, fault })
			c := p.open(t, 1)
			c.send(request(1, "1", "refresh_token", `{"provider":"acme"}`))
			systest.Until(t, "the provider has the request", func() bool { return p.vault.held.Load() == 1 })
			p.scope.Store(edited)
			close(gate)
			if a := c.answer(); a.Code != "UNAUTHORIZED" || a.Data != nil || a.RetryAfter != nil {
				t.Errorf("without %s: %+v, want UNAUTHORIZED", name, a)
			}
			if got, _ := p.vault.CachedToken("acme", "default"); fault == nil && got.AccessToken != "test-access-token-1-renewed" {
				t.Errorf("without %s: the token was not renewed", name)
			}
		}
	}
}

// A profile without the operation refuses before the vault is asked.
func TestRefreshDenied(t *testing.T) {
	p := start(t, nil)
	p.scope.Store(&scope{ops: []string{"get_token", "get_bucket_stats"}})
	c := p.open(t, 1)
	if a := c.ask("refresh_token", `{"provider":"acme"}`); a.Code != "UNAUTHORIZED" {
		t.Errorf("%+v, want UNAUTHORIZED", a)
	}
	if n := p.vault.asked.Load(); n != 0 {
		t.Errorf("the vault was asked %d times", n)
	}
	c.served()
}

// Who goes away or cancels waits no more; the renewal goes on, and the next one to ask has its result.
func TestRefreshOutlivesItsPeer(t *testing.T) {
	for name, leave := range map[string]func(c *client){
		"gone": func(c *client) { _ = c.Close() },
		"cancelled": func(c *client) {
			c.send(request(2, "c", "cancel", `{"targetId":"1"}`))
			if a := c.answer(); a.ID != "1" || a.Code != "CANCELLED" {
				t.Errorf("the target: %+v", a)
			}
			if a := c.answer(); a.ID != "c" || !a.OK {
				t.Errorf("cancel: %+v", a)
			}
		},
	} {
		gate := make(chan struct{})
		p := start(t, func(_ *Config, p *proxy) { p.vault.gate = gate })
		c, other := p.open(t, 2), p.open(t, 1)
		c.send(request(2, "1", "refresh_token", `{"provider":"acme"}`))
		systest.Until(t, "the provider has the request", func() bool { return p.vault.held.Load() == 1 })
		other.send(request(1, "1", "refresh_token", `{"provider":"other","bucket":"work"}`))
		systest.Until(t, "the provider has both", func() bool { return p.vault.held.Load() == 2 })
		leave(c)
		systest.Until(t, "the waiter has left", func() bool { return len(p.slots) == 1 })
		if n := p.vault.held.Load(); n != 2 {
			t.Errorf("%s: %d requests are at the provider, want 2", name, n)
		}
		close(gate)
		if a := other.answer(); !a.OK {
			t.Errorf("%s: the other's refresh: %+v", name, a)
		}
		p.vault.renewals.Wait()
		if a := other.ask("get_token", `{"provider":"acme"}`); !strings.Contains(string(a.Data), "test-access-token-1-renewed") {
			t.Errorf("%s: the token is not the renewed one", name)
		}
	}
}

// The limits of the operations, to the instant; what is ready before them is answered.
func TestOperationTime(t *testing.T) {
	paste, device := fmt.Sprintf("%032x", 0xabcd), fmt.Sprintf("%032x", 0xabce)
	for _, tt := range []struct {
		op, payload string
		limit       time.Duration
		slow        *wire.Error
	}{
		{"get_token", `{"provider":"acme"}`, 15 * time.Second, errSlow},
		{"get_bucket_stats", `{"provider":"acme"}`, 15 * time.Second, errSlow},
		{"get_bucket_stats", `{"provider":"acme","detail":true}`, 15 * time.Second, errSlow},
		{"get_api_key", `{"name":"openai"}`, 15 * time.Second, errSlow},
		{"refresh_token", `{"provider":"acme"}`, 29 * time.Second, errSlowRefresh},
		{"save_token", `{"provider":"acme","token":` + newToken + `}`, 29500 * time.Millisecond, errSlowChange},
		{"remove_token", `{"provider":"acme"}`, 29500 * time.Millisecond, errSlowChange},
		{"oauth_initiate", `{"provider":"acme"}`, 29 * time.Second, errSlowLogin},
		{"oauth_exchange", withCode(paste), 29 * time.Second, errSlowExchange},
		{"oauth_poll", ofLogin(device), 15 * time.Second, errSlow},
		{"oauth_cancel", ofLogin(device), 15 * time.Second, errSlow},
	} {
		for _, early := range []bool{true, false} {
			inBubble(t, func(_ *Config, p *proxy) { p.vault.cold = true }, func(t *testing.T, p *proxy) {
				c := p.open(t, 1)
				if c.begin(`{"provider":"new"}`) != paste || c.begin(`{"provider":"new","flow":"device_code"}`) != device {
					t.Fatal("logins have other ids")
				}
				gate := make(chan struct{})
				p.vault.set(func() { p.vault.gate = gate })
				takes := tt.limit - time.Millisecond
				if !early {
					takes = tt.limit + time.Hour
				}
				begun := time.Now()
				go func() {
					time.Sleep(takes)
					close(gate)
				}()
				a, d := c.ask(tt.op, tt.payload), time.Since(begun)
				switch {
				case early && (!a.OK || d != takes):
					t.Errorf("%s: %+v after %v, want success", tt.op, a, d)
				case !early && (d != tt.limit || a.Code != "INTERNAL_ERROR" || a.Error != tt.slow.Message):
					t.Errorf("%s: %+v after %v, want %q after %v", tt.op, a, d, tt.slow.Message, tt.limit)
				}
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if got, _ := p.vault.Token(t.Context(), "acme", "default"); tt.op == "refresh_token" && got.AccessToken != "test-access-token-1-renewed" {
					t.Errorf("a refresh that took longer than its waiter was not carried through")
				}
			})
		}
	}
}
