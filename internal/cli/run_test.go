package cli

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/sandbox"
)

// A connection that ends with its sandbox is nothing to speak of; one that ends before is.
func TestNoticeLoss(t *testing.T) {
	for _, tt := range []struct {
		name         string
		loss         bool
		after, until time.Duration // the loss, and the end of the sandbox after that
		logged       bool
	}{
		{"never", false, 0, time.Hour, false},
		{"at the end", true, time.Hour, time.Second, false},
		{"before the end", true, time.Hour, lossTime + time.Second, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said strings.Builder
			lost := make(chan struct{})
			end := noticeLoss(slog.New(slog.NewTextHandler(&said, nil)), lost)
			time.Sleep(tt.after)
			if tt.loss {
				close(lost)
			}
			time.Sleep(tt.until)
			end()
			if got := strings.Contains(said.String(), "has lost its connection"); got != tt.logged {
				t.Errorf("%s: logged %v, want %v: %s", tt.name, got, tt.logged, said.String())
			}
		})
	}
}

func TestWhyTransport(t *testing.T) {
	for _, tt := range []struct {
		asked string
		spec  sandbox.Spec
		want  string
	}{
		{"tls", sandbox.Spec{Transport: sandbox.TransportTLS}, "asked for"},
		{"unix", sandbox.Spec{Transport: sandbox.TransportUnix}, "asked for"},
		{"auto", sandbox.Spec{Transport: sandbox.TransportUnix}, "a mounted socket works with this engine"},
		{"auto", sandbox.Spec{Transport: sandbox.TransportTLS, Engine: sandbox.Engine{VM: true}}, "the engine runs containers in a virtual machine"},
		{"auto", sandbox.Spec{Transport: sandbox.TransportTLS}, "the sandbox has other user ids than this host"},
	} {
		if got := whyTransport(tt.asked, tt.spec); got != tt.want {
			t.Errorf("%s, %s: %q, want %q", tt.asked, tt.spec.Transport, got, tt.want)
		}
	}
}
