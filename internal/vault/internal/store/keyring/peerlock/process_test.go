package peerlock_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
			waiter := run(t, "hold", tt.waiter)
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
			case <-time.After(time.Minute):
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
			goOn, end, err := os.Pipe() // the standard input of all, until the test closes it
			if err != nil {
				t.Fatal(err)
			}
			defer goOn.Close()
			rounds := func() int {
				all, _ := os.ReadFile(filepath.Join(home, "oracle"))
				return len(all)
			}
			var over atomic.Bool
			var killed atomic.Int32
			var wg sync.WaitGroup
			var mu sync.Mutex // guards failed
			var failed []error
			for _, role := range roles {
				wg.Go(func() {
					life := 300 * time.Millisecond // of a process at most; longer and longer where nobody gets anything done in it
					for !over.Load() {
						before := rounds()
						cmd := run(t, "rounds", role)
						cmd.Stdin = goOn
						out, err := cmd.StdoutPipe()
						if err == nil {
							err = cmd.Start()
						}
						if err != nil {
							t.Error(err)
							return
						}
						_, _ = out.Read(make([]byte, 1)) // it has begun, however long that took
						var timer *time.Timer
						if role != "older" { // who waits for it then waits for 30 s, or breaks its lock as it breaks others'
							timer = time.AfterFunc(20*time.Millisecond+rand.N(life), func() { _ = cmd.Process.Kill() })
						}
						err = cmd.Wait()
						if timer != nil {
							timer.Stop()
						}
						if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
							killed.Add(1)
							if rounds() == before {
								life = min(2*life, 20*time.Second)
							}
						} else if err != nil {
							mu.Lock()
							failed = append(failed, fmt.Errorf("%s: %w", role, err))
							mu.Unlock()
							return
						}
					}
				})
			}
			enough := func() bool { return rounds() >= 20 && killed.Load() >= 5 }
			for begun := time.Now(); time.Since(begun) < 2*time.Second || !enough() && time.Since(begun) < 2*time.Minute; {
				time.Sleep(10 * time.Millisecond)
			}
			over.Store(true)
			if err := end.Close(); err != nil {
				t.Error(err)
			}
			wg.Wait()
			for _, err := range failed {
				// What nobody can keep the older version from, if the machine lets it stand still at the wrong moment.
				if late, missing := os.ReadFile(filepath.Join(home, lateFile)); missing == nil {
					t.Logf("%v, after a removal that took %s", err, late)
				} else {
					t.Error(err)
				}
			}
			if len(failed) == 0 && !enough() {
				t.Errorf("%d rounds, %d processes killed: too few to tell anything", rounds(), killed.Load())
			}
			t.Logf("%d rounds, %d processes killed", rounds(), killed.Load())

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
