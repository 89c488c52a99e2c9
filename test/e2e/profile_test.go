//go:build e2e && linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// An edit reaches a proxy that runs, on connections that exist, in both directions.
func TestProfileEditsReachRunningProxies(t *testing.T) {
	t.Parallel()
	h, s := stocked(t, "")
	providers := providerConfig("acme", s)
	profile := func(text string) string { return generous + text + providers }
	wide := profile("[profiles.work]\nkeys = [\"openai\", \"hidden\"]\n[profiles.work.providers]\nacme = [\"*\"]\nother = [\"default\"]\n")
	h.configure(wide)
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	expect := func(what string, checks ...func() error) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			err = nil
			for _, check := range checks {
				if e := check(); e != nil {
					err = e
				}
			}
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within %v: %v", what, patience, err)
			}
		}
	}
	code := func(want string, op string, payload m) func() error {
		return func() error {
			if a := c.call(op, payload); a.Code != want {
				return fmt.Errorf("%s %v: %v, want %q", op, payload, a, want)
			}
			return nil
		}
	}
	lists := func(op, field, want string) func() error {
		return func() error {
			if a := c.call(op, m{"provider": "acme"}); fmt.Sprint(a.Data[field]) != want {
				return fmt.Errorf("%s: %v, want %s", op, a, want)
			}
			return nil
		}
	}
	all := []func() error{
		code("", "get_token", m{"provider": "acme"}), code("", "get_token", m{"provider": "acme", "bucket": "work"}),
		code("", "get_token", m{"provider": "other"}), code("", "get_api_key", m{"name": "openai"}), code("", "get_api_key", m{"name": "hidden"}),
		lists("list_providers", "providers", "[acme other]"), lists("list_buckets", "buckets", "[default work]"), lists("list_api_keys", "keys", "[hidden openai]"),
	}
	expect("as it was when it started", all...)

	h.configure(profile("[profiles.work]\nkeys = [\"openai\"]\n[profiles.work.providers]\nacme = [\"default\"]\n"))
	narrow := []func() error{
		code("", "get_token", m{"provider": "acme"}), code("UNAUTHORIZED", "get_token", m{"provider": "acme", "bucket": "work"}),
		code("UNAUTHORIZED", "get_token", m{"provider": "other"}), code("", "get_api_key", m{"name": "openai"}), code("UNAUTHORIZED", "get_api_key", m{"name": "hidden"}),
		lists("list_providers", "providers", "[acme]"), lists("list_buckets", "buckets", "[default]"), lists("list_api_keys", "keys", "[openai]"),
	}
	expect("narrowed", narrow...)

	// A broken edit keeps the last good one and says where it is broken; so does one that says something impossible.
	for _, broken := range []struct{ text, says string }{
		{"[profiles.work]\nkeys = [\"*\"]\n[profiles.work.providers\nacme = 1\n", "config.toml:"},
		{"[profiles.work]\nkeys = [\"*\"]\nprovider = 1\n", "config.toml:7"},
	} {
		h.configure(profile(broken.text))
		expect("a broken edit", func() error {
			if !strings.Contains(p.stderr.String(), broken.says) {
				return fmt.Errorf("stderr says nothing of %s: %s", broken.says, p.stderr)
			}
			return nil
		})
		expect("after a broken edit", narrow...)
	}

	h.configure(wide)
	expect("widened again", all...)

	h.configure(profile(""))
	expect("the profile is gone", code("UNAUTHORIZED", "get_token", m{"provider": "acme"}), code("UNAUTHORIZED", "oauth_poll", m{"session_id": "x"}), code("UNAUTHORIZED", "get_api_key", m{"name": "openai"}),
		lists("list_providers", "providers", "[]"), lists("list_api_keys", "keys", "[]"), code("UNAUTHORIZED", "list_buckets", m{"provider": "acme"}))
	h.configure(wide)
	expect("it is back", all...)
}

// X21.4: a profile also narrows what may be done.
func TestProfileNarrowsOperations(t *testing.T) {
	groups := map[string][]string{
		"get":     {"get_token", "get_bucket_stats", "get_api_key", "has_api_key"},
		"refresh": {"refresh_token"},
		"save":    {"save_token"},
		"remove":  {"remove_token"},
		"list":    {"list_providers", "list_buckets", "list_api_keys", "has_api_key"},
		"login":   {"oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel"},
	}
	var config strings.Builder
	config.WriteString(generous)
	for group := range groups {
		fmt.Fprintf(&config, "[profiles.%s]\nkeys = [\"*\"]\noperations = [%q]\n[profiles.%[1]s.providers]\n\"*\" = [\"*\"]\n", group, group)
	}
	config.WriteString("[profiles.none]\nkeys = [\"*\"]\noperations = []\n[profiles.none.providers]\n\"*\" = [\"*\"]\n")
	h, _ := stocked(t, config.String())
	payload := m{"provider": "acme", "name": "openai", "session_id": "0123456789abcdef0123456789abcdef", "code": "c",
		"token": m{"access_token": "test-narrow", "expiry": 2000000000, "token_type": "Bearer"}}
	for _, profile := range []string{"get", "refresh", "save", "remove", "list", "login", "none"} {
		p := h.serve("--profile", profile)
		c := dial(t, p.socket)
		for _, ops := range groups {
			for _, op := range ops {
				allowed := false
				for _, o := range groups[profile] {
					allowed = allowed || o == op
				}
				if a := c.call(op, payload); (a.Code != "UNAUTHORIZED") != allowed {
					t.Errorf("%s with the profile %s: %v", op, profile, a)
				}
			}
		}
		if a := c.call("cancel", m{"targetId": "nobody"}); a.Code == "UNAUTHORIZED" {
			t.Errorf("cancel with the profile %s: %v", profile, a)
		}
		p.stop()
	}
	in := h.inside(h.serve("--profile", "list").socket)
	in.fails(5, "token acme", "token", "acme")
	in.fails(5, "key get openai", "key", "get", "openai")
	in.must("key", "list")
}

func TestUnknownProfileAndBrokenConfigurationStopTheStart(t *testing.T) {
	h := newHost(t)
	h.configure("[profiles.work]\nkeys = []\n")
	r := h.run("serve", "--json", "--profile", "wrk")
	if r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, "work") {
		t.Errorf("want the nearest profile in the error: %v", r)
	}
	h.configure("[profiles.work]\nkyes = []\n")
	r = h.run("serve", "--json", "--profile", "work")
	if r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, "config.toml:3") || !strings.Contains(r.stderr, "keys") {
		t.Errorf("want file, line and the nearest key in the error: %v", r)
	}
}
