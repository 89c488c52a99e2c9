package config

import (
	"slices"
	"testing"
)

func TestAllowsOperation(t *testing.T) {
	all := []string{"get_token", "get_bucket_stats", "get_api_key", "has_api_key", "refresh_token", "save_token", "remove_token",
		"list_providers", "list_buckets", "list_api_keys", "oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel", "handshake", "cancel"}
	always := []string{"handshake", "cancel"}
	login := []string{"oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel"}
	tests := []struct {
		text  string
		allow []string
	}{
		{"", all},
		{"operations = []", always},
		{`operations = ["get"]`, append([]string{"get_token", "get_bucket_stats", "get_api_key", "has_api_key"}, always...)},
		{`operations = ["refresh"]`, append([]string{"refresh_token"}, always...)},
		{`operations = ["save"]`, append([]string{"save_token"}, always...)},
		{`operations = ["remove"]`, append([]string{"remove_token"}, always...)},
		{`operations = ["list"]`, append([]string{"list_providers", "list_buckets", "list_api_keys", "has_api_key"}, always...)},
		{`operations = ["login"]`, append(login, always...)},
		{"operations = [\"login\"]\nlogin = \"ask\"", append(login, always...)},
		{"operations = [\"login\"]\nlogin = \"deny\"", always},
		{`login = "deny"`, slices.DeleteFunc(slices.Clone(all), func(op string) bool { return slices.Contains(login, op) })},
		{`operations = ["get", "refresh"]`, append([]string{"get_token", "get_bucket_stats", "get_api_key", "has_api_key", "refresh_token"}, always...)},
	}
	for _, tt := range tests {
		p := load(t, "[profiles.p]\n"+tt.text).Profiles["p"]
		for _, op := range all {
			if got, want := p.AllowsOperation(op), slices.Contains(tt.allow, op); got != want {
				t.Errorf("%s: AllowsOperation(%q) = %v", tt.text, op, got)
			}
		}
		for _, op := range []string{"", "get", "GET_TOKEN", "constructor", "login"} {
			if p.AllowsOperation(op) {
				t.Errorf("%s: the unknown operation %q is allowed", tt.text, op)
			}
		}
	}
}

func TestAllowsBucket(t *testing.T) {
	const star, own, only, none = `"*" = ["*"]`, "\"*\" = [\"*\"]\nacme = [\"work\"]", `acme = ["default", "work"]`, "\"*\" = [\"shared\"]\nacme = []"
	tests := []struct {
		text, provider, bucket string
		want                   bool
	}{
		{"", "acme", "default", false},
		{star, "acme", "default", true},
		{star, "acme", "", true},
		{own, "acme", "work", true},
		{own, "acme", "default", false}, // the entry of its own replaces that of "*"
		{own, "acme", "", false},
		{own, "other", "default", true},
		{only, "acme", "", true},
		{only, "acme", "default", true},
		{only, "acme", "*", false},
		{only, "acme", "Work", false},
		{only, "Acme", "work", false},
		{only, "*", "work", false},
		{none, "acme", "shared", false},
		{none, "other", "shared", true},
		{none, "other", "default", false},
	}
	for _, tt := range tests {
		p := load(t, "[profiles.p.providers]\n"+tt.text).Profiles["p"]
		if got := p.AllowsBucket(tt.provider, tt.bucket); got != tt.want {
			t.Errorf("%q: AllowsBucket(%q, %q) = %v", tt.text, tt.provider, tt.bucket, got)
		}
		if tt.want && !p.AllowsProvider(tt.provider) {
			t.Errorf("%q: AllowsProvider(%q) = false", tt.text, tt.provider)
		}
	}
	if load(t, "[profiles.p.providers]\n"+none).Profiles["p"].AllowsProvider("acme") {
		t.Error("a provider without a bucket is allowed")
	}
}

func TestAllowsKey(t *testing.T) {
	const secret = "\n[profiles.p]\nkeys = [\"*\"]\n" + acme + "client_secret_key = \"acme-secret\"\n"
	tests := []struct {
		text, profile, key string
		want               bool
	}{
		{"[profiles.p]", "p", "openai", false},
		{"[profiles.p]\nkeys = []", "p", "openai", false},
		{"[profiles.p]\nkeys = [\"*\"]", "p", "openai", true},
		{"[profiles.p]\nkeys = [\"openai\", \"x\"]", "p", "openai", true},
		{"[profiles.p]\nkeys = [\"openai\", \"x\"]", "p", "x", true},
		{"[profiles.p]\nkeys = [\"openai\"]", "p", "OpenAI", false},
		{"[profiles.p]\nkeys = [\"openai\"]", "p", "", false},
		{"[profiles.p]\nkeys = [\"openai\"]", "p", "*", false},
		{secret, "p", "openai", true},
		{secret, "p", "acme-secret", false},
		{secret, "default", "openai", true},
		{secret, "default", "acme-secret", false},
		{"[profiles.p]\nkeys = [\"*\"]", "p", "gemini-client-secret", false},
		{"", "default", "gemini-client-secret", false},
	}
	for _, tt := range tests {
		if got := load(t, tt.text).Profiles[tt.profile].AllowsKey(tt.key); got != tt.want {
			t.Errorf("%q: AllowsKey(%q) of %s = %v", tt.text, tt.key, tt.profile, got)
		}
	}
}

func TestDefaultProfileDoesNotAllowClientSecrets(t *testing.T) {
	if Default().Profiles[DefaultProfile].AllowsKey("gemini-client-secret") {
		t.Error("without a file, a client secret is allowed")
	}
}

// The server asks on every request.
func TestScopeDoesNotAllocate(t *testing.T) {
	p := load(t, full).Profiles["work"]
	if n := testing.AllocsPerRun(100, func() {
		p.AllowsOperation("refresh_token")
		p.AllowsBucket("anthropic", "")
		p.AllowsProvider("anthropic")
		p.AllowsKey("openai")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkScope(b *testing.B) {
	p := builtinProfile()
	for b.Loop() {
		_ = p.AllowsOperation("get_token") && p.AllowsBucket("anthropic", "default")
	}
}

func TestNothing(t *testing.T) {
	p := Nothing("work")
	for _, op := range []string{"get_token", "save_token", "remove_token", "get_bucket_stats", "refresh_token", "get_api_key", "oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel"} {
		if p.AllowsOperation(op) {
			t.Errorf("allows %s", op)
		}
	}
	if p.AllowsProvider("acme") || p.AllowsBucket("acme", "default") || p.AllowsKey("openai") {
		t.Error("allows a name")
	}
	if p.Name != "work" || !p.AllowsOperation("handshake") || !p.AllowsOperation("cancel") {
		t.Error("a connection has its handshake and cancels under every profile")
	}
}

// A profile that does not say how logins are begun is told apart from one that says "allow", and prints as it.
func TestLoginPolicy(t *testing.T) {
	for text, want := range map[string]LoginPolicy{"": LoginUnset, `login = "allow"`: LoginAllow, `login = "ask"`: LoginAsk, `login = "deny"`: LoginDeny} {
		for _, name := range []string{"default", "p"} {
			got := load(t, "[profiles."+name+"]\n"+text).Profiles[name].Login
			if got != want || got.String() != string(want) && (want != LoginUnset || got.String() != "allow") {
				t.Errorf("%s in %s: %q, which prints as %s", text, name, got, got)
			}
		}
	}
	if got := Default().Profiles[DefaultProfile].Login; got != LoginUnset {
		t.Errorf("without a file: %q", got)
	}
}
