//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Two processes and a sandbox write at the same time, the same credentials and different ones, and none is lost.
func TestWritersLoseNothing(t *testing.T) {
	h, _ := stocked(t, generous)
	p := h.serve()
	const rounds = 12
	var wg sync.WaitGroup
	for writer := range 2 {
		wg.Go(func() {
			for i := range rounds {
				for _, name := range []string{fmt.Sprintf("own-%d-%d", writer, i), "shared", fmt.Sprintf("shared-%d", i)} {
					cmd := h.command("key", "set", name)
					cmd.Stdin = strings.NewReader(fmt.Sprintf("test-value-%d-%d", writer, i))
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("key set %s: %v: %s", name, err, out)
					}
				}
			}
		})
	}
	for conn := range 2 {
		c := dial(t, p.socket)
		wg.Go(func() {
			for i := range rounds * 5 {
				for _, bucket := range []string{"shared", fmt.Sprintf("own-%d-%d", conn, i)} {
					a := c.call("save_token", m{"provider": "mine", "bucket": bucket, "token": m{
						"access_token": fmt.Sprintf("test-token-%d-%d", conn, i), "expiry": 2000000000, "token_type": "Bearer",
						fmt.Sprintf("from_%d", conn): i}})
					if !a.OK {
						t.Errorf("save_token %s: %v", bucket, a)
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	c := dial(t, p.socket)
	for writer := range 2 {
		for i := range rounds {
			if a := c.key(fmt.Sprintf("own-%d-%d", writer, i)); a.Data["key"] != fmt.Sprintf("test-value-%d-%d", writer, i) {
				t.Errorf("the key of writer %d, round %d: %v", writer, i, a)
			}
			if a := c.key(fmt.Sprintf("shared-%d", i)); a.Data["key"] != fmt.Sprintf("test-value-0-%d", i) && a.Data["key"] != fmt.Sprintf("test-value-1-%d", i) {
				t.Errorf("what both wrote in round %d: %v", i, a)
			}
		}
		for i := range rounds * 5 {
			if a := c.token(fmt.Sprintf("mine/own-%d-%d", writer, i)); !a.OK {
				t.Errorf("the token of connection %d, round %d: %v", writer, i, a)
			}
		}
	}
	// Merges of two writers do not undo each other: each one's last field is there.
	a := c.token("mine/shared")
	for writer := range 2 {
		if a.Data[fmt.Sprintf("from_%d", writer)] != float64(rounds*5-1) {
			t.Errorf("the field of connection %d in what both wrote: %v", writer, a)
		}
	}
	for _, login := range []string{"acme", "acme/work", "other"} {
		if a := c.token(login); !a.OK {
			t.Errorf("%s was there before: %v", login, a)
		}
	}
}

// The very first writers of a machine come at the same time: one makes the key of the store, and all use it.
func TestFirstWritersTogether(t *testing.T) {
	for range 3 {
		h := newHost(t)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				cmd := h.command("key", "set", fmt.Sprintf("key-%d", i))
				cmd.Stdin = strings.NewReader(fmt.Sprintf("test-value-%d", i))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("key set: %v: %s", err, out)
				}
			})
		}
		wg.Wait()
		for i := range 8 {
			if got := h.must("key", "get", fmt.Sprintf("key-%d", i)); got != fmt.Sprintf("test-value-%d\n", i) {
				t.Errorf("key-%d is %q", i, got)
			}
		}
	}
}

// What another process does is seen by a running proxy within a second, although it answers from memory.
func TestChangesOfOtherProcessesAreSeen(t *testing.T) {
	h, s := stocked(t, generous)
	p := h.serve()
	c := dial(t, p.socket)
	first := c.token("acme")
	if !first.OK || !c.key("openai").OK {
		t.Fatal(first)
	}
	// Asked all the time, so that it is in memory all the time.
	h.mustWith("test-api-key-second", "key", "set", "openai")
	eventually(t, patience, "a key that was set anew", func() bool { return c.key("openai").Data["key"] == "test-api-key-second" })
	h.must("key", "remove", "openai")
	eventually(t, patience, "a key that was removed", func() bool { return c.key("openai").Code == "NOT_FOUND" })
	h.mustWith(testKey, "key", "set", "openai")
	eventually(t, patience, "a key that is back", func() bool { return c.key("openai").Data["key"] == testKey })
	h.login("acme")
	eventually(t, patience, "a new login", func() bool {
		a := c.token("acme")
		return a.OK && a.Data["access_token"] != first.Data["access_token"]
	})
	h.must("auth", "logout", "acme")
	eventually(t, patience, "a logout", func() bool { return c.token("acme").Code == "NOT_FOUND" })
	eventually(t, patience, "it is not listed", func() bool {
		return fmt.Sprint(c.call("list_providers", nil).Data["providers"]) == "[other]" || fmt.Sprint(c.call("list_buckets", m{"provider": "acme"}).Data["buckets"]) == "[work]"
	})
	if a := c.token("acme/work"); !a.OK {
		t.Errorf("the other account of the provider: %v", a)
	}
	_ = s
}

// What a client saves keeps the refresh token that only the host knows: a logout with --revoke proves that it is there.
func TestSaveFromInsideKeepsTheRefreshToken(t *testing.T) {
	h, s := stocked(t, generous)
	c := dial(t, h.serve().socket)
	a := c.call("save_token", m{"provider": "acme", "token": m{"access_token": "test-saved-inside", "expiry": 2000000000, "token_type": "Bearer", "refresh_token": "test-refresh-from-inside"}})
	if !a.OK {
		t.Fatal(a)
	}
	if a := c.token("acme"); a.Data["access_token"] != "test-saved-inside" || a.Data["account_id"] != "acct-1" || a.Data["refresh_token"] != nil {
		t.Errorf("%v", a)
	}
	refresh := s.Families()[0].RefreshTokens[0]
	if !s.Valid(refresh) {
		t.Fatal("the refresh token is not valid before the logout")
	}
	h.must("auth", "logout", "acme", "--revoke")
	if s.Valid(refresh) {
		t.Error("the refresh token was not revoked: the one from inside had replaced it")
	}
}

// A write that cannot be finished leaves what was there.
func TestFullDiskLosesNothing(t *testing.T) {
	h, _ := stocked(t, generous)
	p := h.serving(h.program("/bin/sh", "-c", `trap '' XFSZ; ulimit -f 2; exec "$0" serve --json`, credproxy))
	c := dial(t, p.socket)
	before := c.token("acme")
	a := c.call("save_token", m{"provider": "acme", "token": m{"access_token": "test-too-large", "expiry": 1, "token_type": "Bearer", "note": strings.Repeat("x", 60<<10)}})
	if a.OK {
		t.Fatal("a file of 60 KiB was written where files have at most 1 KiB")
	}
	if after := c.token("acme"); fmt.Sprint(after.Data) != fmt.Sprint(before.Data) || !after.OK {
		t.Errorf("before %v, after %v", before, after)
	}
	h.must("token", "acme")
}

// A passphrase instead of a key file: asked for, not stored, and a wrong one opens nothing.
func TestPassphraseStore(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure("[file_store]\nkey = \"passphrase\"\n")
	r := h.runWith(testKey, "key", "set", "openai")
	if r.code == 0 {
		t.Fatalf("a passphrase that nobody was asked for: %v", r)
	}
	file := filepath.Join(h.work, "passphrase")
	passphrase := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	h.vars = append(h.vars, "CREDPROXY_PASSPHRASE_FILE="+file)
	passphrase("test-passphrase-right", 0o644)
	h.failed(h.runWith(testKey, "key", "set", "openai"), 1, file)
	passphrase("test-passphrase-right", 0o600)
	h.mustWith(testKey, "key", "set", "openai")
	if got := h.must("key", "get", "openai"); got != testKey+"\n" {
		t.Errorf("%q", got)
	}
	for path, data := range filesBelow(t, h.home) {
		if strings.Contains(string(data), "test-passphrase-right") || strings.Contains(string(data), testKey) {
			t.Errorf("%s holds the passphrase or the key", path)
		}
	}
	passphrase("test-passphrase-wrong", 0o600)
	if r := h.run("key", "get", "openai"); r.code == 0 || strings.Contains(r.stdout+r.stderr, testKey) {
		t.Errorf("a wrong passphrase: %v", r)
	}
}

// The audit log has a line for every operation, also for those that were refused.
func TestAuditLogIsComplete(t *testing.T) {
	h, _ := stocked(t, generous+"[profiles.work]\nkeys = [\"openai\"]\n[profiles.work.providers]\nacme = [\"default\"]\n")
	p := h.serve("--profile", "work")
	c := dial(t, p.socket)
	c.token("acme")
	c.token("acme/work")
	c.token("other")
	c.key("openai")
	c.key("hidden")
	c.call("list_providers", nil)
	c.call("nonsense", nil)
	c.call("get_token", m{"provider": "line\nbreak"})
	c.call("refresh_token", m{"provider": "acme"})
	const many = 2000
	for range many {
		c.key("openai")
	}
	p.stop()
	events := auditEvents(t, h)
	count := map[string]int{}
	for _, e := range events {
		for _, field := range []string{"time", "proxy", "profile", "op", "outcome", "duration_ms", "uid", "pid"} {
			if _, ok := e[field]; !ok {
				t.Fatalf("no %s in %v", field, e)
			}
		}
		if e["profile"] != "work" || e["uid"] != 0.0 || e["pid"] != float64(os.Getpid()) || e["proxy"] != float64(p.Process.Pid) {
			t.Errorf("%v", e)
		}
		if when, err := time.Parse(time.RFC3339, e["time"].(string)); err != nil || time.Since(when) > time.Minute {
			t.Errorf("time %v: %v", e["time"], err)
		}
		code, _ := e["code"].(string)
		provider, _ := e["provider"].(string)
		bucket, _ := e["bucket"].(string)
		key, _ := e["key"].(string)
		count[strings.Join([]string{e["op"].(string), provider, bucket, key, e["outcome"].(string), code}, "|")]++
	}
	for line, n := range map[string]int{
		"get_token|acme|default||ok|":                  1,
		"get_token|acme|work||denied|UNAUTHORIZED":     1,
		"get_token|other|default||denied|UNAUTHORIZED": 1,
		"get_api_key|||openai|ok|":                     many + 1,
		"get_api_key|||hidden|denied|UNAUTHORIZED":     1,
		"list_providers||||ok|":                        1,
		"refresh_token|acme|default||ok|":              1,
	} {
		if count[line] != n {
			t.Errorf("%d times %s, want %d", count[line], line, n)
		}
		delete(count, line)
	}
	invalid := 0
	for line, n := range count {
		if strings.HasSuffix(line, "|INVALID_REQUEST") {
			invalid += n
		} else if !strings.HasPrefix(line, "handshake|") {
			t.Errorf("%d times %s", n, line)
		}
	}
	if invalid != 2 {
		t.Errorf("%d invalid requests in the log, want 2: %v", invalid, count)
	}
	info, err := os.Stat(filepath.Join(h.home, "state", "audit.log"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// kill -9 loses at most what happened just before: everything comes to the file by itself. When, the tests of package audit say.
func TestAuditLogAfterKill(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(generous)
	h.mustWith(testKey, "key", "set", "openai")
	p := h.serve()
	c := dial(t, p.socket)
	const many = 300
	for range many {
		c.key("openai")
	}
	logged := func() (n int) {
		for _, e := range auditEvents(t, h) {
			if e["op"] == "get_api_key" {
				n++
			}
		}
		return n
	}
	begun := time.Now()
	eventually(t, patience, "what has happened is in the file, though the proxy goes on", func() bool { return logged() == many })
	t.Logf("in the file after %v", time.Since(begun))
	p.signal(syscall.SIGKILL)
	p.wait(patience)
	if n := logged(); n != many {
		t.Errorf("%d lines after the kill, want %d", n, many)
	}
}
