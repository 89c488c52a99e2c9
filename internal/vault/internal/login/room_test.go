package login

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/wire"
)

func TestSeventeenthSession(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser, DeviceLifetime: time.Hour}, 40*time.Minute, func(t *testing.T, x *proxy) {
		first := x.session(t, FlowDevice)
		time.Sleep(35 * time.Minute)
		var rest []*wire.Session
		for i := range MaxPending - 1 {
			rest = append(rest, x.session(t, []string{FlowDevice, FlowPaste}[i%2]))
		}
		calls := x.w.server.Calls(oauthtest.Device)
		_, err := x.try(t.Context(), FlowDevice)
		wants(t, "the 17th", err, wire.CodeRateLimited)
		if e := err.(*wire.Error); e.RetryAfter != 300 {
			t.Errorf("retry after %d s, want the 300 of the oldest", e.RetryAfter)
		}
		if n := x.w.server.Calls(oauthtest.Device); n != calls {
			t.Error("the provider was asked for a session that has no room")
		}
		if err := x.Cancel(me, rest[0].ID); err != nil {
			t.Fatal(err)
		}
		x.session(t, FlowPaste) // in the place of the cancelled one
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		x.session(t, FlowPaste) // in the place of the first, whose time is over
		_, err = x.try(t.Context(), FlowPaste)
		if e, ok := err.(*wire.Error); !ok || e.RetryAfter != maxRetryAfter {
			t.Errorf("the next: %v, want at most %d s", err, maxRetryAfter)
		}
		_, err = x.Poll(me, first.ID)
		if err != nil {
			t.Errorf("the end of the first: %v", err)
		}
		// A beginning that fails gives its place back.
		if err := x.Cancel(me, rest[1].ID); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			x.w.server.Fault(oauthtest.Device, oauthtest.ErrorAnswer(503, "temporarily_unavailable"), 1)
			_, err = x.try(t.Context(), FlowDevice)
			wants(t, "a provider that is not there", err, wire.CodeInternal)
		}
		x.session(t, FlowPaste)
	})
}

// Beginnings take their place before they ask the provider, so many at once do not get past the limit.
func TestManyBeginAtOnce(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 0, func(t *testing.T, x *proxy) {
		x.w.server.Fault(oauthtest.Device, oauthtest.Fault{Delay: time.Second}, -1)
		answers := make(chan error, 40)
		for range cap(answers) {
			go func() {
				_, err := x.try(t.Context(), FlowDevice)
				answers <- err
			}()
		}
		begun := 0
		for range cap(answers) {
			if err := <-answers; err == nil {
				begun++
			} else {
				wants(t, "too many", err, wire.CodeRateLimited)
			}
		}
		if begun != MaxPending || x.w.server.Calls(oauthtest.Device) != MaxPending {
			t.Errorf("%d sessions, %d requests to the provider", begun, x.w.server.Calls(oauthtest.Device))
		}
	})
}

func TestForgetting(t *testing.T) {
	bubble(t, oauthtest.Options{}, 10*time.Minute, func(t *testing.T, x *proxy) {
		ctx, stop := context.WithCancel(t.Context())
		swept := make(chan struct{})
		go func() {
			defer close(swept)
			x.Sweep(ctx)
		}()
		expired, cancelled := x.session(t, FlowPaste), x.session(t, FlowPaste)
		if err := x.Cancel(me, cancelled.ID); err != nil {
			t.Fatal(err)
		}
		answer := func(s *wire.Session) error {
			_, err := x.Exchange(t.Context(), me, s.ID, "ac-1")
			return err
		}
		time.Sleep(9 * time.Minute)
		if e := answer(cancelled); !strings.Contains(e.Error(), "cancelled") {
			t.Errorf("cancelled, after 9 min: %v", e)
		}
		time.Sleep(2 * time.Minute)
		wants(t, "expired, after 11 min", answer(expired), wire.CodeSessionExpired)
		if _, _, ok := x.Of(cancelled.ID); ok {
			t.Error("cancelled, after 11 min: still remembered")
		}
		time.Sleep(10 * time.Minute)
		wants(t, "expired, after 21 min", answer(expired), wire.CodeSessionNotFound)
		if len(x.byID) != 0 || len(x.ended) != 0 || len(x.live) != 0 {
			t.Errorf("%d, %d and %d sessions are left", len(x.byID), len(x.ended), len(x.live))
		}
		stop()
		<-swept

		// Without a sweep it is bounded as well.
		var first, last *wire.Session
		for i := range maxRemembered + 1 {
			last = x.session(t, FlowPaste)
			if i == 0 {
				first = last
			}
			if err := x.Cancel(me, last.ID); err != nil {
				t.Fatal(err)
			}
		}
		if len(x.byID) != maxRemembered || len(x.ended) != maxRemembered {
			t.Errorf("%d sessions are remembered", len(x.byID))
		}
		if _, _, ok := x.Of(first.ID); ok {
			t.Error("the oldest is remembered")
		}
		if n := x.byID[last.ID]; n.login != nil || n.begin.Start != nil {
			t.Error("a remembered session holds its login")
		}
	})
}

// After a suspend the timers have not counted: the wall clock ends the session.
func TestSuspend(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 10*time.Minute, func(t *testing.T, x *proxy) {
		suspend := func(s *wire.Session) *session {
			synctest.Wait() // its timer runs
			x.Sessions.mu.Lock()
			defer x.Sessions.mu.Unlock()
			n := x.byID[s.ID]
			n.ends.wall = n.ends.wall.Add(-10 * time.Minute)
			return n
		}
		s := x.session(t, FlowDevice)
		suspend(s)
		if p := x.state(t, s); p.Status != wire.PollError || p.Err.Code != wire.CodeSessionExpired {
			t.Errorf("asked: %+v", p)
		}
		// Nobody asks, and the provider answers first.
		s = x.session(t, FlowDevice)
		n := suspend(s)
		x.w.server.Decide(s.UserCode, true)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if <-n.done; x.count() != 0 {
			t.Error("stored after its end")
		}
		// Nobody asks, and it is swept.
		ctx, stop := context.WithCancel(t.Context())
		swept := make(chan struct{})
		go func() {
			defer close(swept)
			x.Sweep(ctx)
		}()
		s = x.session(t, FlowPaste)
		n = suspend(s)
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case <-n.done:
		default:
			t.Error("not swept")
		}
		stop()
		<-swept
	})
}

func TestCloseSessions(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 0, func(t *testing.T, x *proxy) {
		device, paste := x.session(t, FlowDevice), x.session(t, FlowPaste)
		x.w.server.Fault(oauthtest.Device, oauthtest.Fault{Wait: make(chan struct{})}, 1)
		begun := make(chan error, 1)
		go func() {
			_, err := x.try(t.Context(), FlowDevice)
			begun <- err
		}()
		swept := make(chan struct{})
		go func() {
			defer close(swept)
			x.Sweep(context.Background())
		}()
		synctest.Wait()
		x.Close()
		<-swept
		err := <-begun
		wants(t, "a session that was beginning", err, wire.CodeInternal)
		if !strings.Contains(err.Error(), "the proxy is ending") { // and not that the provider cannot be reached
			t.Errorf("a session that was beginning: %v", err)
		}
		_, err = x.try(t.Context(), FlowPaste)
		wants(t, "a new one", err, wire.CodeInternal)
		_, err = x.Poll(me, device.ID)
		wants(t, "poll", err, wire.CodeSessionNotFound)
		_, err = x.Exchange(t.Context(), me, paste.ID, "ac-1")
		wants(t, "exchange", err, wire.CodeSessionNotFound)
		time.Sleep(time.Hour)
		if n := x.w.server.Calls(oauthtest.Token); n != 0 {
			t.Errorf("%d polls after the end", n)
		}
	})
}

func TestCrossing(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want wire.Code
		says string
	}{
		"not a code":            {ErrPaste, wire.CodeInvalidRequest, "copy the code"},
		"another login":         {ErrOtherLogin, wire.CodeExchangeFailed, "begin again"},
		"expired":               {ErrExpired, wire.CodeSessionExpired, "begin the login again"},
		"timed out":             {ErrTimeout, wire.CodeExchangeFailed, "begin it again"},
		"closed":                {ErrClosed, wire.CodeSessionNotFound, "cancelled"},
		"no such flow":          {&NoFlowError{"acme", FlowDevice, []string{FlowPaste, FlowBrowser}}, wire.CodeInvalidRequest, "pkce_redirect (paste), browser_redirect (browser)"},
		"a flow nobody knows":   {&NoFlowError{"acme", "\x1b[31m", []string{FlowPaste}}, wire.CodeInvalidRequest, "no such flow; it has pkce_redirect (paste)"},
		"no flow":               {&NoFlowError{"acme", "", nil}, wire.CodeInvalidRequest, "authorize_url"},
		"the port is taken":     {&ListenError{"acme", "localhost:1455", errors.New("x"), true, []string{FlowDevice}}, wire.CodeInternal, "or ask for another flow: device_code (device)"},
		"a port is not allowed": {&ListenError{"acme", "localhost:80", errors.New("x"), false, nil}, wire.CodeInternal, "redirect_url"},
		"too late":              {context.DeadlineExceeded, wire.CodeInternal, "try again"},
	} {
		e := Crossing(c.err)
		if e == nil || e.Code != c.want || !strings.Contains(e.Message, c.says) || strings.ContainsAny(e.Message, "\x1b") || strings.Contains(e.Message, "acme") || strings.Contains(e.Message, "localhost") {
			t.Errorf("%s: %+v, want %s with %q", name, e, c.want, c.says)
		}
	}
	for _, err := range []error{nil, errors.New("the disk is full"), context.Canceled} {
		if e := Crossing(err); e != nil {
			t.Errorf("%v: %v, want nil", err, e)
		}
	}
}
