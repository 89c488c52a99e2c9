package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
)

var item = store.Item{Service: store.ServiceLogins, Account: "acme:default"}

// watched is a store that counts what it is asked, and stops where a test wants it to.
type watched struct {
	*memory.Store
	reads, versions, lists atomic.Int32
	versionless            bool

	mu       sync.Mutex
	hold     chan struct{} // if not nil, Read waits for it after it has read
	writeErr error
}

func newWatched() *watched { return &watched{Store: memory.New()} }

func (w *watched) set(hold chan struct{}, writeErr error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hold, w.writeErr = hold, writeErr
}

func (w *watched) Read(ctx context.Context, it store.Item) (secret.String, error) {
	w.reads.Add(1)
	v, err := w.Store.Read(ctx, it)
	w.mu.Lock()
	hold := w.hold
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return secret.String{}, ctx.Err()
		}
	}
	return v, err
}

func (w *watched) Write(ctx context.Context, it store.Item, v secret.String) error {
	w.mu.Lock()
	err := w.writeErr
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return w.Store.Write(ctx, it, v)
}

func (w *watched) Version(ctx context.Context, it store.Item) (string, error) {
	w.versions.Add(1)
	if w.versionless {
		return "", ctx.Err()
	}
	return w.Store.Version(ctx, it)
}

func (w *watched) List(ctx context.Context, service string) ([]string, error) {
	w.lists.Add(1)
	return w.Store.List(ctx, service)
}

func (w *watched) put(t testing.TB, it store.Item, v string) {
	t.Helper()
	if err := w.Store.Write(t.Context(), it, secret.New(v)); err != nil {
		t.Fatal(err)
	}
}

func reveal(_ store.Item, s secret.String) (string, error) { return s.Reveal(), nil }

// inBubble runs f with a cache in front of a watched store, and time that passes only while all wait.
func inBubble(t *testing.T, f func(t *testing.T, w *watched, c *store.Cache[string])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		c := store.NewCache(w, reveal)
		defer func() { _ = c.Close() }()
		f(t, w, c)
	})
}

func wantRead(t *testing.T, c *store.Cache[string], want string) {
	t.Helper()
	if got, err := c.Read(t.Context(), item); err != nil || got != want {
		t.Fatalf("Read = %q, %v; want %q", got, err, want)
	}
}

func wantPeek(t *testing.T, c *store.Cache[string], want string, wantOK bool) {
	t.Helper()
	if got, ok := c.Peek(item); got != want || ok != wantOK {
		t.Fatalf("Peek = %q, %v; want %q, %v", got, ok, want, wantOK)
	}
}

func wantCount(t *testing.T, what string, n *atomic.Int32, want int32) {
	t.Helper()
	if got := n.Load(); got != want {
		t.Fatalf("the store was asked for %s %d times, want %d", what, got, want)
	}
}

func TestCacheAnswersFromMemory(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		w.put(t, item, "one")
		wantPeek(t, c, "", false)
		wantRead(t, c, "one")
		for range 100 {
			wantRead(t, c, "one")
			wantPeek(t, c, "one", true)
		}
		wantCount(t, "values", &w.reads, 1)
		wantCount(t, "versions", &w.versions, 1)

		time.Sleep(249 * time.Millisecond)
		wantPeek(t, c, "one", true)
		time.Sleep(time.Millisecond)
		wantPeek(t, c, "", false)
		wantRead(t, c, "one")
		wantPeek(t, c, "one", true)
		wantCount(t, "values", &w.reads, 1) // the version is the same
		wantCount(t, "versions", &w.versions, 2)
	})
}

func TestCacheSeesChangesOfOthers(t *testing.T) {
	for _, versionless := range []bool{false, true} {
		inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
			w.versionless = versionless
			w.put(t, item, "one")
			wantRead(t, c, "one")
			w.put(t, item, "two")
			if got, err := c.Reload(t.Context(), item); err != nil || got != "two" {
				t.Fatalf("Reload = %q, %v", got, err)
			}
			w.put(t, item, "three")
			wantPeek(t, c, "two", true) // for 250 ms
			time.Sleep(250 * time.Millisecond)
			wantRead(t, c, "three")
			if err := w.Delete(t.Context(), item); err != nil {
				t.Fatal(err)
			}
			time.Sleep(250 * time.Millisecond)
			if _, err := c.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("Read = %v", err)
			}
		})
	}
}

func TestCacheRemembersAbsence(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		for range 100 {
			if _, err := c.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			wantPeek(t, c, "", false)
		}
		wantCount(t, "values", &w.reads, 1)
		if err := c.Write(t.Context(), item, secret.New("now there")); err != nil {
			t.Fatal(err)
		}
		wantPeek(t, c, "now there", true)
	})
}

func TestCacheSharesChecks(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		w.put(t, item, "one")
		hold := make(chan struct{})
		w.set(hold, nil)

		// The request that starts the check goes away; the others must not notice.
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := c.Read(ctx, item)
			gone <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got, err := c.Read(t.Context(), item); err != nil || got != "one" {
					t.Errorf("Read = %q, %v", got, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the request that went away: %v", err)
		}
		close(hold)
		wg.Wait()
		wantCount(t, "values", &w.reads, 1)
	})
}

func TestCacheLimitsAStoreThatDoesNotAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		w.put(t, item, "one")
		w.set(make(chan struct{}), nil)
		begun := time.Now()
		if _, err := c.Read(t.Context(), item); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Read = %v", err)
		}
		if took := time.Since(begun); took != 15*time.Second {
			t.Errorf("it took %v", took)
		}
		w.set(nil, nil)
		wantRead(t, c, "one") // the failure is not remembered
	})
}

func TestCacheWrites(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		if err := c.Write(t.Context(), item, secret.New("one")); err != nil {
			t.Fatal(err)
		}
		wantPeek(t, c, "one", true)
		wantRead(t, c, "one")
		wantCount(t, "values", &w.reads, 0)

		// What the store has after our write may already be another's: the version is not trusted.
		w.put(t, item, "of another process")
		time.Sleep(250 * time.Millisecond)
		wantRead(t, c, "of another process")

		refused := errors.New("the disk is full")
		w.set(nil, refused)
		if err := c.Write(t.Context(), item, secret.New("three")); !errors.Is(err, refused) {
			t.Fatal(err)
		}
		wantPeek(t, c, "", false)
		wantRead(t, c, "of another process")

		if err := c.Delete(t.Context(), item); err != nil {
			t.Fatal(err)
		}
		wantPeek(t, c, "", false)
		if _, err := c.Read(t.Context(), item); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

// A check that has read the old value before a write and lands after it must not bring the old value back, and a reader
// that comes after the write must not wait for that check.
func TestCacheOldCheckDoesNotUndoWrite(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *store.Cache[string]){
		"write": func(t *testing.T, c *store.Cache[string]) {
			if err := c.Write(t.Context(), item, secret.New("new")); err != nil {
				t.Fatal(err)
			}
		},
		"delete and write": func(t *testing.T, c *store.Cache[string]) {
			if err := c.Delete(t.Context(), item); err != nil {
				t.Fatal(err)
			}
			if err := c.Write(t.Context(), item, secret.New("new")); err != nil {
				t.Fatal(err)
			}
		},
		"write and forget": func(t *testing.T, c *store.Cache[string]) {
			if err := c.Write(t.Context(), item, secret.New("new")); err != nil {
				t.Fatal(err)
			}
			c.Forget()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
				w.put(t, item, "old")
				hold := make(chan struct{})
				w.set(hold, nil)
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = c.Read(t.Context(), item) })
				synctest.Wait() // the check has "old" in its hands
				w.set(nil, nil)
				change(t, c)
				wantRead(t, c, "new")
				close(hold)
				wg.Wait()
				wantRead(t, c, "new")
				wantPeek(t, c, "new", true)
			})
		})
	}
}

func TestCacheDecodesOnceAVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		decoded := 0
		wrong := errors.New("not a number")
		c := store.NewCache(w, func(_ store.Item, s secret.String) (int, error) {
			decoded++
			n, err := strconv.Atoi(s.Reveal())
			if err != nil {
				return 0, wrong
			}
			return n, nil
		})
		defer func() { _ = c.Close() }()
		for _, tt := range []struct {
			stored string
			want   int
			err    error
		}{{"7", 7, nil}, {"x", 0, wrong}, {"8", 8, nil}} {
			w.put(t, item, tt.stored)
			decoded = 0
			for range 5 {
				time.Sleep(250 * time.Millisecond)
				if got, err := c.Read(t.Context(), item); got != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("Read = %d, %v", got, err)
				}
				if _, ok := c.Peek(item); ok != (tt.err == nil) {
					t.Errorf("Peek of %q: %v", tt.stored, ok)
				}
			}
			if decoded != 1 {
				t.Errorf("%q was decoded %d times", tt.stored, decoded)
			}
		}
	})
}

func TestCacheLists(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		list := func(want ...string) {
			t.Helper()
			got, err := c.List(t.Context(), item.Service)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("List = %q, %v; want %q", got, err, want)
			}
		}
		list()
		list()
		wantCount(t, "the list", &w.lists, 1)
		if err := c.Write(t.Context(), item, secret.New("v")); err != nil {
			t.Fatal(err)
		}
		list(item.Account)
		w.put(t, store.Item{Service: item.Service, Account: "b:c"}, "v")
		list(item.Account)
		time.Sleep(250 * time.Millisecond)
		list(item.Account, "b:c")
		if err := c.Delete(t.Context(), item); err != nil {
			t.Fatal(err)
		}
		list("b:c")
		if other, err := c.List(t.Context(), "other"); err != nil || len(other) != 0 {
			t.Errorf("List of another service = %q, %v", other, err)
		}
	})
}

func TestCacheDropsIdleEntries(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		w.put(t, item, "in use")
		const n = 1000
		for i := range n {
			it := store.Item{Service: item.Service, Account: fmt.Sprintf("acme:%d", i)}
			w.put(t, it, "v")
			if _, err := c.Read(t.Context(), it); err != nil {
				t.Fatal(err)
			}
		}
		for range 9 * 60 * 2 { // nine minutes of use of one item: nothing is dropped
			time.Sleep(500 * time.Millisecond)
			wantRead(t, c, "in use")
		}
		if got := c.Entries(); got != n+1 {
			t.Errorf("%d entries after nine minutes, want %d", got, n+1)
		}
		for range 20 * 60 * 2 {
			time.Sleep(500 * time.Millisecond)
			wantRead(t, c, "in use")
		}
		if got := c.Entries(); got > 20 {
			t.Errorf("%d entries after half an hour in which one was used", got)
		}
	})
}

// Someone who asks for one name after another that is not there must not fill memory.
func TestCacheBoundsAbsentNames(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *watched, c *store.Cache[string]) {
		most := 0
		for i := range 60 * 60 * 10 { // 60 a second, for ten minutes
			time.Sleep(time.Second / 60)
			_, _ = c.Read(t.Context(), store.Item{Service: item.Service, Account: strconv.Itoa(i)})
			most = max(most, c.Entries())
		}
		if most > 3*60*60 {
			t.Errorf("%d entries at most", most)
		}
	})
}

func TestCacheClose(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		w.put(t, item, "one")
		w.set(make(chan struct{}), nil)
		failed := make(chan error, 1)
		go func() {
			_, err := c.Read(t.Context(), item)
			failed <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; err == nil {
			t.Error("a read that was running when the cache was closed succeeded")
		}
		if _, err := c.Read(t.Context(), item); err == nil {
			t.Error("Read after Close succeeded")
		}
	})
}

// Every goroutine writes its own item and must read at once what it wrote, while others read and reload the same items.
func TestCacheReadsWhatItWrote(t *testing.T) {
	w := newWatched()
	c := store.NewCache(w, func(_ store.Item, s secret.String) (int, error) { return strconv.Atoi(s.Reveal()) })
	defer func() { _ = c.Close() }()
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	for g := range 4 {
		it := store.Item{Service: item.Service, Account: fmt.Sprintf("acme:%d", g)}
		readers.Go(func() {
			last := map[string]int{} // Reload sees a write that has not returned yet, and Read may not
			for {
				select {
				case <-stop:
					return
				default:
				}
				for name, read := range map[string]func(context.Context, store.Item) (int, error){"Read": c.Read, "Reload": c.Reload} {
					got, err := read(t.Context(), it)
					if err != nil && !errors.Is(err, store.ErrNotFound) {
						t.Error(err)
					}
					if err == nil && got < last[name] {
						t.Errorf("%s: the value went back from %d to %d", name, last[name], got)
					}
					last[name] = max(last[name], got)
				}
			}
		})
		writers.Go(func() {
			for i := 1; i <= 500; i++ {
				if err := c.Write(t.Context(), it, secret.New(strconv.Itoa(i))); err != nil {
					t.Error(err)
				}
				if got, err := c.Read(t.Context(), it); err != nil || got != i {
					t.Errorf("Read after Write(%d) = %d, %v", i, got, err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

// A sandbox that stores, or asks for, one long value after the other does not get them all into memory.
func TestLongValuesDoNotFillMemory(t *testing.T) {
	inBubble(t, func(t *testing.T, w *watched, c *store.Cache[string]) {
		long := strings.Repeat("x", store.MaxValue/2)
		account := func(i int) store.Item {
			return store.Item{Service: item.Service, Account: fmt.Sprintf("acme:%d", i)}
		}
		for i := range 200 {
			if i%2 == 0 {
				w.put(t, account(i), long)
				if got, err := c.Read(t.Context(), account(i)); err != nil || got != long {
					t.Fatalf("Read: %d bytes, %v", len(got), err)
				}
			} else if err := c.Write(t.Context(), account(i), secret.New(long)); err != nil {
				t.Fatal(err)
			}
			if _, ok := c.Peek(account(i)); !ok {
				t.Fatal("what was read or written just now is not in memory")
			}
			if now, most := c.Held(); now > most || now < int64(len(long)) {
				t.Fatalf("after %d values of %d bytes: %d bytes held, at most %d", i+1, len(long), now, most)
			}
		}
		for i := range 200 { // what was dropped is still in the store
			if got, err := c.Read(t.Context(), account(i)); err != nil || got != long {
				t.Fatalf("Read: %d bytes, %v", len(got), err)
			}
		}
		for i := range 200 {
			if err := c.Delete(t.Context(), account(i)); err != nil {
				t.Fatal(err)
			}
		}
		if now, _ := c.Held(); now != 0 {
			t.Errorf("%d bytes held of nothing", now)
		}
	})
}

func TestPeekDoesNotAllocate(t *testing.T) {
	w := newWatched()
	w.put(t, item, "one")
	c := store.NewCache(w, reveal)
	defer func() { _ = c.Close() }()
	if _, err := c.Read(t.Context(), item); err != nil {
		t.Fatal(err)
	}
	absent := store.Item{Service: item.Service, Account: "absent"}
	if n := testing.AllocsPerRun(1000, func() {
		c.Peek(item)
		c.Peek(absent)
	}); n != 0 {
		t.Errorf("Peek allocates %v times", n)
	}
}

func BenchmarkPeek(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("items=%d", n), func(b *testing.B) {
			w := newWatched()
			c := store.NewCache(w, reveal)
			defer func() { _ = c.Close() }()
			items := make([]store.Item, n)
			for i := range items {
				items[i] = store.Item{Service: store.ServiceLogins, Account: fmt.Sprintf("acme:%d", i)}
				w.put(b, items[i], "v")
				if _, err := c.Read(b.Context(), items[i]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				it := items[i*7919%n]
				if _, ok := c.Peek(it); !ok {
					if _, err := c.Read(b.Context(), it); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
