package login

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// waited is what came of a Wait.
type waited struct {
	grant *grant.Grant
	err   error
	after time.Duration // since the login began
}

// wait waits for a login in a goroutine, which ends with the login.
func wait(ctx context.Context, l *Login, begun time.Time) <-chan waited {
	done := make(chan waited, 1)
	go func() {
		g, err := l.Wait(ctx)
		done <- waited{g, err, time.Since(begun)}
	}()
	return done
}

// polls returns when the polls came, in seconds since begun.
func polls(w *world, begun time.Time) []int {
	var at []int
	for _, r := range w.server.Requests(oauthtest.Token) {
		at = append(at, int(r.Time.Sub(begun).Seconds()))
	}
	return at
}

func TestDeviceLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPipeWorld(t, oauthtest.Options{Approval: oauthtest.AskUser})
		defer w.close(t)
		begun := time.Now()
		l := w.start(t, FlowDevice)
		defer l.Close()
		if l.URL != w.server.EndpointURL(oauthtest.Verify) || l.URLComplete != l.URL+"?user_code="+l.UserCode || l.UserCode == "" ||
			l.Interval != 5*time.Second || l.Lifetime != 10*time.Minute || l.PollInterval() != l.Interval {
			t.Errorf("%s %s %s %s %s", l.URL, l.URLComplete, l.UserCode, l.Interval, l.Lifetime)
		}
		time.Sleep(2 * time.Second) // the person reads; the interval counts from the beginning
		done := wait(t.Context(), l, begun)
		time.Sleep(11 * time.Second)
		if !w.server.Decide(l.UserCode, true) {
			t.Fatal("no device waits for this code")
		}
		r := <-done
		if r.err != nil || r.grant.AccessToken.Reveal() != w.server.Issued().AccessTokens[0] {
			t.Fatalf("Wait: %v", r.err)
		}
		if at := polls(w, begun); !slices.Equal(at, []int{5, 10, 15}) {
			t.Errorf("polled at %v s", at)
		}
		hides(t, w, l, *l, l.device.code, r.grant)
	})
}

func slowDown(status int, body string) oauthtest.Fault {
	return oauthtest.Fault{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: &body}
}

// RFC 8628 section 3.5, in every form in which providers say it.
func TestPollingObeys(t *testing.T) {
	pending := oauthtest.ErrorAnswer(http.StatusBadRequest, "authorization_pending")
	unavailable := oauthtest.ErrorAnswer(http.StatusServiceUnavailable, "temporarily_unavailable")
	for name, c := range map[string]struct {
		answers []oauthtest.Fault // before the one that brings the tokens
		want    []int             // when the polls come, in seconds
	}{
		"nothing":                      {nil, []int{5}},
		"pending":                      {[]oauthtest.Fault{pending, pending}, []int{5, 10, 15}},
		"pending, with status 200":     {[]oauthtest.Fault{oauthtest.ErrorAnswer(http.StatusOK, "authorization_pending")}, []int{5, 10}},
		"slow_down stays":              {[]oauthtest.Fault{oauthtest.ErrorAnswer(http.StatusBadRequest, "slow_down"), pending, pending}, []int{5, 15, 25, 35}},
		"slow_down twice":              {[]oauthtest.Fault{oauthtest.ErrorAnswer(http.StatusBadRequest, "slow_down"), oauthtest.ErrorAnswer(http.StatusBadRequest, "slow_down"), pending}, []int{5, 15, 30, 45}},
		"slow_down, with status 200":   {[]oauthtest.Fault{oauthtest.ErrorAnswer(http.StatusOK, "slow_down"), pending}, []int{5, 15, 25}},
		"slow_down, with status 429":   {[]oauthtest.Fault{oauthtest.ErrorAnswer(http.StatusTooManyRequests, "slow_down"), pending}, []int{5, 15, 25}},
		"slow_down, a new interval":    {[]oauthtest.Fault{slowDown(400, `{"error":"slow_down","interval":17}`), pending}, []int{5, 22, 39}},
		"a new interval, status 200":   {[]oauthtest.Fault{slowDown(200, `{"error":"slow_down","interval":12}`), pending}, []int{5, 17, 29}},
		"a new interval, as a string":  {[]oauthtest.Fault{slowDown(429, `{"error":"slow_down","interval":"12"}`), pending}, []int{5, 17, 29}},
		"slow_down, an interval lower": {[]oauthtest.Fault{slowDown(400, `{"error":"slow_down","interval":1}`), pending}, []int{5, 15, 25}},
		"unavailable":                  {[]oauthtest.Fault{unavailable, unavailable, unavailable, unavailable, unavailable}, []int{5, 15, 35, 75, 135, 195}},
		"unavailable, then pending":    {[]oauthtest.Fault{unavailable, unavailable, pending}, []int{5, 15, 35, 40}},
		"no answer":                    {[]oauthtest.Fault{{Drop: true}, pending}, []int{5, 15, 20}},
		"rate limited":                 {[]oauthtest.Fault{oauthtest.RateLimited("90"), pending}, []int{5, 95, 100}},
		"an answer that takes long":    {[]oauthtest.Fault{{Delay: 20 * time.Second, Body: new(`{}`), Status: 400}, pending}, []int{5, 30, 35}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPipeWorld(t, oauthtest.Options{})
				defer w.close(t)
				for _, f := range c.answers {
					w.server.Fault(oauthtest.Token, f, 1)
				}
				begun := time.Now()
				l := w.start(t, FlowDevice)
				defer l.Close()
				r := <-wait(t.Context(), l, begun)
				if at := polls(w, begun); r.err != nil || !slices.Equal(at, c.want) {
					t.Errorf("polled at %v s, want %v: %v", at, c.want, r.err)
				}
			})
		})
	}
}

func TestDeviceLoginEnds(t *testing.T) {
	kind := func(k provider.Kind) func(error) bool {
		return func(err error) bool {
			e, ok := errors.AsType[*provider.Error](err)
			return ok && e.Kind == k
		}
	}
	for name, c := range map[string]struct {
		options oauthtest.Options
		fault   *oauthtest.Fault
		polls   int
		after   time.Duration
		is      func(error) bool
	}{
		"denied":                 {options: oauthtest.Options{Approval: oauthtest.DenyAll}, polls: 1, after: 5 * time.Second, is: kind(provider.Denied)},
		"denied, in other words": {fault: new(oauthtest.ErrorAnswer(400, "authorization_denied")), polls: 1, after: 5 * time.Second, is: kind(provider.Denied)},
		"its lifetime is over": {
			options: oauthtest.Options{Approval: oauthtest.AskUser, DeviceLifetime: 32 * time.Second}, polls: 6, after: 32 * time.Second,
			is: func(err error) bool { return errors.Is(err, ErrExpired) },
		},
		"over before the first poll": {
			options: oauthtest.Options{Approval: oauthtest.AskUser, DeviceLifetime: 3 * time.Second}, after: 3 * time.Second,
			is: func(err error) bool { return errors.Is(err, ErrExpired) },
		},
		"over while it has to wait": {
			options: oauthtest.Options{DeviceLifetime: 20 * time.Second}, fault: new(oauthtest.RateLimited("3600")), polls: 1, after: 20 * time.Second,
			is: func(err error) bool { return errors.Is(err, ErrExpired) },
		},
		"the provider says so": {
			fault: new(oauthtest.ErrorAnswer(400, "expired_token")), polls: 1, after: 5 * time.Second,
			is: func(err error) bool { return errors.Is(err, ErrExpired) },
		},
		"refused":   {fault: new(oauthtest.ErrorAnswer(400, "invalid_grant")), polls: 1, after: 5 * time.Second, is: kind(provider.Refused)},
		"no tokens": {fault: new(oauthtest.Fault{Status: 200, Body: new("hello")}), polls: 1, after: 5 * time.Second, is: kind(provider.Malformed)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPipeWorld(t, c.options)
				defer w.close(t)
				if c.fault != nil {
					w.server.Fault(oauthtest.Token, *c.fault, 1)
				}
				begun := time.Now()
				l := w.start(t, FlowDevice)
				defer l.Close()
				r := <-wait(t.Context(), l, begun)
				if !c.is(r.err) || r.after != c.after {
					t.Errorf("after %s, want %s: %v", r.after, c.after, r.err)
				}
				if n := w.server.Calls(oauthtest.Token); n != c.polls {
					t.Errorf("%d polls, want %d", n, c.polls)
				}
				hides(t, w, r.err, Crossing(r.err))
				time.Sleep(time.Hour)
				if n := w.server.Calls(oauthtest.Token); n != c.polls {
					t.Error("it goes on polling")
				}
			})
		})
	}
}

// What ends the waiting ends a request that is under way, too.
func TestDevicePollingStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPipeWorld(t, oauthtest.Options{Approval: oauthtest.AskUser})
		defer w.close(t)
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		begun := time.Now()
		l := w.start(t, FlowDevice)
		if r := <-wait(ctx, l, begun); !errors.Is(r.err, ErrTimeout) || r.after != 7*time.Second {
			t.Errorf("at the context's deadline: %v after %s", r.err, r.after)
		}
		l.Close()

		w.server.Fault(oauthtest.Token, oauthtest.Fault{Wait: make(chan struct{})}, 1)
		begun = time.Now()
		l = w.start(t, FlowDevice)
		done := wait(t.Context(), l, begun)
		if err := w.server.WaitCalls(t.Context(), oauthtest.Token, 2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		l.Close()
		if r := <-done; !errors.Is(r.err, ErrClosed) || r.after != 5*time.Second {
			t.Errorf("closed during a poll: %v after %s", r.err, r.after)
		}
	})
}

func TestDeviceLoginThatCannotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPipeWorld(t, oauthtest.Options{})
		defer w.close(t)
		w.server.Fault(oauthtest.Device, oauthtest.ErrorAnswer(400, "unauthorized_client"), 1)
		_, err := Start(t.Context(), w.client, w.request(FlowDevice))
		if e, ok := errors.AsType[*provider.Error](err); !ok || e.Code != "unauthorized_client" {
			t.Errorf("Start: %v", err)
		}
	})
}

// The running clock stands still while a machine is suspended, and the wall clock may be set back: either ends it.
func TestDeadline(t *testing.T) {
	now := time.Now()
	d := newDeadline(now, time.Minute)
	if d.passed(now) || d.passed(now.Add(59*time.Second)) || !d.passed(now.Add(time.Minute)) || d.left(now) != time.Minute || d.left(now.Add(time.Hour)) != 0 {
		t.Error("by both clocks")
	}
	suspended := deadline{running: now.Add(time.Minute), wall: now.Round(0).Add(-time.Second)}
	setBack := deadline{running: now.Add(-time.Second), wall: now.Round(0).Add(time.Minute)}
	if !suspended.passed(now) || !setBack.passed(now) || suspended.left(now) != 0 || setBack.left(now) != 0 {
		t.Error("by one of them")
	}
}
