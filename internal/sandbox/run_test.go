package sandbox

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
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

// A signal that the engine cannot bring ends its client, which may then say that all went well. One that the engine only takes its
// time for does not, nor one that comes when the command has had another.
func TestSignalThatIsNotBrought(t *testing.T) {
	engine := filepath.Join(t.TempDir(), "podman")
	if err := os.WriteFile(engine, []byte("#!/bin/sh\n[ -e \"$0.works\" ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	works := func(yes bool) {
		t.Helper()
		err := os.Remove(engine + ".works")
		if yes {
			err = os.WriteFile(engine+".works", nil, 0o600)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		bring  func(r *run)
		status int
	}{
		{"it cannot be brought", func(r *run) { works(false); r.signalContainer(t.Context(), syscall.SIGTERM) }, 143},
		{"it takes its time", func(r *run) { works(false); r.signalContainer(gone, syscall.SIGTERM) }, 5},
		{"a second one", func(r *run) {
			works(true)
			r.signalContainer(t.Context(), syscall.SIGTERM)
			works(false)
			r.signalContainer(t.Context(), syscall.SIGTERM)
		}, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The client: told to end it exits with 0, else with the command's status.
			cmd := exec.Command("/bin/sh", "-c", `trap 'exit 0' TERM; echo ready; read line; exit 5`)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdout.Close()
			cmd.Stdout = out
			r := &run{sandbox: &Sandbox{engine: Engine{Kind: Podman, Path: engine}, host: Host{Environ: os.Environ()}}}
			if r.proc, err = start(cmd, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			out.Close()
			if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			c.bring(r)
			stdin.Close()
			<-r.proc.done
			if got := r.clientStatus(); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
		})
	}
}
