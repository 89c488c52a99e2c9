package refresh_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
)

const namespaceVar = "CREDPROXY_TEST_NAMESPACE"

// inNamespace reports whether this is a process in a user and mount namespace of its own, where anybody may mount. If it is
// not, it runs the test again in one that is.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceVar) != "" {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.parallel=10", "-test.timeout=4m") // they wait most of the time
	cmd.Env = append(os.Environ(), namespaceVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that ends in a panic cleans up nothing
	runtime.LockOSThread()                                             // whose end is what Pdeathsig looks at
	defer runtime.UnlockOSThread()
	if out := systest.RunInNamespace(t, cmd, 0); !strings.Contains(out, "PASS") {
		t.Fatalf("in the namespace:\n%s", out)
	}
	return false
}

// newDisk is a directory with a small file system of its own.
func newDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill uses up all blocks of the disk. mend frees them.
func fill(t *testing.T, disk string) (mend func()) {
	t.Helper()
	ballast := filepath.Join(disk, "ballast")
	f, err := os.Create(ballast)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) || f.Close() != nil {
		t.Fatalf("fill the disk: %v", err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
	}
}

// mountReadOnly covers the disk with a read-only view of it; files that are open stay as they are. mend takes it away.
func mountReadOnly(t *testing.T, disk string) (mend func()) {
	t.Helper()
	if err := systest.MountReadOnly(disk); err != nil {
		t.Fatal(err)
	}
	mend = sync.OnceFunc(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(mend)
	return mend
}

// A store that refuses the new token. It is served, by every process, and stored when the store takes it again: by the process
// that has it, or, when that was killed meanwhile, by the next.
func TestStoreThatRefuses(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, tt := range []struct {
		name    string
		spoil   func(t *testing.T, disk string) (mend func())
		journal bool // is on the same disk
		earlier bool // there was a refresh before, so the journal has its file
		inCall  bool // it happens while the provider answers, else before
	}{
		{name: "full", spoil: fill},
		{name: "full with the journal", spoil: fill, journal: true, earlier: true},
		{name: "full with the journal since the call", spoil: fill, journal: true, inCall: true},
		{name: "read-only", spoil: mountReadOnly},
		{name: "read-only since the call", spoil: mountReadOnly, inCall: true},
	} {
		refused := func(t *testing.T) (c crash, by *child, mend func()) {
			t.Helper()
			t.Parallel()
			i := newIssuer(t, false, oauthtest.Options{})
			at, disk := newPlace(t, i), newDisk(t)
			at.Store = filepath.Join(disk, "store")
			if tt.journal {
				at.Recovery = []string{filepath.Join(disk, "recovery")}
			}
			c = crash{i, at.start(t), item("a"), i.login(t), 0}
			before := at.start(t)
			before.save(t, c.it, c.old)
			if tt.earlier {
				c.old = crash{i, before, c.it, c.old, 0}.wantNew(t, c.old)
				before.rest(t, c.it)
			}
			do := task{Role: "refresh one after the other", Place: at, Buckets: []string{"a"}}
			if tt.inCall {
				hold := make(chan struct{})
				i.Fault(oauthtest.Token, oauthtest.Fault{Wait: hold}, 1)
				by = startChild(t, do)
				by.until(t, "a before the call")
				mend = tt.spoil(t, disk)
				close(hold)
			} else {
				mend = tt.spoil(t, disk)
				by = startChild(t, do)
			}
			by.until(t, "a done") // it has served the new token
			c.used = i.Calls(oauthtest.Token)
			c.wantUses(t, oauthtest.Accepted)
			if !readFrom(t, c.next.raw, c.it).AccessToken.Equal(c.old.AccessToken) {
				t.Fatal("the store has taken it")
			}
			return c, by, mend
		}
		t.Run(tt.name, func(t *testing.T) {
			c, by, mend := refused(t)
			mend()
			waitUntilStored(t, c.next, c.it, c.old)
			by.goOn(t)
			if err := by.cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, by.stderr.String())
			}
			c.wantSettled(t, c.wantServed(t))
		})
		t.Run(tt.name+", killed", func(t *testing.T) {
			c, by, mend := refused(t)
			by.kill()
			if err := c.next.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			g := c.wantServed(t)
			if h := c.next.History(t.Context(), c.it, g); !h.Unsaved || !strings.Contains(h.Detail, "recovery files") {
				t.Errorf("history: %+v", h)
			}
			if again, err := c.refresh(t, c.old); err != nil || !again.AccessToken.Equal(g.AccessToken) {
				t.Errorf("refresh: %s", outcome(again, err))
			}
			if !c.next.log.says("level=ERROR", "REFUSED", c.it.Account) {
				t.Error("the log does not say that the store refuses")
			}
			c.wantCalls(t, 0)
			mend()
			waitUntilStored(t, c.next, c.it, c.old)
			c.wantSettled(t, g)
		})
	}
}

// With no durable place at all, the token is served from memory, everything says so, and the first place that takes it gets it.
func TestNothingCanBeWritten(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	i := newIssuer(t, false, oauthtest.Options{})
	at, disk := newPlace(t, i), newDisk(t)
	at.Store, at.Recovery = filepath.Join(disk, "store"), []string{filepath.Join(disk, "recovery"), filepath.Join(disk, "aside")}
	c := crash{i, at.start(t), item("a"), i.login(t), 0}
	c.next.save(t, c.it, c.old)
	mend := fill(t, disk)
	calls := i.Calls(oauthtest.Token)
	if _, err := c.refresh(t, c.old); !errors.Is(err, refresh.ErrUnsafe) || i.Calls(oauthtest.Token) != calls {
		t.Errorf("a token that is still valid: %v", err)
	}
	mend()
	c.old = expired(c.old)
	c.next.save(t, c.it, c.old)
	c.used = i.Calls(oauthtest.Token) + 1
	mend = fill(t, disk)
	if safe, err := c.next.Safe(t.Context()); safe || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Safe: %v, %v", safe, err)
	}
	g := c.wantNew(t, c.old)
	if again := c.wantServed(t); !again.AccessToken.Equal(g.AccessToken) {
		t.Error("another token is served than was answered")
	}
	if again, err := c.refresh(t, c.old); err != nil || !again.AccessToken.Equal(g.AccessToken) {
		t.Errorf("refresh: %s", outcome(again, err))
	}
	for _, words := range []string{"no place could be made", "could not be written ahead", "REFUSED"} {
		if !c.next.log.says("level=ERROR", words, c.it.Account) {
			t.Errorf("the log has no error that says %q", words)
		}
	}
	if h := c.next.History(t.Context(), c.it, g); !h.Unsaved || !strings.Contains(h.Detail, "memory only") {
		t.Errorf("history: %+v", h)
	}
	if err := c.next.journal.Close(); !errors.Is(err, journal.ErrNotDurable) || !strings.Contains(err.Error(), c.it.Account) {
		t.Errorf("Close of the journal: %v", err)
	}
	mend()
	waitUntilStored(t, c.next, c.it, c.old)
	if err := c.next.journal.Close(); err != nil {
		t.Errorf("Close of the journal, with room again: %v", err)
	}
	c.wantSettled(t, g)
}

func expired(g *grant.Grant) *grant.Grant {
	over := *g
	over.Expiry = 1
	return &over
}

// The store refuses, the token that waits in the journal is due, and the process that renews it is killed. The one that waits
// stays until the next one is there, and the store gets whichever is the newest.
func TestKilledWhileTheStoreRefuses(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, tt := range []struct {
		step  string
		newer bool // the second answer is there
		lost  bool // it is not, and the provider has given it
	}{
		{step: "after the lock"},
		{step: "before the call"},
		{step: "after the answer was read", lost: true},
		{step: "after the write ahead", newer: true},
		{step: "before the unlock", newer: true},
	} {
		t.Run(tt.step, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t, false, oauthtest.Options{})
			at, disk := newPlace(t, i), newDisk(t)
			at.Store = filepath.Join(disk, "store")
			c := crash{i, at.start(t), item("a"), i.login(t), 0}
			at.start(t).save(t, c.it, c.old)
			mend := mountReadOnly(t, disk)
			var waits *grant.Grant // in the journal, after the first refresh
			for n, step := range []string{"", tt.step} {
				by := startChild(t, task{Role: "refresh one after the other", Place: at, Buckets: []string{"a"}, Step: step})
				if n == 0 {
					by.until(t, "a done")
					by.kill()
					waits = readFrom(t, at.start(t).Store(), c.it)
					at.start(t).rest(t, c.it)
					continue
				}
				by.until(t, "a "+step)
				by.kill()
			}
			c.used = i.Calls(oauthtest.Token)
			g := c.next.read(t, c.it)
			if g.AccessToken.Equal(waits.AccessToken) == tt.newer || !i.Valid(g.AccessToken.Reveal()) {
				t.Error("it is not the newest that is served")
			}
			mend()
			if err := c.next.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			if !waitUntilStored(t, c.next, c.it, c.old).AccessToken.Equal(g.AccessToken) {
				t.Fatal("another token was stored than was served")
			}
			c.wantCalls(t, 0)
			c.next.rest(t, c.it)
			if !tt.lost {
				c.wantNew(t, g)
				c.wantUses(t, oauthtest.Accepted)
				if i.reused() != 0 {
					t.Error("a refresh token was used twice")
				}
				return
			}
			if again, err := c.refresh(t, g); err == nil || !strings.Contains(err.Error(), "interrupted") {
				t.Errorf("refresh: %s", outcome(again, err))
			}
			if uses := i.uses(g.RefreshToken); !slices.Equal(uses, []oauthtest.Outcome{oauthtest.Accepted, oauthtest.Reused}) {
				t.Errorf("uses of the token that waited: %q", uses)
			}
		})
	}
}
