package refresh_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/wire"
)

var errFull = errors.New("no space left on device")

// unsaved makes a login whose newest token the store has refused, and returns it with the process that refreshed it.
func (s *scene) unsaved() (*process, *grant.Grant) {
	s.t.Helper()
	p, old := s.begin()
	time.Sleep(2 * time.Hour)
	s.store.Refuse(nil, errFull)
	g := s.renew(p)
	if stored := readFrom(s.t, s.store, s.it); !stored.RefreshToken.Equal(old.RefreshToken) {
		s.t.Fatal("the store has taken what it was to refuse")
	}
	return p, g
}

// breakJournal puts a file in the place of the journal's directory, until mend.
func (s *scene) breakJournal() (mend func()) {
	s.t.Helper()
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	aside := s.dir + ".aside"
	err := os.Rename(s.dir, aside)
	if errors.Is(err, os.ErrNotExist) {
		err = os.Mkdir(aside, 0o700)
	}
	must(err)
	must(os.WriteFile(s.dir, nil, 0o600))
	return func() {
		must(os.Remove(s.dir))
		must(os.Rename(aside, s.dir))
	}
}

// wantStored fails the test unless the store itself has the newest token, and the journal has no answer any more.
func (s *scene) wantStored(p *process) {
	s.t.Helper()
	s.wantNewest(readFrom(s.t, s.store, s.it), nil)
	if r := p.record(s.t, s.it); r.Sealed != nil || r.Phase != journal.Idle {
		s.t.Errorf("the journal still has an answer: phase %q", r.Phase)
	}
}

// A rotated token that the store refuses is served by every process, kept, and stored as soon as the store takes it.
func TestUnsavedTokenIsServedAndStored(t *testing.T) {
	for name, reads := range map[string]error{"full": nil, "locked": store.ErrLocked} {
		t.Run(name, func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				a, _ := s.unsaved()
				s.store.Refuse(reads, errFull)
				b := s.process()
				for _, p := range []*process{a, b, a} {
					s.wantNewest(p.read(t, s.it), nil)
					if h := p.History(t.Context(), s.it, p.read(t, s.it)); !h.Unsaved || h.Outcome != journal.OK || h.Refused || h.Detail == "" {
						t.Errorf("history: %+v", h)
					}
					s.wantNewest(p.Refresh(t.Context(), s.it, p.read(t, s.it))) // in the cooldown
				}
				if !s.log.says("level=ERROR", "STORE REFUSED", s.it.Account) {
					t.Error("the log has no error")
				}
				time.Sleep(10 * time.Minute)
				s.store.Refuse(nil, nil)
				time.Sleep(31 * time.Second)
				s.wantStored(a)
				if h := b.History(t.Context(), s.it, b.read(t, s.it)); h.Unsaved || h.Outcome != journal.OK || h.Refreshed.IsZero() {
					t.Errorf("history: %+v", h)
				}
				s.wantAsked(1)
				time.Sleep(2 * time.Hour)
				s.wantNewest(s.renew(b), nil)
			})
		})
	}
}

// Storing is tried after 1 s, 2 s, … 30 s: at 1, 3, 7, 15, 31, 61, 91 s and so on.
func TestUnsavedTokenIsTriedAgain(t *testing.T) {
	for heals, stored := range map[time.Duration]time.Duration{
		time.Millisecond: time.Second, 2 * time.Second: 3 * time.Second, 10 * time.Second: 15 * time.Second, 16 * time.Second: 31 * time.Second,
		40 * time.Second: 61 * time.Second, 62 * time.Second: 91 * time.Second, time.Hour: time.Hour + time.Second,
	} {
		t.Run(heals.String(), func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				p, _ := s.unsaved()
				time.Sleep(heals)
				s.store.Refuse(nil, nil)
				version, err := s.store.Version(t.Context(), s.it)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(stored - heals - time.Millisecond)
				if now, err := s.store.Version(t.Context(), s.it); err != nil || now != version {
					t.Errorf("it was stored too early: %v", err)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				s.wantStored(p)
			})
		})
	}
}

// While the store refuses, tokens are renewed all the same, by any process, and what the store gets at last is the newest.
// What a provider says instead of a token takes nothing away from the one that waits.
func TestUnsavedTokenIsRenewedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		o     oauthtest.Options
		fault *oauthtest.Fault // of the second refresh; nil: it works
		dead  bool             // it says that the refresh token is dead
	}{
		"works":           {},
		"does not rotate": {o: oauthtest.Options{Rotation: oauthtest.Keep}},
		"garbage":         {fault: new(oauthtest.ErrorAnswer(200, ""))},
		"500":             {fault: new(oauthtest.ErrorAnswer(500, ""))},
		"404":             {fault: new(oauthtest.ErrorAnswer(404, ""))},
		"invalid_grant":   {fault: new(oauthtest.ErrorAnswer(400, "invalid_grant")), dead: true},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, tt.o, func(t *testing.T, s *scene) {
				a, _ := s.unsaved()
				b := s.process()
				time.Sleep(2 * time.Hour)
				seen := b.read(t, s.it)
				if tt.fault != nil {
					s.Fault(oauthtest.Token, *tt.fault, 3)
				}
				g, err := b.Refresh(t.Context(), s.it, seen)
				switch {
				case tt.fault == nil:
					s.wantNewest(g, err)
				case err == nil || needsLogin(err) != tt.dead:
					t.Errorf("with the fault: %s", outcome(g, err))
				}
				s.ClearFaults()
				for _, p := range []*process{a, b, s.process()} {
					s.wantNewest(p.read(t, s.it), nil)
				}
				s.store.Refuse(nil, nil)
				time.Sleep(31 * time.Second)
				s.wantStored(a)
				time.Sleep(2 * time.Hour)
				uses := len(s.RefreshUses())
				_, err = a.Refresh(t.Context(), s.it, a.read(t, s.it))
				if needsLogin(err) != tt.dead || err != nil && !tt.dead {
					t.Errorf("after it all: %v", err)
				}
				if asked := len(s.RefreshUses()) > uses; asked == tt.dead {
					t.Errorf("after it all the provider was asked: %v", asked)
				}
				if s.reused() > 0 {
					t.Error("a refresh token was used twice")
				}
			})
		})
	}
}

// What a client has saved beside the old refresh token, however late it ends, does not make an answer useless.
func TestUnsavedTokenIsNewerThanALateExpiry(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, old := s.begin()
		late := &wire.Token{AccessToken: "test-access-token-1", Expiry: time.Now().AddDate(9, 0, 0).Unix(), TokenType: "Bearer"}
		a.save(t, s.it, grant.MergeSaved(old, late))
		s.store.Refuse(nil, errFull)
		s.renew(a)
		b := s.process()
		s.wantNewest(b.read(t, s.it), nil)
		time.Sleep(time.Minute)
		s.renew(b)
		s.store.Refuse(nil, nil)
		time.Sleep(31 * time.Second)
		s.wantStored(a)
		s.wantAsked(2)

		a.save(t, s.it, grant.MergeSaved(a.read(t, s.it), late))
		s.dieAt("after the write ahead", s.process())
		s.wantNewest(a.read(t, s.it), nil)
		time.Sleep(time.Minute)
		s.renew(a)
		s.wantAsked(4)
	})
}

// R15: what was removed, or replaced, does not come back from the journal, whoever tries to store it.
func TestUnsavedTokenDoesNotComeBack(t *testing.T) {
	for name, byUs := range map[string]bool{"with the lock": true, "without the lock": false} {
		t.Run(name, func(t *testing.T) {
			play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
				a, _ := s.unsaved()
				b := s.process()
				s.wantNewest(b.read(t, s.it), nil) // and so b tries to store it as well
				unlock, err := s.store.Lock(t.Context(), s.it)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Store().Delete(t.Context(), s.it); !errors.Is(err, errFull) {
					t.Errorf("a logout that the store refuses: %v", err)
				}
				unlock()
				s.wantNewest(b.read(t, s.it), nil)

				s.store.Refuse(nil, nil)
				newer := s.login(t)
				if byUs {
					b.save(t, s.it, newer)
				} else if err := s.store.Write(t.Context(), s.it, newer.Seal()); err != nil {
					t.Fatal(err)
				}
				for _, p := range []*process{a, b, s.process()} {
					if got := p.read(t, s.it); !got.AccessToken.Equal(newer.AccessToken) || !got.RefreshToken.Equal(newer.RefreshToken) {
						t.Error("the newer login is not what is served")
					}
					time.Sleep(time.Minute)
				}
				s.store.Refuse(nil, errFull)
				s.renew(a)
				s.wantNewest(b.read(t, s.it), nil)
				s.store.Refuse(nil, nil)
				if byUs {
					s.remove(b)
				} else if err := s.store.Delete(t.Context(), s.it); err != nil {
					t.Fatal(err)
				}
				for _, p := range []*process{a, b, s.process()} {
					if err := p.Resume(t.Context()); err != nil {
						t.Error(err)
					}
					for range 3 {
						if _, err := p.Store().Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
							t.Errorf("after the logout: %v", err)
						}
						time.Sleep(time.Minute)
					}
				}
				if _, err := s.store.Read(t.Context(), s.it); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("in the store: %v", err)
				}
				s.wantAsked(2)
			})
		})
	}
}

// A token that a client saves goes over the one that waits, and the refresh token of that stays.
func TestSaveOverAnUnsavedToken(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, g := s.unsaved()
		s.store.Refuse(nil, nil)
		mine := &wire.Token{AccessToken: "test-access-token-1", Expiry: time.Now().Add(time.Second).Unix(), TokenType: "Bearer"}
		a.save(t, s.it, grant.MergeSaved(a.read(t, s.it), mine))
		time.Sleep(time.Minute)
		got := readFrom(t, s.store, s.it)
		if got.AccessToken.Reveal() != mine.AccessToken || !got.RefreshToken.Equal(g.RefreshToken) {
			t.Error("what was saved is not over what waited")
		}
		s.wantNewest(s.renew(a), nil)
		s.wantAsked(2)
	})
}

// The end of a process is one more chance for the store; what it refuses then is stored by the next process.
func TestUnsavedTokenAndTheEndOfAProcess(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		time.Sleep(20 * time.Second)
		s.store.Refuse(nil, nil)
		a.Close()
		s.wantStored(a)

		time.Sleep(time.Minute)
		b := s.process()
		s.store.Refuse(nil, errFull)
		s.renew(b)
		b.Close()
		if !s.log.says("level=ERROR", "still refuses", "the next one stores") {
			t.Error("the log does not say that a token is unsaved at the end")
		}
		c := s.process()
		if err := c.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.store.Refuse(nil, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		s.wantStored(c)

		time.Sleep(time.Minute)
		s.dieAt("after the write ahead", c)
		if err := s.process().Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantStored(c)
		s.wantAsked(3)
	})
}

// If no place takes it at all, a token is in memory, is served from there, and goes to the first place that takes it.
func TestUnsavedTokenWithoutAnyPlace(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.begin()
		time.Sleep(2 * time.Hour)
		s.store.Refuse(nil, errFull)
		mend := s.breakJournal()
		if safe, err := a.Safe(t.Context()); safe || err == nil {
			t.Errorf("Safe: %v, %v", safe, err)
		}
		g := s.renew(a)
		s.wantNewest(a.read(t, s.it), nil)
		if h := a.History(t.Context(), s.it, g); !h.Unsaved || !strings.Contains(h.Detail, "memory only") {
			t.Errorf("history: %+v", h)
		}
		if !s.log.says("level=ERROR", "memory only", s.it.Account) {
			t.Error("the log has no error")
		}
		time.Sleep(5 * time.Second)
		if _, err := a.Refresh(t.Context(), s.it, g); err != nil { // in the cooldown
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		s.wantNewest(s.renew(a), nil) // it has expired: without another one nothing works
		mend()
		time.Sleep(31 * time.Second)
		b := s.process()
		s.wantNewest(b.read(t, s.it), nil) // from the journal
		if h := b.History(t.Context(), s.it, g); !h.Unsaved || strings.Contains(h.Detail, "memory only") {
			t.Errorf("history: %+v", h)
		}
		s.store.Refuse(nil, nil)
		time.Sleep(31 * time.Second)
		s.wantStored(b)
		s.wantAsked(2)
	})
}

// When the journal cannot be read any more, the processes that have seen what is in it remember.
func TestUnsavedTokenWhenTheJournalIsLost(t *testing.T) {
	play(t, oauthtest.Options{}, func(t *testing.T, s *scene) {
		a, _ := s.unsaved()
		b := s.process()
		s.wantNewest(b.read(t, s.it), nil)
		mend := s.breakJournal()
		for _, p := range []*process{a, b} {
			s.wantNewest(p.read(t, s.it), nil)
		}
		a.Close()
		time.Sleep(2 * time.Hour)
		s.renew(b) // with the refresh token that is remembered
		s.wantNewest(b.read(t, s.it), nil)
		s.wantAsked(2)
		mend()
		s.store.Refuse(nil, nil)
		time.Sleep(time.Minute)
		s.wantStored(b)
	})
}

// Which of the answers it refused a store has done all the same, or was killed over, is not known while it cannot be read. The
// newest is newer than any of them.
func TestUnsavedTokenOverOneThatWasStored(t *testing.T) {
	play(t, oauthtest.Options{AccessLifetime: time.Minute}, func(t *testing.T, s *scene) {
		p, _ := s.begin()
		s.dieAt("after the save", p) // the store has it, the journal does not know
		s.store.Refuse(store.ErrLocked, store.ErrLocked)
		for range 120 {
			time.Sleep(time.Minute)
			s.renew(p)
		}
		s.store.Refuse(nil, nil)
		time.Sleep(31 * time.Second)
		s.wantStored(p)
		s.renew(s.process())
		s.wantAsked(122)
	})
}
