package sandbox

import (
	"context"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The command's time to end begins when it has the signal, however long the engine takes to bring it.
func TestGraceBeginsWithTheSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT} {
		synctest.Test(t, func(t *testing.T) {
			const grace, slow = 5 * time.Second, 8 * time.Second
			command := &process{done: make(chan struct{})}
			r := &run{sandbox: &Sandbox{grace: grace}, plan: plan{engine: Engine{Kind: Docker}}, proc: command}
			signals := make(chan os.Signal, 1)
			signals <- sig
			var brought []syscall.Signal
			begun, killed := time.Now(), time.Duration(0)
			forward := func(_ context.Context, sig syscall.Signal) {
				time.Sleep(slow)
				brought = append(brought, sig)
			}
			r.supervise(t.Context(), signals, false, forward, func() {
				killed = time.Since(begun)
				close(command.done)
			})
			if !slices.Equal(brought, []syscall.Signal{sig}) || killed != slow+grace {
				t.Errorf("%v: brought %v, killed after %v, want %v", sig, brought, killed, slow+grace)
			}
		})
	}
}
