//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// mount mounts a file system for the time of a test.
func mount(t testing.TB, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("mount %s: %v (this test needs a root that may mount)", target, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// fullDisk is a host whose files, temporary ones included, are on a disk of 1 MiB.
type fullDisk struct {
	*host
	oauth   *oauthtest.Server
	ballast string
}

func newFullDisk(t testing.TB, logins ...string) *fullDisk {
	t.Helper()
	d := &fullDisk{host: newHost(t), oauth: oauth(t, oauthtest.Options{})}
	dir := filepath.Dir(d.home)
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=1m,mode=755")
	for _, sub := range []string{d.home, d.tmp, d.work, dir + "/user"} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d.ballast = dir + "/ballast"
	d.configure(generous + providerConfig("acme", d.oauth))
	for _, login := range logins {
		d.login(login)
	}
	return d
}

// fill writes until not a byte fits any more.
func (d *fullDisk) fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				d.t.Fatal(err)
			}
			size /= 2
		}
	}
}

// free makes room again.
func (d *fullDisk) free() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}

// unsaved fails the test if the login is not one whose newest token the store does not have, as people and sandboxes see it.
func (h *host) unsaved(c *conn, login, access string) {
	h.t.Helper()
	c.serves("unsaved", login, access)
	if st := c.stands(login); st["state"] != "unsaved" || st["detail"] == nil {
		h.t.Errorf("get_bucket_stats: %v", st)
	}
	if st := h.status(login); st.State != "unsaved" || st.Detail == "" || st.LastRefresh == nil {
		h.t.Errorf("auth status: %+v", st)
	}
	if got := h.must("token", login); got != access+"\n" {
		h.t.Errorf("the command on the host has another token")
	}
}

// stored waits until the store has the login's newest token, and nothing waits any more.
func (h *host) stored(c *conn, login, access string) {
	h.t.Helper()
	eventually(h.t, patience, "the token is stored", func() bool { return c.stands(login)["state"] == "ok" })
	c.serves("stored", login, access)
	if st := h.status(login); st.State != "ok" || st.LastRefresh == nil {
		h.t.Errorf("auth status: %+v", st)
	}
}

// keptAndStored follows a token that a full disk has kept from the store, from a crash on to the store. No provider is asked.
func (d *fullDisk) keptAndStored(login string, family int) {
	t, access := d.t, newest(d.oauth, family)
	t.Helper()
	calls := len(refreshes(d.oauth))
	first := d.serve()
	d.unsaved(dial(t, first.socket), login, access)
	if r := d.run("doctor"); !strings.Contains(r.stdout+r.stderr, "no space left") {
		t.Errorf("doctor on a full disk: %v", r)
	}
	d.onlySealed(d.oauth)
	first.signal(syscall.SIGKILL)
	first.wait(patience)
	next := dial(t, d.serve().socket)
	d.unsaved(next, login, access)
	d.free()
	d.stored(next, login, access)
	if n := len(refreshes(d.oauth)); n != calls {
		t.Errorf("the provider was asked %d times in between", n-calls)
	}
	d.onlySealed(d.oauth)
	neverReused(t, d.oauth)
}

// The very first refresh of a login comes when the disk is full.
func TestFirstRefreshOnAFullDisk(t *testing.T) {
	// The temporary directory is on another disk.
	t.Run("with a place for recovery files", func(t *testing.T) {
		t.Parallel()
		d := newFullDisk(t, "acme")
		mount(t, "tmpfs", d.tmp, "tmpfs", 0, "size=1m,mode=700")
		p := d.serve()
		d.fill()
		c := dial(t, p.socket)
		a := c.refresh("acme")
		if !a.OK || a.Data["access_token"] != newest(d.oauth, 0) || len(d.oauth.Families()[0].AccessTokens) != 2 {
			t.Fatalf("on a full disk: %+v", a)
		}
		d.unsaved(c, "acme", newest(d.oauth, 0))
		p.signal(syscall.SIGKILL)
		p.wait(patience)
		d.keptAndStored("acme", 0)
	})
	// Nothing can be written anywhere: a token that is still valid is served, and not given up for one that could be lost.
	t.Run("with no place", func(t *testing.T) {
		t.Parallel()
		d := newFullDisk(t, "acme")
		if err := os.RemoveAll(d.home + "/state/recovery"); err != nil { // the login has made a place
			t.Fatal(err)
		}
		p := d.serve()
		d.fill()
		calls := len(refreshes(d.oauth))
		c := dial(t, p.socket)
		if a := c.refresh("acme"); a.Code != "INTERNAL_ERROR" || !strings.HasPrefix(a.Error, "nothing can be written") || len(refreshes(d.oauth)) != calls {
			t.Fatalf("on a full disk: %+v", a)
		}
		c.serves("what is stored", "acme", newest(d.oauth, 0))
		for _, args := range [][]string{{"doctor"}, {"auth", "status"}} {
			if r := d.run(args...); !strings.Contains(r.stdout+r.stderr, "no space left") {
				t.Errorf("when nothing can be written: %v", r)
			}
		}
		d.free()
		if a := c.refresh("acme"); !a.OK || a.Data["access_token"] != newest(d.oauth, 0) || len(refreshes(d.oauth)) != calls+1 {
			t.Fatalf("with room again: %+v", a)
		}
		neverReused(t, d.oauth)
	})
}

// The directory of the store, or all directories, cannot be written: when the provider answers, or already before it is asked.
func TestRefreshInReadOnlyDirectories(t *testing.T) {
	for name, c := range map[string]struct {
		dir    string
		before bool
	}{"the store, while the provider answers": {"/data", false}, "the store": {"/data", true}, "everything": {"", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, s := refreshing(t, "", "acme")
			p := h.serve()
			conn := dial(t, p.socket)
			conn.serves("at first", "acme", newest(s, 0))
			target := h.home + c.dir
			remount := func(flags uintptr) {
				t.Helper()
				eventually(t, patience, "the mount is busy, or cannot be changed", func() bool { // busy while the proxy writes
					return syscall.Mount("", target, "", syscall.MS_REMOUNT|syscall.MS_BIND|flags, "") == nil
				})
			}
			readOnly := func() { // a mount of its own, for what is being written cannot become read-only
				mount(t, target, target, "", syscall.MS_BIND, "")
				remount(syscall.MS_RDONLY)
			}
			release := hold(t, s)
			if c.before {
				readOnly()
			}
			conn.request("refresh_token", m{"provider": "acme"})
			asked(t, s, 1)
			if !c.before {
				readOnly()
			}
			release()
			if a, err := conn.recv(patience); err != nil || !a.OK || a.Data["access_token"] != newest(s, 0) || len(s.Families()[0].AccessTokens) != 2 {
				t.Fatalf("refresh_token: %+v, %v", a, err)
			}
			h.unsaved(conn, "acme", newest(s, 0))
			p.signal(syscall.SIGKILL)
			p.wait(patience)
			if c.dir != "" { // the audit log is needed to serve
				next := h.serve()
				conn = dial(t, next.socket)
				h.unsaved(conn, "acme", newest(s, 0))
				remount(0)
			} else {
				remount(0)
				conn = dial(t, h.serve().socket)
			}
			h.stored(conn, "acme", newest(s, 0))
			if n := len(refreshes(s)); n != 1 {
				t.Errorf("the provider was asked %d times", n)
			}
			h.onlySealed(s)
		})
	}
}

// The keyring is locked while the provider answers. With it the key of the recovery files is out of reach for others, but the
// process that was asking has it.
func TestKeyringLockedWhileTheProviderAnswers(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(map[bool]string{false: "unlocked later", true: "killed and unlocked later"}[crash], func(t *testing.T) {
			t.Parallel()
			s := oauth(t, oauthtest.Options{})
			d := newDesktop(t, "store = \"keyring\"\n"+generous+providerConfig("acme", s))
			d.login("acme")
			p := d.serve()
			c := dial(t, p.socket)
			release := hold(t, s)
			c.request("refresh_token", m{"provider": "acme"})
			asked(t, s, 1)
			d.service.signal(syscall.SIGTERM)
			d.service.wait(patience)
			d.keyring()
			release()
			if a, err := c.recv(patience); err != nil || !a.OK || a.Data["access_token"] != newest(s, 0) || len(s.Families()[0].AccessTokens) != 2 {
				t.Fatalf("refresh_token: %+v, %v", a, err)
			}
			c.serves("while the keyring is locked", "acme", newest(s, 0))
			if st := c.stands("acme"); st["state"] != "unsaved" {
				t.Errorf("get_bucket_stats: %v", st)
			}
			if r := d.run("doctor"); !strings.Contains(r.stdout+r.stderr, "locked") {
				t.Errorf("doctor: %v", r)
			}
			if st := d.status("acme"); st.State != "unsaved" || !strings.Contains(st.Detail, "locked") || st.LastRefresh == nil {
				t.Errorf("auth status while the keyring is locked: %+v", st)
			}
			d.onlySealed(s)
			if crash {
				p.signal(syscall.SIGKILL)
				p.wait(patience)
				c = dial(t, d.serve().socket)
				if a := c.token("acme"); a.Code != "INTERNAL_ERROR" || !strings.Contains(a.Error, "locked") {
					t.Errorf("a new process, while the keyring is locked: %+v", a)
				}
			}
			d.service.signal(syscall.SIGTERM)
			d.service.wait(patience)
			d.keyring("--unlock")
			var served answer
			defer func() {
				if t.Failed() {
					t.Logf("get_token: %+v; auth status: %v", served, d.run("auth", "status"))
				}
			}()
			eventually(t, patience, "the new token is served after the keyring was unlocked", func() bool {
				served = c.token("acme")
				return served.Data["access_token"] == newest(s, 0)
			})
			d.host.stored(c, "acme", newest(s, 0))
			text, err := d.lookup("service", "llxprt-code-oauth", "username", "acme:default")
			var grant struct {
				Access  string `json:"access_token"`
				Refresh string `json:"refresh_token"`
			}
			if err != nil || json.Unmarshal([]byte(text), &grant) != nil || grant.Access != newest(s, 0) || !s.Valid(grant.Refresh) {
				t.Errorf("what the keyring has now: %v; its refresh token is good: %v", err, s.Valid(grant.Refresh))
			}
			if n := len(refreshes(s)); n != 1 {
				t.Errorf("the provider was asked %d times", n)
			}
			d.onlySealed(s)
		})
	}
}
