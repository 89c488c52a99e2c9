package peerlock_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/peerlock"
)

// roles has another process of a test: "hold" or "rounds", and who takes the lock.
var roles = systest.Roles{"lock": child}

var login = store.Item{Service: store.ServiceLogins, Account: "acme:default"}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// child takes the lock as a role. "hold" says so and waits for its end; "rounds" takes it again and again and checks
// that nobody else has it, until its standard input ends; now and then it is killed, or kills itself, with the lock.
func child(args []string) error {
	peerlock.SetPace(4*time.Millisecond, 40*time.Millisecond)
	l := lockOf(args[1])
	ctx := context.Background()
	if args[0] == "hold" {
		if err := l.lock(ctx); err != nil {
			return err
		}
		fmt.Println("held")
		_, _ = os.Stdin.Read(make([]byte, 1))
		l.unlock()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	fmt.Print(".")
	oracle, err := os.OpenFile(filepath.Join(os.Getenv("HOME"), "oracle"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	for {
		if err := l.lock(ctx); errors.Is(err, context.Canceled) {
			return nil
		} else if err != nil {
			return err
		}
		// The kernel's lock of a file is gone with its process, before anybody can see that the process is.
		if err := syscall.Flock(int(oracle.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			return fmt.Errorf("%s has the lock, and so has another: %w", args[1], err)
		}
		if _, err := oracle.WriteString("."); err != nil {
			return err
		}
		time.Sleep(mathrand.N(time.Millisecond))
		if mathrand.N(40) == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		if err := syscall.Flock(int(oracle.Fd()), syscall.LOCK_UN); err != nil {
			return err
		}
		if o, ok := l.(older); ok && mathrand.N(3) == 0 {
			if err := o.abandon(); err != nil {
				return err
			}
			continue
		}
		l.unlock()
		time.Sleep(mathrand.N(3 * time.Millisecond))
	}
}

type locker interface {
	lock(context.Context) error
	unlock()
}

// oursLock takes the locks as the package does.
type oursLock struct{ release func() }

func (l *oursLock) lock(ctx context.Context) (err error) {
	l.release, err = peerlock.New(nil).Refresh(ctx, login)
	return err
}
func (l *oursLock) unlock() { l.release() }

func lockOf(role string) locker {
	const name = "acme-refresh.lock"
	home := os.Getenv("HOME")
	switch role {
	case "newer":
		return newer{filepath.Join(home, "log", "oauth", "locks", name), rand.Text()}
	case "older":
		return older{filepath.Join(home, ".llxprt", "oauth", "locks", name)}
	}
	return &oursLock{}
}

// isolate gives the test a home of its own, and the paths of the lock of login in it: the older version's and the newer's.
func isolate(t *testing.T) (home, oldLock, newLock string) {
	t.Helper()
	home = t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("LLXPRT_LOG_HOME", filepath.Join(home, "log"))
	t.Setenv("LLXPRT_CONFIG_HOME", "")
	t.Setenv("XDG_STATE_HOME", "")
	return home, filepath.Join(home, ".llxprt", "oauth", "locks", "acme-refresh.lock"), filepath.Join(home, "log", "oauth", "locks", "acme-refresh.lock")
}

// run is another process, which the caller starts.
func run(t *testing.T, what, role string) *exec.Cmd {
	t.Helper()
	cmd := roles.Command(t, "lock", what, role)
	cmd.Stderr = os.Stderr
	return cmd
}

// hold starts a process that has the lock when hold returns.
func hold(t *testing.T, role string) *exec.Cmd {
	t.Helper()
	p := roles.Start(t, nil, "lock", "hold", role)
	if line := p.Line(t); line != "held" {
		t.Fatalf("%s does not get the lock: %q", role, line)
	}
	return p.Cmd
}

// mustLock takes the lock, in less time than the older version needs to break one.
func mustLock(t *testing.T) (unlock func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	unlock, err := peerlock.New(nil).Refresh(ctx, login)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

// kill kills a process and waits for it, so that its number is free.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}
