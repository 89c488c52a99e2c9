//go:build e2e && linux

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// pause is the time between two attempts to refresh one login.
const pause = 30 * time.Second

// The tests here go on when 30 s have passed since an attempt: they begin, other tests are run meanwhile, and they end beside
// those that run in parallel.

// A provider was asked, has used up the refresh token, and nobody has its answer: it is tried once more, and then it is
// clear.
func TestAnswerLostInACrash(t *testing.T) {
	h, s := refreshing(t, "", "acme")
	release := hold(t, s)
	p := h.serve()
	dial(t, p.socket).request("refresh_token", m{"provider": "acme"})
	asked(t, s, 1)
	p.signal(syscall.SIGKILL)
	p.wait(patience)
	release()
	c := dial(t, h.serve().socket)
	if st := c.stands("acme"); st["state"] != "ok" || !strings.Contains(st["detail"].(string), "interrupted") {
		t.Errorf("after the crash: %v", st)
	}
	c.expire("acme")
	c.limited(t, s, "acme", 1)
	a := c.refresh("acme")
	if a.Code != "INTERNAL_ERROR" || !strings.HasPrefix(a.Error, "login needed: ") || !strings.Contains(a.Error, "interrupted") {
		t.Errorf("a refresh token that was used up: %+v", a)
	}
	if n := len(refreshes(s)); n != 2 || !s.Families()[0].Revoked {
		t.Errorf("the provider was asked %d times, want once before the crash and once after", n)
	}
	for range 3 {
		if a := c.refresh("acme"); !strings.HasPrefix(a.Error, "login needed: ") {
			t.Errorf("again: %+v", a)
		}
	}
	h.fails(4, "credproxy auth login acme", "token", "acme")
	if n := len(refreshes(s)); n != 2 {
		t.Errorf("the provider was asked %d times: a dead refresh token was tried again", n)
	}
	if st := h.status("acme"); st.State != "login_needed" || !strings.Contains(st.Detail, "interrupted") {
		t.Errorf("auth status: %+v", st)
	}
	h.login("acme")
	eventually(t, patience, "a new login is served", func() bool { return c.token("acme").Data["access_token"] == newest(s, 1) })
	if st := h.status("acme"); st.State != "ok" {
		t.Errorf("auth status after a new login: %+v", st)
	}
}

// A provider was asked and had done nothing yet: no login is needed.
func TestCrashBeforeTheAnswer(t *testing.T) {
	h, s := refreshing(t, "", "acme")
	never := make(chan struct{})
	defer close(never)
	s.Fault(oauthtest.Token, oauthtest.Fault{Status: 503, Wait: never}, 1)
	p := h.serve()
	dial(t, p.socket).request("refresh_token", m{"provider": "acme"})
	asked(t, s, 1)
	p.signal(syscall.SIGKILL)
	p.wait(patience)
	c := dial(t, h.serve().socket)
	c.expire("acme")
	c.limited(t, s, "acme", 1)
	if a := c.refresh("acme"); !a.OK || a.Data["access_token"] != newest(s, 0) {
		t.Errorf("a refresh token that was not used up: %+v", a)
	}
	if st := h.status("acme"); st.State != "ok" || st.Detail != "" {
		t.Errorf("auth status: %+v", st)
	}
	neverReused(t, s)
}

// A token that was served is renewed before it expires, and nobody asks for it.
func TestRenewal(t *testing.T) {
	h, s := refreshing(t, "")
	s.Fault(oauthtest.Token, oauthtest.With("expires_in", "60"), 1) // due after half of it
	h.login("acme")
	s.Fault(oauthtest.Token, oauthtest.With("expires_in", "60"), 1)
	h.login("acme/never-served")
	c := dial(t, h.serve().socket)
	c.serves("at first", "acme", newest(s, 0))
	issued := s.Requests(oauthtest.Token)[0].Time
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := s.WaitCalls(ctx, oauthtest.Token, 3); err != nil {
		t.Fatalf("a token of 60 s was not renewed: %v", err)
	}
	if after := refreshes(s)[0].Time.Sub(issued); after < 20*time.Second || after >= 60*time.Second {
		t.Errorf("a token of 60 s was renewed after %v", after)
	}
	eventually(t, patience, "the renewed token is served", func() bool { return c.token("acme").Data["access_token"] == newest(s, 0) })
	if len(s.Families()[0].AccessTokens) != 2 || len(s.Families()[1].AccessTokens) != 1 {
		t.Error("the login that was not served was renewed, or the other was not")
	}
	if st := h.status("acme"); st.State != "ok" || st.LastRefresh == nil || refreshes(s)[0].Time.Sub(time.Unix(*st.LastRefresh, 0)).Abs() > patience {
		t.Errorf("auth status: %+v", st)
	}
	neverReused(t, s)
}

// The disk was not full when a login was refreshed for the first time, and is at the next: there is room for the new
// token, also after kill -9, and the store has it when the disk has room again.
func TestRefreshOnAFullDisk(t *testing.T) {
	d := newFullDisk(t, "acme")
	c := dial(t, d.serve().socket)
	if a := c.refresh("acme"); !a.OK {
		t.Fatalf("with room on the disk: %+v", a)
	}
	c.expire("acme")
	d.fill()
	c.limited(t, d.oauth, "acme", 1)
	a := c.refresh("acme")
	if !a.OK || a.Data["access_token"] != newest(d.oauth, 0) || len(d.oauth.Families()[0].AccessTokens) != 3 {
		t.Fatalf("on a full disk: %+v", a)
	}
	d.keptAndStored("acme", 0)
}

// limited asks for a refresh within the pause, leaves the time until it may be asked again to other tests, and waits for what is
// left of it. The provider has been asked n times.
func (c *conn) limited(t *testing.T, s *oauthtest.Server, login string, n int) {
	t.Helper()
	a := c.refresh(login)
	if a.Code != "RATE_LIMITED" || a.RetryAfter < 1 || a.RetryAfter > pause.Seconds() || len(refreshes(s)) != n {
		t.Fatalf("within %v: %+v; the provider was asked %d times", pause, a, len(refreshes(s)))
	}
	may := time.After(time.Duration(a.RetryAfter) * time.Second)
	t.Parallel()
	<-may
}
