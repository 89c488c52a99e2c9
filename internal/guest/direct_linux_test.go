package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// TestDirectIsCut: whatever becomes of a connection of our own before the proxy has had a proof, the pipe is there, and the secret is good
// for it.
func TestDirectIsCut(t *testing.T) {
	const soon = 100 * time.Millisecond // for those whose time has to be up
	for _, tt := range []struct {
		name  string
		limit time.Duration
		play  func(c, proxy net.Conn)
	}{
		{"at once", patient, func(net.Conn, net.Conn) {}},
		{"after a while", patient, func(c, _ net.Conn) { _, _ = c.Read(make([]byte, 4<<10)) }},
		{"before the proof", patient, func(c, proxy net.Conn) { pass(c, proxy); pass(proxy, c) }},
		{"it says nothing", soon, func(c, _ net.Conn) { _, _ = io.Copy(io.Discard, c) }},
		{"it stops in middle", soon, func(c, proxy net.Conn) { pass(c, proxy); pass(proxy, c); _, _ = io.Copy(io.Discard, c) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			relay, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer relay.Close()
			var played sync.WaitGroup
			defer played.Wait()
			played.Go(func() {
				c, err := relay.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				proxy, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.Port()))
				if err != nil {
					t.Error(err)
					return
				}
				defer proxy.Close()
				tt.play(c, proxy)
			})
			visitor, err := h.Dial()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patient)
			defer cancel()
			ho := h.Handover(relay.Addr().String())
			session, err := attach(ctx, visitor, ho, tt.limit)
			if err != nil {
				t.Fatal(err)
			}
			<-h.Attached()
			_ = session.Close()
			if ho.Secret != [32]byte{} {
				t.Error("the secret is still there")
			}
		})
	}
}

// pass hands on what one read brings.
func pass(from, to net.Conn) {
	b := make([]byte, 16<<10)
	n, _ := from.Read(b)
	_, _ = to.Write(b[:n])
}
