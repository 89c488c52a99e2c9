package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/wire"
)

func TestPasteSession(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowPaste)
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(s.ID) || s.Flow != wire.FlowPKCERedirect || s.AuthURL == "" || s.VerificationURL != "" ||
			s.UserCode != "" || s.PollIntervalMS != 0 || s.ExpiresInMS != 600_000 {
			t.Errorf("session: flow %s, interval %d, expires in %d", s.Flow, s.PollIntervalMS, s.ExpiresInMS)
		}
		if p, b, ok := x.Of(s.ID); !ok || p != "acme" || b != "work" {
			t.Errorf("Of: %s/%s %v", p, b, ok)
		}
		code := x.code(t, s)
		for name, malformed := range map[string]string{"nothing": "", "too long": strings.Repeat("a", 4097), "a control character": "a\x00b", "the address shown": s.AuthURL} {
			_, err := x.Exchange(t.Context(), me, s.ID, malformed)
			wants(t, name, err, wire.CodeInvalidRequest)
		}
		token, err := x.Exchange(t.Context(), me, s.ID, code)
		if err != nil || token.AccessToken != x.w.server.Issued().AccessTokens[0] || x.count() != 1 {
			t.Fatalf("Exchange: %v, %d stored", err, x.count())
		}
		_, err = x.Exchange(t.Context(), me, s.ID, code)
		wants(t, "replay", err, wire.CodeSessionAlreadyUsed)
		_, err = x.Poll(me, s.ID)
		wants(t, "another operation", err, wire.CodeSessionAlreadyUsed)
		if err := x.Cancel(me, s.ID); err != nil {
			t.Errorf("cancel of what is over: %v", err)
		}
		if n := x.w.server.Calls(oauthtest.Token); n != 1 {
			t.Errorf("%d exchanges at the provider", n)
		}
		hides(t, x.w, x.Sessions, x.byID[s.ID].result, err)
		if text := fmt.Sprintf("%+v", x.Sessions); strings.Contains(text, s.ID) {
			t.Error("the sessions print an id")
		}
	})
}

func TestDeviceSession(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser, DeviceLifetime: 5 * time.Minute}, 0, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowDevice)
		if s.Flow != wire.FlowDeviceCode || s.AuthURL != "" || s.VerificationURL != x.w.server.EndpointURL(oauthtest.Verify) || s.UserCode == "" ||
			s.VerificationURLComplete == "" || s.PollIntervalMS != 5000 || s.ExpiresInMS != 300_000 {
			t.Errorf("session: %s %s %d %d", s.Flow, s.VerificationURL, s.PollIntervalMS, s.ExpiresInMS)
		}
		x.w.server.Fault(oauthtest.Token, oauthtest.ErrorAnswer(400, "slow_down"), 1)
		if p := x.state(t, s); p.Status != wire.PollPending || p.PollIntervalMS != 5000 {
			t.Errorf("at first: %+v", p)
		}
		time.Sleep(6 * time.Second)
		if p := x.state(t, s); p.Status != wire.PollPending || p.PollIntervalMS != 10_000 {
			t.Errorf("slowed down: %+v", p)
		}
		_, err := x.Exchange(t.Context(), me, s.ID, "ac-1")
		wants(t, "wrong operation", err, wire.CodeInvalidRequest)
		if !strings.Contains(err.Error(), "oauth_poll") {
			t.Errorf("the right operation is not named: %v", err)
		}
		x.w.server.Decide(s.UserCode, true)
		time.Sleep(10 * time.Second)
		if x.count() != 1 { // whoever polls, or does not
			t.Fatal("the login is not stored")
		}
		if p := x.state(t, s); p.Status != wire.PollComplete || p.Token.AccessToken != x.w.server.Issued().AccessTokens[0] {
			t.Errorf("in the end: %s", p.Status)
		}
		_, err = x.Poll(me, s.ID)
		wants(t, "the end, again", err, wire.CodeSessionAlreadyUsed)
	})
}

func TestBrowserSession(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	x := newProxy(w, 0)
	defer x.Close()
	s := x.session(t, FlowBrowser)
	if s.Flow != wire.FlowBrowserRedirect || s.AuthURL == "" || s.PollIntervalMS != 1000 {
		t.Errorf("session: %s %d", s.Flow, s.PollIntervalMS)
	}
	if p := x.state(t, s); p.Status != wire.PollPending || p.PollIntervalMS != 1000 {
		t.Errorf("at first: %+v", p)
	}
	if status, _ := w.open(t, s.AuthURL); status != http.StatusOK {
		t.Fatalf("the browser: HTTP %d", status)
	}
	<-x.byID[s.ID].done
	if p := x.state(t, s); p.Status != wire.PollComplete || x.count() != 1 {
		t.Errorf("in the end: %s", p.Status)
	}
	_, err := x.Poll(me, s.ID)
	wants(t, "the end, again", err, wire.CodeSessionAlreadyUsed)
}

func TestSessionMisuse(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.ApproveAll}, time.Minute, func(t *testing.T, x *proxy) {
		paste := x.session(t, FlowPaste)
		code := x.code(t, paste)

		_, err := x.Exchange(t.Context(), me, strings.Repeat("0", 32), code)
		wants(t, "unknown id", err, wire.CodeSessionNotFound)
		_, err = x.Poll(me, "")
		wants(t, "no id", err, wire.CodeSessionNotFound)
		if err := x.Cancel(me, "x"); err != nil {
			t.Errorf("cancel of an unknown one: %v", err)
		}
		if _, _, ok := x.Of("x"); ok {
			t.Error("Of an unknown one")
		}

		_, err = x.Exchange(t.Context(), other, paste.ID, code)
		wants(t, "another user's exchange", err, wire.CodeUnauthorized)
		_, err = x.Poll(other, paste.ID)
		wants(t, "another user's poll", err, wire.CodeUnauthorized)
		wants(t, "another user's cancel", x.Cancel(other, paste.ID), wire.CodeUnauthorized)

		_, err = x.Poll(me, paste.ID)
		wants(t, "wrong operation", err, wire.CodeInvalidRequest)
		if !strings.Contains(err.Error(), "oauth_exchange") {
			t.Errorf("the right operation is not named: %v", err)
		}

		// The code of one session in the other: it is refused by its state, and spends the session it was given to only.
		second := x.session(t, FlowPaste)
		_, err = x.Exchange(t.Context(), me, second.ID, code)
		wants(t, "crossed code", err, wire.CodeExchangeFailed)
		_, err = x.Exchange(t.Context(), me, second.ID, x.code(t, second))
		wants(t, "after a crossed code", err, wire.CodeSessionAlreadyUsed)
		// Without its state only the provider can tell: the verifier is another one.
		third := x.session(t, FlowPaste)
		bare, _, _ := strings.Cut(code, "#")
		_, err = x.Exchange(t.Context(), me, third.ID, bare)
		wants(t, "crossed code without a state", err, wire.CodeExchangeFailed)
		if x.count() != 0 {
			t.Error("something was stored")
		}

		cancelled := x.session(t, FlowPaste)
		if err := x.Cancel(me, cancelled.ID); err != nil {
			t.Errorf("cancel: %v", err)
		}
		_, err = x.Exchange(t.Context(), me, cancelled.ID, x.code(t, cancelled))
		wants(t, "cancelled", err, wire.CodeSessionNotFound)
		if !strings.Contains(err.Error(), "cancelled") {
			t.Errorf("the text does not say so: %v", err)
		}
		_, err = x.Exchange(t.Context(), other, cancelled.ID, "x")
		wants(t, "cancelled, another user", err, wire.CodeUnauthorized)

		expired := x.session(t, FlowPaste)
		code = x.code(t, expired)
		time.Sleep(time.Minute)
		_, err = x.Exchange(t.Context(), me, expired.ID, code)
		wants(t, "expired", err, wire.CodeSessionExpired)
		_, err = x.Poll(me, expired.ID)
		wants(t, "expired, wrong operation", err, wire.CodeSessionExpired)
		if err := x.Cancel(me, expired.ID); err != nil {
			t.Errorf("cancel of an expired one: %v", err)
		}
		_, err = x.Exchange(t.Context(), me, second.ID, code)
		wants(t, "used, and its time is over", err, wire.CodeSessionAlreadyUsed)
		if x.count() != 0 {
			t.Error("something was stored")
		}
	})
}

func TestSessionFailures(t *testing.T) {
	for name, c := range map[string]struct {
		flow   string
		server oauthtest.Options
		fault  *oauthtest.Fault // of the token endpoint
		want   wire.Code
	}{
		"paste, refused":            {flow: FlowPaste, fault: new(oauthtest.ErrorAnswer(400, "invalid_grant")), want: wire.CodeExchangeFailed},
		"paste, client refused":     {flow: FlowPaste, fault: new(oauthtest.ErrorAnswer(401, "invalid_client")), want: wire.CodeExchangeFailed},
		"paste, network":            {flow: FlowPaste, fault: &oauthtest.Fault{Drop: true}, want: wire.CodeInternal},
		"paste, unavailable":        {flow: FlowPaste, fault: new(oauthtest.ErrorAnswer(503, "temporarily_unavailable")), want: wire.CodeInternal},
		"paste, no tokens":          {flow: FlowPaste, fault: new(oauthtest.Without("access_token")), want: wire.CodeExchangeFailed},
		"paste, an answer too late": {flow: FlowPaste, fault: &oauthtest.Fault{Delay: time.Hour}, want: wire.CodeInternal},
		"device, denied":            {flow: FlowDevice, server: oauthtest.Options{Approval: oauthtest.DenyAll}, want: wire.CodeExchangeFailed},
		"device, refused":           {flow: FlowDevice, fault: new(oauthtest.ErrorAnswer(400, "invalid_client")), want: wire.CodeExchangeFailed},
		"device, code expired":      {flow: FlowDevice, fault: new(oauthtest.ErrorAnswer(400, "expired_token")), want: wire.CodeSessionExpired},
		"device, its time over":     {flow: FlowDevice, server: oauthtest.Options{Approval: oauthtest.AskUser, DeviceLifetime: 20 * time.Second}, want: wire.CodeSessionExpired},
		"device, no tokens":         {flow: FlowDevice, fault: new(oauthtest.Without("access_token")), want: wire.CodeExchangeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, c.server, time.Minute, func(t *testing.T, x *proxy) {
				if c.fault != nil {
					x.w.server.Fault(oauthtest.Token, *c.fault, 2)
				}
				s := x.session(t, c.flow)
				var err error
				again := wire.CodeSessionAlreadyUsed
				if c.flow == FlowPaste {
					_, err = x.Exchange(t.Context(), me, s.ID, x.code(t, s))
				} else {
					time.Sleep(30 * time.Second)
					p := x.state(t, s)
					if p.Status != wire.PollError {
						t.Fatalf("status %s", p.Status)
					}
					err = p.Err
					if c.want == wire.CodeSessionExpired {
						again = wire.CodeSessionExpired
					}
				}
				wants(t, "the failure", err, c.want)
				hides(t, x.w, err)
				if c.flow == FlowPaste {
					_, err = x.Exchange(t.Context(), me, s.ID, "ac-1")
				} else {
					_, err = x.Poll(me, s.ID)
				}
				wants(t, "afterwards", err, again)
				if x.count() != 0 {
					t.Error("something was stored")
				}
			})
		})
	}
}

// A session's end is the end of its work, at that moment.
func TestExpiryEndsTheWork(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 12*time.Second, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowDevice)
		n := x.byID[s.ID]
		time.Sleep(12*time.Second + time.Millisecond)
		synctest.Wait()
		select {
		case <-n.done:
		default:
			t.Error("it goes on")
		}
		x.w.server.Decide(s.UserCode, true)
		time.Sleep(time.Second)
		if polls := x.w.server.Calls(oauthtest.Token); polls != 2 {
			t.Errorf("%d polls, want 2", polls)
		}
		if p := x.state(t, s); p.Status != wire.PollError || p.Err.Code != wire.CodeSessionExpired {
			t.Errorf("the first poll afterwards: %+v", p)
		}
		_, err := x.Poll(me, s.ID)
		wants(t, "the second", err, wire.CodeSessionExpired)
		_, err = x.Exchange(t.Context(), me, s.ID, "x")
		wants(t, "the other operation", err, wire.CodeSessionExpired)
		if x.count() != 0 {
			t.Error("stored after its end")
		}
	})
}

// Whoever keeps the record learns how a login ended although nobody polls, and nothing of one that is ended by a request.
func TestEnded(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 12*time.Second, func(t *testing.T, x *proxy) {
		var ends []string
		x.begin = func(b *Begin) {
			b.Ended = func(e *wire.Error) {
				ends = append(ends, "stored")
				if e != nil {
					ends[len(ends)-1] = string(e.Code)
				}
			}
		}
		for _, c := range []struct {
			flow string
			do   func(s *wire.Session)
			want string
		}{
			{FlowDevice, func(s *wire.Session) { x.w.server.Decide(s.UserCode, true) }, "stored"},
			{FlowDevice, func(s *wire.Session) { x.w.server.Decide(s.UserCode, false) }, "EXCHANGE_FAILED"},
			{FlowDevice, func(*wire.Session) {}, "SESSION_EXPIRED"},
			{FlowDevice, func(s *wire.Session) { _ = x.Cancel(me, s.ID) }, ""},
			{FlowPaste, func(s *wire.Session) { _, _ = x.Exchange(t.Context(), me, s.ID, "wrong") }, ""},
			{FlowPaste, func(*wire.Session) {}, ""},
		} {
			ends = nil
			c.do(x.session(t, c.flow))
			time.Sleep(13 * time.Second)
			synctest.Wait()
			if got := strings.Join(ends, " "); got != c.want {
				t.Errorf("%s: ended with %q, want %q", c.flow, got, c.want)
			}
		}
	})
}

func TestConcurrentExchanges(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowPaste)
		code := x.code(t, s)
		x.w.server.Fault(oauthtest.Token, oauthtest.Fault{Delay: 3 * time.Second}, 1)
		var (
			all    sync.WaitGroup
			mu     sync.Mutex
			tokens int
		)
		for range 20 {
			all.Go(func() {
				_, err := x.Exchange(t.Context(), me, s.ID, code)
				if err != nil {
					wants(t, "one of the others", err, wire.CodeSessionAlreadyUsed)
					return
				}
				mu.Lock()
				tokens++
				mu.Unlock()
			})
		}
		all.Wait()
		if n := x.w.server.Calls(oauthtest.Token); n != 1 || tokens != 1 || x.count() != 1 {
			t.Errorf("%d exchanges at the provider, %d answered, %d stored", n, tokens, x.count())
		}
	})
}

// The provider may have issued tokens when the client goes away: they are stored.
func TestClientLeaves(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowPaste)
		code := x.code(t, s)
		x.w.server.Fault(oauthtest.Token, oauthtest.Fault{Delay: 5 * time.Second}, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := x.Exchange(ctx, me, s.ID, code); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Exchange: %v", err)
		}
		time.Sleep(5 * time.Second)
		if x.count() != 1 {
			t.Error("not stored")
		}
		_, err := x.Exchange(t.Context(), me, s.ID, code)
		wants(t, "afterwards", err, wire.CodeSessionAlreadyUsed)

		// Nobody knows the id of a session whose beginning nobody waited for.
		x.w.server.Fault(oauthtest.Device, oauthtest.Fault{Delay: 5 * time.Second}, 1)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := x.try(ctx, FlowDevice); err == nil {
			t.Error("Begin after its client left")
		}
		if len(x.live) != 0 {
			t.Error("its place is taken")
		}
	})
}

func TestNotAllowedAnyMore(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		allowed := true
		x.begin = func(b *Begin) { b.Allowed = func() bool { return allowed } }
		paste, device := x.session(t, FlowPaste), x.session(t, FlowDevice)
		allowed = false
		_, err := x.Exchange(t.Context(), me, paste.ID, x.code(t, paste))
		wants(t, "paste", err, wire.CodeUnauthorized)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		p := x.state(t, device)
		wants(t, "device", p.Err, wire.CodeUnauthorized)
		if x.count() != 0 {
			t.Error("stored")
		}
	})
}

// An edited profile ends what it does not allow, at once: no port stays open, and nobody polls.
func TestReview(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 0, func(t *testing.T, x *proxy) {
		allowed := true
		var ends []string
		x.begin = func(b *Begin) {
			b.Allowed = func() bool { return allowed }
			b.Ended = func(e *wire.Error) { ends = append(ends, string(e.Code)) }
		}
		device, paste := x.session(t, FlowDevice), x.session(t, FlowPaste)
		x.Review()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		polls := x.w.server.Calls(oauthtest.Token)
		if p := x.state(t, device); p.Status != wire.PollPending || polls == 0 {
			t.Fatalf("what is allowed: %+v, %d polls", p, polls)
		}
		allowed = false
		x.Review()
		x.w.server.Decide(device.UserCode, true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := x.w.server.Calls(oauthtest.Token); n != polls || len(x.live) != 0 || strings.Join(ends, " ") != "UNAUTHORIZED" {
			t.Errorf("%d polls more, %d live, ended with %q", n-polls, len(x.live), ends)
		}
		_, err := x.Poll(me, device.ID)
		wants(t, "device", err, wire.CodeUnauthorized)
		_, err = x.Exchange(t.Context(), me, paste.ID, "x")
		wants(t, "paste", err, wire.CodeUnauthorized)
	})
}

func TestStoreFails(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		locked := errors.New("the keyring is locked")
		x.storing = func(context.Context) error { return locked }
		x.failure = func(err error) *wire.Error {
			if errors.Is(err, locked) {
				return wire.E(wire.CodeInternal, "unlock the keyring on the host")
			}
			return nil
		}
		s := x.session(t, FlowPaste)
		_, err := x.Exchange(t.Context(), me, s.ID, x.code(t, s))
		wants(t, "paste", err, wire.CodeInternal)
		if !strings.Contains(err.Error(), "unlock") {
			t.Errorf("the store's failure is not told: %v", err)
		}
		s = x.session(t, FlowDevice)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		wants(t, "device", x.state(t, s).Err, wire.CodeExchangeFailed)
		x.failure = nil
		s = x.session(t, FlowPaste)
		_, err = x.Exchange(t.Context(), me, s.ID, x.code(t, s))
		wants(t, "an error that nobody knows", err, wire.CodeInternal)
		if strings.Contains(err.Error(), "keyring") {
			t.Errorf("a foreign text crosses: %v", err)
		}
	})
}
