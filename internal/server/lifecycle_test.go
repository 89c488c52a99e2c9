package server

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
)

func TestConnectionCap(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Connections = 3 })
	var open []*client
	for range 3 {
		open = append(open, p.open(t, 1))
	}
	for range 3 {
		c := p.connect(t)
		c.send(`{"v":1,"op":"handshake"}`)
		if a := c.answer(); a.Code != "RATE_LIMITED" || a.RetryAfter == nil || *a.RetryAfter != 1 {
			t.Errorf("the fourth: %+v", a)
		}
		c.ends()
	}
	for _, c := range open {
		c.served()
	}
	_ = open[0].Close()
	systest.Until(t, "a place is free", func() bool { _, _, n := p.counts(); return n == 2 })
	p.open(t, 1).served()
}

func TestShutdown(t *testing.T) {
	gate := make(chan struct{})
	p := start(t, func(_ *Config, p *proxy) { p.vault.cold, p.vault.gate = true, gate })
	idle, silent, busy := p.open(t, 1), p.connect(t), p.open(t, 1)
	busy.send(request(1, "1", "get_token", `{"provider":"acme"}`))
	systest.Until(t, "the vault has the request", func() bool { return p.vault.held.Load() == 1 })

	done := make(chan error, 1)
	go func() { done <- p.Shutdown(context.Background()) }()
	idle.ends()
	silent.ends()
	if c, err := p.dial(); err == nil {
		if !carrying {
			t.Error("a connection was accepted during shutdown")
		}
		(&client{c, t}).ends() // the socket inside is there as long as the bridge is, and leads nowhere
		_ = c.Close()
	}
	select {
	case err := <-done:
		t.Fatalf("Shutdown did not wait for the request: %v", err)
	default:
	}
	close(gate)
	if a := busy.answer(); !a.OK {
		t.Errorf("the request in flight: %+v", a)
	}
	busy.ends()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if conns, _, _ := p.counts(); conns != 0 {
		t.Errorf("%d connections are left", conns)
	}
	if err := p.Shutdown(context.Background()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
	if err := p.Serve(nopListener{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }

// When its time is up, Shutdown cancels reads and changes, and still waits for them.
func TestShutdownCutsOff(t *testing.T) {
	p := start(t, func(_ *Config, p *proxy) { p.vault.cold, p.vault.gate = true, make(chan struct{}) })
	c := p.open(t, 1)
	c.send(request(1, "1", "get_token", `{"provider":"acme"}`), request(1, "2", "save_token", `{"provider":"acme","token":`+newToken+`}`))
	systest.Until(t, "the vault has the requests", func() bool { return p.vault.held.Load() == 2 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if n := p.vault.held.Load(); n != 0 {
		t.Errorf("%d operations run after Shutdown", n)
	}
}
