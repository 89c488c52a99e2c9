package refresh_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
)

// A process that refreshes one login after the other is killed at any instant, again and again. Every login whose answer had
// been written ahead works, and no refresh token is used twice but that of the one that was killed in the window between the
// provider's answer and the file: it is tried, and only then the person told.
func TestKilledAtAnyInstant(t *testing.T) {
	const rounds, logins, limit = 40, 4, 5 * time.Second
	i := newIssuer(t, false, oauthtest.Options{})
	at := newPlace(t, i)
	seed := at.start(t)
	lost, begun := 0, time.Now()
	counts := map[string]int{}
	for round := 0; round < rounds && time.Since(begun) < limit; round++ {
		var buckets []string
		old := map[string]*grant.Grant{}
		for n := range logins {
			bucket := fmt.Sprintf("%d-%d", round, n)
			buckets = append(buckets, bucket)
			old[bucket] = i.login(t)
			seed.save(t, item(bucket), old[bucket])
		}
		its := at
		var shut func()
		its.TokenURL, shut = i.door(t)
		c := startChild(t, task{Role: "refresh one after the other", Place: its, Buckets: buckets})
		var said []string
		for range 1 + rand.N(7*logins-1) { // it says seven lines for each
			said = append(said, c.line(t))
		}
		<-time.After(rand.N(2 * time.Millisecond))
		said = append(said, c.kill()...)
		shut()

		next := at.start(t)
		passed := func(bucket, step string) bool { return slices.Contains(said, bucket+" "+step) }
		for n, bucket := range buckets {
			cr := crash{i, next, item(bucket), old[bucket], i.Calls(oauthtest.Token)}
			switch {
			case passed(bucket, "after the write ahead"):
				g := cr.wantServed(t)
				if n < logins-1 && passed(buckets[n+1], "after the write ahead") {
					break // the last one that was touched is tried to the end
				}
				cr.wantNoLock(t)
				if again, err := cr.refresh(t, cr.old); err != nil || !again.AccessToken.Equal(g.AccessToken) {
					t.Errorf("refresh: %s", outcome(again, err))
				}
				cr.wantSettled(t, g)
				counts["written ahead"]++
			case passed(bucket, "before the call"):
				cr.wantNoLock(t)
				next.rest(t, cr.it)
				asked := len(i.uses(cr.old.RefreshToken))
				// Killed between the file and its report, it has the token.
				seen := next.read(t, cr.it)
				g, err := cr.refresh(t, seen)
				e, needed := errors.AsType[*refresh.LoginNeededError](err)
				switch {
				case err == nil && i.Valid(g.AccessToken.Reveal()) && !g.AccessToken.Equal(seen.AccessToken):
					counts["works after the call"]++
				case needed && strings.Contains(e.Reason, "interrupted") && len(i.uses(cr.old.RefreshToken)) == asked+1:
					lost++
					counts["lost in the window"]++
				default:
					t.Errorf("killed in the call: %s, after %d uses", outcome(g, err), len(i.uses(cr.old.RefreshToken)))
				}
			case n == 0 || passed(buckets[n-1], "done"):
				cr.wantNoLock(t)
				next.rest(t, cr.it) // the intent may have been written
				cr.wantNew(t, cr.old)
				cr.wantUses(t, oauthtest.Accepted)
				counts["before the call"]++
			}
		}
		if i.reused() != lost {
			t.Fatalf("%d refresh tokens were used twice, %d of them in the window", i.reused(), lost)
		}
		counts["rounds"]++
	}
	t.Log(counts)
}

// door is the token endpoint at an address for one process alone. A request outlives who has sent it; when shut returns, that
// process has been killed, and all that it had sent is dealt with.
func (i *issuer) door(t *testing.T) (tokenURL string, shut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns, serving sync.WaitGroup
	server := &http.Server{Handler: i.Handler(), ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed:
			conns.Done()
		}
	}}
	serving.Go(func() { _ = server.Serve(l) })
	u, err := url.Parse(i.EndpointURL(oauthtest.Token))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	shut = sync.OnceFunc(func() {
		_ = l.Close()
		serving.Wait()
		conns.Wait() // each ends after its last request, for nobody is at the other end
	})
	t.Cleanup(func() {
		_ = server.Close()
		shut()
	})
	return u.String(), shut
}
