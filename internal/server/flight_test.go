package server

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// gated starts a server whose vault holds every request until the gate is closed.
func gated(t *testing.T) (p *proxy, gate chan struct{}) {
	gate = make(chan struct{})
	return start(t, func(_ *Config, p *proxy) { p.vault.cold, p.vault.gate = true, gate }), gate
}

func TestConcurrentRequests(t *testing.T) {
	p, gate := gated(t)
	c := p.open(t, 1)
	c.send(request(1, "slow", "list_providers", `{}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
	p.vault.set(func() { p.vault.cold = false })
	c.send(request(1, "fast", "get_token", `{"provider":"acme"}`))
	if a := c.answer(); a.ID != "fast" || !a.OK {
		t.Errorf("first answer %+v, want the fast one's", a)
	}
	close(gate)
	if a := c.answer(); a.ID != "slow" || !a.OK {
		t.Errorf("second answer %+v, want the slow one's", a)
	}
}

// Of one connection 64 requests are in flight; the next is not read until one is answered, and then is served.
func TestInFlight(t *testing.T) {
	p, gate := gated(t)
	c, other := p.open(t, 1), p.open(t, 1)
	var frames []string
	for i := range wire.MaxInFlight + 10 {
		frames = append(frames, request(1, fmt.Sprint(i), "list_providers", `{}`))
	}
	go func() { _, _ = c.Write(framed(frames...)) }()
	systest.Until(t, "64 are in flight", func() bool { return p.vault.held.Load() == wire.MaxInFlight })
	other.send(request(1, "1", "list_providers", `{}`))
	systest.Until(t, "the other connection's is, too", func() bool { return p.vault.held.Load() == wire.MaxInFlight+1 })
	if n := p.vault.asked.Load(); n != wire.MaxInFlight+1 {
		t.Errorf("the vault was asked %d times", n)
	}
	close(gate)
	seen := make(map[string]bool)
	for range frames {
		a := c.answer()
		if !a.OK || seen[a.ID] {
			t.Fatalf("answer %+v", a)
		}
		seen[a.ID] = true
	}
}

// Operations that hang in a few connections leave each other connection room for one of its own.
func TestSharedRunning(t *testing.T) {
	p, gate := gated(t)
	for range sharedRunning / wire.MaxInFlight {
		c := p.open(t, 1)
		var frames []string
		for i := range wire.MaxInFlight {
			frames = append(frames, request(1, fmt.Sprint(i), "list_providers", `{}`))
		}
		c.send(frames...)
	}
	systest.Until(t, "all shared slots are taken", func() bool { return p.vault.held.Load() == sharedRunning })
	c := p.open(t, 1)
	c.send(request(1, "a", "list_providers", `{}`), request(1, "b", "list_providers", `{}`))
	systest.Until(t, "another connection's first runs", func() bool { return p.vault.held.Load() == sharedRunning+1 })
	close(gate)
	for range 2 {
		if a := c.answer(); !a.OK {
			t.Errorf("%+v", a)
		}
	}
}

func TestDuplicateID(t *testing.T) {
	p, gate := gated(t)
	c := p.open(t, 1)
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
	p.vault.set(func() { p.vault.cold = false })
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`))
	if a := c.answer(); a.ID != "1" || a.Code != "INVALID_REQUEST" {
		t.Errorf("%+v, want INVALID_REQUEST", a)
	}
	close(gate)
	if a := c.answer(); !a.OK {
		t.Errorf("the first: %+v", a)
	}
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`))
	if a := c.answer(); !a.OK {
		t.Errorf("the same id again, after its answer: %+v", a)
	}
	// Two that come in one piece are in flight together, however quickly the first is answered.
	c.send(request(1, "2", "get_token", `{"provider":"acme"}`), request(1, "2", "get_token", `{"provider":"acme"}`))
	if a, b := c.answer(), c.answer(); !a.OK || b.Code != "INVALID_REQUEST" {
		t.Errorf("%+v and %+v, want one success and one INVALID_REQUEST", a, b)
	}
}

func TestCancel(t *testing.T) {
	p, _ := gated(t)
	c := p.open(t, 2)
	c.send(request(2, "read", "get_token", `{"provider":"acme"}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
	c.send(request(2, "c", "cancel", `{"targetId":"read"}`))
	answers := map[string]answer{}
	for range 2 {
		a := c.answer()
		answers[a.ID] = a
	}
	if a := answers["read"]; a.Code != "CANCELLED" {
		t.Errorf("the target: %+v", a)
	}
	if a := answers["c"]; !a.OK || string(a.Data) != "{}" {
		t.Errorf("cancel: %+v", a)
	}
	systest.Until(t, "the vault was told", func() bool { return p.vault.held.Load() == 0 })
	for _, target := range []string{"read", "never was", "c"} {
		c.send(request(2, "c", "cancel", `{"targetId":"`+target+`"}`))
		if a := c.answer(); !a.OK || string(a.Data) != "{}" {
			t.Errorf("cancel %q: %+v", target, a)
		}
	}
}

// A save that is cancelled is answered so, and carried through: half a change is worse than one too many.
func TestCancelAChange(t *testing.T) {
	p, gate := gated(t)
	c := p.open(t, 2)
	c.send(request(2, "save", "save_token", `{"provider":"acme","bucket":"new","token":`+newToken+`}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })
	c.send(request(2, "c", "cancel", `{"targetId":"save"}`))
	if a := c.answer(); a.ID != "save" || a.Code != "CANCELLED" {
		t.Errorf("the target: %+v", a)
	}
	if a := c.answer(); a.ID != "c" || !a.OK {
		t.Errorf("cancel: %+v", a)
	}
	// Its id is free, though its operation runs.
	p.vault.set(func() { p.vault.cold = false })
	c.send(request(2, "save", "get_token", `{"provider":"acme"}`))
	if a := c.answer(); a.ID != "save" || !a.OK {
		t.Errorf("the id again: %+v", a)
	}
	close(gate)
	systest.Until(t, "the token is stored", func() bool { _, ok := p.vault.CachedToken("acme", "new"); return ok })
	p.close(t)
	var got []string
	for _, e := range p.audit.all() {
		got = append(got, e.Op+" "+e.Outcome.String())
	}
	if s := strings.Join(got, ", "); s != "cancel ok, get_token ok, save_token ok" {
		t.Errorf("audit: %s", s)
	}
}

// When a connection ends, its reads are cancelled and its changes are carried through.
func TestConnectionLost(t *testing.T) {
	p, gate := gated(t)
	c := p.open(t, 1)
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`),
		request(1, "2", "save_token", `{"provider":"acme","bucket":"new","token":`+newToken+`}`),
		request(1, "3", "remove_token", `{"provider":"acme"}`))
	systest.Until(t, "the vault has the requests", func() bool { return p.vault.held.Load() == 3 })
	_ = c.Close()
	systest.Until(t, "the read is cancelled", func() bool { return p.vault.held.Load() == 2 })
	close(gate)
	systest.Until(t, "the token is stored and the other removed", func() bool {
		_, saved := p.vault.CachedToken("acme", "new")
		p.vault.mu.Lock()
		defer p.vault.mu.Unlock()
		return !saved && len(p.vault.tokens) == 3 && p.vault.tokens[[2]string{"acme", "default"}] == nil
	})
}

// A peer that says it will send no more still gets its answers, then the end.
func TestHalfClose(t *testing.T) {
	p, gate := gated(t)
	c := p.open(t, 1)
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`), request(1, "2", "list_providers", `{}`))
	if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	systest.Until(t, "the vault has the requests", func() bool { return p.vault.held.Load() == 2 })
	close(gate)
	for range 2 {
		if a := c.answer(); !a.OK {
			t.Errorf("%+v", a)
		}
	}
	c.ends()
}

// Answers to requests that arrived together go out together, and all arrive, mixed with answers that come late.
func TestBatches(t *testing.T) {
	p := start(t, nil)
	c := p.open(t, 1)
	const rounds, per = 20, 50
	go func() {
		for r := range rounds {
			var frames []string
			for i := range per {
				op, payload := "get_token", `{"provider":"acme"}`
				if i%7 == 0 {
					op, payload = "list_buckets", `{"provider":"acme"}`
				}
				frames = append(frames, request(1, fmt.Sprintf("%d-%d", r, i), op, payload))
			}
			if _, err := c.Write(framed(frames...)); err != nil {
				t.Error(err)
			}
		}
	}()
	seen := make(map[string]bool)
	for range rounds * per {
		a := c.answer()
		if !a.OK || seen[a.ID] || !json.Valid(a.Data) {
			t.Fatalf("%+v", a)
		}
		seen[a.ID] = true
	}
}
