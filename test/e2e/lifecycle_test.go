//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stranger is a UID that owns nothing and has no name.
const stranger = 54321

func TestServeAnnouncesItselfForAShell(t *testing.T) {
	h := newHost(t)
	b := h.start(h.program("/bin/sh", "-c", credproxy+` serve | { IFS= read -r line; eval "$line"; sh -c 'echo "<$LLXPRT_CREDENTIAL_SOCKET>"'; cat; }`))
	eventually(t, patience, "a shell evaluates the first line of serve", func() bool {
		return strings.Contains(b.stdout.String(), ".sock>\n")
	})
	socket := strings.Trim(strings.TrimSpace(b.stdout.String()), "<>")
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode of the socket is %v, want 0600", info.Mode())
	}
	dir := filepath.Dir(socket)
	if info, err = os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || dir != h.tmp+"/llxprt-cred-0" {
		t.Errorf("directory %s: %v, %v; want %s/llxprt-cred-0, 0700", dir, info.Mode(), err, h.tmp)
	}
}

func TestStopFinishesWhatIsInFlight(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			h := newHost(t)
			h.mustWith(testKey, "key", "set", "openai")
			p := h.serve()
			lock, err := os.Open(lockOf(t, h, p, "held"))
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			c := dial(t, p.socket)
			slow := c.request("save_token", m{"provider": "held", "token": m{"access_token": "test-late", "expiry": 2000000000, "token_type": "Bearer"}})
			if quick := c.key("openai"); !quick.OK {
				t.Fatal(quick)
			}
			p.signal(s)
			eventually(t, patience, "the socket is gone or refuses", func() bool { return !accepts(p.socket) })
			if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
				t.Fatal(err)
			}
			if a, err := c.recv(patience); err != nil || !a.OK || a.ID != slow {
				t.Errorf("the request that was in flight when the signal came: %+v, %v", a, err)
			}
			c.closed(patience)
			if code := p.wait(patience); code != 0 {
				t.Errorf("status %d; stderr: %s", code, p.stderr)
			}
			if _, err := os.Lstat(p.socket); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
			if got := h.must("token", "held"); got != "test-late\n" {
				t.Errorf("what the last request saved: %q", got)
			}
		})
	}
}

// inAHurry is in the log of a proxy that has not waited any longer for what was under way.
const inAHurry = "has ended in a hurry"

// A request that hangs does not keep the proxy from ending: five seconds, then it closes.
func TestStopDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := h.serve()
	lock, err := os.Open(lockOf(t, h, p, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	c := dial(t, p.socket)
	c.request("save_token", m{"provider": "held", "token": m{"access_token": "test-late", "expiry": 2000000000, "token_type": "Bearer"}})
	c.call("list_api_keys", nil)
	begun := time.Now()
	p.signal(syscall.SIGTERM)
	p.wait(patience)
	if took := time.Since(begun); took < 4*time.Second {
		t.Errorf("ended %v after SIGTERM, want 5 s", took)
	}
	if !strings.Contains(p.stderr.String(), inAHurry) {
		t.Errorf("it does not say that it has not waited: %s", p.stderr)
	}
	if a, err := c.recv(patience); err == nil {
		t.Errorf("the request was answered, although it could not be done: %+v", a)
	}
	if _, err := os.Lstat(p.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSocketOfAKilledProxyIsRemovedAtTheNextStart(t *testing.T) {
	h := newHost(t)
	alive := h.serve()
	killed := h.serve()
	killed.signal(syscall.SIGKILL)
	killed.wait(patience)
	if _, err := os.Lstat(killed.socket); err != nil {
		t.Fatalf("after kill -9: %v", err)
	}
	// What is not a socket of ours stays, whatever it is called.
	file := filepath.Join(filepath.Dir(killed.socket), "llxprt-cred-999999-0123456789abcdef.sock")
	if err := os.WriteFile(file, []byte("not a socket"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := h.serve()
	eventually(t, patience, "the stale socket is removed", func() bool {
		_, err := os.Lstat(killed.socket)
		return os.IsNotExist(err)
	})
	for _, path := range []string{alive.socket, next.socket, file} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if a := dial(t, alive.socket).call("list_api_keys", nil); !a.OK {
		t.Error(a)
	}
}

func accepts(socket string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return true
	}
	defer syscall.Close(fd)
	return syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}) == nil
}

// Somebody was quicker to make the directory with the predictable name.
func TestSquattedSocketDirectoryIsRefused(t *testing.T) {
	make0700 := func(t *testing.T, path string) {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		squat func(t *testing.T, h *host, dir string)
		says  []string
	}{
		{"symlink", func(t *testing.T, h *host, dir string) {
			make0700(t, h.work+"/target")
			if err := os.Symlink(h.work+"/target", dir); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", "symlink"}},
		{"dangling symlink", func(t *testing.T, h *host, dir string) {
			if err := os.Symlink(h.work+"/target", dir); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", "symlink"}},
		{"foreign owner", func(t *testing.T, _ *host, dir string) {
			make0700(t, dir)
			if err := os.Chown(dir, stranger, stranger); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", fmt.Sprint(stranger)}},
		{"open mode", func(t *testing.T, _ *host, dir string) {
			make0700(t, dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", "0755"}},
		{"sticky and open", func(t *testing.T, _ *host, dir string) {
			make0700(t, dir)
			if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", "1777"}},
		{"file", func(t *testing.T, _ *host, dir string) {
			if err := os.WriteFile(dir, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0", "file"}},
		{"FIFO", func(t *testing.T, _ *host, dir string) {
			if err := syscall.Mkfifo(dir, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"llxprt-cred-0"}},
		{"temporary directory that anybody may change", func(t *testing.T, h *host, _ string) {
			if err := os.Chmod(h.tmp, 0o777); err != nil {
				t.Fatal(err)
			}
		}, []string{"0777", "TMPDIR"}},
		{"temporary directory of somebody else", func(t *testing.T, h *host, _ string) {
			if err := os.Chown(h.tmp, stranger, stranger); err != nil {
				t.Fatal(err)
			}
		}, []string{fmt.Sprint(stranger), "TMPDIR"}},
		{"path too long", func(t *testing.T, h *host, _ string) {
			long := h.tmp + "/" + strings.Repeat("x", 60)
			make0700(t, long)
			h.vars = append(h.vars, "TMPDIR="+long)
		}, []string{"too long", "TMPDIR"}},
		{"no temporary directory", func(t *testing.T, h *host, _ string) {
			h.vars = append(h.vars, "TMPDIR="+h.tmp+"/nowhere")
		}, []string{"nowhere", "TMPDIR"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			c.squat(t, h, h.tmp+"/llxprt-cred-0")
			before := tree(t, filepath.Dir(h.tmp))
			for _, args := range [][]string{{"serve", "--json"}, {"run", "--engine", "bwrap", "--", "true"}} {
				r := h.run(args...)
				if args[0] == "run" && c.name == "sticky and open" {
					continue
				}
				if r.code == 0 || r.stdout != "" {
					t.Errorf("%v", r)
				}
				for _, text := range c.says {
					if !strings.Contains(r.stderr, text) {
						t.Errorf("no word of %q: %v", text, r)
					}
				}
			}
			if after := tree(t, filepath.Dir(h.tmp)); after != before {
				t.Errorf("not left as it was:\nbefore %s\nafter %s", before, after)
			}
		})
	}
}

// tree describes what is below dir, apart from the product's own home: names, modes, owners, sizes, targets of links.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == dir+"/home" {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		target, _ := os.Readlink(path)
		size := st.Size
		if d.IsDir() {
			size = 0
		}
		fmt.Fprintf(&b, "%s %v %d:%d %d %s\n", strings.TrimPrefix(path, dir), info.Mode(), st.Uid, st.Gid, size, target)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Another user of the machine gets nothing, even where file permissions let them at the socket.
func TestAnotherUserIsRefused(t *testing.T) {
	h := newHost(t)
	h.mustWith(testKey, "key", "set", "openai")
	open := func(p *proxy) {
		t.Helper()
		for path, mode := range map[string]os.FileMode{h.tmp: 0o755, filepath.Dir(p.socket): 0o755, p.socket: 0o666} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	shut := func(p *proxy) {
		t.Helper()
		if err := os.Chmod(filepath.Dir(p.socket), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	other := newUserHost(t, stranger)
	ask := func(p *proxy) result {
		t.Helper()
		return other.inside(p.socket).run("key", "get", "openai")
	}

	p := h.serve()
	open(p)
	if r := ask(p); r.code == 0 || strings.Contains(r.stdout+r.stderr, testKey) {
		t.Errorf("another UID was served: %v", r)
	}
	// Before the first byte: nothing but the end of the connection comes, whatever was sent.
	r := other.finish(other.program(guest, "first-bytes", p.socket), patience)
	if r.code != 0 || strings.TrimSpace(r.stdout) != "closed" {
		t.Errorf("an unauthorised peer got %q before it was sent away: %v", r.stdout, r)
	}
	shut(p)

	admitting := h.serve("--allow-uid", fmt.Sprint(stranger))
	open(admitting)
	if r := ask(admitting); r.code != 0 || r.stdout != testKey+"\n" {
		t.Errorf("with --allow-uid: %v", r)
	}
	third := newUserHost(t, stranger+1)
	if r := third.inside(admitting.socket).run("key", "get", "openai"); r.code == 0 {
		t.Errorf("--allow-uid admits more than it says: %v", r)
	}
	shut(admitting)
	p.stop()
	admitting.stop()
	if events := auditEvents(t, h); !strings.Contains(fmt.Sprint(events), fmt.Sprint(stranger)) {
		t.Errorf("no word of UID %d in the audit log: %v", stranger, events)
	}
}

// auditEvents reads the audit log.
func auditEvents(t testing.TB, h *host) []map[string]any {
	t.Helper()
	path := filepath.Join(h.home, "state", "audit.log")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var events []map[string]any
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // the proxy is writing it
		}
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("audit log: %q: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}
