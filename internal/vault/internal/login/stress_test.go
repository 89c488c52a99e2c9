package login

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/wire"
)

// Whatever many clients do at once with the same sessions: each has at most one end, which is told at most once and only
// if it was stored, a cancelled one tells none, and there are never more than there is room for.
func TestManyClients(t *testing.T) {
	bubble(t, oauthtest.Options{}, 30*time.Second, func(t *testing.T, x *proxy) {
		var (
			mu   sync.Mutex
			ids  []*wire.Session
			ends = map[string]int{} // by session: how often its token was told
			all  sync.WaitGroup
		)
		for client := range 12 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(20, uint64(client)))
				for range 120 {
					time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
					if r.IntN(4) == 0 {
						s, err := x.try(t.Context(), []string{FlowPaste, FlowDevice}[r.IntN(2)])
						if err == nil {
							mu.Lock()
							ids = append(ids, s)
							mu.Unlock()
						} else if !errors.Is(err, wire.ErrRateLimited) {
							t.Errorf("Begin: %v", err)
						}
						continue
					}
					mu.Lock()
					if len(ids) == 0 {
						mu.Unlock()
						continue
					}
					s := ids[max(0, len(ids)-1-r.IntN(20))]
					mu.Unlock()
					told := false
					switch r.IntN(5) {
					case 0:
						if err := x.Cancel(me, s.ID); err != nil {
							t.Errorf("Cancel: %v", err)
						}
					case 1:
						if _, err := x.Poll(other, s.ID); err == nil {
							t.Error("another user's poll is answered")
						}
					default:
						if s.Flow == wire.FlowPKCERedirect {
							_, err := x.Exchange(t.Context(), me, s.ID, x.code(t, s))
							told = err == nil
						} else {
							p, err := x.Poll(me, s.ID)
							told = err == nil && p.Status == wire.PollComplete
						}
					}
					if told {
						mu.Lock()
						ends[s.ID]++
						mu.Unlock()
					}
					x.Sessions.mu.Lock()
					if len(x.live) > MaxPending || len(x.ended) > maxRemembered || len(x.byID) > MaxPending+maxRemembered {
						t.Errorf("%d live, %d ended, %d known", len(x.live), len(x.ended), len(x.byID))
					}
					x.Sessions.mu.Unlock()
				}
			})
		}
		all.Wait()
		x.Close()
		if len(x.live) != 0 {
			t.Errorf("%d sessions are left", len(x.live))
		}
		told := 0
		for id, n := range ends {
			if told += n; n != 1 {
				t.Errorf("the end of session %.8s was told %d times", id, n)
			}
		}
		stored := slices.Clone(x.stored)
		slices.Sort(stored)
		if len(slices.Compact(stored)) != len(x.stored) || told > len(x.stored) || told < 20 || len(ids) < 40 {
			t.Errorf("%d sessions, %d ends told, %d stored", len(ids), told, len(x.stored))
		}
	})
}
