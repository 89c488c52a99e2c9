//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/oauthtest"
)

// canaries are values that must not be found in some place, by what they are.
type canaries map[string][]string

// add remembers values. Short ones would be found by chance.
func (c canaries) add(t testing.TB, what string, values ...string) {
	t.Helper()
	for _, v := range values {
		if len(v) < 12 {
			t.Fatalf("%s: a canary of %d bytes", what, len(v))
		}
		c[what] = append(c[what], v)
	}
}

// search reports every canary that is in data, as it is or in another writing.
func (c canaries) search(t testing.TB, place string, data []byte) {
	t.Helper()
	for what, values := range c {
		for i, v := range values {
			for form, needle := range writings(v) {
				if bytes.Contains(data, needle) {
					at := bytes.Index(data, needle)
					t.Errorf("%s no. %d is in %s, %s, after %q", what, i+1, place, form, data[max(0, at-60):at])
				}
			}
		}
	}
}

// writings are the forms in which a secret might hide: base64 has three, by where it begins in what was encoded.
func writings(v string) map[string][]byte {
	forms := map[string][]byte{
		"as it is":          []byte(v),
		"in hex":            []byte(hex.EncodeToString([]byte(v))),
		"in capital hex":    []byte(strings.ToUpper(hex.EncodeToString([]byte(v)))),
		"escaped":           []byte(url.QueryEscape(v)),
		"in percents":       percents(v),
		"in small percents": bytes.ToLower(percents(v)),
		"backwards":         reversed(v),
		"in UTF-16":         utf16(v),
	}
	for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for offset := range 3 {
			b := enc.EncodeToString(append(make([]byte, offset), v...))
			begin, end := []int{0, 2, 3}[offset], len(b) // without the characters that depend on what stands around
			if (offset+len(v))%3 != 0 {
				end--
			}
			forms[fmt.Sprintf("in %s at %d", name, offset)] = []byte(b[begin:end])
		}
	}
	var quoted bytes.Buffer
	_, _ = bridge.QuoteTo(&quoted).Write([]byte(v)) // to memory
	forms["quoted for the carrier's pipe"] = quoted.Bytes()
	return forms
}

func reversed(v string) []byte {
	b := []byte(v)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return b
}

// percents has every byte as %XX.
func percents(v string) []byte {
	var b []byte
	for i := range len(v) {
		b = fmt.Appendf(b, "%%%02X", v[i])
	}
	return b
}

func utf16(v string) []byte {
	var b []byte
	for i := range len(v) {
		b = append(b, v[i], 0)
	}
	return b
}

func TestTheSearchFindsWhatIsHidden(t *testing.T) {
	const secret = "rt-0123456789abcdefghijkl"
	for offset := range 4 {
		text := strings.Repeat("p", offset) + secret + "tail"
		for name, hidden := range map[string]string{
			"plain": text, "base64": base64.StdEncoding.EncodeToString([]byte(text)), "base64url": base64.URLEncoding.EncodeToString([]byte(text)),
			"hex": hex.EncodeToString([]byte(text)), "UTF-16": string(utf16(text)), "percents": string(percents(text)), "backwards": string(reversed(text)),
		} {
			found := false
			for _, needle := range writings(secret) {
				found = found || strings.Contains(hidden, string(needle))
			}
			if !found {
				t.Errorf("%s at %d is not found", name, offset)
			}
		}
	}
}

// relay is a socket in front of the proxy's that keeps every byte: of all connections together, and of each.
type relay struct {
	path             string
	toProxy, toGuest *transcriptWriter
	wg               sync.WaitGroup

	mu    sync.Mutex
	conns []exchanged
}

// exchanged is what went over one connection.
type exchanged struct{ toProxy, toGuest *transcriptWriter }

func newTranscriptWriter() *transcriptWriter { return &transcriptWriter{&transcript{}} }

type transcriptWriter struct{ *transcript }

func (w transcriptWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

// tap starts a relay to socket; all of it ends with the test.
func tap(t testing.TB, h *host, socket string) *relay {
	t.Helper()
	r := &relay{path: filepath.Join(h.tmp, "tap.sock"), toProxy: newTranscriptWriter(), toGuest: newTranscriptWriter()}
	l, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); r.wg.Wait() })
	r.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", socket)
			if err != nil {
				in.Close()
				continue
			}
			own := exchanged{newTranscriptWriter(), newTranscriptWriter()}
			r.mu.Lock()
			r.conns = append(r.conns, own)
			r.mu.Unlock()
			r.wg.Go(func() { r.copy(io.MultiWriter(r.toProxy, own.toProxy), out, in) })
			r.wg.Go(func() { r.copy(io.MultiWriter(r.toGuest, own.toGuest), in, out) })
		}
	})
	return r
}

// connections are those that there have been.
func (r *relay) connections() []exchanged {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.conns)
}

// copy forwards one direction, recording before it forwards, and passes the end on.
func (r *relay) copy(record io.Writer, to, from net.Conn) {
	_, _ = io.Copy(io.MultiWriter(record, to), from)
	_ = to.(*net.UnixConn).CloseWrite()
	_ = from.(*net.UnixConn).CloseRead()
}

// Everything is done once, at the most verbose, right and wrong; then every place is searched for every secret.
func TestNoSecretComesOut(t *testing.T) {
	t.Parallel()
	const (
		apiKey       = "test-canary-api-key-0123456789"
		hiddenKey    = "test-canary-hidden-key-0123456789"
		clientSecret = "test-canary-client-secret-0123456789"
		capability   = "test-canary-capability-0123456789"
	)
	s := oauth(t, oauthtest.Options{
		Clients: []oauthtest.Client{
			{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback", "http://localhost/callback"}},
			{ID: "test-confidential", Secret: clientSecret, RedirectURIs: []string{"http://127.0.0.1/callback", "http://localhost/callback"}},
		},
		Extra: map[string]any{"account_id": "acct-1"},
	})
	h := newHost(t)
	h.configure(generous + `
[profiles.canary]
keys = ["openai"]
operations = ["get", "save", "remove", "list", "refresh", "login"]
[profiles.canary.providers]
acme = ["*"]
hiding = ["*"]
mine = ["*"]
large = ["*"]
confidential = ["*"]
` + providerConfig("acme", s, `token_fields = ["account_id", "id_token", "profile"]`) +
		providerConfig("hiding", s, `token_fields = ["account_id", "id_token", "profile", "scope", "listed"]`) +
		strings.Replace(providerConfig("confidential", s, `client_secret_key = "acme-secret"`), "test-client", "test-confidential", 1))

	h.mustWith(clientSecret, "key", "set", "acme-secret")
	h.mustWith(apiKey, "key", "set", "openai", "-v")
	h.mustWith(hiddenKey, "key", "set", "hidden")
	h.login("acme")
	h.login("acme/work")
	h.login("confidential")

	// A provider whose answer holds the refresh token under names that may go inside.
	hiding := oauthtest.Fault{Edit: func(a map[string]any) {
		rt := a["refresh_token"].(string)
		a["account_id"] = rt
		a["id_token"] = "x." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"me"}`)) + ".y"
		a["profile"] = map[string]any{"plan": "pro", "deep": []any{map[string]any{"refresh_token": rt, "Refresh-Token": rt}}, "note": "token " + rt}
		a["listed"] = []any{"a", []any{rt}}
	}}
	s.Fault(oauthtest.Token, hiding, 1)
	h.login("hiding")
	h.login("hiding/refreshed")
	for i := range 4 {
		h.login(fmt.Sprintf("acme/refused-%d", i))
	}
	// Refusals with the secrets of the request in their bodies.
	refusals := []oauthtest.Fault{
		{AfterIssue: true, Status: http.StatusBadRequest, Edit: func(a map[string]any) { a["error"] = "invalid_grant" }},
		{AfterIssue: true, Status: http.StatusInternalServerError, Edit: func(a map[string]any) {
			a["error"], a["error_description"] = a["refresh_token"], a["access_token"]
		}},
		{AfterIssue: true, Status: http.StatusOK, Edit: func(a map[string]any) { a["error"] = a["refresh_token"]; delete(a, "access_token") }},
		{AfterIssue: true, DropAfter: 60, Drop: true},
	}
	for _, f := range refusals {
		s.Fault(oauthtest.Token, f, 1)
		if r, _ := h.tryLogin("acme/refused"); r.code == 0 {
			t.Errorf("the provider refused and the login succeeded: %v", r)
		}
		s.ClearFaults()
	}

	file := filepath.Join(h.work, "capability")
	if err := os.WriteFile(file, []byte(capability), 0o600); err != nil {
		t.Fatal(err)
	}
	demanding := h.serve("--profile", "canary", "--capability-file", file, "-v")
	h.python(s, demanding.socket, "capability", file)
	p := h.serve("--profile", "canary", "-v")
	wire := tap(t, h, p.socket)

	// Refreshes that go well, also with the refresh token in every field, and some that are refused in all these ways.
	s.Fault(oauthtest.Token, hiding, 1)
	inner := h.inside(wire.path)
	for _, login := range []string{"hiding/refreshed", "confidential"} {
		inner.must("auth", "refresh", login, "-v")
	}
	for _, f := range refusals {
		s.Fault(oauthtest.Token, f, 1)
	}
	var refused sync.WaitGroup
	for i := range refusals {
		refused.Go(func() { inner.run("auth", "refresh", fmt.Sprintf("acme/refused-%d", i), "-v") })
	}
	refused.Wait()
	s.ClearFaults()

	// Inside, through the tap. First what may show a token, apart from the rest; then everything else.
	in := h.inside(wire.path)
	showing := &transcript{}
	show := *in
	show.said = showing
	for _, args := range [][]string{
		{"token", "acme"}, {"token", "acme/work", "--json"}, {"token", "hiding", "--json"}, {"token", "hiding/refreshed", "--json"}, {"token", "confidential", "--json"}, {"key", "get", "openai"},
	} {
		show.must(args...)
	}
	show.python(s, wire.path, "operations", "1")
	show.python(s, wire.path, "operations", "2")
	show.python(s, wire.path, "large")
	show.python(s, wire.path, "handshakes")
	for _, args := range [][]string{
		{"token", "nobody"}, {"token", "other"}, {"key", "get", "hidden"}, {"key", "get", "acme-secret"}, {"key", "get", "nothing"}, {"key", "list"},
		{"key", "list", "--json"}, {"key", "set", "openai"}, {"key", "remove", "openai"}, {"auth", "status"}, {"auth", "status", "--json"},
		{"auth", "login", "acme", "--flow", "device"}, {"auth", "login", "nobody"}, {"auth", "refresh", "acme"}, {"auth", "logout", "acme/nowhere"}, {"auth", "logout", "acme/work"},
		{"auth", "refresh", "acme/work"}, {"auth", "refresh", "acme/refused-0"}, {"auth", "refresh", "confidential"},
		{"providers"}, {"providers", "--json"}, {"profile", "list"}, {"doctor"}, {"version"}, {"key", "get"}, {"key", "set", "x", apiKey},
	} {
		in.run(append(args, "-v")...)
	}
	// The same on the host.
	for _, args := range [][]string{
		{"auth", "status"}, {"auth", "status", "--json"}, {"auth", "refresh", "acme"}, {"auth", "refresh", "nobody"},
		{"auth", "refresh", "acme/refused-2"}, {"auth", "refresh", "hiding"}, {"providers"},
		{"providers", "--json"}, {"profile", "list"}, {"profile", "show", "canary"}, {"doctor"}, {"key", "list"}, {"key", "list", "--json"},
		{"key", "set", "x", apiKey}, {"key", "set", apiKey + apiKey + apiKey}, {"auth", "logout", "hiding", "--revoke"}, {"auth", "login", "acme", "--flow", "device"},
		{"key", "get", "nothing"}, {"token", "nobody"}, {"run", "--engine", "bwrap", "--", "/nowhere"},
	} {
		h.run(append(args, "-v")...)
	}
	s.Fault(oauthtest.Revoke, oauthtest.Fault{Status: 503, Body: new("no: " + strings.Join(s.Issued().RefreshTokens, " "))}, -1)
	h.run("auth", "logout", "acme", "--revoke", "-v")

	// A process that is still there.
	waiting := h.start(h.command("key", "set", "openai"))
	if _, err := io.WriteString(waiting.stdin, apiKey); err != nil {
		t.Fatal(err)
	}
	var procs []byte
	for _, pid := range []int{p.Process.Pid, demanding.Process.Pid, waiting.Process.Pid} {
		for _, name := range []string{"cmdline", "environ", "comm"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err != nil {
				t.Fatal(err)
			}
			procs = append(procs, b...)
		}
	}
	if err := waiting.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	waiting.wait(patience)
	p.stop()
	demanding.stop()

	// What there is to find.
	issued := s.Issued()
	never, tokens, keys, inURL := canaries{}, canaries{}, canaries{}, canaries{}
	never.add(t, "refresh token", issued.RefreshTokens...)
	never.add(t, "authorisation code", issued.Codes...)
	never.add(t, "client secret", clientSecret)
	never.add(t, "key outside of the profile", hiddenKey)
	for _, r := range s.Requests(oauthtest.Token) {
		if v := r.Params.Get("code_verifier"); v != "" {
			never.add(t, "PKCE verifier", v)
		}
	}
	for _, r := range s.Requests(oauthtest.Authorize) {
		inURL.add(t, "state", r.Params.Get("state"))
		inURL.add(t, "PKCE challenge", r.Params.Get("code_challenge"))
	}
	inURL.add(t, "capability token", capability)
	tokens.add(t, "access token", issued.AccessTokens...)
	keys.add(t, "API key", apiKey)
	if len(never["refresh token"]) < 8 || len(never["PKCE verifier"]) < 8 || len(inURL["state"]) < 8 {
		t.Fatalf("too little was issued for this test: %d refresh tokens, %d verifiers", len(never["refresh token"]), len(never["PKCE verifier"]))
	}

	// The search can fail: what may cross did cross.
	sent := wire.toGuest.bytes()
	for _, want := range []string{issued.AccessTokens[0], issued.AccessTokens[1], apiKey, "acct-1", `"id_token":"x.`} {
		if !bytes.Contains(sent, []byte(want)) {
			t.Errorf("the tap has not seen %q, which goes inside", want)
		}
	}

	for place, data := range map[string][]byte{"what the proxy sent": sent, "what the proxy was sent": wire.toProxy.bytes(), "what inner commands print": showing.bytes()} {
		never.search(t, place, data)
		inURL.search(t, place, data)
	}
	// Everything that any command printed, but for the one line that the person needs: the address of the login.
	said := anyURL.ReplaceAll(h.said.bytes(), nil)
	for _, c := range []canaries{never, tokens, keys, inURL} {
		c.search(t, "what a command printed", said)
		c.search(t, "arguments and environment", procs)
		for path, data := range filesBelow(t, h.home) {
			c.search(t, path, data)
		}
		for path, data := range filesBelow(t, h.tmp) {
			c.search(t, path, data)
		}
	}
	never.search(t, "what a command printed, addresses included", h.said.bytes())
}

// A file store that somebody copies without its key is worth nothing, and its names are what auth status shows anyway.
func TestFilesAreEncryptedAndPrivate(t *testing.T) {
	h, s := stocked(t, "")
	for path, data := range filesBelow(t, h.home) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", path, info.Mode())
		}
		for _, secret := range append(append([]string{testKey, "test-client-secret-value"}, s.Issued().AccessTokens...), s.Issued().RefreshTokens...) {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s holds a secret as it is", path)
			}
		}
	}
	err := filepath.WalkDir(h.home, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			info, infoErr := d.Info()
			if infoErr == nil && info.Mode().Perm() != 0o700 {
				t.Errorf("%s has mode %v, want 0700", path, info.Mode())
			}
			return infoErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Store  string
		Logins []struct{ Provider, Bucket, State string }
	}
	if err := json.Unmarshal([]byte(h.must("auth", "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	if status.Store != "file" || len(status.Logins) != 3 || status.Logins[0].State != "ok" {
		t.Errorf("%+v", status)
	}

	// One damaged file is set aside and named; the others go on.
	var damaged string
	for path, data := range filesBelow(t, h.home) {
		if base := filepath.Base(path); strings.Contains(base, "work") && strings.HasSuffix(base, ".age") && len(data) > 0 {
			damaged = path
		}
	}
	if damaged == "" {
		t.Fatal("no file has the name of the bucket work in it")
	}
	if err := os.WriteFile(damaged, []byte("not what was written"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.run("token", "acme/work")
	if r.code == 0 || !strings.Contains(r.stderr, filepath.Base(damaged)) {
		t.Errorf("a damaged file: want a failure that names %s: %v", filepath.Base(damaged), r)
	}
	h.must("token", "acme")
	h.login("acme/work")
	h.must("token", "acme/work")
}
