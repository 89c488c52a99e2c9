//go:build e2e && linux

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

var update = flag.Bool("update", false, "write the transcripts of testdata/client.py anew; read the difference")

const testKey = "test-api-key-openai"

// stocked is a host with logins to two providers, made by `auth login`, and three keys, set from stdin.
func stocked(t testing.TB, config string) (*host, *oauthtest.Server) {
	t.Helper()
	return stockedFor(t, 0, config)
}

func stockedFor(t testing.TB, uid int, config string) (*host, *oauthtest.Server) {
	t.Helper()
	s := oauth(t, oauthtest.Options{Extra: map[string]any{
		"account_id": "acct-1",
		"profile":    map[string]any{"plan": "pro", "refresh_token": "test-nested-refresh-token"},
		"not_named":  "stays on the host",
	}})
	h := newUserHost(t, uid)
	h.configure(config + providerConfig("acme", s, `token_fields = ["account_id", "profile"]`) +
		providerConfig("other", s) +
		providerConfig("confidential", s, `client_secret_key = "acme-secret"`))
	for _, login := range []string{"acme", "acme/work", "other"} {
		h.login(login)
	}
	h.mustWith(testKey+"\n", "key", "set", "openai")
	h.mustWith("test-api-key-hidden", "key", "set", "hidden")
	h.mustWith("test-client-secret-value", "key", "set", "acme-secret")
	return h, s
}

// python plays a chapter of testdata/client.py and returns its transcript, with what differs from run to run replaced.
func (h *host) python(s *oauthtest.Server, socket, chapter string, args ...string) string {
	h.t.Helper()
	cmd := exec.Command("python3", append([]string{"testdata/client.py", socket, chapter}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	r := h.finish(cmd, 3*patience)
	if r.code != 0 {
		h.t.Fatalf("client.py %s: %v", chapter, r)
	}
	text := r.stdout
	for i, access := range s.Issued().AccessTokens {
		text = strings.ReplaceAll(text, access, fmt.Sprintf("ACCESS-TOKEN-%d", i+1))
	}
	in := time.Now().Add(time.Hour)
	for d := -5 * time.Minute; d <= time.Minute; d += time.Second {
		text = strings.ReplaceAll(text, fmt.Sprintf(`"expiry": %d`, in.Add(d).Unix()), `"expiry": IN-AN-HOUR`)
	}
	justNow := func(what string, in time.Duration) {
		text = regexp.MustCompile(fmt.Sprintf(`"%s": (\d+)`, what)).ReplaceAllStringFunc(text, func(member string) string {
			var at int64
			fmt.Sscanf(member[len(what)+4:], "%d", &at)
			if off := time.Until(time.Unix(at, 0).Add(-in)); off < -time.Minute || off > time.Second {
				h.t.Errorf("client.py %s: %s is %v off", chapter, member, off)
			}
			return fmt.Sprintf(`"%s": RIGHT`, what)
		})
	}
	justNow("lastRefresh", 0)
	justNow("renewsAt", 54*time.Minute) // of an hour: a tenth ahead
	return text
}

// golden compares a transcript with the one that was reviewed.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, have := strings.Split(string(b), "\n"), strings.Split(got, "\n")
	for i := range max(len(want), len(have)) {
		var w, h string
		if i < len(want) {
			w = want[i]
		}
		if i < len(have) {
			h = have[i]
		}
		if w != h {
			t.Errorf("%s:%d\nwant %s\n got %s", path, i+1, w, h)
		}
	}
}

const generous = "[limits]\nrequests_per_second = 100000\nconnections = 256\n"

// The wire, walked by a program that shares no code with ours. Every answer is in testdata, to be read beside
// docs/protocol.md.
func TestClientInAnotherLanguage(t *testing.T) {
	t.Parallel()
	h, s := stocked(t, generous+`
[profiles.scoped]
keys = ["openai", "nothing"]
[profiles.scoped.providers]
acme = ["default", "nowhere"]
`)
	p := h.serve()
	golden(t, "handshakes", h.python(s, p.socket, "handshakes"))
	golden(t, "operations-v1", h.python(s, p.socket, "operations", "1"))
	golden(t, "operations-v2", h.python(s, p.socket, "operations", "2"))
	golden(t, "large", h.python(s, p.socket, "large"))
	golden(t, "inflight", h.python(s, p.socket, "inflight", lockOf(t, h, p, "held")))
	golden(t, "scope", h.python(s, h.serve("--profile", "scoped").socket, "scope"))

	for _, rt := range append(s.Issued().RefreshTokens, "test-nested-refresh-token") {
		if strings.Contains(string(h.said.bytes()), rt) {
			t.Errorf("a refresh token came out")
		}
	}
}

// lockOf finds the lock file that a save of the provider's login leaves behind, by looking at what is new.
func lockOf(t *testing.T, h *host, p *proxy, provider string) string {
	t.Helper()
	before := filesBelow(t, h.home)
	c := dial(t, p.socket)
	token := m{"access_token": "test-held", "expiry": 1, "token_type": "Bearer"}
	if a := c.call("save_token", m{"provider": provider, "token": token}); !a.OK {
		t.Fatal(a)
	}
	if a := c.call("remove_token", m{"provider": provider}); !a.OK {
		t.Fatal(a)
	}
	for path := range filesBelow(t, h.home) {
		if _, old := before[path]; !old && strings.Contains(path, "lock") && strings.Contains(filepath.Base(path), provider) {
			return path
		}
	}
	t.Fatal("no lock file appeared: how do processes exclude each other?")
	return ""
}

// filesBelow are the contents of all regular files below dir, by path.
func filesBelow(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCapabilityFile(t *testing.T) {
	h, s := stocked(t, generous)
	file := filepath.Join(h.work, "capability")
	if err := os.WriteFile(file, []byte("test-capability-token-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := h.serve("--capability-file", file, "-v")
	golden(t, "capability", h.python(s, p.socket, "capability", file))
	p.stop()
	if strings.Contains(string(h.said.bytes()), "test-capability-token-1") {
		t.Error("the capability token is in what a command printed")
	}

	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	h.fails(1, file, "serve", "--capability-file", file)
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.fails(1, file, "serve", "--capability-file", file)
	h.fails(1, "nowhere", "serve", "--capability-file", filepath.Join(h.work, "nowhere"))
}

func TestRateLimitPerConnectionAndPerSandbox(t *testing.T) {
	t.Parallel()
	h, s := stocked(t, "")
	golden(t, "rate", h.python(s, h.serve().socket, "rate"))
}

func TestUnfinishedFramesAndHandshakesEnd(t *testing.T) {
	t.Parallel()
	h, s := stocked(t, "")
	got := strings.Split(h.python(s, h.serve().socket, "slow"), "\n")
	for _, line := range got {
		if line != "" && !regexp.MustCompile(`: closed after 5 s$|^an idle connection: ok `).MatchString(line) {
			t.Error(line)
		}
	}
	if len(got) != 10 {
		t.Errorf("%d lines: %q", len(got), got)
	}
}
