package login

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Any process of the machine can open connections to the listener. They are not kept, and keep nobody out.
func TestCrowd(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	l := w.browserLogin(t, secret.String{})
	const idle = 10 * maxConns
	gone := make(chan error, idle)
	for range idle {
		c, err := net.Dial("tcp", host(l))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			_, err := c.Read(make([]byte, 1))
			gone <- err
		}()
	}
	for range idle - maxConns {
		if err := <-gone; err == nil || strings.Contains(err.Error(), "timeout") {
			t.Fatalf("a connection stays: %v", err)
		}
	}
	if status, page := w.open(t, l.URL); status != http.StatusOK || !strings.Contains(page, "You are logged in") {
		t.Errorf("page: %d %s", status, page)
	}
	if _, err := l.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}
