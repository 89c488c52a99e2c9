//go:build e2e && linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Another Go program starts a proxy with the root package and runs a command with it.
func TestProxyInAnotherProgram(t *testing.T) {
	h, s := stocked(t, generous+"[profiles.work]\nkeys = [\"openai\"]\n[profiles.work.providers]\nacme = [\"default\"]\n")
	embed := filepath.Join(h.work, "embed")
	build := exec.Command("go", "build", "-o", embed, "./testdata/embed")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	r := h.finish(h.program(embed, "work", credproxy, "token", "acme"), patience)
	if r.code != 0 || r.stdout != s.Issued().AccessTokens[0]+"\n" {
		t.Errorf("%v", r)
	}
	if r := h.finish(h.program(embed, "work", credproxy, "token", "other"), patience); r.code != 1 || !strings.Contains(r.stderr, "exit status 5") {
		t.Errorf("%v", r)
	}
	if r := h.finish(h.program(embed, "nowhere", credproxy, "token", "acme"), patience); r.code != 1 || !strings.Contains(r.stderr, "nowhere") {
		t.Errorf("%v", r)
	}
	if left, _ := filepath.Glob(h.tmp + "/llxprt-cred-*/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
