package refresh_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/keyringtest"
)

// newKeyringPlace is a place in a keyring of its own. The locks of the original client are in a home of its own, too.
func newKeyringPlace(t *testing.T, i *issuer) (*keyringtest.Session, place) {
	t.Helper()
	session := keyringtest.NewUnlocked(t)
	at := newPlace(t, i)
	at.Kind, at.Bus = "keyring", session.Address
	t.Setenv("HOME", filepath.Join(session.Dir, "home"))
	t.Setenv("XDG_STATE_HOME", "")
	return session, at
}

func TestManyProcessesWithAKeyring(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	_, at := newKeyringPlace(t, i)
	manyProcesses(t, i, at)
}

func TestKilledAtEveryStepWithAKeyring(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	_, at := newKeyringPlace(t, i)
	killAtEveryStep(t, i, at)
}

// A long time after the crash, the original client's lock is taken over slowly: one of its older version may be at it. That is
// no refresh that is running.
func TestInterruptedLongAgoWithAKeyring(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	_, at := newKeyringPlace(t, i)
	c := crashAt(t, i, at, "before the call")
	locks, err := filepath.Glob(filepath.Join(os.Getenv("HOME"), ".llxprt", "oauth", "locks", "*-refresh.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("locks of the original client: %q, %v", locks, err)
	}
	record, err := os.ReadFile(locks[0])
	if err != nil {
		t.Fatal(err)
	}
	old := fmt.Sprintf(`"timestamp":%d`, time.Now().Add(-time.Hour).UnixMilli())
	aged := regexp.MustCompile(`"timestamp": ?\d+`).ReplaceAllString(string(record), old)
	if aged == string(record) {
		t.Fatal("the lock has no timestamp")
	}
	if err := os.WriteFile(locks[0], []byte(aged), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := c.next.History(t.Context(), c.it, c.old); !strings.Contains(h.Detail, "interrupted") {
		t.Errorf("history: %+v", h)
	}
}

// The keyring is locked while the provider answers. The new token is served all the same, and stored once the keyring is unlocked,
// by the process that has it.
func TestKeyringLockedInTheCall(t *testing.T) {
	l := lockInTheCall(t)
	l.session.Unlock(t)
	waitUntilStored(t, l.before, l.it, l.old)
	l.killed.kill()
	l.wantSettled(t, l.wantServed(t))
}

// The process that has the new token is killed while the keyring is still locked. Others that have the key in memory serve it;
// those that do not have it use no refresh token that may have been used. Once the keyring is unlocked, the next stores it.
func TestKilledWhileTheKeyringIsLocked(t *testing.T) {
	l := lockInTheCall(t)
	g := readFrom(t, l.before.Store(), l.it)
	if g.AccessToken.Equal(l.old.AccessToken) || !l.i.Valid(g.AccessToken.Reveal()) {
		t.Fatal("the new token is not served while the keyring is locked")
	}
	if h := l.before.History(t.Context(), l.it, g); !h.Unsaved || !strings.Contains(h.Detail, "recovery files") || h.Outcome != journal.OK {
		t.Errorf("history: %+v", h)
	}
	if again, err := l.before.Refresh(t.Context(), l.it, l.old); err != nil || !again.AccessToken.Equal(g.AccessToken) {
		t.Errorf("refresh while it is locked: %s", outcome(again, err))
	}
	l.killed.kill()
	if _, err := l.next.Store().Read(t.Context(), l.it); !errors.Is(err, store.ErrLocked) {
		t.Errorf("read by a process without the key: %v", err)
	}
	if again, err := l.next.Refresh(t.Context(), l.it, l.old); !errors.Is(err, store.ErrLocked) {
		t.Errorf("refresh by a process without the key: %s", outcome(again, err))
	}
	l.session.Unlock(t)
	if err := l.next.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	l.wantSettled(t, l.wantServed(t))
}

// locked is a login whose keyring was locked while the provider answered.
type locked struct {
	crash
	session *keyringtest.Session
	before  *process // had the key before
	killed  *child   // has the new token; still alive
}

func lockInTheCall(t *testing.T) locked {
	t.Helper()
	i := newIssuer(t, false, oauthtest.Options{})
	session, at := newKeyringPlace(t, i)
	l := locked{crash{i, at.start(t), item("a"), i.login(t), 0}, session, at.start(t), nil}
	l.before.save(t, l.it, l.old)
	if _, err := l.before.journal.Seal(t.Context(), l.it, l.old.Seal()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	i.Fault(oauthtest.Token, oauthtest.Fault{Wait: hold}, 1)
	l.killed = startChild(t, task{Role: "refresh one after the other", Place: at, Buckets: []string{"a"}})
	l.killed.until(t, "a before the call")
	session.Lock(t)
	close(hold)
	l.killed.until(t, "a done") // it has served the new token
	l.used = i.Calls(oauthtest.Token)
	l.wantUses(t, oauthtest.Accepted)
	return l
}
