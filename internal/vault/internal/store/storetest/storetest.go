// Package storetest is the conformance suite of the stores: what [Run] shows of one store, the layers above expect of
// all of them.
package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// canary is in every value that must not show up in an error.
const canary = "test-canary-in-a-value"

// Run tests the store of which open returns two handles, as two processes would have them. What open returns may hold
// items of earlier calls: every test uses services of its own.
func Run(t *testing.T, open func(t *testing.T) (a, b store.Store)) {
	for _, tt := range []struct {
		name string
		f    func(*testing.T, store.Store, store.Store)
	}{
		{"not found", notFound},
		{"life of an item", life},
		{"values", values},
		{"accounts", accounts},
		{"services", services},
		{"list", list},
		{"refused", refused},
		{"versions", versions},
		{"lock", lock},
		{"lock waits", lockWaits},
		{"cancelled", cancelled},
		{"different items at once", differentItems},
		{"one item at once", oneItem},
		{"check", check},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t)
			tt.f(t, a, b)
		})
	}
}

func newService() string { return "credproxy-test-" + strings.ToLower(rand.Text()) }

func newItem() store.Item { return store.Item{Service: newService(), Account: "acme:default"} }

func write(t *testing.T, s store.Store, it store.Item, value string) {
	t.Helper()
	if err := s.Write(t.Context(), it, secret.New(value)); err != nil {
		t.Fatalf("Write %s: %v", it, err)
	}
}

// wantValue checks what handle s reads.
func wantValue(t *testing.T, s store.Store, it store.Item, want string) {
	t.Helper()
	got, err := s.Read(t.Context(), it)
	if err != nil {
		t.Fatalf("Read %s: %v", it, err)
	}
	if got.Reveal() != want {
		t.Fatalf("Read %s: %d bytes that are not the %d bytes written", it, len(got.Reveal()), len(want))
	}
}

func wantAbsent(t *testing.T, s store.Store, it store.Item) {
	t.Helper()
	if got, err := s.Read(t.Context(), it); !errors.Is(err, store.ErrNotFound) || !got.IsZero() {
		t.Fatalf("Read %s: error %v, want ErrNotFound", it, err)
	}
}

func wantList(t *testing.T, s store.Store, service string, want ...string) {
	t.Helper()
	got, err := s.List(t.Context(), service)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("List = %q, want %q", got, want)
	}
}

func notFound(t *testing.T, a, b store.Store) {
	it := newItem()
	wantAbsent(t, a, it)
	wantList(t, a, it.Service)
	write(t, b, it, "v")
	wantAbsent(t, a, store.Item{Service: it.Service, Account: "acme"})
	wantAbsent(t, a, store.Item{Service: it.Service, Account: "acme:default2"})
	wantAbsent(t, a, store.Item{Service: it.Service + "2", Account: it.Account})
}

func life(t *testing.T, a, b store.Store) {
	it := newItem()
	if err := a.Delete(t.Context(), it); err != nil {
		t.Fatalf("Delete of what never was: %v", err)
	}
	write(t, a, it, "one")
	wantValue(t, b, it, "one")
	write(t, b, it, "two, which is longer")
	wantValue(t, a, it, "two, which is longer")
	write(t, a, it, "3")
	wantValue(t, b, it, "3")
	if err := b.Delete(t.Context(), it); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantAbsent(t, a, it)
	wantAbsent(t, b, it)
	if err := a.Delete(t.Context(), it); err != nil {
		t.Fatalf("Delete of what was deleted: %v", err)
	}
	write(t, b, it, "again")
	wantValue(t, a, it, "again")
}

func values(t *testing.T, a, b store.Store) {
	it := newItem()
	for _, v := range []string{
		"x",
		" ",
		"\n",
		"ends with a newline\n",
		"lines\r\nof\n\ntext\ttoo",
		`"quotes" 'of' ` + "`all` kinds \\ and \\\\ backslashes",
		`{"access_token":"test-access-token-1","expiry":1700000000,"token_type":"Bearer"}`,
		"non-ASCII: é 漢字 🔑 e\u0301",
		"0x6162", "616263", "go-keyring-base64:eA==",
		"age-encryption.org/v1\n-> X25519 x\n",
		strings.Repeat("é漢", 10_000),
		strings.Repeat("0123456789abcdef", store.MaxValue/16),
	} {
		write(t, a, it, v)
		wantValue(t, a, it, v)
		wantValue(t, b, it, v)
	}
}

func accounts(t *testing.T, a, b store.Store) {
	service := newService()
	names := []string{
		"abcdefghijklmnopqrstuvwxyz0123456789._@-:default",
		"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-:default",
		"acme:default", "Acme:default", "ACME:DEFAULT", "acme:Default",
		"acme", "acme:", ":acme", "acme::default", "acme:default.age", "acme.age:damaged",
		"me@example.com:work", "a.b-c_d@e:1",
		".", "..", ".hidden", "-rf", "a/b", "../a", "%61cme", "acme%3adefault", "acme*", "acme default", `a"b\c`, "é", "e\u0301", "漢字",
		strings.Repeat("A", 64) + ":" + strings.Repeat("Z", 64),
		strings.Repeat("a", 64) + ":" + strings.Repeat("z", 64),
		strings.Repeat("é", 300), strings.Repeat("x", store.MaxName), strings.Repeat("x", store.MaxName-1),
	}
	for i, name := range names {
		write(t, a, store.Item{Service: service, Account: name}, fmt.Sprintf("value %d", i))
	}
	for i, name := range names {
		wantValue(t, b, store.Item{Service: service, Account: name}, fmt.Sprintf("value %d", i))
	}
	sorted := slices.Sorted(slices.Values(names))
	wantList(t, b, service, sorted...)
	for i, name := range sorted {
		if err := b.Delete(t.Context(), store.Item{Service: service, Account: name}); err != nil {
			t.Fatalf("Delete %q: %v", name, err)
		}
		wantList(t, a, service, sorted[i+1:]...)
	}
}

func services(t *testing.T, a, b store.Store) {
	base := newService()
	names := []string{base, base + ".2", strings.ToUpper(base), base + "/x", "." + base}
	for _, name := range names {
		write(t, a, store.Item{Service: name, Account: "acme:default"}, "of "+name)
	}
	for _, name := range names {
		wantValue(t, b, store.Item{Service: name, Account: "acme:default"}, "of "+name)
		wantList(t, b, name, "acme:default")
	}
	if err := a.Delete(t.Context(), store.Item{Service: base, Account: "acme:default"}); err != nil {
		t.Fatal(err)
	}
	wantList(t, b, base)
	wantValue(t, b, store.Item{Service: names[1], Account: "acme:default"}, "of "+names[1])
}

func list(t *testing.T, a, b store.Store) {
	service := newService()
	var want []string
	for i := range 50 {
		name := fmt.Sprintf("p%02d:bucket", (i*37)%50)
		write(t, a, store.Item{Service: service, Account: name}, "v")
		want = append(want, name)
	}
	slices.Sort(want)
	wantList(t, a, service, want...)
	wantList(t, b, service, want...)
}

func refused(t *testing.T, a, b store.Store) {
	service := newService()
	v := secret.New(canary)
	for name, it := range map[string]store.Item{
		"no account":   {Service: service},
		"no service":   {Account: "acme"},
		"zero byte":    {Service: service, Account: "a\x00b"},
		"not UTF-8":    {Service: service, Account: "a\xffb"},
		"name too big": {Service: service, Account: strings.Repeat("x", store.MaxName+1)},
	} {
		err := a.Write(t.Context(), it, v)
		if err == nil {
			t.Errorf("%s: written", name)
		} else if strings.Contains(err.Error(), canary) || !printable(err.Error()) {
			t.Errorf("%s: the error has the value or raw bytes of the name", name)
		}
		if _, err := a.Read(t.Context(), it); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: Read: %v, want an error about the name", name, err)
		}
		if err := a.Delete(t.Context(), it); err == nil {
			t.Errorf("%s: deleted", name)
		}
		if _, err := a.Lock(t.Context(), it); err == nil {
			t.Errorf("%s: locked", name)
		}
	}
	it := store.Item{Service: service, Account: "acme"}
	write(t, a, it, "old")
	for name, v := range map[string]secret.String{
		"empty": {},
		"large": secret.New(canary + strings.Repeat("x", store.MaxValue)),
	} {
		if err := a.Write(t.Context(), it, v); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s value: written, or in the error", name)
		}
		wantValue(t, b, it, "old")
	}
	wantList(t, b, service, "acme")
}

// printable reports whether the text can be a line of a log as it is.
func printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) })
}

func versions(t *testing.T, a, b store.Store) {
	it := newItem()
	version := func() string {
		t.Helper()
		v, err := b.Version(t.Context(), it)
		if err != nil {
			t.Fatalf("Version: %v", err)
		}
		return v
	}
	last := version()
	if last == "" {
		return // a store without versions
	}
	for i, change := range []func() error{
		func() error { return a.Write(t.Context(), it, secret.New("one")) },
		func() error { return a.Write(t.Context(), it, secret.New("two")) },
		func() error { return b.Write(t.Context(), it, secret.New("six")) },
		func() error { return a.Delete(t.Context(), it) },
		func() error { return a.Write(t.Context(), it, secret.New("one")) },
		func() error { return b.Delete(t.Context(), it) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if v := version(); v == last {
			t.Errorf("change %d: the version is still %q", i+1, v)
		} else {
			last = v
		}
	}
	// A version that changes all the time would make every check a read.
	write(t, a, it, "kept")
	deadline := time.Now().Add(10 * time.Second)
	for last = version(); ; last = version() {
		if version() == last {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the version never comes to rest")
		}
	}
}

func lock(t *testing.T, a, b store.Store) {
	it := newItem()
	unlock, err := a.Lock(t.Context(), it)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]store.Store{"the other handle": b, "the same handle": a} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if _, err := s.Lock(ctx, it); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s got the lock too: %v", name, err)
		}
		cancel()
	}
	other, err := b.Lock(t.Context(), store.Item{Service: it.Service, Account: "acme:other"})
	if err != nil {
		t.Fatalf("another item's lock: %v", err)
	}
	other()
	write(t, b, it, "Write does not take the lock")
	unlock()
	again, err := b.Lock(t.Context(), it)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	unlock() // a second time: it must not release what the other handle has now
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := a.Lock(ctx, it); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second unlock released another's lock: %v", err)
	}
	again()
}

// lockWaits has both handles add to one value under the lock; not one addition may be lost.
func lockWaits(t *testing.T, a, b store.Store) {
	it := newItem()
	var wg sync.WaitGroup
	const each = 4
	for _, s := range []store.Store{a, b, a, b} {
		wg.Go(func() {
			for range each {
				unlock, err := s.Lock(t.Context(), it)
				if err != nil {
					t.Error(err)
					return
				}
				v, err := s.Read(t.Context(), it)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Error(err)
				}
				if err := s.Write(t.Context(), it, secret.New(v.Reveal()+"x")); err != nil {
					t.Error(err)
				}
				unlock()
			}
		})
	}
	wg.Wait()
	wantValue(t, a, it, strings.Repeat("x", 4*each))
}

func cancelled(t *testing.T, a, b store.Store) {
	it := newItem()
	write(t, a, it, "old")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, readErr := a.Read(ctx, it)
	_, listErr := a.List(ctx, it.Service)
	_, versionErr := a.Version(ctx, it)
	_, lockErr := a.Lock(ctx, it)
	for name, err := range map[string]error{
		"Read": readErr, "List": listErr, "Version": versionErr, "Lock": lockErr,
		"Write": a.Write(ctx, it, secret.New(canary)), "Delete": a.Delete(ctx, it), "Check": a.Check(ctx),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the value is in the error", name)
		}
	}
	wantValue(t, b, it, "old")
}

func differentItems(t *testing.T, a, b store.Store) {
	service := newService()
	var mu sync.Mutex
	want := make(map[string]string)
	var wg sync.WaitGroup
	for h, s := range []store.Store{a, b} {
		for g := range 16 {
			wg.Go(func() {
				for i := range 3 {
					it := store.Item{Service: service, Account: fmt.Sprintf("handle%d:%d.%d", h, g, i)}
					v := "value of " + it.Account
					if err := s.Write(t.Context(), it, secret.New(v)); err != nil {
						t.Errorf("Write: %v", err)
						return
					}
					mu.Lock()
					want[it.Account] = v
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	wantList(t, a, service, slices.Sorted(maps.Keys(want))...)
	for account, v := range want {
		wantValue(t, b, store.Item{Service: service, Account: account}, v)
	}
}

func oneItem(t *testing.T, a, b store.Store) {
	for _, existing := range []bool{false, true} {
		it := newItem()
		if existing {
			write(t, a, it, "old")
		}
		possible := map[string]bool{"old": existing}
		var wg sync.WaitGroup
		for h, s := range []store.Store{a, b} {
			for g := range 16 {
				v := strings.Repeat(fmt.Sprintf("%d.%02d ", h, g), 100+g)
				possible[v] = true
				wg.Go(func() {
					if err := s.Write(t.Context(), it, secret.New(v)); err != nil {
						t.Errorf("Write: %v", err)
					}
				})
				wg.Go(func() {
					if got, err := s.Read(t.Context(), it); err != nil && (existing || !errors.Is(err, store.ErrNotFound)) {
						t.Errorf("Read: %v", err)
					} else if err == nil && got.IsZero() {
						t.Error("Read: an empty value")
					}
				})
			}
		}
		wg.Wait()
		got, err := a.Read(t.Context(), it)
		if err != nil {
			t.Fatal(err)
		}
		if v := got.Reveal(); !possible[v] || v == "old" {
			t.Errorf("the item ended as %d bytes that nobody wrote", len(v))
		}
		wantValue(t, b, it, got.Reveal())
		wantList(t, b, it.Service, it.Account)
		if err := b.Delete(t.Context(), it); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, a, it)
	}
}

func check(t *testing.T, a, b store.Store) {
	for _, s := range []store.Store{a, b} {
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		if s.Name() == "" {
			t.Error("the store has no name")
		}
	}
}
