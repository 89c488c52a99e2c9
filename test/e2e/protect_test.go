//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// Another process of the same user, which is what malware on the host is, reads nothing out of the proxy.
func TestHostProcessesAreClosedToTheirOwnUser(t *testing.T) {
	h := newUserHost(t, stranger)
	h.mustWith(testKey, "key", "set", "openai")
	p := h.serve()
	if a := dialAs(t, h, p); !strings.Contains(a, testKey) {
		t.Fatalf("the owner gets %q", a)
	}
	waiting := h.start(h.command("key", "set", "other"))
	for _, b := range []*background{p.background, waiting} {
		var r result
		eventually(t, patience, "the process has protected itself", func() bool {
			before := r.stdout
			if r = h.finish(h.program(guest, "spy", fmt.Sprint(b.Process.Pid)), patience); r.stdout != before {
				t.Logf("%v: %v", b.Args[1:], r)
			}
			return r.stdout == "done\n"
		})
		if r.code != 0 {
			t.Errorf("%v", r)
		}
	}
	// The search can fail: a process that does not protect itself is open.
	open := h.start(h.program("/bin/sleep", "60"))
	if r := h.finish(h.program(guest, "spy", fmt.Sprint(open.Process.Pid)), patience); !strings.Contains(r.stdout, "environ") {
		t.Errorf("the spy cannot read an open process either: %v", r)
	}
}

// dialAs asks for the key openai as the host's user.
func dialAs(t *testing.T, h *host, p *proxy) string {
	t.Helper()
	r := h.inside(p.socket).finish(h.inside(p.socket).program(guest, "ask", `"op":"get_api_key","payload":{"name":"openai"}`), patience)
	return r.stdout
}

func TestNoCoreDump(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel() // Go takes ten seconds for such an end
			h := newHost(t)
			h.mustWith(testKey, "key", "set", "openai")
			h.vars = append(h.vars, "GOTRACEBACK=crash")
			p := h.serving(h.program("/bin/sh", "-c", `ulimit -c unlimited; exec "$0" serve --json`, credproxy))
			limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
				t.Errorf("the limit of a core dump is not zero:\n%s", limits)
			}
			if a := dial(t, p.socket).key("openai"); !a.OK {
				t.Fatal(a)
			}
			p.signal(s)
			<-p.ended
			if status := p.ProcessState.Sys().(syscall.WaitStatus); status.CoreDump() {
				t.Error("the kernel wrote a core dump")
			}
			if text := p.stderr.String(); strings.Contains(text, testKey) {
				t.Error("the trace holds a key")
			}
			entries, err := os.ReadDir(h.work)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				t.Errorf("left behind: %s", e.Name())
			}
		})
	}
}

// What a shell left open does not go on into the sandbox, and the proxy's own descriptors do not either.
func TestDescriptorsDoNotGoInside(t *testing.T) {
	h := newHost(t)
	secret := h.home + "/secret"
	if err := os.WriteFile(secret, []byte("test-open-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(guest, h.work+"/guest", 0o755); err != nil {
		t.Fatal(err)
	}
	r := h.finish(h.program("/bin/sh", "-c", `exec 9<"$1"; exec "$0" run --engine bwrap -- ./guest open-files`, credproxy, secret), patience)
	if r.code != 0 {
		t.Fatalf("%v", r)
	}
	for line := range strings.Lines(r.stdout) {
		var fd int
		if _, err := fmt.Sscanf(line, "%d ", &fd); err != nil || fd > 2 {
			t.Errorf("a descriptor came inside: %s", line)
		}
	}
}

// The socket is the only way in: neither a proxy nor a login listens on the network, but for the login's own callback on
// loopback while it waits.
func TestNothingListensOnTheNetwork(t *testing.T) {
	h, _ := stocked(t, "")
	p := h.serve()
	if a := dial(t, p.socket).key("openai"); !a.OK {
		t.Fatal(a)
	}
	if at := listensAt(t, p.Process.Pid); len(at) > 0 {
		t.Errorf("the proxy listens on %v", at)
	}
	login := h.start(h.command("auth", "login", "acme", "--no-browser"))
	if login.stdout.find(anyURL, login.ended, patience) == nil {
		t.Fatal("auth login printed no URL")
	}
	at := listensAt(t, login.Process.Pid)
	if len(at) == 0 {
		t.Error("the login listens nowhere: this test does not see listeners")
	}
	for _, address := range at {
		// 127.0.0.1 and ::1, as /proc writes them.
		if !strings.HasPrefix(address, "0100007F:") && !strings.HasPrefix(address, "00000000000000000000000001000000:") {
			t.Errorf("the login listens on %s, which is not loopback", address)
		}
	}
	login.signal(syscall.SIGINT)
	if code := login.wait(patience); code != 130 {
		t.Errorf("a login that was given up ended with %d, want 130", code)
	}
}

// listensAt are the network addresses that a process listens on, as the kernel writes them.
func listensAt(t *testing.T, pid int) []string {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]bool{}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			open[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var at []string
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			listening := len(f) > 9 && (f[3] == "0A" || strings.HasPrefix(table, "udp"))
			if listening && open[f[9]] {
				at = append(at, f[1])
			}
		}
	}
	return at
}
