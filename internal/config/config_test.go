package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// write puts text into a new configuration file and returns its path.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	rewrite(t, path, text)
	return path
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Load(write(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const full = `
store = "file"
file_store.key = "passphrase"

[limits]
requests_per_second = 1_000
connections = 0x10

[profiles.default]
keys = ["*"]
login = "ask"
[profiles.default.providers]
"*" = ["*"]

[profiles.work]
keys = ["openai"]
operations = ["get", "refresh"]
image = "registry.example/agent:1"
[profiles.work.providers]
anthropic = ["default", "work"]
"acme.eu" = []

[providers.acme]
dialect = "oauth2"
issuer = "https://id.acme.example"
flows = ["browser", "device"]
client_id = "client-1"
client_secret_key = "acme-secret"
authorize_url = "https://id.acme.example/authorize?tenant=1"
token_url = "https://id.acme.example/token"
device_url = "http://127.8.9.10:1234/device"
revoke_url = "http://[::1]:80/revoke"
redirect_url = "http://localhost:8085/callback"
scopes = [
  "openid",
  "offline_access",
]
token_fields = ["account_id"]
token_encoding = "json"
[providers.acme.authorize_params]
audience = "api"
prompt = ""
`

func TestLoadFull(t *testing.T) {
	c := load(t, full)
	if !c.Exists || filepath.Base(c.Path) != "config.toml" || c.Store != "file" || c.FileStoreKey != "passphrase" {
		t.Errorf("top level: %+v", c)
	}
	if want := (Limits{1000, 16}); c.Limits != want {
		t.Errorf("limits %+v, want %+v", c.Limits, want)
	}
	want := &Provider{
		Name: "acme", Dialect: "oauth2", Issuer: "https://id.acme.example", Flows: []string{"browser", "device"}, ClientID: "client-1",
		ClientSecretKey: "acme-secret", AuthorizeURL: "https://id.acme.example/authorize?tenant=1",
		TokenURL: "https://id.acme.example/token", DeviceURL: "http://127.8.9.10:1234/device", RevokeURL: "http://[::1]:80/revoke",
		RedirectURL: "http://localhost:8085/callback", Scopes: []string{"openid", "offline_access"},
		TokenFields: []string{"account_id"}, TokenEncoding: "json", AuthorizeParams: map[string]string{"audience": "api", "prompt": ""},
	}
	if got := c.Providers["acme"]; !reflect.DeepEqual(got, want) || len(c.Providers) != 1 {
		t.Errorf("provider\n%+v, want\n%+v", got, want)
	}
	work := c.Profiles["work"]
	if work.Name != "work" || work.Image != "registry.example/agent:1" || work.Login != LoginUnset ||
		!reflect.DeepEqual(work.Keys, []string{"openai"}) || !reflect.DeepEqual(work.Operations, []string{"get", "refresh"}) {
		t.Errorf("profile work: %+v", work)
	}
	if c.Profiles["default"].Login != LoginAsk || len(c.Profiles) != 2 {
		t.Errorf("profiles: %+v", c.Profiles)
	}
}

// The page shows a file with every key; it must be one that is taken.
func TestDocumentedFile(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```toml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("no TOML in the page")
	}
	load(t, text)
	for _, keys := range [][]string{topKeys, fileStoreKeys, limitKeys, profileKeys, providerKeys} {
		for _, key := range keys {
			if !strings.Contains(text, key) {
				t.Errorf("%s is not in the page's file", key)
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "config.toml")
	for name, path := range map[string]string{"missing": missing, "empty": write(t, ""), "byte order mark": write(t, "\ufeff# none\r\n")} {
		c, err := Load(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.Exists != (name != "missing") || c.Path != path {
			t.Errorf("%s: Exists %v, Path %q", name, c.Exists, c.Path)
		}
		if c.Store != "auto" || c.FileStoreKey != "auto" || c.Limits != (Limits{60, 64}) {
			t.Errorf("%s: %+v", name, c)
		}
		p, err := c.Profile("default")
		if err != nil || p.Name != "default" || p.Login != LoginUnset || p.Operations != nil {
			t.Errorf("%s: profile %+v, %v", name, p, err)
		} else if !p.AllowsBucket("any", "b") || !p.AllowsKey("k") || !p.AllowsOperation("oauth_initiate") {
			t.Errorf("%s: the default profile does not allow everything", name)
		}
	}
	if c := load(t, "[profiles.other]"); c.Profiles["default"] == nil || !c.Profiles["default"].AllowsKey("k") {
		t.Error("a file with another profile lost the built-in one")
	}
}

func TestUnknownProfile(t *testing.T) {
	c := load(t, "[profiles.work]")
	for name, want := range map[string]string{
		"wrok":   `there is no profile "wrok"; did you mean "work"?`,
		"abcdef": `there is no profile "abcdef"; known are default, work`,
	} {
		if _, err := c.Profile(name); err == nil || err.Error() != c.Path+": "+want {
			t.Errorf("Profile(%q): %v", name, err)
		}
	}
}

// acme is a provider that is complete but for what a test adds after it.
const acme = `[providers.acme]
client_id = "c"
token_url = "https://x.example/t"
authorize_url = "https://x.example/a"
`

func TestErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		// syntax
		{"store = \n", `1: unexpected character U+000A at start of value`},
		{"store = \"auto\"\nstore = \"file\"", `2: key store is already defined`},
		{"[limits]\n\n[limits]", `3: table limits already exists`},
		{"store = \"\xff\"", `1: invalid UTF-8 character in basic string`},
		{"x = " + strings.Repeat("[", 20000), `1: arrays and inline tables are nested more than the maximum of 10000 levels deep`},
		// unknown keys
		{"[limits]\nconnections = 1\nrequests_per_secnd = 5", `3: unknown key "requests_per_secnd" in [limits]; did you mean "requests_per_second"?`},
		{"\n\n[profile.work]\nkeys = []", `3: unknown key "profile" at the top level; did you mean "profiles"?`},
		{"Store = \"auto\"", `1: unknown key "Store" at the top level; did you mean "store"?`},
		{"zzzzzz = 1", `1: unknown key "zzzzzz" at the top level; known are store, file_store, limits, profiles, providers`},
		{"connections = 1", `1: unknown key "connections" at the top level; it belongs in [limits]`},
		{"[profiles.work]\nkeys = []\nstore = \"file\"", `3: unknown key "store" in [profiles.work]; it belongs at the top level`},
		{"[profiles.\"a.b\"]\nkey = []", `2: unknown key "key" in [profiles."a.b"]; did you mean "keys"?`},
		{"limits = { connections = 1, conections = 2 }", `1: unknown key "conections" in [limits]; did you mean "connections"?`},
		{"limits.\"a\\nb\" = 2", `1: unknown key "a\nb" in [limits]; known are requests_per_second, connections`},
		{acme + "client_secret = \"x\"", `5: unknown key "client_secret" in [providers.acme]; secrets are not kept in this file: store it with "credproxy key set NAME" and give NAME as "client_secret_key"`},
		{acme + "refresh_token = \"x\"", `5: unknown key "refresh_token" in [providers.acme]; secrets are not kept in this file: use "credproxy auth login" or "credproxy key set"`},
		{"[providers.acme]\nclient_id = \"c\"\ntokn_url = \"https://x.example\"", `3: unknown key "tokn_url" in [providers.acme]; did you mean "token_url"?`},
		// the first of several
		{"a1 = 1\n[limits]\nb1 = 1\n[providers.x]\nc1 = 1", `1: unknown key "a1" at the top level; known are store, file_store, limits, profiles, providers`},
		// wrong types
		{"store = 1", `1: store at the top level must be a string, not an integer`},
		{"limits = 1", `1: limits at the top level must be a table, not an integer`},
		{"[[limits]]\nconnections = 1\n[[limits]]", `1: limits at the top level must be a table, not an array of tables`},
		{"[limits]\nconnections = \"64\"", `2: connections in [limits] must be an integer from 1 to 65536, not a string`},
		{"[limits]\nrequests_per_second = 60.0", `2: requests_per_second in [limits] must be an integer from 1 to 1000000, not a boolean, float or date`},
		{"[profiles]\nwork = []", `2: work in [profiles] must be a table, not an array`},
		{"[profiles.work]\nkeys = \"*\"", `2: keys in [profiles.work] must be an array of strings, not a string`},
		{"[profiles.work]\nkeys = [\n  \"a\",\n  7,\n]", `4: keys in [profiles.work] must be an array of strings, but holds an integer`},
		{"[profiles.work]\n[[profiles.work.keys]]", `2: keys in [profiles.work] must be an array of strings, not an array of tables`},
		{"[profiles.work.providers]\nacme = \"default\"", `2: acme in [profiles.work.providers] must be an array of strings, not a string`},
		{"[profiles.work.providers]\nlogin = \"deny\"", `2: login in [profiles.work.providers] must be an array of bucket names, not a string; if the profile's own key is meant, it goes above the line [profiles.work.providers]`},
		{acme + "authorize_params = { audience = 1 }", `5: audience in [providers.acme.authorize_params] must be a string, not an integer`},
		// values
		{"store = \"keyrng\"", `1: unknown value "keyrng" of store at the top level; did you mean "keyring"?`},
		{"store = \"memory\"", `1: unknown value "memory" of store at the top level; known are auto, keyring, file`},
		{"[file_store]\nkey = \"password\"", `2: unknown value "password" of key in [file_store]; known are auto, keyring, file, passphrase`},
		{"[limits]\nrequests_per_second = 0", `2: requests_per_second in [limits] must be from 1 to 1000000, not 0`},
		{"[limits]\nrequests_per_second = 1_000_001", `2: requests_per_second in [limits] must be from 1 to 1000000, not 1000001`},
		{"[limits]\nconnections = -1", `2: connections in [limits] must be from 1 to 65536, not -1`},
		{"[limits]\nconnections = 99999999999999999999", `2: decimal number is too large to fit in a 64-bit signed integer`},
		// profiles
		{"[profiles.\"a b\"]", `1: "a b" in [profiles] is not a name: 1 to 64 of A-Z a-z 0-9 . _ -`},
		{"[profiles.\"\"]", `1: "" in [profiles] is not a name: 1 to 64 of A-Z a-z 0-9 . _ -`},
		{"[profiles." + strings.Repeat("a", 65) + "]", `1: "` + strings.Repeat("a", 65) + `" in [profiles] is not a name: 1 to 64 of A-Z a-z 0-9 . _ -`},
		{"[profiles.w]\nkeys = [\"*\", \"a\"]", `2: "*" in keys in [profiles.w] already stands for every key; remove it or the other names`},
		{"[profiles.w]\nkeys = [\"open*\"]", `2: "open*" in keys in [profiles.w] is neither a name (1 to 64 of A-Z a-z 0-9 . _ -) nor "*"`},
		{"[profiles.w]\nkeys = [\"a\", \"a\"]", `2: keys in [profiles.w] names "a" twice`},
		{"[profiles.w.providers]\nacme = [\"a\", \"*\"]", `2: "*" in acme in [profiles.w.providers] already stands for every bucket; remove it or the other names`},
		{"[profiles.w.providers]\n\"ac*\" = [\"*\"]", `2: "ac*" in [profiles.w.providers] is neither a provider's name (1 to 64 of A-Z a-z 0-9 . _ -) nor "*"`},
		{"[profiles.w]\noperations = [\"get\", \"*\"]", `2: unknown value "*" of operations in [profiles.w]; known are get, refresh, save, remove, list, login`},
		{"[profiles.w]\noperations = [\"refrsh\"]", `2: unknown value "refrsh" of operations in [profiles.w]; did you mean "refresh"?`},
		{"[profiles.w]\nlogin = \"alow\"", `2: unknown value "alow" of login in [profiles.w]; did you mean "allow"?`},
		{"[profiles.w]\nimage = \"--privileged\"", `2: image in [profiles.w] must be an image reference, not "--privileged"`},
		{"[profiles.w]\nimage = \"\"", `2: image in [profiles.w] must be an image reference, not ""`},
		{"[profiles.w]\nimage = \"a b\"", `2: image in [profiles.w] must be an image reference, not "a b"`},
		{"[profiles.w]\nkeys = [\"s\"]\n" + acme + "client_secret_key = \"s\"", `2: "s" is the client secret of provider acme, which never goes into a sandbox; remove it from keys in [profiles.w]`},
		// providers
		{"[providers.\"a/b\"]", `1: "a/b" in [providers] is not a name: 1 to 64 of A-Z a-z 0-9 . _ -`},
		{"[providers.github]\nclient_id = \"c\"", `1: github in [providers] is the name of a built-in provider, whose endpoints cannot be changed; choose another name (dialect = "github" talks like it)`},
		{acme + "dialect = \"chat-gpt\"", `5: unknown value "chat-gpt" of dialect in [providers.acme]; did you mean "chatgpt"?`},
		{acme + "dialect = \"oauth\"", `5: unknown value "oauth" of dialect in [providers.acme]; did you mean "oauth2"?`},
		{acme + "token_encoding = \"xml\"", `5: unknown value "xml" of token_encoding in [providers.acme]; known are form, json`},
		{acme + "flows = [\n\"browser\",\n\"devise\"]", `7: unknown value "devise" of flows in [providers.acme]; did you mean "device"?`},
		{acme + "flows = [\"device\"]", `5: flow "device" of [providers.acme] needs "device_url", or "issuer" to find it`},
		{"[providers.acme]\nclient_id = \"c\"\ntoken_url = \"https://x.example\"\nflows = [\"paste\"]", `4: flow "paste" of [providers.acme] needs "authorize_url", or "issuer" to find it`},
		{"\n[providers.acme]\nclient_id = \"c\"", `2: [providers.acme] needs "token_url", or "issuer" to find it`},
		{"\n[providers.acme]\ndialect = \"openrouter\"\nauthorize_url = \"https://x.example\"", `2: [providers.acme] needs "token_url", or "issuer" to find it`},
		{"\n[providers.acme]\nissuer = \"https://x.example\"", `2: [providers.acme] needs "client_id"`},
		{"[providers.acme]\ndialect = \"kimi\"\ntoken_url = \"https://x.example\"\nflows = [\n  \"device\",\n]", `4: flow "device" of [providers.acme] needs "device_url", or "issuer" to find it`},
		{"\n[providers.acme]\ntoken_url = \"https://x.example\"", `2: [providers.acme] needs "client_id"`},
		{"[providers.acme]\nclient_id = \"a b\"", `2: client_id in [providers.acme] must be printable characters without spaces`},
		{acme + "client_secret_key = \"not a name\"", `5: client_secret_key in [providers.acme] must be the name of a stored key (1 to 64 of A-Z a-z 0-9 . _ -), not a secret; "credproxy key set NAME" stores one`},
		{acme + "scopes = [\"a b\"]", `5: "a b" in scopes in [providers.acme] is not one scope; each is a string of its own, without spaces and quotes`},
		{acme + "token_fields = [\"account_id\", \"Refresh-Token\"]", `5: "Refresh-Token" in token_fields in [providers.acme] outlives the sandbox and never goes inside; remove it`},
		{acme + "token_fields = [\"a b\"]", `5: "a b" in token_fields in [providers.acme] is not a field's name (1 to 64 of A-Z a-z 0-9 . _ -)`},
		{acme + "[providers.acme.authorize_params]\nx = \"1\"\nState = \"2\"", `7: State in [providers.acme.authorize_params] is made by the login itself and cannot be set; remove it`},
		{acme + "authorize_params.scope = \"2\"", `5: scope in [providers.acme.authorize_params] is set from "scopes" of [providers.acme]; move it there`},
		{acme + "authorize_params.\"a b\" = \"2\"", `5: "a b" in [providers.acme.authorize_params] is not a parameter's name`},
	}
	for _, key := range []string{"refresh_token", "client_secret", "code_verifier", "device_code", "device_auth_id"} {
		tests = append(tests, struct{ text, want string }{acme + "token_fields = [\"" + key + "\"]",
			`5: "` + key + `" in token_fields in [providers.acme] outlives the sandbox and never goes inside; remove it`})
	}
	for _, key := range []string{"client_id", "redirect_uri", "response_type", "state", "code_challenge", "code_challenge_method", "code_verifier", "client_secret", "request_uri"} {
		tests = append(tests, struct{ text, want string }{acme + "authorize_params." + key + " = \"x\"",
			`5: ` + key + ` in [providers.acme.authorize_params] is made by the login itself and cannot be set; remove it`})
	}
	for _, name := range BuiltinProviders {
		tests = append(tests, struct{ text, want string }{"\n[providers." + strings.ToUpper(name) + "]",
			"2: " + strings.ToUpper(name) + ` in [providers] is the name of a built-in provider, whose endpoints cannot be changed; choose another name (dialect = "` + name + `" talks like it)`})
	}
	for _, tt := range tests {
		path := write(t, tt.text)
		_, err := Load(path)
		if err == nil {
			t.Errorf("no error for\n%s\nwant %s", tt.text, tt.want)
			continue
		}
		if got := strings.TrimPrefix(err.Error(), path+":"); got != tt.want {
			t.Errorf("for\n%.200s\n got %s\nwant %s", tt.text, got, tt.want)
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.Line == 0 || e.Path != path {
			t.Errorf("%v is not an *Error with a line", err)
		}
	}
}

func TestFileRefused(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mode := func(name string, m fs.FileMode) string {
		rewrite(t, path(name), "store = \"file\"")
		do(os.Chmod(path(name), m))
		return path(name)
	}
	do(os.Mkdir(path("open"), 0o700))
	rewrite(t, path("open/config.toml"), "store = \"file\"")
	do(os.Chmod(path("open"), 0o777))
	do(os.Mkdir(path("sticky"), 0o700))
	rewrite(t, path("sticky/config.toml"), "store = \"file\"")
	do(os.Chmod(path("sticky"), 0o777|fs.ModeSticky))
	do(os.Symlink(path("open/config.toml"), path("link")))
	do(os.Symlink(path("0644"), path("goodlink")))
	do(os.Symlink(path("nothing"), path("dangling")))
	do(syscall.Mkfifo(path("fifo"), 0o600))
	rewrite(t, path("large"), strings.Repeat("# 45678\n", maxFileSize/8)+"\n")
	rewrite(t, path("largest"), strings.Repeat("# 45678\n", maxFileSize/8))
	tests := []struct{ path, want string }{
		{mode("0600", 0o600), ""},
		{mode("0644", 0o644), ""},
		{mode("0440", 0o440), ""},
		{mode("0660", 0o660), ": can be written by other users (mode 0660), who could change what a sandbox may use; run: chmod go-w '" + path("0660") + "'"},
		{mode("0602", 0o602), ": can be written by other users (mode 0602), who could change what a sandbox may use; run: chmod go-w '" + path("0602") + "'"},
		{path("open/config.toml"), ": its directory " + path("open") + " can be written by other users (mode 0777), who could change what a sandbox may use; run: chmod go-w '" + path("open") + "'"},
		{path("link"), ": its directory " + path("open") + " can be written by other users (mode 0777), who could change what a sandbox may use; run: chmod go-w '" + path("open") + "'"},
		{path("sticky/config.toml"), ""},
		{path("goodlink"), ""},
		{path("dangling"), ": is a symbolic link to a file that does not exist"},
		{path("fifo"), ": is not a regular file"},
		{dir, ": is not a regular file"},
		{path("large"), ": is larger than 1048576 bytes"},
		{path("largest"), ""},
		{path("0644/config.toml"), ": cannot be opened: not a directory"},
	}
	for _, tt := range tests {
		got := ""
		if _, err := Load(tt.path); err != nil {
			got = strings.TrimPrefix(err.Error(), tt.path)
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.path, got, tt.want)
		}
	}
}

// Only root can give a file away, and for root only a file of someone else who is not root is foreign.
func TestForeignOwner(t *testing.T) {
	path := write(t, "")
	if os.Geteuid() != 0 {
		// A file of ours, seen by a process that is somebody else, is what the test below looks at from the other side.
		if why := foreignWriters("/", mustStat(t, "/")); why != "" {
			t.Errorf("a directory of root's is refused: %s", why)
		}
		return
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	const want = ": belongs to UID 12345, who could change what a sandbox may use; run: chown 0 '"
	if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), path+want) {
		t.Errorf("%v", err)
	}
}

func mustStat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// FuzzParse: nothing in the file can crash the proxy, and every error is one line that names the file.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", full, acme, "a.b.c = [[1, {x = 2}], '''\n''']", "[[x]]\n[x.y]\n", "[profiles.\"\\n\"]", "\xef\xbb\xbf"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("/dir/config.toml", data)
		if err == nil {
			if c.Profiles[DefaultProfile] == nil || c.Limits.Connections < 1 || c.Limits.RequestsPerSecond < 1 {
				t.Errorf("impossible configuration: %+v", c)
			}
			return
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Path != "/dir/config.toml" || !strings.HasPrefix(e.Error(), "/dir/config.toml:") || e.Line < 1 {
			t.Errorf("%q does not say where", err)
		}
		if strings.ContainsAny(e.Error(), "\n\r") || len(e.Error()) > 2000 {
			t.Errorf("%q is not a line", err)
		}
	})
}
