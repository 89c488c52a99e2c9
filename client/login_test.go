package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/wire"
)

func TestLoginByDevice(t *testing.T) {
	page := devicePage
	page.PollIntervalMS, page.ExpiresInMS, page.VerificationURLComplete = 5000, 600000, "https://a.example/device?code=AB-CD"
	every := func(ms int) wire.Poll { return wire.Poll{Status: wire.PollPending, PollIntervalMS: ms} }
	sc := &script{initiate: page, answers: []any{
		every(5000), every(7000), pending, every(10), &wire.Error{Code: wire.CodeRateLimited, RetryAfter: 3}, &wire.Error{Code: wire.CodeRateLimited}, complete,
	}}
	f := &face{}
	token, after, err := sc.login(t, f)
	if err != nil || token == nil || token.AccessToken != loggedIn.AccessToken {
		t.Errorf("%v, %v", token, err)
	}
	if want := []string{page.VerificationURL, page.VerificationURLComplete, "AB-CD"}; !slices.Equal(f.seen, want) {
		t.Errorf("shown %q, want %q", f.seen, want)
	}
	want := []time.Duration{5 * time.Second, 5 * time.Second, 7 * time.Second, 7 * time.Second, 100 * time.Millisecond, 3 * time.Second, time.Second}
	if got := sc.intervals(after); !slices.Equal(got, want) {
		t.Errorf("polled after %v, want %v", got, want)
	}
	if len(f.waits) != len(want) || len(sc.cancelled) > 0 {
		t.Errorf("%d times waiting, cancelled %v", len(f.waits), sc.cancelled)
	}
	for _, until := range f.waits {
		if d := until.Sub(sc.asked[0]); d != 10*time.Minute-5*time.Second {
			t.Errorf("waiting until %v after the first poll", d)
		}
	}
	r := sc.begun[0]
	if r.Provider != "p" || r.Bucket != "work" || r.Flow != "" || !r.Detail {
		t.Errorf("asked for %s %s %s %v", r.Provider, r.Bucket, r.Flow, r.Detail)
	}
}

// A proxy that names no interval is asked as often as is usual.
func TestUsualIntervals(t *testing.T) {
	for want, page := range map[time.Duration]wire.Session{5 * time.Second: devicePage, time.Second: browserPage} {
		sc := &script{initiate: page, answers: []any{pending, complete}}
		f := &face{}
		if _, after, err := sc.login(t, f); err != nil || !slices.Equal(sc.intervals(after), []time.Duration{want, want}) {
			t.Errorf("%s: %v, polled after %v", page.Flow, err, sc.intervals(after))
		}
		if len(f.seen) == 0 || page.Flow == wire.FlowBrowserRedirect && f.seen[0] != page.AuthURL {
			t.Errorf("%s: shown %q", page.Flow, f.seen)
		}
	}
}

// Whatever ends a login without a token, it is cancelled at the proxy.
func TestLoginFails(t *testing.T) {
	window := errors.New("the window was closed")
	with := func(s wire.Session, change func(*wire.Session)) wire.Session { change(&s); return s }
	denied := wire.E(wire.CodeExchangeFailed, "the login was denied")
	for name, c := range map[string]struct {
		page   wire.Session
		answer any
		face   face
		want   error // nil: any
	}{
		"denied":                 {page: devicePage, answer: wire.Poll{Status: wire.PollError, Err: denied}, want: denied},
		"expired":                {page: browserPage, answer: wire.Poll{Status: wire.PollError, Err: wire.ErrSessionExpired}, want: wire.ErrSessionExpired},
		"the proxy fails":        {page: devicePage, answer: wire.ErrInternal, want: wire.ErrInternal},
		"the session has gone":   {page: devicePage, answer: wire.ErrSessionNotFound, want: wire.ErrSessionNotFound},
		"profile edited":         {page: browserPage, answer: wire.ErrUnauthorized, want: wire.ErrUnauthorized},
		"no outcome":             {page: devicePage, answer: wire.Empty{}},
		"exchange failed":        {page: pastePage, answer: denied, face: face{pastes: []string{"test-code-1"}}, want: denied},
		"rate limit for long":    {page: pastePage, answer: &wire.Error{Code: wire.CodeRateLimited, RetryAfter: 60}, face: face{pastes: []string{"c"}}, want: wire.ErrRateLimited},
		"nothing is pasted":      {page: pastePage, face: face{pastes: make([]string, 100)}, want: wire.ErrInvalidRequest},
		"nothing is a code":      {page: pastePage, answer: wire.ErrInvalidRequest, face: face{pastes: slices.Repeat([]string{"c"}, 100)}, want: wire.ErrInvalidRequest},
		"the face, paste":        {page: pastePage, face: face{err: window}, want: window},
		"the face, browser":      {page: browserPage, face: face{err: window}, want: window},
		"the face, device":       {page: devicePage, face: face{err: window}, want: window},
		"another kind":           {page: with(devicePage, func(s *wire.Session) { s.Flow = "implicit" })},
		"nothing to open":        {page: with(devicePage, func(s *wire.Session) { s.VerificationURL = "" })},
		"nothing to type":        {page: with(devicePage, func(s *wire.Session) { s.UserCode = "" })},
		"no address":             {page: with(browserPage, func(s *wire.Session) { s.AuthURL = "" })},
		"not for a browser":      {page: with(pastePage, func(s *wire.Session) { s.AuthURL = "javascript:alert(1)" })},
		"a file for the browser": {page: with(devicePage, func(s *wire.Session) { s.VerificationURL = "file:///etc/passwd" })},
	} {
		t.Run(name, func(t *testing.T) {
			sc := &script{initiate: c.page}
			if c.answer != nil {
				sc.answers = []any{c.answer}
			}
			token, after, err := sc.login(t, &c.face)
			if token != nil || err == nil || c.want != nil && !errors.Is(err, c.want) || after > 10*time.Second {
				t.Errorf("%v, %v after %v", token, err, after)
			}
			if !slices.Equal(sc.cancelled, []string{"s"}) {
				t.Errorf("cancelled %v", sc.cancelled)
			}
			if n := len(sc.codes); n > maxPastes {
				t.Errorf("%d codes were sent", n)
			}
		})
	}
}

// A link that is not one is left out: the code can be typed.
func TestLoginWithoutLink(t *testing.T) {
	page := devicePage
	page.VerificationURLComplete = "data:text/html,x"
	f := &face{}
	if _, _, err := (&script{initiate: page, answers: []any{complete}}).login(t, f); err != nil || f.seen[1] != "" {
		t.Errorf("%v, shown %q", err, f.seen)
	}
}

// The proxy says that the login is pending, or that it is asked too often, and never anything else.
func TestLoginEndsByItself(t *testing.T) {
	brief := func(s wire.Session) wire.Session { s.ExpiresInMS = 60000; return s }
	slow := brief(devicePage)
	slow.PollIntervalMS = 1 << 30
	for name, c := range map[string]struct {
		page   wire.Session
		answer any
		want   time.Duration
	}{
		"device":         {brief(devicePage), pending, time.Minute},
		"browser":        {brief(browserPage), pending, time.Minute},
		"long interval":  {slow, pending, time.Minute},
		"paste":          {brief(pastePage), pending, time.Minute},
		"rate limit":     {brief(devicePage), &wire.Error{Code: wire.CodeRateLimited, RetryAfter: 3600}, time.Minute},
		"no answer":      {brief(devicePage), nil, 5*time.Second + requestTimeout},
		"unsaid, device": {devicePage, pending, 15 * time.Minute},
		"unsaid, paste":  {pastePage, pending, 15 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			sc := &script{initiate: c.page, answers: []any{c.answer}}
			_, after, err := sc.login(t, &face{})
			if c.answer != nil && (!errors.Is(err, wire.ErrSessionExpired) || err.Error() != "the login was not finished in time; begin a new one") {
				t.Errorf("error %v", err)
			}
			if err == nil || after < c.want || after > c.want+2*time.Second || len(sc.cancelled) != 1 {
				t.Errorf("%v after %v, cancelled %v", err, after, sc.cancelled)
			}
		})
	}
}

// What the proxy says at the end of a login's time goes before the client's own words.
func TestLoginExpiresAtTheProxy(t *testing.T) {
	page := devicePage
	page.ExpiresInMS = 7000
	said := wire.E(wire.CodeSessionExpired, "the code was not confirmed in time")
	sc := &script{initiate: page, answers: []any{pending, wire.Poll{Status: wire.PollError, Err: said}}}
	if _, after, err := sc.login(t, &face{}); err == nil || err.Error() != said.Message || after != 8*time.Second {
		t.Errorf("%v after %v", err, after)
	}
}

// The person leaves, at any time.
func TestLoginContext(t *testing.T) {
	for name, c := range map[string]struct {
		page   wire.Session
		answer any
	}{
		"paste":     {pastePage, nil},
		"waiting":   {devicePage, pending},
		"in a poll": {browserPage, nil},
	} {
		t.Run(name, func(t *testing.T) {
			sc := &script{initiate: c.page, answers: []any{c.answer}}
			inBubble(t, &proxy{answer: sc.answer}, func(t *testing.T, cl *Client, since func() time.Duration) {
				ctx, stop := context.WithCancel(t.Context())
				time.AfterFunc(7500*time.Millisecond, stop)
				_, err := cl.Login(ctx, LoginOptions{Provider: "p", Face: &face{}})
				if err != context.Canceled || since() != 7500*time.Millisecond {
					t.Errorf("%v after %v", err, since())
				}
				if !slices.Equal(sc.cancelled, []string{"s"}) {
					t.Errorf("cancelled %v when it returned", sc.cancelled)
				}
			})
		})
	}
}

// A login that the host begins when the person has left already is not left behind.
func TestLoginLeftWhileItBegins(t *testing.T) {
	for version := wire.MinVersion; version <= wire.MaxVersion; version++ {
		for _, late := range []time.Duration{0, 3 * time.Second, time.Minute} {
			t.Run(fmt.Sprint("version ", version, " late ", late), func(t *testing.T) {
				sc := &script{initiate: devicePage}
				px := &proxy{maxVersion: version, answer: func(p *peer, r *wire.Request) {
					if r.Op == wire.OpOAuthInitiate {
						time.Sleep(time.Second + late)
					}
					sc.answer(p, r)
				}}
				inBubble(t, px, func(t *testing.T, c *Client, since func() time.Duration) {
					ctx, stop := context.WithTimeout(t.Context(), time.Second)
					defer stop()
					_, err := c.Login(ctx, LoginOptions{Provider: "p", Face: &face{}})
					if err != context.DeadlineExceeded || since() != time.Second+min(late, cancelTime) {
						t.Errorf("%v after %v", err, since())
					}
					if late < cancelTime && !slices.Equal(sc.cancelled, []string{"s"}) {
						t.Errorf("cancelled %v", sc.cancelled)
					}
				})
			})
		}
	}
}

// Cancelling is tried for 5 s, also when the agent has used up what may be asked.
func TestLoginCancelIsTried(t *testing.T) {
	often := &wire.Error{Code: wire.CodeRateLimited, RetryAfter: 1}
	for _, c := range []struct {
		cancels []any
		after   time.Duration
		tries   int
	}{
		{[]any{often, often, wire.Empty{}}, 2 * time.Second, 3},
		{[]any{&wire.Error{Code: wire.CodeRateLimited, RetryAfter: 2}}, 5 * time.Second, 3},
		{[]any{nil}, 5 * time.Second, 1},
		{[]any{wire.ErrSessionNotFound}, 0, 1},
	} {
		window := errors.New("the window was closed")
		sc := &script{initiate: pastePage, cancels: c.cancels}
		if _, after, err := sc.login(t, &face{err: window}); err != window || after != c.after || len(sc.cancelled) != c.tries {
			t.Errorf("%v: %v after %v, tried %d times", c.cancels, err, after, len(sc.cancelled))
		}
	}
}

func TestLoginPanic(t *testing.T) {
	sc := &script{initiate: devicePage, answers: []any{pending}}
	inBubble(t, &proxy{answer: sc.answer}, func(t *testing.T, c *Client, _ func() time.Duration) {
		defer func() {
			if recover() == nil || len(sc.cancelled) != 1 {
				t.Errorf("cancelled %v", sc.cancelled)
			}
		}()
		_, _ = c.Login(t.Context(), LoginOptions{Provider: "p", Face: &face{waiting: func() { panic("no terminal") }}})
	})
}

func TestLoginRefused(t *testing.T) {
	no := wire.E(wire.CodeUnauthorized, "nobody can be asked here; log in on the host")
	sc := &script{initiate: no}
	f := &face{}
	if _, _, err := sc.login(t, f); !errors.Is(err, no) || err.Error() != no.Message || len(f.seen)+len(sc.cancelled) > 0 {
		t.Errorf("%v, shown %q, cancelled %v", err, f.seen, sc.cancelled)
	}
	sc.initiate = wire.Empty{}
	if _, _, err := sc.login(t, f); err == nil || len(f.seen) > 0 {
		t.Errorf("%v, shown %q", err, f.seen)
	}
	if _, _, err := sc.login(t, nil); err == nil {
		t.Error("a login that nobody sees")
	}
}

func TestLoginConnectionLost(t *testing.T) {
	for _, op := range []wire.Op{wire.OpOAuthInitiate, wire.OpOAuthPoll} {
		px := &proxy{}
		px.answer = func(p *peer, r *wire.Request) {
			if r.Op == op {
				_ = p.Close()
				return
			}
			page := browserPage
			page.PollIntervalMS = 1
			p.reply(r.ID, page)
		}
		c := px.listen(t, Options{})
		if _, err := c.Login(t.Context(), LoginOptions{Provider: "p", Face: &face{}}); !isLost(err) {
			t.Errorf("in %s: %v", op, err)
		}
	}
}

// A proxy of another make says more, and less, than ours.
func TestLoginAtAnotherProxy(t *testing.T) {
	answers := map[wire.Op]string{
		wire.OpOAuthInitiate: `{"flow_type":"browser_redirect","mode":"browser_redirect","session_id":"s","sessionId":"s","auth_url":"http://127.0.0.1:1455/","redirectUri":null,"pollIntervalMs":1.0,"nested":{"expiresInMs":[1]}}`,
		wire.OpOAuthPoll:     `{"status":"complete","access_token":"test-access-token-1","token_type":"Bearer","expiry":1900000000,"refresh_token":"test-refresh-token-1","token":null,"account_id":"acct"}`,
	}
	px := &proxy{maxVersion: 1, answer: func(p *peer, r *wire.Request) {
		p.write([]byte(`{"v":1,"id":"` + r.ID + `","more":1,"ok":true,"data":` + answers[r.Op] + `}`))
	}}
	c := px.listen(t, Options{})
	token, err := c.Login(t.Context(), LoginOptions{Provider: "p", Face: &face{}})
	if err != nil || token.AccessToken != loggedIn.AccessToken || string(token.Field("account_id")) != `"acct"` || token.Field("refresh_token") != nil {
		t.Errorf("%v, %v", token, err)
	}
}

// A login that has begun is given up also when what is said of it cannot be understood.
func TestLoginNotUnderstood(t *testing.T) {
	for name, data := range map[string]string{
		"a negative interval": `{"session_id":"s","flow_type":"device_code","verification_url":"https://x.example/","user_code":"A","pollIntervalMs":-1}`,
		"a control character": `{"session_id":"s","flow_type":"device_code","verification_url":"https://x.example/","user_code":"A\u001b[2J"}`,
	} {
		cancelled := make(chan string, 1)
		px := &proxy{answer: func(p *peer, r *wire.Request) {
			if r.Op == wire.OpOAuthCancel {
				cancelled <- r.SessionID
				p.reply(r.ID, wire.Empty{})
				return
			}
			p.write([]byte(`{"v":2,"id":"` + r.ID + `","ok":true,"data":` + data + `}`))
		}}
		c := px.listen(t, Options{})
		if _, err := c.Login(t.Context(), LoginOptions{Provider: "p", Face: &face{}}); err == nil {
			t.Errorf("%s: no error", name)
		}
		select {
		case id := <-cancelled:
			if id != "s" {
				t.Errorf("%s: cancelled %q", name, id)
			}
		default:
			t.Errorf("%s: not cancelled", name)
		}
	}
}

// Logins do not wait for each other, nor does anything else.
func TestLoginsAtTheSameTime(t *testing.T) {
	px := &proxy{answer: func(p *peer, r *wire.Request) {
		switch {
		case r.Op == wire.OpOAuthInitiate:
			page := devicePage
			page.ID, page.PollIntervalMS = r.Provider, 1000
			p.reply(r.ID, page)
		case r.Op == wire.OpOAuthPoll && r.SessionID == "never":
			p.reply(r.ID, pending)
		case r.Op == wire.OpOAuthPoll:
			p.reply(r.ID, wire.Poll{Status: wire.PollComplete, Token: &wire.Token{AccessToken: r.SessionID, TokenType: "Bearer"}})
		default:
			p.reply(r.ID, wire.Providers{"p"})
		}
	}}
	inBubble(t, px, func(t *testing.T, c *Client, since func() time.Duration) {
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Login(ctx, LoginOptions{Provider: "never", Face: &face{}}); err != context.Canceled {
				t.Errorf("never: %v", err)
			}
		})
		for i := range 10 {
			wg.Go(func() {
				name := fmt.Sprintf("p%d", i)
				token, err := c.Login(ctx, LoginOptions{Provider: name, Face: &face{}})
				if err != nil || token.AccessToken != name || since() != time.Second {
					t.Errorf("%s: %v after %v", name, err, since())
				}
			})
		}
		synctest.Wait()
		if _, err := c.Tokens().Providers(ctx); err != nil || since() > 0 {
			t.Errorf("%v after %v", err, since())
		}
		time.Sleep(2 * time.Second)
		stop()
		wg.Wait()
	})
}
