//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// frames are the payloads of what went over a connection in one direction, the handshake's left out.
func frames(t *testing.T, data []byte) []m {
	t.Helper()
	var list []m
	for len(data) >= 4 {
		n := int(binary.BigEndian.Uint32(data))
		if len(data) < 4+n {
			t.Fatalf("a frame of %d bytes is not whole", n)
		}
		var payload m
		if err := json.Unmarshal(data[4:4+n], &payload); err != nil {
			t.Fatal(err)
		}
		if payload["op"] != "handshake" {
			list = append(list, payload)
		}
		data = data[4+n:]
	}
	return list
}

// eachString calls f for every string in v, with the name of the member that it is in.
func eachString(v any, name string, f func(name, value string)) {
	switch v := v.(type) {
	case map[string]any:
		for name, v := range v {
			f("", name)
			eachString(v, name, f)
		}
	case []any:
		for _, v := range v {
			eachString(v, name, f)
		}
	case string:
		f(name, v)
	}
}

// processes collects the arguments and environments of a host's processes until it is stopped, each once.
func (h *host) processes() (stop func() []byte) {
	end, ended := make(chan struct{}), make(chan struct{})
	seen := map[string]bool{}
	go func() {
		defer close(ended)
		for {
			dirs, _ := filepath.Glob("/proc/[0-9]*")
			for _, dir := range dirs {
				environ, _ := os.ReadFile(dir + "/environ")
				if !bytes.Contains(environ, []byte(h.home)) {
					continue
				}
				cmdline, _ := os.ReadFile(dir + "/cmdline")
				seen[string(environ)], seen[string(cmdline)] = true, true
			}
			select {
			case <-end:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() []byte {
		close(end)
		<-ended
		var all []byte
		for text := range seen {
			all = append(all, text...)
		}
		return all
	}
}

// Logins to every provider by every flow, at the most verbose, well and badly; then every place is searched for every secret of
// a login.
func TestNoSecretOfALoginComesOut(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	all := vendors(t, true)
	h.configure(generous + sections(all))
	h.mustWith(oauthtest.ClientSecret, "key", "set", "my-gemini-secret")
	collected := h.processes()
	p := h.serve("-v")
	wire := tap(t, h, p.socket)
	inner := hostStation{h.inside(wire.path)}

	everyLogin(t, all, func(v *vendor, bucket, flow string) error {
		more := []string{"-v", "--qr"}
		if bucket == "first" { // with a QR code it would be the first that a phone can finish
			more = more[:1]
		}
		return logIn(inner, v, v.name+"/"+bucket, flow, bucket == "first", more...)
	})
	// The same on the host, for what it prints there.
	plain := all[slices.IndexFunc(all, func(v *vendor) bool { return v.name == "plain" })]
	for _, flow := range plain.flows {
		if err := logIn(hostStation{h}, plain, "plain/host-"+flow, flow, false, "-v", "--no-browser", "--qr"); err != nil {
			t.Error(err)
		}
	}
	ids := badLogins(t, h, plain.s, wire.path)
	p.stop()
	procs := collected()

	// What there is to find.
	never, once, tokens := canaries{}, canaries{}, canaries{}
	for _, v := range all {
		issued := v.s.Issued()
		if len(issued.RefreshTokens) > 0 {
			never.add(t, v.name+"'s refresh token", issued.RefreshTokens...)
		}
		if len(issued.Verifiers) > 0 {
			never.add(t, v.name+"'s verifier that the provider made", issued.Verifiers...)
		}
		never.add(t, v.name+"'s device code", issued.DeviceCodes...)
		for _, r := range append(v.s.Requests(oauthtest.Token), v.s.Requests(oauthtest.DevicePoll)...) {
			if verifier := r.Params.Get("code_verifier"); verifier != "" {
				never.add(t, v.name+"'s verifier", verifier)
			}
		}
		once.add(t, v.name+"'s code", issued.Codes...)
		tokens.add(t, v.name+"'s access token", issued.AccessTokens...)
		for _, r := range v.s.Requests(oauthtest.Authorize) {
			if r.Method != http.MethodGet {
				continue
			}
			if state := r.Params.Get("state"); state != "" {
				once.add(t, v.name+"'s state", state)
			}
			once.add(t, v.name+"'s challenge", r.Params.Get("code_challenge"))
		}
	}
	never.add(t, "client secret", oauthtest.ClientSecret)
	for _, least := range []string{"plain's verifier", "plain's device code", "my-qwen's verifier", "my-codex's verifier that the provider made"} {
		if len(never[least]) == 0 {
			t.Fatalf("nothing of %s was made: this test means nothing", least)
		}
	}

	// The verifier is in no address that anybody opened.
	for _, v := range all {
		for _, r := range append(v.s.Requests(oauthtest.Authorize), v.s.Requests(oauthtest.Verify)...) {
			never.search(t, "an address at "+v.name, []byte(r.Path+"?"+r.Params.Encode()))
		}
	}

	// The socket. Codes and states cross in two members only: auth_url, and what was pasted.
	sent, received := wire.toGuest.bytes(), wire.toProxy.bytes()
	never.search(t, "what the proxy sent", sent)
	never.search(t, "what the proxy was sent", received)
	crossed := map[string]int{}
	var rest bytes.Buffer
	for _, c := range wire.connections() {
		for _, data := range [][]byte{c.toGuest.bytes(), c.toProxy.bytes()} {
			for _, frame := range frames(t, data) {
				eachString(frame, "", func(name, value string) {
					crossed[name]++
					if name != "auth_url" && name != "access_token" && (name != "code" || frame["op"] != "oauth_exchange") {
						fmt.Fprintf(&rest, "%s=%s\n", name, value)
					}
				})
			}
		}
	}
	once.search(t, "a member of the protocol", rest.Bytes())
	tokens.search(t, "a member of the protocol", rest.Bytes())
	for _, name := range []string{"auth_url", "access_token", "code", "user_code", "verification_url", "session_id", "status"} {
		if crossed[name] < 4 {
			t.Errorf("the tap has seen %d members %q", crossed[name], name)
		}
	}
	for _, name := range []string{"state", "code_verifier", "code_challenge", "nonce", "refresh_token", "device_code", "device_auth_id", "client_secret", "client_id"} {
		if crossed[name] > 0 {
			t.Errorf("the protocol has the member %q", name)
		}
	}

	// Everywhere else: nothing, but for the addresses that a person has to open.
	said := anyURL.ReplaceAll(h.said.bytes(), nil)
	never.search(t, "what a command printed, addresses included", h.said.bytes())
	sessions := canaries{}
	sessions.add(t, "whole session id", ids...)
	eachString(frameList(t, wire), "", func(name, value string) {
		if name == "session_id" {
			sessions.add(t, "whole session id", value)
		}
	})
	for _, c := range []canaries{never, once, tokens, sessions} {
		c.search(t, "what a command printed", said)
		c.search(t, "the proxy's log", []byte(p.stderr.String()))
		c.search(t, "arguments and environment", procs)
		for _, dir := range []string{h.home, h.tmp} {
			for path, data := range filesBelow(t, dir) {
				c.search(t, path, data)
			}
		}
	}
	for _, want := range []string{h.home, "auth\x00login", "LLXPRT_CREDENTIAL_SOCKET=" + wire.path} {
		if !bytes.Contains(procs, []byte(want)) {
			t.Errorf("no process of this host was seen with %q", want)
		}
	}
	for _, want := range []string{"op=oauth_initiate", "op=oauth_exchange", "op=oauth_poll", "op=oauth_cancel"} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("the proxy's log has no %s", want)
		}
	}
}

// frameList is all that went over a relay.
func frameList(t *testing.T, wire *relay) []any {
	t.Helper()
	var list []any
	for _, c := range wire.connections() {
		for _, frame := range frames(t, c.toGuest.bytes()) {
			list = append(list, frame)
		}
	}
	return list
}

// badLogins are logins to the provider plain that fail in every way, over the socket; it returns their ids.
func badLogins(t *testing.T, h *host, s *oauthtest.Server, socket string) (ids []string) {
	t.Helper()
	answers := []oauthtest.Fault{
		{AfterIssue: true, Status: http.StatusBadRequest, Edit: func(a map[string]any) { a["error"] = "invalid_grant" }},
		{AfterIssue: true, Status: http.StatusInternalServerError, Edit: func(a map[string]any) {
			a["error"], a["error_description"] = a["refresh_token"], a["access_token"]
		}},
		{AfterIssue: true, Status: http.StatusOK, Edit: func(a map[string]any) { a["error"] = a["refresh_token"]; delete(a, "access_token") }},
		{AfterIssue: true, Status: http.StatusOK, Edit: func(a map[string]any) { a["access_token"] = map[string]any{"refresh_token": a["refresh_token"]} }},
		{AfterIssue: true, DropAfter: 60, Drop: true},
	}
	c := dial(t, socket)
	begin := func(flow string) *pending {
		t.Helper()
		a := c.call("oauth_initiate", m{"provider": "plain", "bucket": "bad", "flow": flow, "detail": true})
		l := &pending{c: c, flow: flow}
		l.id, _ = a.Data["session_id"].(string)
		l.url, _ = a.Data["auth_url"].(string)
		l.user, _ = a.Data["user_code"].(string)
		if l.id == "" {
			t.Fatalf("oauth_initiate: %v (%s)", a, a.Error)
		}
		ids = append(ids, l.id)
		return l
	}
	failed := func(a answer) {
		t.Helper()
		if a.OK && a.Data["status"] != "error" || a.Data["access_token"] != nil {
			t.Errorf("a login that the provider refused: %v", a)
		}
	}
	for _, f := range answers {
		s.Fault(oauthtest.Token, f, 1)
		l := begin("pkce_redirect")
		failed(l.exchange(l.copied(s)))

		s.Fault(oauthtest.Token, f, 1)
		l = begin("browser_redirect")
		redirect, err := s.Approve(t.Context(), l.url)
		if err != nil {
			t.Fatal(err)
		}
		_, page, err := s.Follow(t.Context(), redirect)
		if err != nil {
			t.Error(err)
		}
		h.said.record(page) // which shows none of it either
		failed(l.outcome())
		s.ClearFaults()
	}
	// A device login whose poll brings what it should not; all at once, for each waits for its interval.
	s.Fault(oauthtest.Device, oauthtest.Fault{AfterIssue: true, Status: 400, Edit: func(a map[string]any) { a["error"] = a["device_code"] }}, 1)
	failed(c.call("oauth_initiate", m{"provider": "plain", "bucket": "bad", "flow": "device_code"}))
	var devices []*pending
	for range answers[:4] {
		devices = append(devices, begin("device_code"))
	}
	for _, f := range answers[:4] {
		s.Fault(oauthtest.Token, f, 1)
	}
	for _, l := range devices {
		s.Decide(l.user, true)
	}
	for _, l := range devices {
		if a := l.outcome(); a.Data["access_token"] != nil {
			t.Errorf("a login that the provider refused: %v", a)
		}
	}
	s.ClearFaults()

	// What does not belong to it, and what is given up.
	one, two := begin("pkce_redirect"), begin("browser_redirect")
	failed(one.exchange("test-code-of-nobody#" + "test-state-of-nobody"))
	failed(one.poll())
	failed(two.exchange(one.id))
	wants(t, "cancel", two.cancel(), "", "")
	failed(two.poll())
	// Commands that fail.
	in := h.inside(socket)
	var commands sync.WaitGroup
	for _, args := range [][]string{{"--flow", "paste"}, {"--flow", "paste", "--qr"}} {
		commands.Go(func() {
			in.runWith("not a code\ntest-code-1 #2\n", append([]string{"auth", "login", "plain/bad", "-v"}, args...)...)
		})
	}
	commands.Wait()
	return ids
}

// A code that is pasted on a terminal is not on its screen.
func TestPastedCodeIsNotOnTheScreen(t *testing.T) {
	t.Parallel()
	h, s := loginHost(t, oauthtest.Options{})
	p := h.serve("--profile", "work")
	for _, at := range []*host{h, h.inside(p.socket)} {
		screen := at.onTerminal(t, at.command("auth", "login", "acme", "--flow", "paste", "--no-browser"))
		address := screen.shows(regexp.MustCompile(`\x1b\\(http[^\s\x1b]+)`))
		screen.shows(regexp.MustCompile(`not shown`))
		copied, err := (person{s}).copies(address[1])
		if err != nil {
			t.Fatal(err)
		}
		screen.types("\x1b[200~" + copied + "\x1b[201~\r")
		screen.shows(regexp.MustCompile(`logged in:`))
		if code := screen.wait(patience); code != 0 {
			t.Errorf("status %d: %s", code, screen.stdout)
		}
		code, _ := parts(t, copied)
		secret := canaries{}
		secret.add(t, "code", code, copied)
		secret.search(t, "the screen", []byte(screen.stdout.String()))
	}
}
