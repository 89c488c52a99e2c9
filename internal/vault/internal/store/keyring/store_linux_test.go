package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring/keyringtest"
	"github.com/credproxy/credproxy/internal/vault/internal/store/storetest"
)

var item = store.Item{Service: store.ServiceLogins, Account: "acme:default"}

func TestConformance(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	storetest.Run(t, func(t *testing.T) (a, b store.Store) { return open(t, s), open(t, s) })
}

// What the original client stored is found and changed in place: same attributes, same label, no second item.
func TestItemsOfTheOriginalClient(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	for _, tt := range []struct {
		name, account, label string
		attributes           map[string]string
	}{
		{"1.2.0", "acme:v1", "acme:v1@llxprt-code-oauth:default (keyring v3.6.3)", map[string]string{"target": "default", "application": "rust-keyring"}},
		{"1.3.0", "acme:v2", "keyring:acme:v2@llxprt-code-oauth", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			it := store.Item{Service: store.ServiceLogins, Account: tt.account}
			name := map[string]string{"service": it.Service, "username": it.Account}
			attributes := maps.Clone(name)
			maps.Copy(attributes, tt.attributes)
			var args []string
			for k, v := range attributes {
				args = append(args, k, v)
			}
			s.StoreAs(t, tt.label, "theirs", args...)

			k := open(t, s)
			wantValue(t, k, it, "theirs")
			for _, v := range []string{"ours", "ours again"} {
				write(t, k, it, v)
				if got := s.Lookup(t, "service", it.Service, "username", it.Account); got != v {
					t.Errorf("another program finds %q, want %q", got, v)
				}
				if got := s.Lookup(t, args...); got != v {
					t.Errorf("by all its attributes: %q, want %q", got, v)
				}
				found := s.Items(t, name)
				if len(found) != 1 || found[0].Label != tt.label || !maps.Equal(found[0].Attributes, attributes) {
					t.Errorf("items: %+v", found)
				}
			}
			if list, err := k.List(t.Context(), it.Service); err != nil || !slices.Contains(list, it.Account) {
				t.Errorf("List = %q, %v", list, err)
			}
			if err := k.Delete(t.Context(), it); err != nil {
				t.Fatal(err)
			}
			if found := s.Items(t, name); len(found) != 0 {
				t.Errorf("left: %+v", found)
			}
		})
	}
}

func TestOtherProgramsFindOurItems(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	const value = `{"access_token":"test-access-token-1","token_type":"Bearer"}`
	write(t, k, item, value)
	if got := s.Lookup(t, "service", item.Service, "username", item.Account); got != value {
		t.Errorf("lookup = %q", got)
	}
	found := s.Items(t, map[string]string{"service": item.Service})
	want := map[string]string{"service": item.Service, "username": item.Account}
	if len(found) != 1 || found[0].Label != "keyring:acme:default@llxprt-code-oauth" || !maps.Equal(found[0].Attributes, want) {
		t.Errorf("items: %+v", found)
	}
}

func TestSeveralItemsWithOneName(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	name := []string{"service", item.Service, "username", item.Account}
	s.StoreAs(t, "first", "one", name...)
	s.StoreAs(t, "second", "two", append(name, "target", "default", "application", "rust-keyring")...)
	if n := len(s.Items(t, map[string]string{"service": item.Service})); n != 2 {
		t.Fatalf("%d items, want 2", n)
	}
	v, err := k.Read(t.Context(), item)
	if err != nil || v.Reveal() != "one" && v.Reveal() != "two" {
		t.Fatalf("Read: %v", err)
	}
	write(t, k, item, "three")
	if n := len(s.Items(t, map[string]string{"service": item.Service})); n != 2 {
		t.Errorf("%d items after Write, want 2", n)
	}
	out, err := s.SecretTool(t, "", append([]string{"search", "--all"}, name...)...)
	if n := countValue(out, "three"); err != nil || n != 2 {
		t.Errorf("%d items have the new value, want 2; %v", n, err)
	}
	wantValue(t, k, item, "three")
	if list, err := k.List(t.Context(), item.Service); err != nil || !slices.Equal(list, []string{item.Account}) {
		t.Errorf("List = %q, %v", list, err)
	}
	if err := k.Delete(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read after Delete: %v", err)
	}
}

func TestNewestOfSeveralCounts(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	name := []string{"service", item.Service, "username", item.Account}
	s.StoreAs(t, "first", "old", name...)
	// Times of change are whole seconds.
	for second := time.Now().Unix(); time.Now().Unix() < second+2; time.Sleep(10 * time.Millisecond) {
	}
	s.StoreAs(t, "second", "new", append(name, "target", "default")...)
	wantValue(t, k, item, "new")
}

func TestListPassesOverWhatIsNotOurs(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	write(t, k, item, "v")
	s.StoreAs(t, "probe", "x", "service", item.Service, "username", "__securestore_probe__abcd1234")
	s.StoreAs(t, "keytar", "x", "service", item.Service, "account", "acme")
	s.StoreAs(t, "empty", "x", "service", item.Service, "username", "")
	s.StoreAs(t, "other", "x", "service", "other", "username", "acme")
	if list, err := k.List(t.Context(), item.Service); err != nil || !slices.Equal(list, []string{item.Account}) {
		t.Errorf("List = %q, %v", list, err)
	}
}

func TestLocked(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	write(t, k, item, "v")
	s.Lock(t)
	wantAll(t, k, item, store.ErrLocked, "unlock it")
	wantAll(t, open(t, s), store.Item{Service: "nobody", Account: "knows"}, store.ErrLocked, "unlock it")
	s.Unlock(t)
	wantValue(t, k, item, "v")
	write(t, k, item, "w")
	wantValue(t, open(t, s), item, "w")
}

func TestNoCollection(t *testing.T) {
	s := keyringtest.New(t)
	s.StartKeyring(t, "--start")
	k := open(t, s)
	if _, err := k.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read: %v", err)
	}
	if list, err := k.List(t.Context(), item.Service); err != nil || len(list) != 0 {
		t.Errorf("List = %q, %v", list, err)
	}
	for name, err := range map[string]error{"Write": k.Write(t.Context(), item, secret.New("v")), "Check": k.Check(t.Context())} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoService(t *testing.T) {
	s := keyringtest.New(t)
	wantAll(t, open(t, s), item, store.ErrUnavailable, "no program offers a keyring")
}

func TestNoBus(t *testing.T) {
	dir := t.TempDir()
	keyringtest.Home(t, dir)
	openAt := func(bus string) *keyring.Store {
		k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(dir, "locks"), Bus: bus})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		return k
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	wantAll(t, openAt(""), item, store.ErrUnavailable, "no D-Bus session")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "autolaunch:")
	wantAll(t, openAt(""), item, store.ErrUnavailable, "no D-Bus session")
	for bus, says := range map[string]string{
		"unix:path=" + dir + "/none":     "none",
		"tcp:host=localhost,port=1":      "no Unix socket",
		"unixexec:path=/bin/false":       "no Unix socket",
		"garbage":                        "no Unix socket",
		"unix:abstract=credproxy-nobody": "credproxy-nobody",
	} {
		wantAll(t, openAt(bus), item, store.ErrUnavailable, says)
	}
	if _, err := keyring.Open(keyring.Options{LockDir: "relative"}); err == nil {
		t.Error("a relative LockDir was taken")
	}
}

func TestBusIsFoundThroughTheEnvironment(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	write(t, k, item, "v")
	found := func() *keyring.Store {
		k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(s.Dir, "locks"), Limit: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		return k
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus;"+s.Address)
	wantValue(t, found(), item, "v")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(s.Dir, "run"))
	wantValue(t, found(), item, "v")
}

func TestServiceThatHangs(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k, patient := openWithin(t, s, 0), open(t, s)
	write(t, patient, item, "v")
	for until := time.Now().Add(time.Minute); k.Check(t.Context()) != nil; { // it has to be connected, in its 3 s
		if time.Now().After(until) {
			t.Fatal("the keyring does not answer within 3 s")
		}
	}
	signal(t, s, syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 4 {
		it := store.Item{Service: item.Service, Account: fmt.Sprintf("acme:%d", i)}
		wg.Go(func() { wantAll(t, k, it, store.ErrUnavailable, "did not answer within 3 s") })
	}
	// A caller with less time does not wait for the limit, and is told of its own.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := patient.Read(ctx, item); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read with 100 ms: %v", err)
	}
	wg.Wait()
	signal(t, s, syscall.SIGCONT)
	// It may still be busy with what was asked for meanwhile, and it may have been asked to write or delete.
	if err := patient.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	write(t, patient, item, "w")
	wantValue(t, patient, item, "w")
}

func TestBusThatHangs(t *testing.T) {
	dir, err := os.MkdirTemp("", "credproxy-keyring-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	keyringtest.Home(t, dir)
	l, err := net.Listen("unix", filepath.Join(dir, "bus"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(dir, "locks"), Bus: "unix:path=" + filepath.Join(dir, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Check(t.Context()); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "did not answer within 3 s") {
		t.Errorf("Check: %v", err)
	}
	patient, err := keyring.Open(keyring.Options{LockDir: filepath.Join(dir, "locks"), Bus: "unix:path=" + filepath.Join(dir, "bus"), Limit: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := patient.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Check: %v", err)
	}
}

func TestRestarts(t *testing.T) {
	s := keyringtest.NewUnlocked(t)
	k := open(t, s)
	write(t, k, item, "v")
	s.EndKeyring(t)
	wantAll(t, k, item, store.ErrUnavailable, "no program offers a keyring")
	s.StartKeyring(t, "--unlock")
	wantValue(t, k, item, "v")
	write(t, k, item, "w")

	s.EndKeyring(t)
	s.StartKeyring(t, "--unlock") // nobody asked in between
	wantValue(t, k, item, "w")

	keyringtest.End(s.Bus)
	keyringtest.End(s.Keyring)
	s.StartBus(t)
	s.StartKeyring(t, "--unlock")
	wantValue(t, k, item, "w")
	write(t, k, item, "x")
	wantValue(t, open(t, s), item, "x")
}

func signal(t *testing.T, s *keyringtest.Session, sig syscall.Signal) {
	t.Helper()
	if err := s.Keyring.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func countValue(out, value string) int {
	n := 0
	for line := range strings.SplitSeq(out, "\n") {
		if line == "secret = "+value {
			n++
		}
	}
	return n
}
