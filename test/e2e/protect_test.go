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
			r = h.finish(h.program(guest, "spy", fmt.Sprint(b.Process.Pid)), patience)
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
	for _, s := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS} {
		t.Run(s.String(), func(t *testing.T) {
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
