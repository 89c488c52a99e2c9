package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// begin begins a login and returns the session's id.
func (c *client) begin(payload string) string {
	c.t.Helper()
	var s wire.Session
	if a := c.ask("oauth_initiate", payload); !a.OK || json.Unmarshal(a.Data, &s) != nil || s.ID == "" {
		c.t.Fatalf("oauth_initiate %s: %+v", payload, a)
	}
	return s.ID
}

func ofLogin(id string) string  { return fmt.Sprintf(`{"session_id":%q}`, id) }
func withCode(id string) string { return fmt.Sprintf(`{"session_id":%q,"code":%q}`, id, memCode) }
func ended(e *wire.Error) string {
	return `"ok":false,"code":"` + string(e.Code) + `","error":"` + e.Message + `"`
}

// Logins in their order, in both versions: the answers are exact.
func TestLogins(t *testing.T) {
	const token = `"access_token":"test-access-token-login","expiry":1789007200,"token_type":"Bearer"}`
	first, second, third, fourth := fmt.Sprintf("%032x", 0xabcd), fmt.Sprintf("%032x", 0xabce), fmt.Sprintf("%032x", 0xabcf), fmt.Sprintf("%032x", 0xabd0)
	for _, version := range []int{1, 2} {
		p := start(t, nil)
		c := p.open(t, version)
		pending := 0
		steps := []struct {
			op, payload, want string
			before            func()
		}{
			{"oauth_initiate", `{"provider":"new"}`,
				`"ok":true,"data":{"session_id":"` + first + `","flow_type":"pkce_redirect","auth_url":"https://login.example/authorize?state=test-state-1"}`, nil},
			{"oauth_poll", ofLogin(first), ended(errWrongOp), nil},
			{"oauth_exchange", withCode(first), `"ok":true,"data":{` + token, nil},
			{"oauth_exchange", withCode(first), ended(errLoginUsed), nil},
			{"get_token", `{"provider":"new"}`, `"ok":true,"data":{` + token, nil},
			{"oauth_initiate", `{"provider":"new","bucket":"work","flow":"device_code","detail":true}`,
				`"ok":true,"data":{"session_id":"` + second + `","flow_type":"device_code","verification_url":"https://login.example/device","user_code":"WDJB-MJHT",` +
					`"pollIntervalMs":5000,"expiresInMs":600000,"verification_url_complete":"https://login.example/device?code=WDJB-MJHT"}`, nil},
			{"oauth_exchange", withCode(second), ended(errWrongOp), nil},
			{"oauth_poll", ofLogin(second), `"ok":true,"data":{"status":"pending","pollIntervalMs":5000}`, nil},
			{"oauth_poll", ofLogin(second), `"ok":true,"data":{"status":"complete",` + token, func() { p.vault.approve(second, nil) }},
			{"oauth_poll", ofLogin(second), ended(errLoginUsed), nil},
			{"oauth_initiate", `{"provider":"new","flow":"browser_redirect","detail":false}`,
				`"ok":true,"data":{"session_id":"` + third + `","flow_type":"browser_redirect","auth_url":"https://login.example/authorize?state=test-state-1"}`, nil},
			{"oauth_poll", ofLogin(third), `"ok":true,"data":{"status":"error","code":"EXCHANGE_FAILED","error":"the provider refused the code"}`,
				func() { p.vault.approve(third, errBadCode) }},
			{"oauth_initiate", `{"provider":"new","flow":"device_code"}`,
				`"ok":true,"data":{"session_id":"` + fourth + `","flow_type":"device_code","verification_url":"https://login.example/device","user_code":"WDJB-MJHT","pollIntervalMs":5000}`, nil},
			{"oauth_cancel", ofLogin(fourth), `"ok":true,"data":{}`, nil},
			{"oauth_poll", ofLogin(fourth), ended(errLoginUsed), nil},
			{"oauth_cancel", ofLogin("0"), `"ok":true,"data":{}`, nil},
			{"oauth_poll", ofLogin("0"), ended(errUnknownLogin), nil},
			{"oauth_initiate", `{"provider":"new","flow":"password"}`,
				`"ok":false,"code":"INVALID_REQUEST","error":"payload.flow must be pkce_redirect, device_code or browser_redirect"`, nil},
		}
		for i, s := range steps {
			if s.before != nil {
				s.before()
			}
			id := fmt.Sprintf("r%d", i)
			c.send(request(version, id, s.op, s.payload))
			want := fmt.Sprintf(`{"v":%d,"id":%q,%s}`, version, id, s.want)
			if got := c.recv(); got != want {
				t.Errorf("version %d: %s %s answered\n%s, want\n%s", version, s.op, s.payload, got, want)
			}
			if strings.Contains(s.want, "pending") {
				pending++
			}
		}
		const approved = 2 // has a line of its own
		if got := p.audit.all(); len(got) != len(steps)-pending+approved {
			t.Errorf("%d audit events for %d operations, %d of them polls of a pending login", len(got), len(steps), pending)
		}
		if n := p.vault.pending(); n != 0 {
			t.Errorf("%d logins are left", n)
		}
	}
}

// The record names the login's provider and bucket in each of its operations, and how the login ended, and has no line
// of polls that end nothing. Neither it nor the log has what belongs to the login alone.
func TestLoginAudit(t *testing.T) {
	p := start(t, nil)
	c := p.open(t, 1)
	paste, device, failed := c.begin(`{"provider":"new"}`), c.begin(`{"provider":"new","bucket":"work","flow":"device_code"}`), c.begin(`{"provider":"other","flow":"browser_redirect"}`)
	for range 100 {
		c.ask("oauth_poll", ofLogin(device))
	}
	p.vault.approve(device, nil)
	p.vault.approve(failed, wire.E(wire.CodeSessionExpired, "the device code has expired"))
	for _, r := range [][2]string{
		{"oauth_poll", ofLogin(device)}, {"oauth_poll", ofLogin(failed)}, {"oauth_exchange", withCode(paste)}, {"oauth_exchange", withCode(paste)},
		{"oauth_cancel", ofLogin(paste)}, {"oauth_poll", ofLogin("test-secret-of-the-peer")},
	} {
		c.ask(r[0], r[1])
	}
	p.close(t)
	var got []string
	for _, e := range p.audit.all() {
		got = append(got, fmt.Sprintf("%s %s/%s %s %s", e.Op, e.Provider, e.Bucket, e.Outcome, e.Code))
	}
	want := []string{
		"oauth_initiate new/default ok ", "oauth_initiate new/work ok ", "oauth_initiate other/default ok ",
		"oauth_login new/work ok ", "oauth_login other/default error SESSION_EXPIRED",
		"oauth_poll new/work ok ", "oauth_poll other/default error SESSION_EXPIRED", "oauth_exchange new/default ok ",
		"oauth_exchange new/default error SESSION_ALREADY_USED", "oauth_cancel new/default ok ", "oauth_poll / error SESSION_NOT_FOUND",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	log := p.log.String()
	for _, secret := range []string{paste, device, failed, memCode, memState, "login.example", "WDJB", "test-secret", "test-access-token"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if n := strings.Count(log, "op=oauth_poll provider=new bucket=work key=\"\" session="+device[:8]+" "); n != 101 {
		t.Errorf("%d polls are in the log at debug level, want 101", n)
	}
}

// A bucket that is taken away while a login runs: nothing is served, nothing is stored, and the login is over.
func TestLoginRevoked(t *testing.T) {
	without := map[string]*scope{
		"the bucket":    {buckets: []string{"acme/default"}},
		"the operation": {ops: []string{"get_token"}},
	}
	for what, edited := range without {
		for _, op := range []string{"oauth_exchange", "oauth_poll", "oauth_cancel"} {
			p := start(t, nil)
			c := p.open(t, 1)
			flow, payload := wire.FlowPKCERedirect, withCode
			if op != "oauth_exchange" {
				flow, payload = wire.FlowDeviceCode, ofLogin
			}
			id := c.begin(`{"provider":"new","flow":"` + string(flow) + `"}`)
			p.scope.Store(edited)
			if op == "oauth_poll" {
				p.vault.approve(id, nil)
			}
			if a := c.ask(op, payload(id)); a.Code != "UNAUTHORIZED" || a.Data != nil {
				t.Errorf("%s without %s: %+v", op, what, a)
			}
			if _, stored := p.vault.CachedToken("new", "default"); stored || p.vault.pending() != 0 {
				t.Errorf("%s without %s: stored %v, %d logins are left", op, what, stored, p.vault.pending())
			}
			if a := c.ask(op, payload("0")); (a.Code == "UNAUTHORIZED") != (what == "the operation") {
				t.Errorf("%s without %s, of no login: %+v", op, what, a)
			}
		}
	}
	// While the vault has the request.
	for what, edited := range without {
		for _, op := range []string{"oauth_initiate", "oauth_exchange", "oauth_poll"} {
			p := start(t, nil)
			c := p.open(t, 1)
			payload := `{"provider":"new"}`
			switch op {
			case "oauth_exchange":
				payload = withCode(c.begin(payload))
			case "oauth_poll":
				id := c.begin(`{"provider":"new","flow":"device_code"}`)
				p.vault.approve(id, errBadCode)
				payload = ofLogin(id)
			}
			gate := make(chan struct{})
			p.vault.set(func() { p.vault.gate = gate })
			c.send(request(1, "1", op, payload))
			systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
			p.scope.Store(edited)
			close(gate)
			if a := c.answer(); a.Code != "UNAUTHORIZED" || a.Data != nil {
				t.Errorf("%s, then without %s: %+v", op, what, a)
			}
			if _, stored := p.vault.CachedToken("new", "default"); stored || p.vault.pending() != 0 {
				t.Errorf("%s, then without %s: stored %v, %d logins are left", op, what, stored, p.vault.pending())
			}
		}
	}
}

// The scope is asked before anybody else, and whoever has to agree before the vault.
func TestLoginAgreed(t *testing.T) {
	var asked []LoginRequest
	var answer error
	var edit atomic.Pointer[scope]
	p := start(t, func(cfg *Config, p *proxy) {
		cfg.Login = func(_ context.Context, r LoginRequest) error {
			asked = append(asked, r)
			if s := edit.Load(); s != nil {
				p.scope.Store(s)
			}
			return answer
		}
	})
	c := p.open(t, 1)
	p.scope.Store(&scope{buckets: []string{"new/work"}})
	if a := c.ask("oauth_initiate", `{"provider":"new"}`); a.Code != "UNAUTHORIZED" || len(asked) != 0 {
		t.Errorf("outside the scope: %+v, asked %d times", a, len(asked))
	}
	p.scope.Store(&scope{ops: []string{"get_token"}})
	if a := c.ask("oauth_initiate", `{"provider":"new"}`); a.Error != errLogin.Message || len(asked) != 0 {
		t.Errorf("without logins: %+v, asked %d times", a, len(asked))
	}
	p.scope.Store(&scope{buckets: []string{"new/work"}})
	for _, tt := range []struct {
		answer error
		want   string
	}{
		{wire.E(wire.CodeUnauthorized, "nobody agreed"), "UNAUTHORIZED nobody agreed"},
		{fmt.Errorf("test-detail-1: %w", &wire.Error{Code: wire.CodeRateLimited, Message: "later", RetryAfter: 5}), "RATE_LIMITED later"},
		{errors.New("test-detail-1"), "INTERNAL_ERROR " + errNoStore.Message},
	} {
		answer = tt.answer
		if a := c.ask("oauth_initiate", `{"provider":"new","bucket":"work","flow":"device_code"}`); a.Code+" "+a.Error != tt.want {
			t.Errorf("%v: %+v, want %s", tt.answer, a, tt.want)
		}
	}
	if n := p.vault.asked.Load(); n != 0 {
		t.Errorf("the vault was asked %d times", n)
	}
	answer = nil
	id := c.begin(`{"provider":"new","bucket":"work","flow":"device_code"}`)
	c.ask("oauth_poll", ofLogin(id))
	if want := (LoginRequest{Provider: "new", Bucket: "work", Flow: wire.FlowDeviceCode, Peer: asked[0].Peer}); len(asked) != 4 || asked[3] != want || want.Peer.PID != os.Getpid() {
		t.Errorf("asked for %+v, want 4 times %+v", asked, want)
	}
	before := p.vault.asked.Load()
	edit.Store(&scope{buckets: []string{}})
	if a := c.ask("oauth_initiate", `{"provider":"new","bucket":"work"}`); a.Code != "UNAUTHORIZED" || p.vault.asked.Load() != before {
		t.Errorf("taken away while somebody was asked: %+v", a)
	}
}

// A login is its user's: what another may connect for does not reach it, not even to cancel it.
func TestLoginOfAnotherUser(t *testing.T) {
	var uid atomic.Int32
	uid.Store(1000)
	p := start(t, func(cfg *Config, _ *proxy) {
		cfg.OwnUID, cfg.AllowUIDs = 1000, []int{1001}
		cfg.Identify = func(net.Conn) (socket.Peer, error) { return socket.Peer{UID: int(uid.Load())}, nil }
	})
	mine := p.open(t, 1)
	paste, device := mine.begin(`{"provider":"new"}`), mine.begin(`{"provider":"new","flow":"device_code"}`)
	uid.Store(1001)
	other := p.open(t, 1)
	p.vault.approve(device, nil)
	for _, r := range [][2]string{{"oauth_exchange", withCode(paste)}, {"oauth_poll", ofLogin(device)}, {"oauth_cancel", ofLogin(paste)}, {"oauth_cancel", ofLogin(device)}} {
		if a := other.ask(r[0], r[1]); a.Code != "UNAUTHORIZED" || a.Error != errOtherUser.Message {
			t.Errorf("%s: %+v", r[0], a)
		}
	}
	// Nor by way of a scope that has no room for it.
	p.scope.Store(&scope{buckets: []string{}})
	if a := other.ask("oauth_cancel", ofLogin(paste)); a.Code != "UNAUTHORIZED" {
		t.Errorf("outside the scope: %+v", a)
	}
	p.scope.Store(&scope{})
	if a := mine.ask("oauth_poll", ofLogin(device)); !a.OK {
		t.Errorf("the device login: %+v", a)
	}
	if a := mine.ask("oauth_exchange", withCode(paste)); !a.OK {
		t.Errorf("the pasted login: %+v", a)
	}
	got := p.audit.all()
	if e := got[len(got)-1]; e.Op != "oauth_exchange" || e.UID != 1000 || e.Outcome != audit.OK {
		t.Errorf("audit event %+v", e)
	}
}

// A login that its peer never hears of is cancelled: the peer has gone, has cancelled the request, or the answer does
// not fit into a frame.
func TestLoginNobodyHearsOf(t *testing.T) {
	for name, leave := range map[string]func(c *client){
		"gone":      func(c *client) { _ = c.Close() },
		"cancelled": func(c *client) { c.send(request(2, "c", "cancel", `{"targetId":"1"}`)); c.answer(); c.answer() },
	} {
		gate := make(chan struct{})
		p := start(t, func(_ *Config, p *proxy) { p.vault.gate, p.vault.stubborn = gate, true })
		c := p.open(t, 2)
		c.send(request(2, "1", "oauth_initiate", `{"provider":"new"}`))
		systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
		leave(c)
		systest.Until(t, "the server has seen it", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			for c := range p.conns {
				c.mu.Lock()
				seen := c.err != nil || len(c.calls) == 0
				c.mu.Unlock()
				if !seen {
					return false
				}
			}
			return true
		})
		close(gate)
		systest.Until(t, name+": the login was begun and cancelled", func() bool {
			_, _, begun := p.vault.LoginOf(fmt.Sprintf("%032x", 0xabcd))
			return begun && p.vault.pending() == 0
		})
	}
	p := start(t, nil)
	one, two := p.open(t, 1), p.open(t, 2)
	for i, c := range []*client{one, two} {
		c.send(request(i+1, "1", "oauth_initiate", `{"provider":"long"}`))
		a := c.answer()
		if a.OK != (c == two) || !a.OK && (a.Code != "INTERNAL_ERROR" || a.Error != errTooLarge.Message) {
			t.Errorf("version %d: %.200v", i+1, a)
		}
		systest.Until(t, "only what was heard of is left", func() bool { return p.vault.pending() == i })
	}
	systest.Until(t, "nothing is counted as heavy", func() bool { return p.heavy.Load() == 0 })
}

// A code that is at the provider is spent: what it yields is stored although the peer has gone, and the record says so.
func TestExchangeOutlivesItsPeer(t *testing.T) {
	gate := make(chan struct{})
	p := start(t, nil)
	c, other := p.open(t, 1), p.open(t, 1)
	id := c.begin(`{"provider":"new"}`)
	p.vault.set(func() { p.vault.gate = gate })
	c.send(request(1, "1", "oauth_exchange", withCode(id)))
	systest.Until(t, "the provider has the code", func() bool { return p.vault.held.Load() == 1 })
	_ = c.Close()
	close(gate)
	systest.Until(t, "the token is stored", func() bool { _, ok := p.vault.CachedToken("new", "default"); return ok })
	p.vault.set(func() { p.vault.gate = nil })
	if a := other.ask("oauth_exchange", withCode(id)); a.Code != "SESSION_ALREADY_USED" {
		t.Errorf("once more: %+v", a)
	}
	p.close(t)
	for _, e := range p.audit.all() {
		if e.Op == "oauth_exchange" && e.Outcome == audit.OK && e.Provider == "new" {
			return
		}
	}
	t.Errorf("the record does not say that the login was stored: %+v", p.audit.all())
}

// A vault that fails in a login takes nothing else with it.
func TestLoginPanics(t *testing.T) {
	p := start(t, nil)
	c := p.open(t, 1)
	paste, device := c.begin(`{"provider":"new"}`), c.begin(`{"provider":"new","flow":"device_code"}`)
	p.vault.set(func() { p.vault.panics = "test-code-1" })
	for _, r := range [][2]string{{"oauth_initiate", `{"provider":"new"}`}, {"oauth_poll", ofLogin(device)}, {"oauth_cancel", ofLogin(paste)}} {
		if a := c.ask(r[0], r[1]); a.Code != "INTERNAL_ERROR" || a.Error != errPanic.Message {
			t.Errorf("%s: %+v", r[0], a)
		}
	}
	p.scope.Store(&scope{buckets: []string{"acme/default"}})
	if a := c.ask("oauth_cancel", ofLogin(paste)); a.Code != "UNAUTHORIZED" {
		t.Errorf("a panic while a login is abandoned: %+v", a)
	}
	c.served()
	p.close(t)
	if log := p.log.String(); strings.Contains(log, "test-code-1") || strings.Count(log, "msg=panic") != 4 {
		t.Errorf("log:\n%s", log)
	}
}
