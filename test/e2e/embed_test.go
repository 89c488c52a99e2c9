//go:build e2e && linux

package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Another Go program starts a proxy with the root package and runs a command with it.
func TestProxyInAnotherProgram(t *testing.T) {
	t.Parallel()
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
	// Its own face, on the host and through a proxy.
	p := h.serve()
	for bucket, in := range map[string]*host{"here": h, "there": h.inside(p.socket)} {
		b := h.start(in.program(embed, "login", "acme/"+bucket))
		url := b.stdout.find(anyURL, b.ended, patience)
		if url == nil {
			t.Fatalf("%s: no address: %s %s", bucket, b.stdout, b.stderr)
		}
		answer, err := http.Get(url[0])
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		code, families := b.wait(patience), s.Families()
		token := newest(s, len(families)-1)
		if code != 0 || !strings.HasSuffix(b.stdout.String(), "\ntoken "+token+"\n") {
			t.Errorf("%s: exit status %d: %s", bucket, code, b.stderr)
		}
		if r := h.run("token", "acme/"+bucket); r.stdout != token+"\n" {
			t.Errorf("%s: what is stored is %v", bucket, r)
		}
	}
	p.stop()
	if left, _ := filepath.Glob(h.tmp + "/llxprt-cred-*/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
