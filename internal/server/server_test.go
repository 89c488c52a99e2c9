package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

const newToken = `{"access_token":"test-access-token-4","expiry":1789000000,"token_type":"Bearer","refresh_token":"test-refresh-token-1","plan":"pro"}`

// Each operation in its order, from memory and from the store, in both versions: the answers are exact.
func TestOperations(t *testing.T) {
	token1 := `{"access_token":"test-access-token-1","expiry":1789000000,"token_type":"Bearer"}`
	steps := []struct{ op, payload, want string }{
		{"get_token", `{"provider":"acme"}`, `"ok":true,"data":` + token1},
		{"get_token", `{"provider":"acme","bucket":"default"}`, `"ok":true,"data":` + token1},
		{"get_token", `{"provider":"nobody"}`, `"ok":false,"code":"NOT_FOUND","error":"no token is stored"`},
		{"get_bucket_stats", `{"provider":"acme","bucket":"work"}`, `"ok":true,"data":{"bucket":"work","requestCount":0,"percentage":0}`},
		{"get_bucket_stats", `{"provider":"nobody"}`, `"ok":false,"code":"NOT_FOUND","error":"no token is stored"`},
		{"save_token", `{"provider":"acme","bucket":"new","token":` + newToken + `}`, `"ok":true,"data":{}`},
		{"get_token", `{"provider":"acme","bucket":"new"}`,
			`"ok":true,"data":{"access_token":"test-access-token-4","expiry":1789000000,"token_type":"Bearer","plan":"pro"}`},
		{"get_bucket_stats", `{"provider":"acme","bucket":"new","detail":true}`,
			`"ok":true,"data":{"bucket":"new","requestCount":0,"percentage":0,"login":{"state":"ok","expiry":1789000000,"store":"memory"}}`},
		{"get_bucket_stats", `{"provider":"acme","bucket":"new","detail":false}`, `"ok":true,"data":{"bucket":"new","requestCount":0,"percentage":0}`},
		{"get_bucket_stats", `{"provider":"acme","bucket":"new","detail":null}`,
			`"ok":false,"code":"INVALID_REQUEST","error":"payload.detail must be true or false"`},
		{"get_bucket_stats", `{"provider":"nobody","detail":true}`, `"ok":false,"code":"NOT_FOUND","error":"no token is stored"`},
		{"refresh_token", `{"provider":"acme","bucket":"new"}`,
			`"ok":true,"data":{"access_token":"test-access-token-4-renewed","expiry":1789003600,"token_type":"Bearer","plan":"pro"}`},
		{"get_token", `{"provider":"acme","bucket":"new"}`,
			`"ok":true,"data":{"access_token":"test-access-token-4-renewed","expiry":1789003600,"token_type":"Bearer","plan":"pro"}`},
		{"refresh_token", `{"provider":"nobody"}`, `"ok":false,"code":"NOT_FOUND","error":"no token is stored"`},
		{"list_providers", `{}`, `"ok":true,"data":{"providers":["acme","other"]}`},
		{"list_buckets", `{"provider":"acme"}`, `"ok":true,"data":{"buckets":["default","new","work"]}`},
		{"list_buckets", `{"provider":"nobody"}`, `"ok":true,"data":{"buckets":[]}`},
		{"remove_token", `{"provider":"acme","bucket":"new"}`, `"ok":true,"data":{}`},
		{"remove_token", `{"provider":"acme","bucket":"new"}`, `"ok":true,"data":{}`},
		{"get_token", `{"provider":"acme","bucket":"new"}`, `"ok":false,"code":"NOT_FOUND","error":"no token is stored"`},
		{"get_api_key", `{"name":"openai"}`, `"ok":true,"data":{"key":"test-api-key-1"}`},
		{"get_api_key", `{"name":"nobody"}`, `"ok":false,"code":"NOT_FOUND","error":"no such key"`},
		{"has_api_key", `{"name":"openai"}`, `"ok":true,"data":{"exists":true}`},
		{"has_api_key", `{"name":"nobody"}`, `"ok":true,"data":{"exists":false}`},
		{"list_api_keys", `{}`, `"ok":true,"data":{"keys":["forbidden","openai"]}`},
	}
	for _, version := range []int{1, 2} {
		for _, cold := range []bool{false, true} {
			p := start(t, func(_ *Config, p *proxy) { p.vault.cold = cold })
			c := p.open(t, version)
			for i, s := range steps {
				id := fmt.Sprintf("r%d", i)
				c.send(request(version, id, s.op, s.payload))
				want := fmt.Sprintf(`{"v":%d,"id":%q,%s}`, version, id, s.want)
				if got := c.recv(); got != want {
					t.Errorf("version %d, cold %v: %s %s answered\n%s, want\n%s", version, cold, s.op, s.payload, got, want)
				}
			}
			if got := p.audit.all(); len(got) != len(steps) {
				t.Errorf("%d audit events for %d operations", len(got), len(steps))
			}
		}
	}
}

func TestHandshake(t *testing.T) {
	ok := func(v int) string {
		return fmt.Sprintf(`{"v":%d,"op":"handshake","ok":true,"data":{"version":%[1]d}}`, v)
	}
	tests := []struct {
		name, frame, want string // of a refusal, want is its code
	}{
		{"version 1", `{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`, ok(1)},
		{"both", `{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":2}}`, ok(2)},
		{"later ones too", `{"v":1,"op":"handshake","payload":{"minVersion":2,"maxVersion":9}}`, ok(2)},
		{"no bounds", `{"v":2,"op":"handshake"}`, ok(2)},
		{"none in common", `{"v":1,"op":"handshake","payload":{"minVersion":3,"maxVersion":4}}`, "UNKNOWN_VERSION"},
		{"upside down", `{"v":1,"op":"handshake","payload":{"minVersion":2,"maxVersion":1}}`, "UNKNOWN_VERSION"},
		{"no integers", `{"v":1,"op":"handshake","payload":{"minVersion":"1","maxVersion":2}}`, "UNKNOWN_VERSION"},
		{"another operation", `{"v":1,"id":"1","op":"get_token","payload":{"provider":"acme"}}`, "INVALID_REQUEST"},
		{"no object", `[1]`, "INVALID_REQUEST"},
		{"null", `null`, "INVALID_REQUEST"},
		{"garbage", "\x00\xff", "INVALID_REQUEST"},
		{"duplicate name", `{"v":1,"op":"handshake","op":"handshake"}`, "INVALID_REQUEST"},
	}
	p := start(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := p.connect(t)
			// A request that follows at once must not be lost, and must not spoil the refusal.
			c.send(tt.frame, request(strings.Count(tt.want, `"v":2`)+1, "1", "get_token", `{"provider":"acme"}`))
			got := c.recv()
			if strings.HasPrefix(tt.want, "{") {
				if got != tt.want {
					t.Errorf("answered %s, want %s", got, tt.want)
				}
				if a := c.answer(); !a.OK {
					t.Errorf("the request behind the handshake: %+v", a)
				}
				return
			}
			if want := `{"v":1,"op":"handshake","ok":false,"code":"` + tt.want + `","error":"`; !strings.HasPrefix(got, want) {
				t.Errorf("answered %s, want %s…", got, want)
			}
			c.ends()
		})
	}
}

// However much comes with it, and however quickly that can be answered: the first frame back is the handshake's.
func TestHandshakeIsAnsweredFirst(t *testing.T) {
	p := start(t, nil)
	frames := []string{`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`}
	for i := range 40 { // operations of their own goroutines, and much that keeps the reader busy meanwhile
		frames = append(frames, request(1, strconv.Itoa(i), "list_providers", `{}`))
	}
	for range 100 {
		c := p.connect(t)
		c.send(frames...)
		if got := c.recv(); !strings.Contains(got, `"op":"handshake"`) {
			t.Fatalf("the first frame is %s", got)
		}
		_ = c.Close()
	}
}

func TestCapability(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Capability = []byte("test-capability-1") })
	tests := []struct {
		name, payload string
		ok            bool
	}{
		{"right", `{"minVersion":1,"maxVersion":2,"capabilityToken":"test-capability-1"}`, true},
		{"wrong", `{"minVersion":1,"maxVersion":2,"capabilityToken":"test-capability-2"}`, false},
		{"beginning", `{"minVersion":1,"maxVersion":2,"capabilityToken":"test-capability-"}`, false},
		{"empty", `{"minVersion":1,"maxVersion":2,"capabilityToken":""}`, false},
		{"missing", `{"minVersion":1,"maxVersion":2}`, false},
		{"no string", `{"minVersion":1,"maxVersion":2,"capabilityToken":["test-capability-1"]}`, false},
		// What versions there are is not told to who has no token.
		{"wrong, and versions", `{"minVersion":8,"maxVersion":9,"capabilityToken":"test-capability-2"}`, false},
		{"missing, and versions that are none", `{"minVersion":"x","maxVersion":9}`, false},
	}
	refused := 0
	for _, tt := range tests {
		c := p.connect(t)
		c.send(`{"v":1,"op":"handshake","payload":` + tt.payload + `}`)
		a := c.answer()
		if a.OK != tt.ok || !tt.ok && a.Code != "UNAUTHORIZED" {
			t.Errorf("%s: %+v", tt.name, a)
		}
		if !tt.ok {
			refused++
			c.ends()
		}
	}
	got := p.audit.all()
	if len(got) != refused {
		t.Errorf("%d audit events, want %d", len(got), refused)
	}
	for _, e := range got {
		if e.Op != "handshake" || e.Outcome != audit.Denied || e.Code != "UNAUTHORIZED" || e.PID != os.Getpid() {
			t.Errorf("audit event %+v", e)
		}
	}
	p.close(t)
	if strings.Contains(p.log.String(), "test-capability") {
		t.Error("a capability token is in the log")
	}
}

func TestForeignPeer(t *testing.T) {
	for _, tt := range []struct {
		name string
		peer socket.Peer
		err  error
		in   bool
	}{
		{"another user", socket.Peer{UID: 4711, PID: 17, Container: "0123456789ab"}, nil, false},
		{"root", socket.Peer{UID: 0, PID: 17}, nil, false},
		{"ours", socket.Peer{UID: 1000, PID: 17}, nil, true},
		{"allowed", socket.Peer{UID: 1001, PID: 17}, nil, true},
		{"not known", socket.Peer{}, errors.New("the kernel does not say"), false},
		{"a system that never tells", socket.Peer{}, socket.ErrNoPeerIdentity, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := start(t, func(cfg *Config, _ *proxy) {
				cfg.OwnUID, cfg.AllowUIDs = 1000, []int{1001}
				cfg.Identify = func(net.Conn) (socket.Peer, error) { return tt.peer, tt.err }
			})
			if tt.in {
				p.open(t, 1).served()
				return
			}
			p.connect(t).ends() // without an answer, and without having sent a byte
			got := p.audit.all()
			want := audit.Event{Op: "connect", Outcome: audit.Denied, Code: "UNAUTHORIZED", UID: tt.peer.UID, PID: tt.peer.PID,
				Container: tt.peer.Container, Profile: "default"}
			if tt.err != nil {
				want.UID = -1
			}
			if len(got) != 1 {
				t.Fatalf("audit: %+v", got)
			}
			got[0].Time, got[0].Duration = time.Time{}, 0
			if got[0] != want {
				t.Errorf("audit event %+v, want %+v", got[0], want)
			}
		})
	}
}

func TestScope(t *testing.T) {
	for _, cold := range []bool{false, true} {
		p := start(t, func(_ *Config, p *proxy) { p.vault.cold = cold })
		p.scope.Store(&scope{buckets: []string{"acme/default", "absent/default"}, keys: []string{"openai"}})
		c := p.open(t, 1)
		for _, tt := range []struct{ op, payload string }{
			{"get_token", `{"provider":"acme","bucket":"work"}`},
			{"get_token", `{"provider":"other"}`},
			{"get_token", `{"provider":"acme","bucket":"DEFAULT"}`},
			{"get_bucket_stats", `{"provider":"other"}`},
			{"get_bucket_stats", `{"provider":"other","detail":true}`},
			{"save_token", `{"provider":"other","token":` + newToken + `}`},
			{"remove_token", `{"provider":"acme","bucket":"work"}`},
			{"refresh_token", `{"provider":"other"}`},
			{"list_buckets", `{"provider":"other"}`},
			{"oauth_initiate", `{"provider":"other"}`},
			{"get_api_key", `{"name":"forbidden"}`},
			{"has_api_key", `{"name":"forbidden"}`},
		} {
			if a := c.ask(tt.op, tt.payload); a.Code != "UNAUTHORIZED" {
				t.Errorf("%s %s: %+v, want UNAUTHORIZED", tt.op, tt.payload, a)
			}
		}
		if n := p.vault.asked.Load(); n != 0 {
			t.Errorf("the vault was asked %d times for what is outside the scope", n)
		}
		for _, tt := range []struct{ op, payload, want string }{
			{"list_providers", `{}`, `{"providers":["acme"]}`},
			{"list_buckets", `{"provider":"acme"}`, `{"buckets":["default"]}`},
			{"list_api_keys", `{}`, `{"keys":["openai"]}`},
		} {
			if a := c.ask(tt.op, tt.payload); string(a.Data) != tt.want {
				t.Errorf("%s: %+v, want %s", tt.op, a, tt.want)
			}
		}

		// An edit applies to the connection that is open already.
		p.scope.Store(&scope{ops: []string{"get_token", "cancel"}})
		asked := p.vault.asked.Load()
		for _, op := range []string{"list_providers", "list_api_keys", "refresh_token"} {
			if a := c.ask(op, `{"provider":"acme"}`); a.Code != "UNAUTHORIZED" {
				t.Errorf("%s: %+v, want UNAUTHORIZED", op, a)
			}
		}
		if p.vault.asked.Load() != asked {
			t.Error("the vault was asked for an operation outside the scope")
		}
		c.served()
	}
}

// Before there is a scope, nothing is served.
func TestNoScope(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Scope = func() Scope { return nil } })
	if a := p.open(t, 1).ask("get_token", `{"provider":"acme"}`); a.Code != "UNAUTHORIZED" {
		t.Errorf("%+v, want UNAUTHORIZED", a)
	}
}

// What is taken away while the vault works on a request is not served.
func TestRevokedDuringTheCall(t *testing.T) {
	for _, tt := range []struct{ op, payload string }{
		{"get_token", `{"provider":"acme"}`}, {"get_api_key", `{"name":"openai"}`}, {"list_buckets", `{"provider":"acme"}`},
	} {
		gate := make(chan struct{})
		p := start(t, func(_ *Config, p *proxy) { p.vault.cold, p.vault.gate = true, gate })
		c := p.open(t, 1)
		c.send(request(1, "1", tt.op, tt.payload))
		systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
		p.scope.Store(&scope{buckets: []string{}, keys: []string{}})
		close(gate)
		if a := c.answer(); a.Code != "UNAUTHORIZED" {
			t.Errorf("%s: %+v, want UNAUTHORIZED", tt.op, a)
		}
	}
}

// Requests that break a rule are answered, reach no vault, and leave the connection alive.
func TestInvalidRequests(t *testing.T) {
	p := start(t, func(_ *Config, p *proxy) { p.vault.cold = true })
	c := p.open(t, 1)
	for _, tt := range []struct{ frame, id string }{
		{`{"v":1,"op":"get_token","payload":{"provider":"acme"}}`, "unknown"},
		{`{"v":1,"id":"","op":"get_token","payload":{"provider":"acme"}}`, "unknown"},
		{`{"v":1,"id":7,"op":"get_token","payload":{"provider":"acme"}}`, "unknown"},
		{`{"v":1,"id":"a","op":"get_token","payload":{}}`, "a"},
		{`{"v":1,"id":"a","op":"get_token","payload":{"provider":"../x"}}`, "a"},
		{`{"v":1,"id":"a","op":"get_token","payload":{"provider":"acme","provider":"other"}}`, "a"},
		{`{"v":1,"id":"a","op":"get_token","payload":{"Provider":"acme"}}`, "a"},
		{`{"v":1,"id":"a","op":"__proto__","payload":{}}`, "a"},
		{`{"v":1,"id":"a","op":"save_token","payload":{"provider":"acme","token":"n"}}`, "a"},
		{`{"v":1,"id":"a","op":"cancel","payload":{"targetId":"b"}}`, "a"}, // of version 2
		{`{"v":2,"id":"a","op":"get_token","payload":{"provider":"acme"}}`, "a"},
		{`{"v":1,"id":"a","op":"handshake","payload":{}}`, "a"},
	} {
		c.send(tt.frame)
		if a := c.answer(); a.OK || a.Code != "INVALID_REQUEST" || a.ID != tt.id {
			t.Errorf("%s: %+v, want INVALID_REQUEST for %q", tt.frame, a, tt.id)
		}
	}
	if n := p.vault.asked.Load(); n != 0 {
		t.Errorf("the vault was asked %d times", n)
	}
	p.vault.set(func() { p.vault.cold = false })
	c.served()
}

// What is no JSON object gets an error frame, then a clean end, with whatever came behind it unread.
func TestBrokenStream(t *testing.T) {
	p := start(t, nil)
	bystander := p.open(t, 1)
	for name, bytes := range map[string][]byte{
		"null":       framed(`null`),
		"array":      framed(`[]`),
		"trailing":   framed(`{"v":1,"id":"a","op":"list_providers"} x`),
		"bad UTF-8":  framed("{\"v\":1,\"id\":\"\xff\",\"op\":\"list_providers\"}"),
		"empty":      {0, 0, 0, 0},
		"too long":   {0, 1, 0, 1},
		"very long":  {0xff, 0xff, 0xff, 0xff},
		"HTTP":       []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"and behind": append(framed(`null`), make([]byte, 100_000)...),
	} {
		c := p.open(t, 1)
		if _, err := c.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if a := c.answer(); a.OK || a.Code != "INVALID_REQUEST" || a.ID != "unknown" {
			t.Errorf("%s: %+v, want INVALID_REQUEST for unknown", name, a)
		}
		c.ends()
	}
	bystander.served()
}

func TestStoreErrors(t *testing.T) {
	p := start(t, func(_ *Config, p *proxy) {
		p.vault.cold, p.vault.fault = true, errors.New("open /home/user/store: test-detail-1")
	})
	c := p.open(t, 1)
	for _, tt := range []struct{ op, payload, want string }{
		{"get_token", `{"provider":"acme"}`, errNoStore.Message},
		{"get_bucket_stats", `{"provider":"acme"}`, errNoStore.Message},
		{"save_token", `{"provider":"acme","token":` + newToken + `}`, errNoStore.Message},
		{"get_api_key", `{"name":"openai"}`, errNoStore.Message},
		{"has_api_key", `{"name":"openai"}`, errNoStore.Message},
		{"remove_token", `{"provider":"acme"}`, `{}`},
		{"list_providers", `{}`, `{"providers":[]}`},
		{"list_buckets", `{"provider":"acme"}`, `{"buckets":[]}`},
		{"list_api_keys", `{}`, `{"keys":[]}`},
	} {
		a := c.ask(tt.op, tt.payload)
		if a.Error+string(a.Data) != tt.want || !a.OK && a.Code != "INTERNAL_ERROR" {
			t.Errorf("%s: %+v, want %s", tt.op, a, tt.want)
		}
	}
	p.vault.set(func() { p.vault.fault = fmt.Errorf("locked: %w", wire.E(wire.CodeRateLimited, "try later")) })
	if a := c.ask("get_token", `{"provider":"acme"}`); a.Code != "RATE_LIMITED" || a.Error != "try later" {
		t.Errorf("an error with a code: %+v", a)
	}
	if a := c.ask("remove_token", `{"provider":"acme"}`); a.Code != "RATE_LIMITED" {
		t.Errorf("an error with a code: %+v", a)
	}
	p.vault.set(func() { p.vault.fault = wire.E(wire.CodeCancelled, "only version 2 knows this") })
	if a := c.ask("get_token", `{"provider":"acme"}`); a.Code != "INTERNAL_ERROR" {
		t.Errorf("a code of version 2 in version 1: %+v", a)
	}
	p.close(t)
	if n := strings.Count(p.log.String(), "test-detail-1"); n != 9 {
		t.Errorf("the detail is %d times in the host's log, want 9", n)
	}
}

func TestPanics(t *testing.T) {
	for _, v := range []any{"test-access-token-9", errors.New("test-access-token-9"), wire.E("X", "test-access-token-9")} {
		p := start(t, func(_ *Config, p *proxy) { p.vault.cold, p.vault.panics = true, v })
		c := p.open(t, 1)
		for _, op := range []string{"get_token", "save_token"} {
			if a := c.ask(op, `{"provider":"acme","token":`+newToken+`}`); a.Code != "INTERNAL_ERROR" || a.Error != errPanic.Message {
				t.Errorf("%s: %+v", op, a)
			}
		}
		p.vault.set(func() { p.vault.panics, p.vault.cold = nil, false })
		c.served()
		p.close(t)
		if log := p.log.String(); strings.Contains(log, "test-access-token-9") || !strings.Contains(log, "memVault") {
			t.Errorf("the log of a panic has its value or lacks its place:\n%s", log)
		}
	}
}

func TestAudit(t *testing.T) {
	p := start(t, nil)
	c := p.open(t, 1)
	p.scope.Store(&scope{keys: []string{}})
	for _, r := range [][2]string{
		{"get_token", `{"provider":"acme","bucket":"work"}`}, {"save_token", `{"provider":"acme","token":` + newToken + `}`},
		{"get_api_key", `{"name":"openai"}`}, {"get_token", `{"provider":"nobody"}`}, {"list_providers", `{}`}, {"nonsense", `{}`},
	} {
		c.ask(r[0], r[1])
	}
	p.close(t)
	got := p.audit.all()
	for i := range got {
		if got[i].Duration < 0 || got[i].Duration > time.Minute || time.Since(got[i].Time) > time.Minute {
			t.Errorf("times of %+v", got[i])
		}
		got[i].Duration, got[i].Time = 0, time.Time{}
	}
	event := func(op, provider, bucket, key string, o audit.Outcome, code string) audit.Event {
		return audit.Event{Profile: "default", Op: op, Provider: provider, Bucket: bucket, Key: key, Outcome: o, Code: code,
			UID: os.Geteuid(), PID: os.Getpid(), Container: got[0].Container}
	}
	want := []audit.Event{
		event("get_token", "acme", "work", "", audit.OK, ""),
		event("save_token", "acme", "default", "", audit.OK, ""),
		event("get_api_key", "", "", "openai", audit.Denied, "UNAUTHORIZED"),
		event("get_token", "nobody", "default", "", audit.Error, "NOT_FOUND"),
		event("list_providers", "", "", "", audit.OK, ""),
		event("invalid_request", "", "", "", audit.Error, "INVALID_REQUEST"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	log := p.log.String()
	if strings.Contains(log, "test-access-token") || strings.Contains(log, "test-api-key") || !strings.Contains(log, "op=save_token provider=acme bucket=default") {
		t.Errorf("log:\n%s", log)
	}
}

func TestTooLarge(t *testing.T) {
	p := start(t, nil)
	c1, c2 := p.open(t, 1), p.open(t, 2)
	big := strings.Repeat("a", 70_000)
	token := `{"access_token":"` + big + `","expiry":1,"token_type":"Bearer"}`
	c2.send(request(2, "save", "save_token", `{"provider":"big","token":`+token+`}`))
	if a := c2.answer(); !a.OK {
		t.Fatalf("save: %+v", a)
	}
	c2.send(request(2, "get", "get_token", `{"provider":"big"}`))
	if a := c2.answer(); string(a.Data) != token {
		t.Errorf("version 2 got %d bytes, %s", len(a.Data), a.Code)
	}
	for range 2 {
		if a := c1.ask("get_token", `{"provider":"big"}`); a.Code != "INTERNAL_ERROR" || a.Error != errTooLarge.Message {
			t.Errorf("version 1: %+v", a)
		}
	}
	// 64 KiB exactly, with what stands around the token, is not too long.
	around := len(`{"v":1,"id":"x","ok":true,"data":{"access_token":"","expiry":0,"token_type":"B"}}`)
	for _, over := range []int{0, 1} {
		p.vault.set(func() {
			p.vault.tokens[[2]string{"edge", "default"}] = &wire.Token{AccessToken: big[:1<<16-around+over], TokenType: "B"}
		})
		if a := c1.ask("get_token", `{"provider":"edge"}`); a.OK != (over == 0) {
			t.Errorf("%d bytes over: %s %s", over, a.Code, a.Error)
		}
	}
	p.vault.set(func() {
		p.vault.tokens[[2]string{"huge", "default"}] = &wire.Token{AccessToken: strings.Repeat("a", 4<<20), TokenType: "B"}
	})
	c2.send(request(2, "get", "get_token", `{"provider":"huge"}`))
	if a := c2.answer(); a.Code != "RESPONSE_TOO_LARGE" {
		t.Errorf("version 2: %s", a.Code)
	}
	c1.served()
	systest.Until(t, "nothing is counted as heavy", func() bool { return p.heavy.Load() == 0 })
}
