package peerlock_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Every one of the three waits for every other one, and takes over the lock that it leaves when it is killed. (Except
// for what the original does not do: the newer version waits for a record of the older form for ever, and the older one
// for 30 s whatever the record says. The two do not see each other at all.)
func TestEveryoneWaitsForEveryone(t *testing.T) {
	for _, tt := range []struct {
		holder, waiter string
		takesOver      bool
	}{
		{"ours", "ours", true}, {"ours", "newer", true}, {"ours", "older", false},
		{"newer", "ours", true}, {"newer", "newer", true},
		{"older", "ours", true}, {"older", "older", false},
	} {
		t.Run(tt.holder+" "+tt.waiter, func(t *testing.T) {
			isolate(t)
			holder := hold(t, tt.holder)
			waiter := run(t, "hold "+tt.waiter)
			stdin, err := waiter.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := stdin.Close(); err != nil { // it lets go at once
				t.Fatal(err)
			}
			if err := waiter.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- waiter.Wait() }()
			select {
			case err := <-done:
				t.Fatalf("%s did not wait: %v", tt.waiter, err)
			case <-time.After(100 * time.Millisecond):
			}
			kill(t, holder)
			if !tt.takesOver {
				_ = waiter.Process.Kill()
				<-done
				return
			}
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("%s does not take over the lock of a killed process", tt.waiter)
				_ = waiter.Process.Kill()
				<-done
			}
		})
	}
}

// A process that was killed and not yet waited for is as dead.
func TestZombie(t *testing.T) {
	isolate(t)
	holder := hold(t, "ours")
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	mustLock(t)()
	_ = holder.Wait()
}

// Many processes take the lock, and are killed with it and at any other instant. No two ever have it at once.
func TestNeverTwo(t *testing.T) {
	for name, roles := range map[string][]string{
		"ours":           {"ours", "ours", "ours", "ours", "ours", "ours", "ours", "ours"},
		"with the newer": {"ours", "ours", "ours", "newer"},
		"with the older": {"ours", "ours", "ours", "older"},
	} {
		t.Run(name, func(t *testing.T) {
			home, _, _ := isolate(t)
			until := time.Now().Add(2 * time.Second)
			var wg sync.WaitGroup
			var mu sync.Mutex
			killed := 0
			for _, role := range roles {
				wg.Go(func() {
					for time.Now().Before(until) {
						cmd := run(t, fmt.Sprintf("rounds %s %d", role, until.UnixMilli()))
						if err := cmd.Start(); err != nil {
							t.Error(err)
							return
						}
						var timer *time.Timer
						if role != "older" { // who waits for it then waits for 30 s, or breaks its lock as it breaks others'
							timer = time.AfterFunc(20*time.Millisecond+rand.N(300*time.Millisecond), func() { _ = cmd.Process.Kill() })
						}
						err := cmd.Wait()
						if timer != nil {
							timer.Stop()
						}
						if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
							mu.Lock()
							killed++
							mu.Unlock()
						} else if err != nil {
							t.Errorf("%s: %v", role, err)
							return
						}
					}
				})
			}
			wg.Wait()
			rounds, err := os.ReadFile(filepath.Join(home, "oracle"))
			if err != nil || len(rounds) < 20 || killed < 5 {
				t.Errorf("%d rounds, %d processes killed, %v: too few to tell anything", len(rounds), killed, err)
			}
			t.Logf("%d rounds, %d processes killed", len(rounds), killed)

			// After all that, nothing keeps the next one from the lock.
			if name == "with the older" {
				return
			}
			mustLock(t)()
			for _, dir := range []string{".llxprt", "log"} {
				left, err := filepath.Glob(filepath.Join(home, dir, "oauth", "locks", "*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, path := range left {
					if !strings.HasSuffix(path, ".tmp") && !strings.HasSuffix(path, ".fence") {
						t.Errorf("left: %s", path)
					}
				}
			}
		})
	}
}
