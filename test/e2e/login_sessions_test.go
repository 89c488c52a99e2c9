//go:build e2e && linux

package e2e

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// loginHost is a host with the provider acme, which has all three flows, and a profile that may log in there.
func loginHost(t testing.TB, o oauthtest.Options) (*host, *oauthtest.Server) {
	t.Helper()
	o.Approval = oauthtest.AskUser
	if o.DeviceInterval == 0 {
		o.DeviceInterval = time.Second
	}
	s := start(t, o)
	h := newHost(t)
	h.configure(loginConfig(s, `acme = ["*"]`, `login = "allow"`))
	return h, s
}

// loginConfig has the profile work with a line of providers and more lines.
func loginConfig(s *oauthtest.Server, providers string, lines ...string) string {
	return generous + "[profiles.work]\nkeys = []\n" + strings.Join(lines, "\n") + "\n[profiles.work.providers]\n" + providers + "\n" +
		strings.Replace(s.Settings("acme"), "redirect_url", "flows = [\"device\", \"browser\", \"paste\"]\n# ", 1)
}

// pending is a login that a client has begun.
type pending struct {
	c            *conn
	id           string
	url, user    string
	flow, bucket string
}

// begin begins a login to acme.
func (c *conn) begin(bucket, flow string) *pending {
	c.t.Helper()
	a := c.call("oauth_initiate", m{"provider": "acme", "bucket": bucket, "flow": flow})
	id, _ := a.Data["session_id"].(string)
	if !a.OK || id == "" || a.Data["flow_type"] != flow {
		c.t.Fatalf("oauth_initiate by %s: %v (%s)", flow, a, a.Error)
	}
	p := &pending{c: c, id: id, flow: flow, bucket: bucket}
	p.url, _ = a.Data["auth_url"].(string)
	p.user, _ = a.Data["user_code"].(string)
	return p
}

func (p *pending) exchange(code string) answer {
	p.c.t.Helper()
	return p.c.call("oauth_exchange", m{"session_id": p.id, "code": code})
}

func (p *pending) poll() answer {
	p.c.t.Helper()
	return p.c.call("oauth_poll", m{"session_id": p.id})
}

func (p *pending) cancel() answer {
	p.c.t.Helper()
	return p.c.call("oauth_cancel", m{"session_id": p.id})
}

// outcome polls until the login is not pending any more.
func (p *pending) outcome() answer {
	p.c.t.Helper()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if a := p.poll(); a.Data["status"] != "pending" || time.Since(begun) > patience {
			return a
		}
	}
}

// copied is the address that the person copies, with code and state.
func (p *pending) copied(s *oauthtest.Server) string {
	p.c.t.Helper()
	text, err := (person{s}).copies(p.url)
	if err != nil {
		p.c.t.Fatal(err)
	}
	return text
}

// parts are code and state of an address that was copied.
func parts(t testing.TB, copied string) (code, state string) {
	t.Helper()
	u, err := url.Parse(copied)
	if err != nil || u.Query().Get("code") == "" || u.Query().Get("state") == "" {
		t.Fatalf("%q is not an address with a code: %v", copied, err)
	}
	return u.Query().Get("code"), u.Query().Get("state")
}

// wants checks the code of an answer ("" is success) and a part of its text, which every failure has.
func wants(t testing.TB, what string, a answer, code, text string) {
	t.Helper()
	if a.Code != code || a.OK != (code == "") || a.OK != (a.Error == "") || !strings.Contains(a.Error, text) {
		t.Errorf("%s: %v (%s), want %q and %q", what, a, a.Error, code, text)
	}
}

// fails checks the outcome of a login that is polled: an answer that is ok, with a code in it.
func fails(t testing.TB, what string, a answer, code string) {
	t.Helper()
	text, _ := a.Data["error"].(string)
	if !a.OK || a.Data["status"] != "error" || a.Data["code"] != code || text == "" || a.Data["access_token"] != nil {
		t.Errorf("%s: %v (%s), want the status error with %s", what, a, a.Error, code)
	}
}

// A login is used once, whatever comes of it, and every way to use it again has the same answer.
func TestLoginIsUsedOnce(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	again := func(what string, l *pending) {
		t.Helper()
		wants(t, what+": exchange again", l.exchange("test-code-again"), "SESSION_ALREADY_USED", "")
		wants(t, what+": poll again", l.poll(), "SESSION_ALREADY_USED", "")
		wants(t, what+": cancel", l.cancel(), "", "")
	}

	// Pasted: what is no code can be pasted again; a code that is refused spends the login.
	l := c.begin("paste", "pkce_redirect")
	wants(t, "poll of a login by pasted code", l.poll(), "INVALID_REQUEST", "oauth_exchange")
	for _, text := range []string{"two words", "https://login.example/", l.url, "#", "code=", "?error_description=x", "a#b#c", "\u00e9"} {
		wants(t, "no code: "+text, l.exchange(text), "INVALID_REQUEST", "")
	}
	copied := l.copied(s)
	a := l.exchange(" \"" + copied + "\" ")
	if !a.OK || a.Data["access_token"] != newest(s, 0) || a.Data["refresh_token"] != nil {
		t.Fatalf("oauth_exchange: %v (%s)", a, a.Error)
	}
	again("exchanged", l)
	c.serves("after all that", "acme/paste", newest(s, 0))

	l = c.begin("refused", "pkce_redirect")
	copied = l.copied(s)
	wants(t, "a code that there is not", l.exchange("test-no-such-code"), "EXCHANGE_FAILED", "code")
	wants(t, "the right one after it", l.exchange(copied), "SESSION_ALREADY_USED", "")
	again("refused", l)
	wants(t, "what is stored", c.token("acme/refused"), "NOT_FOUND", "")

	// The person says no, and pastes where that led.
	l = c.begin("refused", "pkce_redirect")
	no, err := s.Deny(t.Context(), l.url)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "a denial that was pasted", l.exchange(no), "EXCHANGE_FAILED", "allow")
	again("denied", l)

	// Two at once: the provider sees one.
	l = c.begin("twice", "pkce_redirect")
	code, state := parts(t, l.copied(s))
	before := s.Calls(oauthtest.Token)
	release := hold(t, s)
	first := dial(t, p.socket)
	id := first.request("oauth_exchange", m{"session_id": l.id, "code": code + "#" + state})
	eventually(t, patience, "the provider has the code", func() bool { return s.Calls(oauthtest.Token) == before+1 })
	wants(t, "the second of two exchanges", l.exchange(code), "SESSION_ALREADY_USED", "")
	wants(t, "cancel while it is exchanged", c.call("oauth_cancel", m{"session_id": "0123456789abcdef0123456789abcdef"}), "", "")
	release()
	if a, err := first.recv(patience); err != nil || a.ID != id || !a.OK {
		t.Errorf("the first of two exchanges: %v (%s), %v", a, a.Error, err)
	}
	if n := s.Calls(oauthtest.Token); n != before+1 {
		t.Errorf("the provider got the code %d times", n-before)
	}

	// Polled: the outcome is told once.
	l = c.begin("device", "device_code")
	wants(t, "exchange of a login by device code", l.exchange("test-code"), "INVALID_REQUEST", "oauth_poll")
	s.Decide(l.user, true)
	if a := l.outcome(); a.Data["status"] != "complete" || a.Data["access_token"] != newest(s, len(s.Families())-1) {
		t.Errorf("oauth_poll: %v (%s)", a, a.Error)
	}
	again("by device code", l)
	l = c.begin("device-no", "device_code")
	s.Decide(l.user, false)
	fails(t, "the person said no", l.outcome(), "EXCHANGE_FAILED")
	again("denied by device code", l)
	wants(t, "what is stored", c.token("acme/device-no"), "NOT_FOUND", "")

	l = c.begin("browser", "browser_redirect")
	wants(t, "exchange of a login by browser", l.exchange("test-code"), "INVALID_REQUEST", "oauth_poll")
	if err := (person{s}).opens(l.url); err != nil {
		t.Error(err)
	}
	if a := l.outcome(); a.Data["status"] != "complete" {
		t.Errorf("oauth_poll: %v (%s)", a, a.Error)
	}
	again("by browser", l)
	l = c.begin("browser-no", "browser_redirect")
	if no, err = s.Deny(t.Context(), l.url); err != nil {
		t.Fatal(err)
	}
	if _, page, err := s.Follow(t.Context(), no); err != nil || !strings.Contains(page, "Not logged in") {
		t.Errorf("the page after a no: %s, %v", page, err)
	}
	fails(t, "the person said no", l.outcome(), "EXCHANGE_FAILED")
	again("denied by browser", l)
	wants(t, "what is stored", c.token("acme/browser-no"), "NOT_FOUND", "")
	h.onlySealed(s)
}

// What belongs to one login is worth nothing in another.
func TestLoginsAreNotCrossed(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	c := dial(t, h.serve("--profile", "work").socket)

	// With its state nothing is sent, and the login that the code is of goes on.
	one, two := c.begin("one", "pkce_redirect"), c.begin("two", "pkce_redirect")
	ofTwo := two.copied(s)
	wants(t, "the code and the state of another login", one.exchange(ofTwo), "EXCHANGE_FAILED", "another login")
	if n := s.Calls(oauthtest.Token); n != 0 {
		t.Errorf("the provider was sent a code of another login")
	}
	wants(t, "its own code after that", one.exchange(one.copied(s)), "SESSION_ALREADY_USED", "")
	wants(t, "the other login", two.exchange(ofTwo), "", "")

	// Without it, the verifier is another.
	three, four := c.begin("three", "pkce_redirect"), c.begin("four", "pkce_redirect")
	code, _ := parts(t, four.copied(s))
	_, state := parts(t, three.copied(s))
	wants(t, "another login's code with the own state", three.exchange(code+"#"+state), "EXCHANGE_FAILED", "code")
	for _, bucket := range []string{"one", "three", "four"} {
		wants(t, "what is stored", c.token("acme/"+bucket), "NOT_FOUND", "")
	}

	// The browser: each has its own listener, which takes its own state only.
	five, six := c.begin("five", "browser_redirect"), c.begin("six", "browser_redirect")
	at5, at6 := listenerOf(five.url), listenerOf(six.url)
	if at5 == at6 || at5 == "" {
		t.Fatalf("listeners at %q and %q", at5, at6)
	}
	redirect, err := s.Approve(t.Context(), six.url)
	if err != nil {
		t.Fatal(err)
	}
	status, _, err := s.Follow(t.Context(), strings.Replace(redirect, at6, at5, 1))
	if err != nil || status != 400 {
		t.Errorf("the answer of another login at this one's listener: status %d, %v", status, err)
	}
	if a := five.poll(); a.Data["status"] != "pending" {
		t.Errorf("the login after that: %v", a)
	}
	if status, _, err := s.Follow(t.Context(), redirect); err != nil || status != 200 {
		t.Errorf("the answer at its own listener: status %d, %v", status, err)
	}
	if a := six.outcome(); a.Data["status"] != "complete" {
		t.Errorf("the other login: %v (%s)", a, a.Error)
	}
	if err := (person{s}).opens(five.url); err != nil {
		t.Error(err)
	}
	if a := five.outcome(); a.Data["status"] != "complete" {
		t.Errorf("the login after all: %v (%s)", a, a.Error)
	}
}

// A login belongs to the user who began it, on any connection, and to nobody else.
func TestLoginOfAnotherUser(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work", "--allow-uid", fmt.Sprint(stranger))
	for path, mode := range map[string]os.FileMode{h.tmp: 0o755, filepath.Dir(p.socket): 0o755, p.socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	other := newUserHost(t, stranger)
	them := other.hands(t, other.inside(p.socket).program(guest, "hands"))
	c := dial(t, p.socket)
	for _, flow := range []string{"pkce_redirect", "device_code", "browser_redirect"} {
		mine := c.begin("mine-"+flow, flow)
		for _, op := range []string{"oauth_exchange", "oauth_poll", "oauth_cancel"} {
			a, err := them.ask(op, m{"session_id": mine.id, "code": "test-code-of-a-stranger"})
			if err != nil || a.Code != "UNAUTHORIZED" || !strings.Contains(a.Error, "another user") {
				t.Errorf("%s by another user, %s: %v (%s), %v", op, flow, a, a.Error, err)
			}
		}
		a, err := them.ask("oauth_initiate", m{"provider": "acme", "bucket": "theirs-" + flow, "flow": flow})
		theirs, _ := a.Data["session_id"].(string)
		if err != nil || theirs == "" {
			t.Fatalf("oauth_initiate by another user: %v (%s), %v", a, a.Error, err)
		}
		for _, op := range []string{"oauth_exchange", "oauth_poll", "oauth_cancel"} {
			wants(t, op+" of another user's login", c.call(op, m{"session_id": theirs, "code": "test-code"}), "UNAUTHORIZED", "another user")
		}
		// Both go on.
		mine.c = dial(t, p.socket)
		switch flow {
		case "pkce_redirect":
			wants(t, "on another connection", mine.exchange(mine.copied(s)), "", "")
		case "device_code":
			s.Decide(mine.user, true)
		default:
			if err := (person{s}).opens(mine.url); err != nil {
				t.Error(err)
			}
		}
		if flow != "pkce_redirect" {
			if a := mine.outcome(); a.Data["status"] != "complete" {
				t.Errorf("on another connection: %v (%s)", a, a.Error)
			}
			if a, err := them.ask("oauth_poll", m{"session_id": theirs}); err != nil || a.Data["status"] != "pending" {
				t.Errorf("the other user's login: %v (%s), %v", a, a.Error, err)
			}
		}
		wants(t, "cancel once it is done", mine.cancel(), "", "")
		if a, err := them.ask("oauth_poll", m{"session_id": mine.id}); err != nil || a.Code != "UNAUTHORIZED" {
			t.Errorf("another user's poll of a login that is done: %v, %v", a, err)
		}
	}
	them.leave(t)
}

// At most 16 are pending for one socket, over all connections, and the provider hears nothing of the next.
func TestPendingLoginsAreLimited(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	one, two := dial(t, p.socket), dial(t, p.socket)
	var all []*pending
	for i := range 16 {
		c := one
		if i%2 == 1 {
			c = two
		}
		all = append(all, c.begin(fmt.Sprint("b", i), []string{"pkce_redirect", "device_code", "browser_redirect"}[i%3]))
	}
	devices := s.Calls(oauthtest.Device)
	for _, c := range []*conn{one, two, dial(t, p.socket)} {
		for _, flow := range []string{"pkce_redirect", "device_code", "browser_redirect"} {
			a := c.call("oauth_initiate", m{"provider": "acme", "bucket": "next", "flow": flow})
			if a.Code != "RATE_LIMITED" || a.RetryAfter < 550 || a.RetryAfter > 600 {
				t.Errorf("the 17th: %v (%s), retryAfter %v", a, a.Error, a.RetryAfter)
			}
		}
	}
	if n := s.Calls(oauthtest.Device); n != devices {
		t.Errorf("the provider was asked for a device code of the 17th")
	}
	// Each way to end makes room for one.
	wants(t, "cancel", all[0].cancel(), "", "")
	all = append(all, one.begin("again-0", "pkce_redirect"))
	wants(t, "no room again", one.call("oauth_initiate", m{"provider": "acme"}), "RATE_LIMITED", "")
	wants(t, "exchange", all[3].exchange(all[3].copied(s)), "", "")
	one.begin("again-1", "pkce_redirect")
	s.Decide(all[1].user, true)
	if a := all[1].outcome(); a.Data["status"] != "complete" {
		t.Errorf("%v", a)
	}
	one.begin("again-2", "pkce_redirect")
	wants(t, "no room again", two.call("oauth_initiate", m{"provider": "acme"}), "RATE_LIMITED", "")
	// Another proxy of the same user is another socket.
	dial(t, h.serve("--profile", "work").socket).begin("elsewhere", "pkce_redirect")
	p.stop()
}

// What it answers when there is nothing to log in to.
func TestLoginThatCannotBegin(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	only := start(t, oauthtest.Options{Dialect: "kimi"})
	nowhere := start(t, oauthtest.Options{})
	config := loginConfig(s, `"*" = ["*"]`) + "\n" + only.Settings("phone") + "\n" + nowhere.Settings("gone") +
		"\n[profiles.never]\nlogin = \"deny\"\n[profiles.never.providers]\n\"*\" = [\"*\"]\n"
	h.configure(config)
	if err := nowhere.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	wants(t, "nobody", c.call("oauth_initiate", m{"provider": "nobody"}), "PROVIDER_NOT_FOUND", "")
	for _, flow := range []string{"pkce_redirect", "browser_redirect"} {
		wants(t, "a flow that the provider lacks", c.call("oauth_initiate", m{"provider": "phone", "flow": flow}), "INVALID_REQUEST", "device_code")
	}
	wants(t, "a provider that is not there", c.call("oauth_initiate", m{"provider": "gone", "flow": "device_code"}), "INTERNAL_ERROR", "")
	only.Fault(oauthtest.Device, oauthtest.ErrorAnswer(400, "test-secret-of-the-provider"), 1)
	if a := c.call("oauth_initiate", m{"provider": "phone"}); a.Code != "EXCHANGE_FAILED" || strings.Contains(a.Error, "test-secret") {
		t.Errorf("a provider that refuses to begin: %v (%s)", a, a.Error)
	}
	in := h.inside(p.socket)
	in.fails(1, "no flow", "auth", "login", "phone", "--flow", "paste")
	in.fails(3, "no provider", "auth", "login", "nobody")
	in.fails(1, "", "auth", "login", "gone", "--flow", "device")
	h.fails(3, "no provider", "auth", "login", "nobody", "--no-browser")
	h.fails(1, "no flow", "auth", "login", "phone", "--flow", "paste", "--no-browser")
	p.stop()

	never := h.serve("--profile", "never")
	c = dial(t, never.socket)
	for _, op := range []string{"oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel"} {
		wants(t, op+` with login = "deny"`, c.call(op, m{"provider": "acme", "session_id": "x", "code": "x"}), "UNAUTHORIZED", "")
	}
	h.inside(never.socket).fails(5, "login to acme", "auth", "login", "acme")
	never.stop()
}

// Logins of one provider at the same time: they are independent, and what is stored last stays.
func TestLoginsAtTheSameTime(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	var work sync.WaitGroup
	for i := range 12 {
		c := dial(t, p.socket)
		l := c.begin("shared", []string{"pkce_redirect", "device_code", "browser_redirect"}[i%3])
		work.Go(func() {
			var a answer
			switch l.flow {
			case "pkce_redirect":
				text, err := (person{s}).copies(l.url)
				if err != nil {
					t.Error(err)
				}
				a = l.exchange(text)
			case "device_code":
				s.Decide(l.user, true)
				a = l.outcome()
			default:
				if err := (person{s}).opens(l.url); err != nil {
					t.Error(err)
				}
				a = l.outcome()
			}
			if !a.OK || a.Data["access_token"] == nil {
				t.Errorf("by %s: %v (%s)", l.flow, a, a.Error)
			}
		})
	}
	work.Wait()
	a := dial(t, p.socket).token("acme/shared")
	if access, _ := a.Data["access_token"].(string); !s.Valid(access) || len(s.Families()) != 12 {
		t.Errorf("%d logins at the provider; stored: %v", len(s.Families()), a)
	}
	h.must("auth", "refresh", "acme/shared")
	neverReused(t, s)
	h.onlySealed(s)
}

// vendorListener takes a port on loopback, on both families or one.
func vendorListener(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("%v: another program of this machine has the port", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
