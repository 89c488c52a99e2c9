//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// desktop is a host with a session bus and a Secret Service on it, as a person's desktop has them.
type desktop struct {
	*host
	bus     *background
	service *background
}

func newDesktop(t *testing.T, settings string) *desktop {
	t.Helper()
	d := &desktop{host: newHost(t)}
	d.writeConfig(settings)
	runtime := d.tmp + "/run"
	if err := os.Mkdir(runtime, 0o700); err != nil {
		t.Fatal(err)
	}
	d.vars = append(d.vars, "XDG_RUNTIME_DIR="+runtime)
	// Without the services that a session bus starts when they are called: a test says which keyring there is, and when.
	config, err := os.Create(runtime + "/bus.conf")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(config, `<busconfig><type>session</type><listen>unix:dir=%s</listen><auth>EXTERNAL</auth><policy context="default">`+
		`<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, runtime)
	if err := config.Close(); err != nil {
		t.Fatal(err)
	}
	d.bus = d.start(d.program("dbus-daemon", "--config-file="+config.Name(), "--nofork", "--print-address=1"))
	address := d.bus.stdout.find(regexp.MustCompile(`(?m)^(unix:\S+)$`), d.bus.ended, patience)
	if address == nil {
		t.Fatalf("dbus-daemon (apt-get install dbus-daemon): %s", d.bus.stderr)
	}
	d.vars = append(d.vars, "DBUS_SESSION_BUS_ADDRESS="+address[1])
	d.keyring("--unlock")
	return d
}

// keyring starts the Secret Service; with --unlock, and the login keyring open.
func (d *desktop) keyring(args ...string) {
	d.t.Helper()
	d.service = d.start(d.program("gnome-keyring-daemon", append([]string{"--foreground", "--components=secrets"}, args...)...))
	if _, err := d.service.stdin.Write([]byte("test-keyring-password")); err != nil {
		d.t.Fatal(err)
	}
	if err := d.service.stdin.Close(); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, patience, "the Secret Service is on the bus (apt-get install gnome-keyring libsecret-tools)", func() bool {
		out, err := d.tool("", "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetNameOwner", "string:org.freedesktop.secrets")
		return err == nil && strings.Contains(out, ":1.")
	})
}

func (d *desktop) tool(stdin string, name string, args ...string) (string, error) {
	cmd := d.program(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	return string(out), err
}

// store puts an item into the keyring by means of libsecret, with the attributes that another program would give it.
func (d *desktop) store(value string, attributes ...string) {
	d.t.Helper()
	if out, err := d.tool(value, "secret-tool", append([]string{"store", "--label=of another program"}, attributes...)...); err != nil {
		d.t.Fatalf("secret-tool store: %v: %s", err, out)
	}
}

func (d *desktop) lookup(attributes ...string) (string, error) {
	return d.tool("", "secret-tool", append([]string{"lookup"}, attributes...)...)
}

func TestKeyring(t *testing.T) {
	s := oauth(t, oauthtest.Options{Extra: map[string]any{"account_id": "acct-1"}})
	d := newDesktop(t, generous+providerConfig("acme", s))

	// What other programs stored, in the writings that there are of it, is served.
	d.store(`{"access_token":"test-from-rust","refresh_token":"test-refresh-from-rust","expiry":2000000000,"token_type":"Bearer","scope":null,"account_id":"a-1"}`,
		"service", "llxprt-code-oauth", "username", "codex:default", "target", "default", "application", "rust-keyring")
	d.store(`{"access_token":"test-from-new","expiry":2000000000,"token_type":"bearer","resource_url":"portal.example"}`,
		"service", "llxprt-code-oauth", "username", "qwen:work")
	d.store("test-key-of-original", "service", "llxprt-code-provider-keys", "username", "openai", "target", "default", "application", "rust-keyring")
	// What is not ours is not listed.
	d.store("probe", "service", "llxprt-code-oauth", "username", "__securestore_probe__0a1b2c3d")
	d.store("{}", "service", "llxprt-code-oauth", "username", "gemini-oauth-account")
	d.store("test-of-somebody-else", "service", "another-program", "username", "mine:default")

	var status struct {
		Store  string
		Logins []struct{ Provider, Bucket, State string }
	}
	if err := json.Unmarshal([]byte(d.must("auth", "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	if status.Store != "keyring" || fmt.Sprint(status.Logins) != "[{codex default ok} {qwen work ok}]" {
		t.Errorf("auth status: %+v", status)
	}
	p := d.serve()
	c := dial(t, p.socket)
	if a := c.token("codex"); a.Data["access_token"] != "test-from-rust" || a.Data["account_id"] != "a-1" || a.Data["refresh_token"] != nil {
		t.Errorf("%v", a)
	}
	if a := c.token("qwen/work"); a.Data["access_token"] != "test-from-new" || a.Data["resource_url"] != "portal.example" {
		t.Errorf("%v", a)
	}
	if a := c.key("openai"); a.Data["key"] != "test-key-of-original" {
		t.Errorf("%v", a)
	}
	if a := c.call("list_api_keys", nil); fmt.Sprint(a.Data["keys"]) != "[openai]" {
		t.Errorf("%v", a)
	}

	// What we store, others find, in the documented form.
	d.login("acme")
	text, err := d.lookup("service", "llxprt-code-oauth", "username", "acme:default")
	if err != nil {
		t.Fatalf("secret-tool lookup: %v", err)
	}
	var stored map[string]any
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		t.Fatal(err)
	}
	family := s.Families()[0]
	expiry, _ := stored["expiry"].(float64)
	if stored["access_token"] != family.AccessTokens[0] || stored["refresh_token"] != family.RefreshTokens[0] || stored["token_type"] != "Bearer" ||
		stored["account_id"] != "acct-1" || time.Until(time.Unix(int64(expiry), 0)).Round(time.Hour) != time.Hour {
		t.Errorf("what auth login stored has the members %v; expiry %v", members(stored), stored["expiry"])
	}
	d.mustWith(testKey, "key", "set", "hidden")
	if text, err := d.lookup("service", "llxprt-code-provider-keys", "username", "hidden"); err != nil || text != testKey {
		t.Errorf("what key set stored: %v", err)
	}
	// Over an item of another program, there is still one item, which both read.
	d.mustWith("test-key-replaced", "key", "set", "openai")
	out, err := d.tool("", "secret-tool", "search", "--all", "service", "llxprt-code-provider-keys", "username", "openai")
	if err != nil || strings.Count(out, "secret = ") != 1 || !strings.Contains(out, "secret = test-key-replaced") {
		t.Errorf("after key set over an item of another program: %v\n%s", err, out)
	}

	// Changes are seen while the proxy runs.
	eventually(t, patience, "a key that key set replaced", func() bool { return c.key("openai").Data["key"] == "test-key-replaced" })
	d.store("test-key-by-hand", "service", "llxprt-code-provider-keys", "username", "hidden")
	eventually(t, patience, "a key that another program replaced", func() bool { return c.key("hidden").Data["key"] == "test-key-by-hand" })
	if _, err := d.tool("", "secret-tool", "clear", "service", "llxprt-code-oauth", "username", "codex:default"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "a login that another program removed", func() bool { return c.token("codex").Code == "NOT_FOUND" })
	d.must("auth", "logout", "acme")
	if text, err := d.lookup("service", "llxprt-code-oauth", "username", "acme:default"); err == nil {
		t.Errorf("after auth logout it is still there (%d bytes)", len(text))
	}

	// Nothing of all this is in a file of ours.
	for path, data := range filesBelow(t, d.home) {
		for _, secret := range append([]string{testKey, "test-from-rust", "test-key-replaced"}, s.Issued().All()...) {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s holds a secret", path)
			}
		}
	}
}

func members(object map[string]any) []string {
	var names []string
	for name := range object {
		names = append(names, name)
	}
	return names
}

// A keyring that is locked, does not answer, or goes away: a message that says so, and no other credentials in its place.
func TestKeyringThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	d := newDesktop(t, "store = \"keyring\"\n"+generous)
	d.mustWith(testKey, "key", "set", "openai")
	d.mustWith(testKey, "key", "set", "other")
	p := d.serve("-v")
	c := dial(t, p.socket)
	if a := c.key("openai"); !a.OK {
		t.Fatal(a)
	}
	says := func(text string) {
		t.Helper()
		r := d.run("key", "get", "openai")
		if r.code != 1 || !strings.Contains(r.stderr, text) || strings.Contains(r.stdout+r.stderr, testKey) {
			t.Errorf("want a failure that says %q: %v", text, r)
		}
		var a answer
		eventually(t, patience, "the socket answers INTERNAL_ERROR too", func() bool { a = c.key("openai"); return a.Code == "INTERNAL_ERROR" })
		if !strings.Contains(a.Error, text) {
			t.Errorf("want an answer that says %q: %+v", text, a)
		}
	}

	// It hangs.
	d.service.signal(syscall.SIGSTOP)
	r := d.run("key", "get", "openai")
	if r.code != 1 || !strings.Contains(r.stderr, "answer") {
		t.Errorf("a keyring that hangs: %v", r)
	}
	d.service.signal(syscall.SIGCONT)
	eventually(t, patience, "it goes on when the keyring does", func() bool { return c.key("openai").OK })

	// It is locked: the service starts anew and nobody has typed the password.
	d.service.signal(syscall.SIGTERM)
	d.service.wait(patience)
	d.keyring()
	says("locked")
	d.service.signal(syscall.SIGTERM)
	d.service.wait(patience)
	d.keyring("--unlock")
	eventually(t, patience, "it goes on when the keyring is unlocked", func() bool { return c.key("openai").OK })

	// The bus is gone, and with it the keyring.
	d.bus.signal(syscall.SIGKILL)
	d.bus.wait(patience)
	r = d.run("key", "get", "openai")
	if r.code != 1 || !strings.Contains(r.stderr, "keyring") {
		t.Errorf("a keyring that is gone: %v", r)
	}
	d.writeConfig("store = \"auto\"\n")
	if out := d.must("auth", "status", "--json"); !strings.Contains(out, `"store":"file"`) {
		t.Errorf("auto without a keyring: %s", out)
	}
}

func TestKeyringToolsAreThere(t *testing.T) {
	for _, name := range []string{"dbus-daemon", "dbus-send", "gnome-keyring-daemon", "secret-tool"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Errorf("%v: run test/engines.sh, or apt-get install dbus-bin dbus-daemon gnome-keyring libsecret-tools", err)
		}
	}
}
