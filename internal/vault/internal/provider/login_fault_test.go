package provider

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// withVendors runs f in a bubble with every vendor that logs in by the flow.
func withVendors(t *testing.T, flow string, f func(*testing.T, *world)) {
	for _, name := range append(oauthtest.Dialects(), "oauth2") {
		d := dialects[name]
		browser := d.AuthorizeURL != "" || name == "oauth2"
		device := d.DeviceURL != "" || name == "oauth2"
		if flow == "browser" && !browser || flow == "device" && !device {
			continue
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, startDialect(t, name, oauthtest.Options{})) })
		})
	}
}

// failsAs checks an error, and that nothing of an answer's body is in it.
func failsAs(t *testing.T, what string, err error, kinds ...Kind) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	e := asError(t, err)
	found := false
	for _, kind := range kinds {
		found = found || e.Kind == kind
	}
	if !found || e.Revoked {
		t.Errorf("%s: kind %d, revoked %t: %v", what, e.Kind, e.Revoked, err)
	}
	for _, secret := range []string{"canary", "at-", "rt-", "ac-", "dc-", "cv-"} {
		if strings.Contains(texts(err), secret) {
			t.Errorf("%s: the error holds %q", what, secret)
		}
	}
}

// begin starts a login in the browser up to the code.
func (w *world) begin(t *testing.T) (*Authorization, func() (*grant.Grant, error)) {
	t.Helper()
	a, err := w.c.Authorize(t.Context(), w.p, w.p.Redirects()[0])
	if err != nil {
		t.Fatal(err)
	}
	q := approve(t, w.s, a)
	return a, func() (*grant.Grant, error) { return w.c.Exchange(t.Context(), a, q, w.secret()) }
}

// What an exchange can be answered instead of tokens.
func TestExchangeFaults(t *testing.T) {
	const canary = `"test-canary-token"`
	withVendors(t, "browser", func(t *testing.T, w *world) {
		token := "access_token"
		if w.p.Dialect == "openrouter" {
			token = "key"
		}
		for what, c := range map[string]struct {
			fault oauthtest.Fault
			kinds []Kind // none: it succeeds all the same
		}{
			"no token":               {oauthtest.Without(token), []Kind{Malformed}},
			"a token of 7":           {oauthtest.With(token, `7`), []Kind{Malformed}},
			"a token in a list":      {oauthtest.With(token, `[`+canary+`]`), []Kind{Malformed}},
			"a token in an object":   {oauthtest.With(token, `{"v":`+canary+`}`), []Kind{Malformed}},
			"an escape in the token": {oauthtest.With(token, `"test-canary\u001b[2J"`), []Kind{Malformed}},
			"a line feed in it":      {oauthtest.With(token, `"test-canary\r\nX: y"`), []Kind{Malformed}},
			"everything null": {oauthtest.Fault{Edit: func(a map[string]any) {
				for name := range a {
					a[name] = nil
				}
			}}, []Kind{Malformed}},
			"members of other types": {oauthtest.Fault{Edit: func(a map[string]any) {
				for name := range a {
					if name != token {
						a[name] = []any{map[string]any{"x": 1}}
					}
				}
			}}, nil},
			"only the token": {oauthtest.Fault{Edit: func(a map[string]any) {
				for name := range a {
					if name != token {
						delete(a, name)
					}
				}
			}}, nil},
			"more than 1 MiB":     {oauthtest.Padded(1 << 20), []Kind{Malformed}},
			"a redirect":          {oauthtest.Fault{Status: 307, Header: http.Header{"Location": {"http://127.0.0.2:8080/resource?test-canary"}}}, []Kind{Malformed}},
			"secrets in an error": {answerWith(400, `{"error":`+canary+`,"error_description":`+canary+`,"access_token":`+canary+`}`), []Kind{Unclear, Refused}},
			"secrets in a page":   {answerWith(500, `<p>test-canary`), []Kind{Transient}},
			"secrets in an object": {answerWith(400, `{"error":{"code":`+canary+`,"type":`+canary+`,"message":`+canary+`}}`),
				[]Kind{Unclear, Refused}},
			"an empty answer":  {answerWith(200, ``), []Kind{Malformed}},
			"a list":           {answerWith(200, `[`+canary+`]`), []Kind{Malformed}},
			"a broken answer":  {answerWith(200, `{"`+token+`":"test-canary`), []Kind{Malformed}},
			"nothing":          {oauthtest.DroppedReply(), []Kind{Transient}},
			"too many":         {w.s.Limited("7"), []Kind{Transient}},
			"a gateway":        {answerWith(502, `test-canary`), []Kind{Transient}},
			"an error of 200":  {answerWith(200, `{"error":"invalid_grant","error_description":`+canary+`}`), []Kind{Refused}},
			"an unknown error": {answerWith(200, `{"error":`+canary+`}`), []Kind{Unclear}},
		} {
			_, exchange := w.begin(t)
			calls := w.s.Calls(oauthtest.Token)
			w.s.Fault(oauthtest.Token, c.fault, 1)
			g, err := exchange()
			if c.kinds != nil {
				failsAs(t, what, err, c.kinds...)
			} else if err != nil || !w.s.Valid(g.AccessToken.Reveal()) {
				t.Errorf("%s: %v", what, err)
			}
			if n := w.s.Calls(oauthtest.Token) - calls; n != 1 {
				t.Errorf("%s: %d requests", what, n)
			}
			w.s.ClearFaults()
		}
		if n := w.s.Calls(oauthtest.Resource); n != 0 {
			t.Errorf("%d redirects were followed", n)
		}
		// A code of another login, and one that was used.
		a, exchange := w.begin(t)
		q := approve(t, w.s, a)
		other, _ := w.begin(t)
		q.Del("state")
		_, err := w.c.Exchange(t.Context(), other, q, w.secret())
		failsAs(t, "another login's code", err, Refused)
		if _, err := exchange(); err != nil {
			t.Error(err)
		}
		_, err = exchange()
		failsAs(t, "a code twice", err, Refused)
		// Denied at the page.
		if w.p.Dialect != "openrouter" { // where nothing comes back then
			w.s.SetApproval(oauthtest.DenyAll)
			a, err = w.c.Authorize(t.Context(), w.p, w.p.Redirects()[0])
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.c.Exchange(t.Context(), a, approve(t, w.s, a), w.secret())
			failsAs(t, "denied", err, Denied)
		}
	})
}

// How a login by device code can end otherwise.
func TestDeviceFaults(t *testing.T) {
	withVendors(t, "device", func(t *testing.T, w *world) {
		pollAt := oauthtest.Token
		if w.p.Dialect == "codex" {
			pollAt = oauthtest.DevicePoll
		}
		begin := func() *Device {
			w.s.SetApproval(oauthtest.AskUser)
			l, err := w.c.StartDevice(t.Context(), w.p, w.secret())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(l.Interval)
			return l
		}
		poll := func(l *Device) error {
			_, err := w.c.PollDevice(t.Context(), l, w.secret())
			time.Sleep(l.Interval)
			return err
		}

		l := begin()
		for what, c := range map[string]struct {
			fault oauthtest.Fault
			kind  Kind
		}{
			"trouble":            {answerWith(503, `test-canary`), Transient},
			"too many":           {w.s.Limited("7"), Transient},
			"nothing":            {oauthtest.Fault{Drop: true}, Transient},
			"a redirect":         {oauthtest.Fault{Status: 302, Header: http.Header{"Location": {"/resource"}}}, Malformed},
			"a page":             {answerWith(200, `<p>test-canary`), Malformed},
			"slow_down of 429":   {answerWith(429, `{"error":"slow_down","interval":30}`), SlowDown},
			"slow_down of 200":   {answerWith(200, `{"error":"slow_down","interval":"30"}`), SlowDown},
			"authorization of 7": {answerWith(200, `{"access_token":7,"authorization_code":7,"code_verifier":7}`), Malformed},
			"longer than 1 MiB":  {answerWith(200, `{"a":"`+strings.Repeat("x", 1<<20)+`"}`), Malformed},
		} {
			w.s.Fault(pollAt, c.fault, 1)
			err := poll(l)
			failsAs(t, what, err, c.kind)
			if e := asError(t, err); c.kind == SlowDown && e.Interval != 30*time.Second || what == "too many" && e.RetryAfter != 7*time.Second {
				t.Errorf("%s: %+v", what, e)
			}
		}
		if !w.s.Decide(l.UserCode, true) {
			t.Error("the login did not survive that")
		}
		if err := poll(l); err != nil {
			t.Error(err)
		}
		failsAs(t, "a code that was used", poll(l), Refused, Unclear, Expired, Malformed)

		l = begin()
		w.s.Decide(l.UserCode, false)
		failsAs(t, "denied", poll(l), Denied)

		l = begin()
		time.Sleep(time.Hour)
		failsAs(t, "expired", poll(l), Expired)

		for what, fault := range map[string]oauthtest.Fault{
			"no user code":  {Edit: func(a map[string]any) { delete(a, "user_code"); delete(a, "usercode") }},
			"no code":       {Edit: func(a map[string]any) { delete(a, "device_code"); delete(a, "device_auth_id") }},
			"an escape":     oauthtest.With("user_code", `"\u001b]0;test-canary\u0007"`),
			"a code of 7":   oauthtest.With("user_code", `7`),
			"a long code":   oauthtest.With("user_code", `"`+strings.Repeat("A", 3000)+`"`),
			"half of it":    answerWith(200, `{"device_code":"test-canary"`),
			"over 1 MiB":    oauthtest.Padded(1 << 20),
			"a redirection": {Status: 307, Header: http.Header{"Location": {"/resource"}}},
		} {
			w.s.Fault(oauthtest.Device, fault, 1)
			_, err := w.c.StartDevice(t.Context(), w.p, w.secret())
			failsAs(t, what, err, Malformed)
		}
		if n := w.s.Calls(oauthtest.Resource); n != 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

// A refresh token that the vendor has ended is dead for good, in every vendor's words; one that it could not look at is
// not.
func TestDeadRefreshTokens(t *testing.T) {
	for _, flow := range []string{"browser", "device"} {
		withVendors(t, flow, func(t *testing.T, w *world) {
			var g *grant.Grant
			if flow == "browser" {
				_, exchange := w.begin(t)
				var err error
				if g, err = exchange(); err != nil {
					t.Fatal(err)
				}
			} else {
				g = w.device(t)
			}
			if g.RefreshToken.IsZero() {
				return
			}
			w.s.Fault(oauthtest.Token, w.s.Limited(""), 1)
			_, err := w.c.Refresh(t.Context(), w.p, g, w.secret(), nil)
			failsAs(t, "too many", err, Transient)
			if !w.s.RevokeToken(g.RefreshToken.Reveal()) {
				t.Fatal("the server does not know the token")
			}
			_, err = w.c.Refresh(t.Context(), w.p, g, w.secret(), nil)
			if e := asError(t, err); e.Kind != Refused || !e.Revoked {
				t.Errorf("%+v", e)
			}
			g.RefreshToken = secret.New("test-refresh-token-canary")
			_, err = w.c.Refresh(t.Context(), w.p, g, w.secret(), nil)
			if e := asError(t, err); e.Kind != Refused || !e.Revoked || strings.Contains(texts(err), "canary") {
				t.Errorf("%+v", e)
			}
		})
	}
}

// What a provider repeats of a login's secrets does not become a field, which could go inside.
func TestRepeatedSecrets(t *testing.T) {
	repeat := func(w *world) {
		w.s.Fault(oauthtest.Token, oauthtest.Fault{Edit: func(a map[string]any) {
			sent := w.s.Requests(oauthtest.Token)
			q := sent[len(sent)-1].Params
			a["project_id"], a["resource_url"] = "of "+q.Get("code_verifier")+q.Get("device_code"), "portal.example"
		}}, 1)
	}
	check := func(t *testing.T, g *grant.Grant, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range g.Fields {
			names = append(names, f.Name)
		}
		if slices.Contains(names, "project_id") || !slices.Contains(names, "resource_url") {
			t.Errorf("the fields are %q", names)
		}
	}
	withVendors(t, "browser", func(t *testing.T, w *world) {
		_, exchange := w.begin(t)
		repeat(w)
		g, err := exchange()
		check(t, g, err)
	})
	withVendors(t, "device", func(t *testing.T, w *world) {
		l, err := w.c.StartDevice(t.Context(), w.p, w.secret())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(l.Interval)
		repeat(w)
		g, err := w.c.PollDevice(t.Context(), l, w.secret())
		check(t, g, err)
	})
}
