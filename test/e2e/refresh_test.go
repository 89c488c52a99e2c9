//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// refreshing is a host with logins to the provider acme, which rotates refresh tokens and revokes a login when an old one
// is used again.
func refreshing(t testing.TB, config string, logins ...string) (*host, *oauthtest.Server) {
	t.Helper()
	s := oauth(t, oauthtest.Options{Extra: map[string]any{"account_id": "acct-1"}})
	h := newHost(t)
	h.configure(generous + config + providerConfig("acme", s))
	for _, login := range logins {
		h.login(login)
	}
	return h, s
}

// about is a payload that names a login.
func about(login string) m {
	provider, bucket, named := strings.Cut(login, "/")
	if !named {
		return m{"provider": provider}
	}
	return m{"provider": provider, "bucket": bucket}
}

func (c *conn) refresh(login string) answer {
	c.t.Helper()
	return c.call("refresh_token", about(login))
}

// stands is how a login stands, as get_bucket_stats says it.
func (c *conn) stands(login string) m {
	c.t.Helper()
	payload := about(login)
	payload["detail"] = true
	a := c.call("get_bucket_stats", payload)
	stands, _ := a.Data["login"].(m)
	if stands == nil {
		c.t.Fatalf("get_bucket_stats of %s: %+v", login, a)
	}
	return stands
}

// expire has the login's access token replaced by one that is over, from inside.
func (c *conn) expire(login string) {
	c.t.Helper()
	payload := about(login)
	payload["token"] = m{"access_token": "test-expired", "expiry": 1, "token_type": "Bearer"}
	if a := c.call("save_token", payload); !a.OK {
		c.t.Fatalf("save_token of %s: %+v", login, a)
	}
}

// serves fails the test if get_token does not answer this access token.
func (c *conn) serves(what, login, access string) {
	c.t.Helper()
	if a := c.token(login); !a.OK || a.Data["access_token"] != access || a.Data["refresh_token"] != nil {
		c.t.Errorf("%s: get_token of %s answers %v (%s), want %s", what, login, a, a.Error, access)
	}
}

// standing is a login in auth status --json.
type standing struct {
	Provider, Bucket, State, Detail string
	Expiry                          *int64
	RenewsAt                        *int64 `json:"renews_at"`
	LastRefresh                     *int64 `json:"last_refresh"`
}

// status is a login in auth status --json on the host.
func (h *host) status(login string) standing {
	h.t.Helper()
	r := h.run("auth", "status", "--json")
	var report struct{ Logins []standing }
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		h.t.Fatalf("%v: %v", r, err)
	}
	provider, bucket, named := strings.Cut(login, "/")
	if !named {
		bucket = "default"
	}
	for _, s := range report.Logins {
		if s.Provider == provider && s.Bucket == bucket {
			return s
		}
	}
	return standing{}
}

// refreshes are the requests to refresh that the provider got.
func refreshes(s *oauthtest.Server) []oauthtest.Request {
	var list []oauthtest.Request
	for _, r := range s.Requests(oauthtest.Token) {
		if r.Params.Get("grant_type") == oauthtest.GrantRefresh {
			list = append(list, r)
		}
	}
	return list
}

// asked waits until the provider has been asked n times to refresh.
func asked(t testing.TB, s *oauthtest.Server, n int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("the provider is asked %d times to refresh", n), func() bool { return len(refreshes(s)) >= n })
}

// hold keeps the provider's next answer back until release is called or the test ends. What it answers has been issued,
// and the old refresh token is used up, when the request has arrived.
func hold(t testing.TB, s *oauthtest.Server) (release func()) {
	held := make(chan struct{})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	s.Fault(oauthtest.Token, oauthtest.Fault{Wait: held}, 1)
	return release
}

// newest is the access token that the provider issued last to the n-th login that was made.
func newest(s *oauthtest.Server, n int) string {
	tokens := s.Families()[n].AccessTokens
	return tokens[len(tokens)-1]
}

// neverReused fails the test if a refresh token was used twice, which ends a login everywhere.
func neverReused(t testing.TB, s *oauthtest.Server) {
	t.Helper()
	for _, use := range s.RefreshUses() {
		if use.Outcome == oauthtest.Reused {
			t.Errorf("a refresh token was used again at %v", use.Time)
		}
	}
}

// onlySealed fails the test if a file of the host, recovery files included, has a token that the provider ever issued, or
// a refresh token was printed.
func (h *host) onlySealed(s *oauthtest.Server) {
	h.t.Helper()
	tokens, never := canaries{}, canaries{}
	tokens.add(h.t, "access token", s.Issued().AccessTokens...)
	never.add(h.t, "refresh token", s.Issued().RefreshTokens...)
	for _, dir := range []string{h.home, h.tmp} {
		for path, data := range filesBelow(h.t, dir) {
			tokens.search(h.t, path, data)
			never.search(h.t, path, data)
		}
	}
	never.search(h.t, "what a command printed", h.said.bytes())
}

// waitsForLock waits until a command waits for a lock that somebody else has: it has the directory of the locks open as long.
func (b *background) waitsForLock() {
	b.h.t.Helper()
	eventually(b.h.t, patience, strings.Join(b.Args, " ")+" waits for a lock", func() bool {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.Process.Pid))
		for _, file := range files {
			if target, _ := os.Readlink(file); filepath.Base(target) == "locks" {
				return true
			}
		}
		return false
	})
}

// 64 connections over 4 proxies and the command on the host ask at once, while the provider takes its time: it is asked
// once, and all get the same token.
func TestOneRefreshServesEveryone(t *testing.T) {
	for _, kind := range []string{"file", "keyring"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var h *host
			var s *oauthtest.Server
			if kind == "file" {
				h, s = refreshing(t, "", "acme")
			} else {
				s = oauth(t, oauthtest.Options{})
				h = newDesktop(t, "store = \"keyring\"\n"+generous+providerConfig("acme", s)).host
				h.login("acme")
			}
			release := hold(t, s)
			var conns []*conn
			for range 4 {
				p := h.serve()
				for range 16 {
					conns = append(conns, dial(t, p.socket))
				}
			}
			conns[0].expire("acme")
			for _, c := range conns {
				c.request("refresh_token", m{"provider": "acme"})
			}
			for _, c := range conns { // what is answered was sent later, so the proxy has read both
				list := c.request("list_api_keys", nil)
				if a, err := c.recv(patience); err != nil || a.ID != list {
					t.Fatalf("while the provider is asked: %+v, %v", a, err)
				}
			}
			command := h.start(h.command("auth", "refresh", "acme"))
			command.waitsForLock()
			asked(t, s, 1)
			release()

			for i, c := range conns {
				a, err := c.recv(patience)
				if err != nil || !a.OK || a.Data["access_token"] != newest(s, 0) || a.Data["refresh_token"] != nil {
					t.Errorf("connection %d: %+v, %v", i, a, err)
				}
			}
			if code := command.wait(patience); code != 0 {
				t.Errorf("auth refresh: status %d: %s", code, command.stderr)
			}
			if n := len(refreshes(s)); n != 1 || len(s.Families()[0].AccessTokens) != 2 {
				t.Errorf("the provider was asked %d times, want once", n)
			}
			if got := h.must("token", "acme"); got != newest(s, 0)+"\n" {
				t.Errorf("what is stored is %q", got)
			}
			st := h.status("acme")
			if st.State != "ok" || st.LastRefresh == nil || st.RenewsAt == nil || st.Expiry == nil || *st.RenewsAt >= *st.Expiry {
				t.Errorf("auth status: %+v", st)
			}
			h.onlySealed(s)
		})
	}
}

// SIGTERM does not lose what a provider is about to answer, although clients are not waited for so long.
func TestStopWaitsForTheProvider(t *testing.T) {
	for name, late := range map[string]bool{"while clients are waited for": false, "when clients are not waited for any more": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, s := refreshing(t, "", "acme")
			release := hold(t, s)
			p := h.serve()
			client := dial(t, p.socket)
			client.request("refresh_token", m{"provider": "acme"})
			asked(t, s, 1)
			p.signal(syscall.SIGTERM)
			eventually(t, patience, "nobody else is let in", func() bool { return !accepts(p.socket) })
			if !late {
				release()
			}
			if a, err := client.recv(patience); !late && (err != nil || a.Data["access_token"] != newest(s, 0)) {
				t.Errorf("the client that had asked: %+v, %v", a, err)
			} else if late && err == nil && a.OK {
				t.Errorf("the client that had asked was answered before the provider has: %+v", a)
			}
			release()
			if code := p.wait(patience); code != 0 {
				t.Errorf("serve ended with status %d after SIGTERM; stderr: %s", code, p.stderr)
			}
			next := dial(t, h.serve().socket)
			next.serves("after the next start", "acme", newest(s, 0))
			if a := next.refresh("acme"); a.Data["access_token"] != newest(s, 0) {
				t.Errorf("refresh_token after the next start: %+v", a)
			}
			if n := len(refreshes(s)); n != 1 || len(s.Families()[0].AccessTokens) != 2 {
				t.Errorf("the provider was asked %d times", n)
			}
			if st := h.status("acme"); st.State != "ok" || st.LastRefresh == nil {
				t.Errorf("auth status: %+v", st)
			}
		})
	}
}

// A client that goes away takes no refresh with it.
func TestRefreshOutlivesItsClient(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme")
	release := hold(t, s)
	p := h.serve()
	c := dial(t, p.socket)
	c.request("refresh_token", m{"provider": "acme"})
	asked(t, s, 1)
	c.Close()
	other := dial(t, p.socket)
	if a := other.call("list_api_keys", nil); !a.OK {
		t.Fatal(a)
	}
	release()
	eventually(t, patience, "the token that nobody waited for is served", func() bool {
		return other.token("acme").Data["access_token"] == newest(s, 0)
	})
	if n := len(refreshes(s)); n != 1 {
		t.Errorf("the provider was asked %d times", n)
	}
}

// A logout waits for a refresh that is running, and nothing of it comes back.
func TestLogoutWinsOverARefresh(t *testing.T) {
	for _, way := range []string{"auth logout", "auth logout --revoke", "remove_token"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			h, s := refreshing(t, "", "acme", "acme/stays")
			release := hold(t, s)
			p := h.serve()
			asking := dial(t, p.socket)
			asking.request("refresh_token", m{"provider": "acme"})
			asked(t, s, 1)

			var logout *background
			removing := dial(t, p.socket)
			if way == "remove_token" {
				removing.request("remove_token", m{"provider": "acme"})
				list := removing.request("list_api_keys", nil)
				if a, err := removing.recv(patience); err != nil || a.ID != list {
					t.Fatalf("remove_token did not wait: %+v, %v", a, err)
				}
				other := dial(t, p.socket)
				for range 3 { // what takes as long as a removal
					other.expire("mine")
				}
				if a, err := removing.recv(time.Millisecond); err == nil {
					t.Errorf("remove_token did not wait: %+v", a)
				}
			} else {
				logout = h.start(h.command(append(strings.Fields(way), "acme")...))
				logout.waitsForLock()
			}
			dial(t, p.socket).serves("while it waits", "acme/stays", newest(s, 1))
			release()
			if logout == nil {
				if a, err := removing.recv(patience); err != nil || !a.OK {
					t.Errorf("remove_token: %+v, %v", a, err)
				}
			} else if code := logout.wait(patience); code != 0 {
				t.Errorf("%s: status %d: %s", way, code, logout.stderr)
			}
			if _, err := asking.recv(patience); err != nil { // the new token, or that it is gone: it was there for a moment
				t.Errorf("refresh_token: %v", err)
			}

			gone := func(when string, p *proxy) {
				t.Helper()
				c := dial(t, p.socket)
				eventually(t, patience, when+": the login is gone", func() bool { return c.token("acme").Code == "NOT_FOUND" })
				if a := c.refresh("acme"); a.Code != "NOT_FOUND" {
					t.Errorf("%s: refresh_token: %+v", when, a)
				}
				c.serves(when, "acme/stays", newest(s, 1))
			}
			gone("afterwards", p)
			gone("in another proxy", h.serve())
			p.signal(syscall.SIGKILL)
			p.wait(patience)
			gone("after a crash", h.serve())
			if st := h.status("acme"); st.State != "" {
				t.Errorf("auth status: %+v", st)
			}
			if n := len(refreshes(s)); n != 1 {
				t.Errorf("the provider was asked %d times", n)
			}
			tokens := s.Families()[0].RefreshTokens
			if way == "auth logout --revoke" {
				sent := s.Requests(oauthtest.Revoke)
				if len(sent) == 0 || sent[0].Params.Get("token") != tokens[1] || !s.Families()[0].Revoked {
					t.Errorf("%d requests to revoke; the new refresh token is still good: %v", len(sent), s.Valid(tokens[1]))
				}
			} else if !s.Valid(tokens[1]) {
				t.Error("the refresh token was revoked, or used again")
			}
			if !s.Valid(s.Families()[1].RefreshTokens[0]) {
				t.Error("the other login is gone as well")
			}
		})
	}
}

// Who logs in anew while the old login is being refreshed gets the new one, and its refresh token is what is stored.
func TestLoginWinsOverARefresh(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme")
	release := hold(t, s)
	c := dial(t, h.serve().socket)
	c.request("refresh_token", m{"provider": "acme"})
	asked(t, s, 1)
	login := h.start(h.command("auth", "login", "acme", "--no-browser"))
	url := login.stdout.find(anyURL, login.ended, patience)
	if url == nil {
		t.Fatalf("auth login printed no URL: %s", login.stderr)
	}
	page := make(chan error, 1)
	go func() { // it comes when the login is stored
		r, err := http.Get(url[0])
		if err == nil {
			err = r.Body.Close()
		}
		page <- err
	}()
	login.waitsForLock()
	release()
	if err := <-page; err != nil {
		t.Error(err)
	}
	if a, err := c.recv(patience); err != nil || !a.OK {
		t.Errorf("refresh_token: %+v, %v", a, err)
	}
	if code := login.wait(patience); code != 0 {
		t.Errorf("auth login: status %d: %s", code, login.stderr)
	}
	eventually(t, patience, "the new login is served", func() bool { return c.token("acme").Data["access_token"] == newest(s, 1) })
	if a := c.refresh("acme"); !a.OK || a.Data["access_token"] != newest(s, 1) {
		t.Errorf("refresh_token of the new login: %+v", a)
	}
	h.must("auth", "logout", "acme", "--revoke")
	if s.Families()[0].Revoked || !s.Families()[1].Revoked {
		t.Error("what was stored at last is not the new login")
	}
}

// A login to which a sandbox has saved as much as can be stored is refreshed as any other, and its new token is as safe.
func TestRefreshOfALargeLogin(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme")
	p := h.serve()
	c := dial(t, p.socket)
	const size = 900 << 10
	if a := c.call("save_token", m{"provider": "acme", "token": m{"access_token": "test-large", "expiry": 1, "token_type": "Bearer", "note": strings.Repeat("x", size)}}); !a.OK {
		t.Fatalf("save_token of %d bytes: %+v", size, a)
	}
	release := hold(t, s)
	c.request("refresh_token", m{"provider": "acme"})
	asked(t, s, 1)
	data := h.home + "/data"
	mount(t, data, data, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", data, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	release()
	if a, err := c.recv(patience); err != nil || !a.OK || a.Data["access_token"] != newest(s, 0) {
		t.Fatalf("refresh_token: %v, %v", a.Code, err)
	}
	if log := p.stderr.String(); strings.Contains(log, "memory only") {
		t.Errorf("there was no place for the answer: %s", log)
	}
	p.signal(syscall.SIGKILL)
	p.wait(patience)
	c = dial(t, h.serve().socket)
	a := c.token("acme")
	note, _ := a.Data["note"].(string)
	if a.Data["access_token"] != newest(s, 0) || len(note) != size {
		t.Errorf("after a crash: %v, %d bytes of what was saved", a.Code, len(note))
	}
	if err := syscall.Mount("", data, "", syscall.MS_REMOUNT|syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	h.stored(c, "acme", newest(s, 0))
}

// A sandbox that wants nothing but refreshes, and spoils the stored token in between, does not get the provider asked more
// often than every 30 s.
func TestHostileRefreshes(t *testing.T) {
	t.Parallel()
	h, s := refreshing(t, "", "acme", "acme/other")
	p := h.serve()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 64 {
		c := dial(t, p.socket)
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				op, payload := "refresh_token", m{"provider": "acme"}
				if i%4 == 0 && n%3 == 0 {
					op, payload["token"] = "save_token", m{"access_token": "test-expired", "expiry": 1, "token_type": "Bearer"}
				}
				c.request(op, payload)
				a, err := c.recv(patience)
				if err != nil || !a.OK && (a.Code != "RATE_LIMITED" || a.RetryAfter < 1 || a.RetryAfter > 30) {
					t.Errorf("%s: %+v, %v", op, a, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(refreshes(s)); n != 1 && time.Since(begun) < 30*time.Second {
		t.Errorf("the provider was asked %d times in %v, want once", n, time.Since(begun))
	}
	if a := dial(t, p.socket).refresh("acme/other"); a.Data["access_token"] != newest(s, 1) || newest(s, 1) == s.Issued().AccessTokens[1] {
		t.Errorf("the other login: %+v", a)
	}
	neverReused(t, s)
}
