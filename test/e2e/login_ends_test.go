//go:build e2e && linux

package e2e

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// polls are how often the provider was asked for each device code it has issued, in order.
func polls(s *oauthtest.Server) []int {
	codes := s.Issued().DeviceCodes
	counts := make([]int, len(codes))
	for _, r := range s.Requests(oauthtest.Token) {
		for i, code := range codes {
			if r.Params.Get("device_code") == code {
				counts[i]++
			}
		}
	}
	return counts
}

// However a login is given up, nothing of it goes on: no poll, no listener, and what the provider answers later is not stored.
// Time is what another login, which goes on, takes for its polls.
func TestNothingIsLeftOfALoginThatWasGivenUp(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	wide, narrow := loginConfig(s, `acme = ["*"]`), loginConfig(s, `acme = ["clock", "default"]`)

	clock := c.begin("clock", "device_code")
	var devices, browsers []*pending
	for _, bucket := range []string{"cancelled", "taken-out"} {
		devices = append(devices, c.begin(bucket, "device_code"))
		browsers = append(browsers, c.begin(bucket, "browser_redirect"))
	}
	pasted := c.begin("taken-out", "pkce_redirect")
	eventually(t, patience, "all are polled for", func() bool {
		return !slices.Contains(polls(s), 0)
	})

	// Cancelled: it is over when that is answered.
	wants(t, "cancel", devices[0].cancel(), "", "")
	wants(t, "cancel", browsers[0].cancel(), "", "")
	if listens(listenerOf(browsers[0].url)) {
		t.Error("a cancelled login listens")
	}
	if l, err := net.Listen("tcp", listenerOf(browsers[0].url)); err != nil {
		t.Errorf("the port of a cancelled login: %v", err)
	} else {
		l.Close()
	}
	for _, l := range []*pending{devices[0], browsers[0]} {
		wants(t, "poll of what was cancelled", l.poll(), "SESSION_NOT_FOUND", "cancelled")
		wants(t, "exchange of what was cancelled", l.exchange("test-code"), "SESSION_NOT_FOUND", "cancelled")
		wants(t, "cancel of what was cancelled", l.cancel(), "", "")
	}

	// Taken out of the profile: the edit ends it, although nobody asks, and it stays ended when it is back in.
	code := pasted.copied(s)
	h.configure(narrow)
	eventually(t, patience, "the edit ends the login", func() bool { return !listens(listenerOf(browsers[1].url)) })
	wants(t, "poll of what was taken out", devices[1].poll(), "UNAUTHORIZED", "")
	wants(t, "cancel of what was taken out", browsers[1].cancel(), "UNAUTHORIZED", "")
	wants(t, "exchange of what was taken out", pasted.exchange(code), "UNAUTHORIZED", "")
	if listens(listenerOf(browsers[1].url)) {
		t.Error("a login that was taken out of the profile listens")
	}
	h.configure(wide)
	eventually(t, patience, "the edit is seen", func() bool { return c.token("acme/taken-out").Code == "NOT_FOUND" })
	for _, l := range []*pending{devices[1], browsers[1]} {
		wants(t, "poll of what was taken out", l.poll(), "UNAUTHORIZED", "not allowed any more")
	}
	wants(t, "exchange of what was taken out", pasted.exchange(code), "UNAUTHORIZED", "not allowed any more")

	// Nobody waits for the answer to oauth_initiate: the request is cancelled, or the connection has gone.
	held := make(chan struct{})
	s.Fault(oauthtest.Device, oauthtest.Fault{Wait: held}, 2)
	asked := s.Calls(oauthtest.Device)
	gone := dial(t, p.socket)
	gone.request("oauth_initiate", m{"provider": "acme", "bucket": "gone", "flow": "device_code"})
	id := c.request("oauth_initiate", m{"provider": "acme", "bucket": "gone", "flow": "device_code"})
	eventually(t, patience, "both are asked for", func() bool { return s.Calls(oauthtest.Device) == asked+2 })
	gone.Close()
	cancel := c.request("cancel", m{"targetId": id})
	for range 2 {
		a, err := c.recv(patience)
		if err != nil || a.ID == id && a.Code != "CANCELLED" || a.ID == cancel && !a.OK {
			t.Errorf("cancel of oauth_initiate: %+v, %v", a, err)
		}
	}
	close(held)

	// The person agrees to all of them, and the clock ticks twice.
	for _, user := range s.Issued().UserCodes {
		if user != clock.user {
			s.Decide(user, true)
		}
	}
	before := polls(s)
	eventually(t, patience, "the other login goes on", func() bool { return polls(s)[0] >= before[0]+2 })
	for i, n := range polls(s)[1:] {
		if n > before[i+1] {
			t.Errorf("login no. %d was given up and the provider is polled for it", i+1)
		}
	}
	s.Decide(clock.user, true)
	if a := clock.outcome(); a.Data["status"] != "complete" {
		t.Errorf("the other login: %v (%s)", a, a.Error)
	}
	if n := len(s.Families()); n != 1 {
		t.Errorf("%d logins came to an end at the provider, want the one that was not given up", n)
	}
	for _, bucket := range []string{"cancelled", "taken-out", "gone"} {
		wants(t, "what is stored", c.token("acme/"+bucket), "NOT_FOUND", "")
	}
	p.stop()
}

// A profile that is edited between the person's yes and the end: nothing is stored, though nobody asks any more.
func TestLoginIsNotStoredOutsideOfTheProfile(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	l, denied := c.begin("taken-out", "browser_redirect"), c.begin("default", "browser_redirect")
	h.configure(loginConfig(s, `acme = ["default"]`))
	eventually(t, patience, "the edit is seen", func() bool { return c.token("acme/taken-out").Code == "UNAUTHORIZED" })
	ends := func(l *pending) {
		t.Helper()
		redirect, err := s.Approve(t.Context(), l.url)
		if err != nil {
			t.Fatal(err)
		}
		if status, page, err := s.Follow(t.Context(), redirect); err == nil && strings.Contains(page, "could not") {
			t.Errorf("status %d: %s", status, page)
		}
		wants(t, "poll", l.poll(), "UNAUTHORIZED", "")
	}
	ends(l)
	h.configure(loginConfig(s, `acme = ["default"]`, `login = "deny"`))
	eventually(t, patience, "the edit is seen", func() bool { return c.call("oauth_initiate", m{"provider": "acme"}).Code == "UNAUTHORIZED" })
	ends(denied)
	p.stop()
	if list := h.must("auth", "status", "--json"); !strings.Contains(list, `"logins":[]`) {
		t.Errorf("stored all the same: %s", list)
	}
}

// Every login has its time, and says so once it is over.
func TestLoginExpires(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	bare := h.vars
	for _, wrong := range []string{"0", "-1", "86401", "1.5", "ten", "1s"} {
		h.vars = append(bare[:len(bare):len(bare)], "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS="+wrong)
		h.fails(1, "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS", "serve", "--json", "--profile", "work")
	}
	h.vars = append(bare[:len(bare):len(bare)], "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS=1")
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	pasted, device, browser, unasked := c.begin("a", "pkce_redirect"), c.begin("b", "device_code"), c.begin("c", "browser_redirect"), c.begin("d", "browser_redirect")
	code := pasted.copied(s)
	a := c.call("oauth_initiate", m{"provider": "acme", "flow": "device_code", "detail": true})
	if a.Data["expiresInMs"] != 1000.0 {
		t.Errorf("oauth_initiate with detail: %v", a)
	}
	for _, l := range []*pending{device, browser} {
		fails(t, l.flow, l.outcome(), "SESSION_EXPIRED")
		wants(t, l.flow+" after it was told", l.poll(), "SESSION_EXPIRED", "")
		wants(t, l.flow+": exchange", l.exchange("test-code"), "SESSION_EXPIRED", "")
		wants(t, l.flow+": cancel", l.cancel(), "", "")
		wants(t, l.flow+" after the cancel", l.poll(), "SESSION_EXPIRED", "")
	}
	wants(t, "exchange when it is over", pasted.exchange(code), "SESSION_EXPIRED", "")
	wants(t, "poll when it is over", pasted.poll(), "SESSION_EXPIRED", "")
	for _, l := range []*pending{browser, unasked} {
		eventually(t, patience, "a login that is over does not listen", func() bool { return !listens(listenerOf(l.url)) })
	}
	s.Decide(device.user, true)
	if n := s.Calls(oauthtest.Token); n > 2 || len(s.Families()) != 0 {
		t.Errorf("the provider was asked %d times", n)
	}
	in := h.inside(p.socket)
	for _, flow := range []string{"device", "browser"} {
		in.fails(1, "the time for this login is over", "auth", "login", "acme", "--flow", flow)
	}
}

// So has the provider's device code.
func TestDeviceCodeExpires(t *testing.T) {
	t.Parallel()
	h, _ := loginHost(t, oauthtest.Options{DeviceLifetime: 2 * time.Second})
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	l := c.begin("default", "device_code")
	command := h.start(h.inside(p.socket).command("auth", "login", "acme", "--flow", "device"))
	fails(t, "a device code that is over", l.outcome(), "SESSION_EXPIRED")
	wants(t, "after it was told", l.poll(), "SESSION_EXPIRED", "")
	wants(t, "cancel", l.cancel(), "", "")
	if code := command.wait(patience); code != 1 || !regexp.MustCompile(`in time.*begin|is over.*begin`).MatchString(command.stderr.String()) {
		t.Errorf("auth login: status %d: %s", code, command.stderr)
	}
	wants(t, "what is stored", c.token("acme"), "NOT_FOUND", "")
}

// The proxy's end is that of its logins.
func TestLoginEndsWithTheProxy(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p := h.serve("--profile", "work")
		c := dial(t, p.socket)
		browser, device := c.begin("default", "browser_redirect"), c.begin("default", "device_code")
		command := h.start(h.inside(p.socket).command("auth", "login", "acme", "--flow", "browser"))
		if command.stdout.find(shownAddress, command.ended, patience) == nil {
			t.Fatalf("no address: %s", command.stderr)
		}
		p.signal(signal)
		if code := p.wait(patience); code != 0 && signal == syscall.SIGTERM || strings.Contains(p.stderr.String(), inAHurry) {
			t.Errorf("%v: status %d: %s", signal, code, p.stderr)
		}
		if listens(listenerOf(browser.url)) {
			t.Errorf("%v: the listener is still there", signal)
		}
		if code := command.wait(patience); code != 7 || !strings.Contains(command.stderr.String(), "Credential proxy connection lost. Restart the session.") {
			t.Errorf("%v: auth login ends with status %d: %s", signal, code, command.stderr)
		}
		s.Decide(device.user, true)
	}
	// A proxy that begins then knows nothing of them.
	c := dial(t, h.serve("--profile", "work").socket)
	wants(t, "a login of another proxy", c.call("oauth_poll", m{"session_id": "0123456789abcdef0123456789abcdef"}), "SESSION_NOT_FOUND", "")
	if n := len(s.Families()); n != 0 {
		t.Errorf("%d logins came to an end", n)
	}
}

// A client that is killed leaves its login to the person; one that is told to end takes it along.
func TestLoginAndTheEndOfItsClient(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	in := h.inside(p.socket)
	c := dial(t, p.socket)
	login := func(bucket, flow string) (*background, string) {
		t.Helper()
		b := h.start(in.command("auth", "login", "acme/"+bucket, "--flow", flow))
		address := b.stdout.find(shownAddress, b.ended, patience)
		if address == nil {
			t.Fatalf("no address: %s", b.stderr)
		}
		return b, address[1]
	}
	stored := func(bucket string) {
		t.Helper()
		eventually(t, patience, "the login is stored: "+bucket, func() bool { return c.token("acme/" + bucket).OK })
	}

	browser, address := login("browser", "browser")
	browser.signal(syscall.SIGKILL)
	<-browser.ended
	if err := (person{s}).opens(address); err != nil {
		t.Error(err)
	}
	stored("browser")

	device, _ := login("device", "device")
	code := device.stderr.find(shownCode, device.ended, patience)
	device.signal(syscall.SIGKILL)
	<-device.ended
	s.Decide(code[1], true)
	stored("device")

	// Here the code is at the provider when the client goes.
	paste, address := login("paste", "paste")
	copied, err := (person{s}).copies(address)
	if err != nil {
		t.Fatal(err)
	}
	calls := s.Calls(oauthtest.Token)
	release := hold(t, s)
	if _, err := paste.stdin.Write([]byte(copied + "\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the provider has the code", func() bool { return s.Calls(oauthtest.Token) > calls })
	paste.signal(syscall.SIGKILL)
	<-paste.ended
	release()
	stored("paste")
	neverReused(t, s)

	for _, flow := range []string{"browser", "device", "paste"} {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			b, address := login("given-up", flow)
			if flow != "paste" && b.stderr.find(regexp.MustCompile(`waiting for`), b.ended, patience) == nil {
				t.Fatalf("it does not wait: %s", b.stderr)
			}
			b.signal(signal)
			if code := b.wait(patience); code != 128+int(signal) {
				t.Errorf("%s: status %d after %v: %s", flow, code, signal, b.stderr)
			}
			if flow == "browser" && listens(listenerOf(address)) {
				t.Errorf("the host listens after %v", signal)
			}
		}
	}
	wants(t, "what is stored", c.token("acme/given-up"), "NOT_FOUND", "")
	p.stop()
	cancelled := 0
	done := map[any]any{}
	for _, e := range auditEvents(t, h) {
		if e["op"] == "oauth_login" || e["op"] == "oauth_exchange" {
			done[e["bucket"]] = e["outcome"]
		}
		if e["op"] == "oauth_cancel" && e["bucket"] == "given-up" && e["outcome"] == "ok" {
			cancelled++
		}
	}
	if fmt.Sprint(done) != "map[browser:ok device:ok paste:ok]" {
		t.Errorf("the audit log has the ends %v", done)
	}
	if cancelled != 6 {
		t.Errorf("the audit log has %d logins that were given up, want 6", cancelled)
	}
}

// Codex has two ports. When both are taken, by other programs or by logins, there is the device code.
func TestTakenPortsFallBack(t *testing.T) {
	t.Parallel()
	s := start(t, oauthtest.Options{Dialect: "codex", Approval: oauthtest.AskUser, DeviceInterval: time.Second})
	h := newHost(t)
	h.configure(generous + s.Settings("acme"))
	p := h.serve()
	c := dial(t, p.socket)
	vendorPorts.Lock()
	defer vendorPorts.Unlock()
	begin := func(flow string) (*pending, string) {
		t.Helper()
		a := c.call("oauth_initiate", m{"provider": "acme"})
		l := &pending{c: c, flow: flow}
		l.id, _ = a.Data["session_id"].(string)
		l.url, _ = a.Data["auth_url"].(string)
		l.user, _ = a.Data["user_code"].(string)
		if a.Data["flow_type"] != flow {
			t.Fatalf("oauth_initiate: %v (%s), want %s", a, a.Error, flow)
		}
		_, port, _ := strings.Cut(listenerOf(l.url), ":")
		return l, port
	}
	// Three logins at once.
	first, port1 := begin("browser_redirect")
	second, port2 := begin("browser_redirect")
	third, _ := begin("device_code")
	if port1 != "1455" || port2 != "1457" {
		t.Errorf("listeners at the ports %q and %q", port1, port2)
	}
	wants(t, "the browser or nothing", c.call("oauth_initiate", m{"provider": "acme", "flow": "browser_redirect"}), "INTERNAL_ERROR", "port")
	if err := (person{s}).opens(second.url); err != nil {
		t.Error(err)
	}
	s.Decide(third.user, true)
	for _, l := range []*pending{second, third} {
		if a := l.outcome(); a.Data["status"] != "complete" || a.Data["account_id"] != "test-account" {
			t.Errorf("%s: %v (%s)", l.flow, a, a.Error)
		}
	}
	wants(t, "cancel", first.cancel(), "", "")

	// Another program, on one family only.
	for _, at := range []string{"127.0.0.1:1455", "[::1]:1455"} {
		other := vendorListener(t, at)
		l, port := begin("browser_redirect")
		if port != "1457" {
			t.Errorf("with %s taken: port %q", at, port)
		}
		wants(t, "cancel", l.cancel(), "", "")
		other.Close()
	}
	vendorListener(t, "127.0.0.1:1455")
	vendorListener(t, "127.0.0.1:1457")
	l, _ := begin("device_code")
	wants(t, "cancel", l.cancel(), "", "")
	for _, at := range []*host{h, h.inside(p.socket)} {
		b := at.start(at.command("auth", "login", "acme", "--no-browser"))
		r := &running{args: b.Args[1:], stdout: b.stdout, stderr: b.stderr, ended: b.ended}
		if err := (person{s}).login(r, "device"); err != nil {
			t.Fatal(err)
		}
		if code := b.wait(patience); code != 0 {
			t.Errorf("status %d: %s", code, b.stderr)
		}
		at.fails(1, "another flow", "auth", "login", "acme", "--no-browser", "--flow", "browser")
	}
	p.stop()
}
