package refresh_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

// A disk that is not mounted looks like a store from which everything was removed. The answer is not served, and is there when
// the store is.
func TestAnswerWaitsForAStoreThatIsGone(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		was, err := s.store.Read(t.Context(), s.it)
		if err != nil {
			t.Fatal(err)
		}
		s.store.Refuse(nil, nil)
		if err := s.store.Delete(t.Context(), s.it); err != nil {
			t.Fatal(err)
		}
		a.Close()
		b := s.process()
		if err := b.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Store().Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a login that the store does not have: %v", err)
		}
		if err := s.store.Write(t.Context(), s.it, was); err != nil {
			t.Fatal(err)
		}
		s.wantNewest(b.read(t, s.it), nil)
		if err := b.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantStored(b)
		time.Sleep(time.Hour)
		s.renew(b)
		s.wantAsked(2)
	})
}

// Who cannot read the journal does not know whether the refresh token in the store has been used.
func TestUnreadableJournalStopsARefresh(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		a.Close()
		time.Sleep(time.Hour)
		if err := os.Chmod(s.dir, 0o777); err != nil {
			t.Fatal(err)
		}
		b := s.process()
		if _, err := b.Refresh(t.Context(), s.it, readFrom(t, s.store, s.it)); !errors.Is(err, journal.ErrUnreadable) {
			t.Errorf("with a journal that is open to others: %v", err)
		}
		s.wantAsked(1)
		if err := os.Chmod(s.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.wantNewest(b.Refresh(t.Context(), s.it, readFrom(t, s.store, s.it)))
		s.store.Refuse(nil, nil)
		time.Sleep(time.Minute)
		s.wantStored(b)
	})
}

// No file can be opened any more, be it for want of descriptors or for the disk: what this process remembers is served.
func TestUnsavedTokenIsServedWhenNothingCanBeRead(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, g := s.unsaved()
		gone := errors.New("too many open files")
		s.store.Refuse(gone, gone)
		if err := os.Chmod(s.dir, 0o777); err != nil {
			t.Fatal(err)
		}
		cache := store.NewCache(a.Store(), func(_ store.Item, v secret.String) (*grant.Grant, error) { return grant.Parse(v) })
		defer cache.Close()
		s.wantNewest(cache.Reload(t.Context(), s.it))
		if h := a.History(t.Context(), s.it, g); !h.Unsaved {
			t.Errorf("the status does not say that the token is unsaved: %q", h.Detail)
		}
		if _, err := s.process().Store().Version(t.Context(), s.it); !errors.Is(err, gone) {
			t.Errorf("a process that remembers nothing: %v, want the store's error", err)
		}
		if err := os.Chmod(s.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.store.Refuse(nil, nil)
		time.Sleep(time.Minute)
		s.wantStored(a)
	})
}

// The store sets a damaged item aside when it is read, and from then on says that there is none.
func TestDamagedItemIsNoLogout(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		a.Close()
		b := s.process()
		s.store.Refuse(store.ErrDamaged, errFull)
		s.wantNewest(b.read(t, s.it), nil)
		s.store.Refuse(nil, nil)
		if err := s.store.Delete(t.Context(), s.it); err != nil {
			t.Fatal(err)
		}
		s.wantNewest(b.read(t, s.it), nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		s.wantStored(b)
		s.remove(b)
		if _, err := b.Store().Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("after a logout: %v", err)
		}
	})
}

// Its new token is stored, although the store has set the old one aside.
func TestDamagedItemIsRefreshed(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		a.Close()
		b := s.process()
		s.store.Refuse(store.ErrDamaged, errFull)
		s.wantNewest(b.read(t, s.it), nil)
		s.store.Refuse(nil, nil)
		if err := s.store.Delete(t.Context(), s.it); err != nil {
			t.Fatal(err)
		}
		s.store.Refuse(nil, errFull)
		time.Sleep(2 * time.Hour)
		s.renew(b)
		s.store.Refuse(nil, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		s.wantStored(b)
	})
}

// The provider has rotated, and its answer is no token, but for the refresh token in it.
func TestRefreshTokenOfABadAnswerIsKept(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		p, old := s.begin()
		time.Sleep(2 * time.Hour)
		s.Fault(oauthtest.Token, oauthtest.With("access_token", "5"), 1)
		_, err := p.Refresh(t.Context(), s.it, old)
		if e, ok := errors.AsType[*provider.Error](err); !ok || e.Kind != provider.Malformed {
			t.Fatalf("an access token that is a number: %v", err)
		}
		stored := readFrom(t, s.store, s.it)
		if stored.RefreshToken.Equal(old.RefreshToken) || !stored.AccessToken.Equal(old.AccessToken) {
			t.Error("the store has not the old login with the new refresh token")
		}
		if r := p.record(t, s.it); r.Sealed != nil || r.Outcome != journal.Failed || r.Reason == "" {
			t.Errorf("record: outcome %q, reason %q", r.Outcome, r.Reason)
		}
		time.Sleep(time.Minute)
		s.renew(p)
		s.wantAsked(2)
	})
}

// What a sandbox saves into a login does not make its next token too large to be kept.
func TestSavedFieldsDoNotCrowdOutATokenThatIsNew(t *testing.T) {
	play(t, oauthtest.Options{Extra: map[string]any{"id_token": strings.Repeat("i", 30<<10)}}, func(t *testing.T, s *scene) {
		p := s.process()
		g := *s.login(t)
		g.Fields = nil
		free := store.MaxValue - len(g.Seal().Reveal()) - 200
		g.Fields = []wire.Field{{Name: "full", Value: json.RawMessage(`"` + strings.Repeat("<", free) + `"`)}}
		g.Saved = []string{"full"}
		p.save(t, s.it, &g)
		time.Sleep(2 * time.Hour)
		s.renew(p)
		s.wantStored(p)
		stored := readFrom(t, s.store, s.it)
		if len(stored.Saved) > 0 || !hasField(stored, "id_token") {
			t.Error("not what the client had saved was dropped")
		}
	})
}

func hasField(g *grant.Grant, name string) bool {
	for _, f := range g.Fields {
		if f.Name == name {
			return true
		}
	}
	return false
}

// Room for an answer is reserved with the login, for as long as that is there. Whether it still is, is tried by whoever has the lock.
func TestReserved(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, g := s.begin()
		if a.Reserved(t.Context(), s.it) {
			t.Error("a login without a record")
		}
		a.Begin(t.Context(), s.it, g)
		if !a.Reserved(t.Context(), s.it) || !s.process().Reserved(t.Context(), s.it) {
			t.Error("a new login has no room")
		}
		s.renew(a)
		unlock, err := s.store.Lock(t.Context(), s.it)
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan bool)
		go func() { answered <- a.Reserved(t.Context(), s.it) }()
		synctest.Wait()
		select {
		case <-answered:
			t.Error("it does not wait for the lock")
		default:
			unlock()
			if !<-answered {
				t.Error("a login that was refreshed has no room")
			}
		}
	})
}
