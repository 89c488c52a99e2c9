//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

var (
	asksFirst  = regexp.MustCompile(`credproxy: a sandbox asks to log in`)
	asksAllow  = regexp.MustCompile(`Allow\? \[y/N\]`)
	codeOnTTY  = regexp.MustCompile(`and enter this code there: (?:\x1b\[[0-9;]*m)*([A-Z0-9-]+)`)
	isLoggedIn = regexp.MustCompile(`logged in:`)
)

// answers waits for the question, types too soon, and then an answer.
func (s *terminal) answers(about, keys, said string) {
	s.t.Helper()
	s.shows(asksFirst)
	s.shows(regexp.MustCompile(`for: +` + regexp.QuoteMeta(about)))
	s.typesBefore(asksAllow, "y\r") // nobody has read the question yet: this was meant for something else
	s.shows(asksAllow)
	s.types(keys)
	s.shows(regexp.MustCompile(`credproxy: ` + said))
}

// On a terminal somebody is asked, unless the profile says otherwise. In each engine: a yes, a no, and a minute's peace after it.
func TestConsentOnTheTerminalOfRun(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		server := start(t, oauthtest.Options{Approval: oauthtest.AskUser, DeviceInterval: time.Second})
		lines := `login = "ask"`
		if s.uid != 0 {
			lines = "" // is the same here
		}
		s.configure(loginConfig(server, `acme = ["*"]`, lines))
		const script = `for b in yes no quiet; do credproxy auth login acme/$b --flow device; echo "status $b $?"; done; exit 9`
		screen := s.onTerminal(t, s.command(s.args(nil, append(s.shell, script)...)...))

		screen.answers("acme/yes, by a device code", "y\r", "allowed")
		code := screen.shows(codeOnTTY)
		if !server.Decide(code[1], true) {
			t.Errorf("nobody waits for the code %q", code[1])
		}
		// What the first login says at its end may come behind the next question, for which the engine's client stands still.
		screen.answers("acme/no, by a device code", "n\r", "not allowed")
		screen.shows(regexp.MustCompile(`did not agree`))
		screen.shows(regexp.MustCompile(`status no 5\r\n`))

		screen.shows(regexp.MustCompile(`status quiet 5\r\n`))
		if status := screen.wait(patience); status != 9 {
			t.Errorf("the command's status: %d", status)
		}
		if text := screen.stdout.String(); !isLoggedIn.MatchString(text) || !strings.Contains(text, "status yes 0\r\n") {
			t.Error("the first login did not end well")
		}
		if n := strings.Count(screen.stdout.String(), "credproxy: a sandbox asks to log in"); n != 2 {
			t.Errorf("asked %d times, want twice", n)
		}
		if list := s.must("auth", "status", "--json"); !strings.Contains(list, `"bucket":"yes"`) || strings.Contains(list, `"bucket":"no"`) {
			t.Errorf("what is stored: %s", list)
		}
		s.nothingLeft(t, "a question")
		var denied []any
		for _, e := range auditEvents(t, s.host) {
			if e["op"] == "oauth_initiate" && e["outcome"] == "denied" && e["code"] == "UNAUTHORIZED" {
				denied = append(denied, e["bucket"])
			}
		}
		if fmt.Sprint(denied) != "[no quiet]" {
			t.Errorf("the audit log has the refusals %v", denied)
		}
	})
}

// What a profile says of logins, where nobody can be asked and where somebody could be.
func TestWhoIsAskedAboutALogin(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	const nobody = "nobody can be asked here; log in on the host"
	set := func(lines ...string) { t.Helper(); h.configure(loginConfig(s, `acme = ["*"]`, lines...)) }
	run := []string{"run", "--engine", "bwrap", "--profile", "work", "--", "credproxy", "auth", "login", "acme", "--flow", "browser"}

	// Without a terminal.
	set(`login = "ask"`)
	p := h.serve("--profile", "work")
	wants(t, "serve, ask", dial(t, p.socket).call("oauth_initiate", m{"provider": "acme"}), "UNAUTHORIZED", nobody)
	h.inside(p.socket).fails(5, nobody, "auth", "login", "acme")
	p.stop()
	h.fails(5, nobody, run...)
	if n := s.Calls(oauthtest.Device); n != 0 {
		t.Errorf("the provider was asked for %d device codes", n)
	}
	set()
	p = h.serve("--profile", "work")
	dial(t, p.socket).begin("default", "browser_redirect")
	if p.stderr.find(regexp.MustCompile(`a sandbox logs in.*provider=acme.*bucket=default.*flow=browser.*pid=\d+`), p.ended, patience) == nil {
		t.Errorf("the log of serve does not say who logs in: %s", p.stderr)
	}
	p.stop()

	screen := h.onTerminal(t, h.command("serve", "--json", "--profile", "work"))
	dial(t, screen.shows(regexp.MustCompile(`"socket":"([^"]+)"`))[1]).begin("default", "browser_redirect")
	screen.signal(syscall.SIGTERM)
	if code := screen.wait(patience); code != 0 || asksFirst.MatchString(screen.stdout.String()) {
		t.Errorf("serve on a terminal: status %d: %s", code, screen.stdout)
	}

	// On a terminal, run: "allow" is told of, "deny" is not asked about.
	set(`login = "allow"`)
	screen = h.onTerminal(t, h.command(run...))
	screen.shows(regexp.MustCompile(`credproxy: the sandbox \(pid \d+\) asks to log in to acme/default\r+\n`))
	address := screen.shows(regexp.MustCompile(`\x1b\\(http[^\s\x1b]+)`))
	if err := (person{s}).opens(address[1]); err != nil {
		t.Error(err)
	}
	screen.shows(isLoggedIn)
	if code := screen.wait(patience); code != 0 || asksFirst.MatchString(screen.stdout.String()) {
		t.Errorf("status %d: %s", code, screen.stdout)
	}
	set(`login = "deny"`)
	screen = h.onTerminal(t, h.command(run...))
	if code := screen.wait(patience); code != 5 || strings.Contains(screen.stdout.String(), "asks to log in") {
		t.Errorf("status %d: %s", code, screen.stdout)
	}
	// By default there is a question, which says what would be lost. Ctrl-C of the person who is asked is a no, and not the
	// command's.
	set()
	screen = h.onTerminal(t, h.command(append(run[:5:5], "--", "/bin/sh", "-c", `credproxy auth login acme --flow browser; echo "status $?"; exit 8`)...))
	screen.shows(asksFirst)
	screen.shows(regexp.MustCompile(`replaces:`))
	screen.shows(asksAllow)
	screen.types("\x03")
	screen.shows(regexp.MustCompile(`credproxy: not allowed`))
	screen.shows(regexp.MustCompile(`status 5\r\n`))
	if code := screen.wait(patience); code != 8 {
		t.Errorf("status %d", code)
	}
}

// serve on a terminal asks there, one question at a time; the question goes with who wanted the login.
func TestConsentOnTheTerminalOfServe(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	h.configure(loginConfig(s, "\"*\" = [\"*\"]", `login = "ask"`))
	screen := h.onTerminal(t, h.command("serve", "--json", "--profile", "work"))
	socket := screen.shows(regexp.MustCompile(`"socket":"([^"]+)"`))[1]
	c := dial(t, socket)

	// Nobody is asked about what does not exist, nor what the profile does not allow.
	wants(t, "a provider that there is not", c.call("oauth_initiate", m{"provider": "nobody"}), "PROVIDER_NOT_FOUND", "")

	first := dial(t, socket)
	first.request("oauth_initiate", m{"provider": "acme", "bucket": "first", "flow": "device_code"})
	screen.shows(asksAllow)
	a := c.call("oauth_initiate", m{"provider": "acme", "bucket": "second", "flow": "device_code"})
	if a.Code != "RATE_LIMITED" || a.RetryAfter != 5 {
		t.Errorf("while somebody is asked: %v (%s), retryAfter %v", a, a.Error, a.RetryAfter)
	}
	first.Close() // and the question with it
	screen.shows(regexp.MustCompile(`credproxy: withdrawn`))
	screen.shows(regexp.MustCompile(`the question was withdrawn`)) // in the log, once another can be asked

	c.request("oauth_initiate", m{"provider": "acme", "bucket": "second", "flow": "pkce_redirect"})
	screen.answers("acme/second, by a pasted code", "yes\r", "allowed")
	a, err := c.recv(patience)
	if err != nil || !a.OK || a.Data["auth_url"] == nil {
		t.Fatalf("after a yes: %v (%s), %v", a, a.Error, err)
	}
	l := &pending{c: c, id: fmt.Sprint(a.Data["session_id"]), url: fmt.Sprint(a.Data["auth_url"])}
	wants(t, "exchange", l.exchange(l.copied(s)), "", "")

	// The vendor's terms are part of the question; who says yes accepts them, for good. The provider hears nothing of this.
	restricted := m{"provider": "anthropic", "flow": "pkce_redirect"}
	c.request("oauth_initiate", restricted)
	screen.shows(asksFirst)
	screen.shows(regexp.MustCompile(`terms: +Anthropic does not permit`))
	screen.shows(asksAllow)
	screen.types("y\r")
	screen.shows(regexp.MustCompile(`credproxy: allowed`))
	if a, err = c.recv(patience); err != nil || !a.OK || !strings.HasPrefix(fmt.Sprint(a.Data["auth_url"]), "https://claude.ai/oauth/authorize?") {
		t.Errorf("after a yes: %v (%s), %v", a, a.Error, err)
	}
	wants(t, "cancel", c.call("oauth_cancel", m{"session_id": fmt.Sprint(a.Data["session_id"])}), "", "")
	before := len(screen.stdout.String())
	c.request("oauth_initiate", restricted)
	screen.shows(asksAllow)
	if again := screen.stdout.String()[before:]; strings.Contains(again, "terms:") {
		t.Errorf("the terms are asked about again: %q", again)
	}
	// The proxy's end is the question's.
	screen.signal(syscall.SIGTERM)
	if code := screen.wait(patience); code != 0 {
		t.Errorf("status %d", code)
	}
	if a, err := c.recv(patience); err == nil && a.OK {
		t.Errorf("a login begins while the proxy ends: %v", a)
	}
	if n := s.Calls(oauthtest.Device); n != 0 {
		t.Errorf("the provider was asked for %d device codes that nobody had agreed to", n)
	}
}

// Logins that a vendor restricts begin when somebody on the host has agreed to it, once.
func TestVendorsTermsAreAskedOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := h.serve()
	c := dial(t, p.socket)
	restricted := m{"provider": "anthropic", "flow": "pkce_redirect"}
	wants(t, "from inside, before", c.call("oauth_initiate", restricted), "UNAUTHORIZED", "credproxy auth login anthropic")
	h.inside(p.socket).fails(5, "auth login anthropic", "auth", "login", "anthropic")

	login := []string{"auth", "login", "anthropic", "--no-browser"}
	for _, no := range []string{"", "n\n", "\n", "maybe\n", "n\ny\n"} {
		r := h.runWith(no, login...)
		says := "you did not agree"
		if no == "" {
			says = "nobody has agreed"
		}
		h.failed(r, 1, says)
		if !strings.Contains(r.stderr, "restricted: Anthropic does not permit") || anyURL.MatchString(r.stdout) {
			t.Errorf("%v", r)
		}
	}
	if r := h.runWith("y\n", login...); r.code != 1 || !strings.HasPrefix(r.stdout, "https://claude.ai/oauth/authorize?") || !strings.Contains(r.stderr, "stdin ended without a code") {
		t.Errorf("%v", r)
	}
	r := h.runWith("", login...)
	if !strings.HasPrefix(r.stdout, "https://claude.ai/") || strings.Contains(r.stderr, "[y/N]") {
		t.Errorf("asked again: %v", r)
	}
	a := c.call("oauth_initiate", restricted)
	if !a.OK {
		t.Errorf("from inside, after: %v (%s)", a, a.Error)
	}
	if _, err := os.Stat(filepath.Join(h.home, "state", "terms", "anthropic")); err != nil {
		t.Error(err)
	}
	// A provider of one's own with this dialect is nobody's business.
	s := start(t, oauthtest.Options{Dialect: "anthropic"})
	h.configure(generous + s.Settings("mine"))
	r = h.runWith("", "auth", "login", "mine", "--no-browser")
	if !anyURL.MatchString(r.stdout) || strings.Contains(r.stderr, "restricted") {
		t.Errorf("%v", r)
	}
	p.stop()
}
