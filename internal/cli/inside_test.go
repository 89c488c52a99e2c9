package cli

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/wire"
)

// A proxy that takes only so many requests a second is asked again, when it says and as long as there is patience.
func TestPacer(t *testing.T) {
	f, _, _ := piped(t, "")
	synctest.Test(t, func(t *testing.T) {
		busy := &wire.Error{Code: wire.CodeRateLimited, Message: "too many requests", RetryAfter: 2}
		pace, begun := f.app.pacer(), time.Now()
		for _, times := range []int{0, 3} {
			left := times
			if err := pace.ask(t.Context(), func() error {
				if left--; left >= 0 {
					return busy
				}
				return nil
			}); err != nil || left != -1 {
				t.Errorf("refused %d times: %v", times, err)
			}
		}
		if d := time.Since(begun); d != 6*time.Second {
			t.Errorf("waited for %v", d)
		}
		if err := pace.ask(t.Context(), func() error { return wire.ErrNotFound }); !errors.Is(err, wire.ErrNotFound) {
			t.Errorf("what is no matter of time: %v", err)
		}
		if err := pace.ask(t.Context(), func() error { return busy }); !errors.Is(err, wire.ErrRateLimited) || time.Since(begun) != patience {
			t.Errorf("refused for ever: %v after %v", err, time.Since(begun))
		}
	})
}

func TestFlowsInRefusal(t *testing.T) {
	for text, want := range map[string]string{
		"the provider has no flow pkce_redirect (paste); it has device_code (device), browser_redirect (browser)":          "--flow device or --flow browser",
		"the port on the host is taken: end the program that listens there, or ask for another flow: device_code (device)": "--flow device",
		"the provider has no flow device_code (device)":                                                                    "",
	} {
		if got := flowFlags(flowsIn(wire.E(wire.CodeInvalidRequest, text))); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
