package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

func TestLook(t *testing.T) {
	root := tree(t, "project/bin/", "host/", "linked/", "plain/", "linked/podman -> ../project/bin/podman")
	at := func(n string) string { return filepath.Join(root, n) }
	for _, f := range []string{"project/bin/docker", "project/bin/podman", "host/docker"} {
		if err := os.WriteFile(at(f), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("plain/docker"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(at("project"))
	h := Host{Avoid: []string{at("project")}, Environ: []string{
		"PATH=:.:bin:" + at("project/bin") + ":" + at("plain") + ":" + at("linked") + ":" + at("host"),
	}}
	if got := h.look("docker"); got != at("host/docker") {
		t.Errorf("docker: %q", got)
	}
	if got := h.look("podman"); got != "" {
		t.Errorf("a link into the project was taken: %q", got)
	}
	h.Avoid = []string{"/"}
	if got := h.look("docker"); got != at("project/bin/docker") {
		t.Errorf("docker, run from /: %q", got)
	}
	h.Avoid = []string{at("project")}
	_, err := h.Select(t.Context(), Podman, "x")
	if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(err.Error(), "lies in the project's directory") || e.Hint() != "run it from another directory" {
		t.Errorf("podman in the project only: %v", err)
	}
}

func TestSelectSaysWhy(t *testing.T) {
	h := Host{Environ: []string{"PATH=" + t.TempDir()}}
	for _, c := range []struct {
		kind  Kind
		image string
		want  []string
		is    error
	}{
		{Auto, "", []string{"need an image", "bwrap: not found"}, ErrNoEngine},
		{Auto, "x", []string{"docker: not found", "podman: not found", "bwrap has no images"}, ErrNoEngine},
		{Podman, "x", []string{"podman: not found"}, ErrNoEngine},
		{"lxc", "", []string{"there are"}, ErrRefused},
	} {
		_, err := h.Select(t.Context(), c.kind, c.image)
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, c.is) || e.Hint() == "" {
			t.Errorf("%s: %v", c.kind, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error()+e.Hint(), w) {
				t.Errorf("%s: %q is not in %q", c.kind, w, err)
			}
		}
	}
	for _, st := range h.Probe(t.Context()) {
		if st.OK || st.Detail == "" || st.Hint == "" {
			t.Errorf("%+v", st)
		}
	}
}

func TestFirstLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		"\n a\x1b[2J \nb":                    "a [2J",
		"time=1 level=warning msg=x\nfailed": "failed",
		"time=1 level=warning msg=x\n":       "time=1 level=warning msg=x",
		"a\u202eb\u200b\u0085c\u2066\ufeffd": "ab cd",
	} {
		if got := firstLine(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A client whose answer does not end is not waited for, nor kept.
func TestOutputIsBounded(t *testing.T) {
	h := Host{Environ: []string{"PATH=/usr/bin:/bin"}}
	if _, err := h.output(t.Context(), "/bin/sh", "-c", "exec yes an engine says"); !errors.Is(err, errTooMuch) {
		t.Errorf("endless output: %v", err)
	}
	if _, err := h.output(t.Context(), "/bin/sh", "-c", "echo why >&2; head -c 20000000 /dev/zero >&2; exit 1"); err == nil || err.Error() != "why" {
		t.Errorf("a long error: %v", err)
	}
	if out, err := h.output(t.Context(), "/bin/sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"); err != nil || len(out) != 300000 {
		t.Errorf("a long answer: %d bytes, %v", len(out), err)
	}
}

func TestSocketPath(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/user/1/docker.sock": "/run/user/1/docker.sock", "unix:///a//b/../c": "/a/c", "ssh://me@127.0.0.1/run/x": "", "": "", "unix://a": "", "%": "",
	} {
		if got := socketPath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// The engine's own socket is not mounted, however its client has come by it.
func TestEngineSocketIsGuarded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ours", "run"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	engine := filepath.Join(dir, "run", "engine.sock")
	for _, file := range []string{engine, filepath.Join(dir, "ours", "one.sock"), filepath.Join(dir, "ours", "binary")} {
		if err := os.WriteFile(file, nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := Spec{
		Engine: Engine{Kind: Bwrap, socket: engine}, Socket: filepath.Join(dir, "ours", "one.sock"), Binary: filepath.Join(dir, "ours", "binary"),
		Volumes: []Volume{{Source: filepath.Dir(engine), Target: "/x"}},
	}
	if err := new(Sandbox).paths(t.Context(), new(plan), spec); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), engine) {
		t.Errorf("its directory: %v", err)
	}
	spec.Engine.socket = ""
	if err := new(Sandbox).paths(t.Context(), new(plan), spec); err != nil {
		t.Errorf("another directory: %v", err)
	}
}

func TestInterpreter(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	static := filepath.Join(dir, "static")
	build := exec.Command("go", "build", "-o", static, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := Interpreter(static); got != "" {
		t.Errorf("a static program asks for %q", got)
	}
	if got := Interpreter(source); got != "" {
		t.Errorf("a text asks for %q", got)
	}
	if sh, err := os.ReadFile("/bin/sh"); err == nil && strings.Contains(string(sh[:4096]), "ld-linux") {
		if got := Interpreter("/bin/sh"); !strings.Contains(got, "ld-linux") {
			t.Errorf("/bin/sh asks for %q", got)
		}
	}
}

func TestExitStatus(t *testing.T) {
	for command, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		if got := exitStatus(exec.Command("/bin/sh", "-c", command).Run()); got != want {
			t.Errorf("%s: %d, want %d", command, got, want)
		}
	}
	if got := exitStatus(context.Canceled); got != ExitEngine {
		t.Errorf("another error: %d", got)
	}
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	h := Host{Environ: []string{"DOCKER_HOST=unix:///x", "API_KEY=test-key-1", "PATH=" + t.TempDir()}}
	const name = "credproxy-1-0123456789abcdef"
	r, err := keep(dir, h, Docker, name)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(r.path)
	if err != nil || !strings.Contains(string(content), "unix:///x") || strings.Contains(string(content), "test-key-1") {
		t.Errorf("record: %s, %v", content, err)
	}
	if info, _ := os.Stat(r.path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v", info.Mode())
	}
	if removed, err := h.Sweep(t.Context(), dir); err != nil || removed != nil {
		t.Errorf("of the living: %q, %v", removed, err)
	}
	r.close() // as the kernel does when the process dies
	if _, err := h.Sweep(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "docker: not found") {
		t.Errorf("an engine that is not there: %v", err)
	}
	if _, err := os.Stat(r.path); err != nil {
		t.Errorf("the record is gone before its container: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(r.covers(), "1"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.remove()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSweepForeignFiles(t *testing.T) {
	dir := t.TempDir()
	h := Host{Environ: []string{"PATH="}}
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("damaged.json", "{")
	write("evil.json", `{"engine":"docker","container":"somebody-elses"}`)
	write("option.json", `{"engine":"docker","container":"--all"}`)
	fresh := write("x.json.new", "")
	old := write("y.json.new", "")
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	held := write("held.json", "{")
	lock := flock.New(held)
	if ok, err := lock.TryLock(); !ok || err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if removed, err := h.Sweep(t.Context(), dir); err != nil || removed != nil {
		t.Errorf("removed %q, %v", removed, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 2 || left[0] != held || left[1] != fresh {
		t.Errorf("left: %q", left)
	}
	if removed, err := h.Sweep(t.Context(), filepath.Join(dir, "nothing")); err != nil || removed != nil {
		t.Errorf("no directory: %q, %v", removed, err)
	}
}

func TestMakeCovers(t *testing.T) {
	root := tree(t, "vol/", "file")
	at := func(n string) string { return filepath.Join(root, n) }
	r := run{plan: plan{socket: "/p/home/s/one.sock", mounts: []mount{
		{source: at("vol"), target: "/p"}, {kind: tmpfs, target: "/p/home"}, {source: at("vol"), target: "/p/home/v"},
		{source: at("file"), target: "/p/home/d/f"}, {kind: named, source: "n", target: "/p/home/n"}, {source: at("vol"), target: "/q"},
	}}}
	if err := r.makeCovers(at("covers")); err != nil {
		t.Fatal(err)
	}
	want := mount{source: at("covers/1"), target: "/p/home", readOnly: true}
	if r.plan.mounts[1] != want {
		t.Errorf("got %+v", r.plan.mounts[1])
	}
	for name, isDir := range map[string]bool{"v": true, "n": true, "d/f": false, "s/one.sock": false} {
		info, err := os.Stat(filepath.Join(want.source, name))
		if err != nil || info.IsDir() != isDir {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	root := tree(t, "work/", "sock/one.sock", "runs/")
	at := func(n string) string { return filepath.Join(root, n) }
	base := func() Spec {
		return Spec{
			Engine: Engine{Kind: Bwrap, Path: "/bin/false"}, Command: []string{"true"}, Socket: at("sock/one.sock"),
			Workdir: at("work"), UID: os.Getuid(), Home: at("home"), RunDir: at("runs"),
		}
	}
	for name, change := range map[string]func(*Spec){
		"command":       func(s *Spec) { s.Command = nil },
		"empty command": func(s *Spec) { s.Command = []string{""} },
		"image":         func(s *Spec) { s.Image = "x" },
		"no image":      func(s *Spec) { s.Engine.Kind = Docker },
		"named volume":  func(s *Spec) { s.Volumes = []Volume{{"cache", "/cache", false}} },
		"environment":   func(s *Spec) { s.Env = []EnvVar{{SocketEnv, "/x"}} },
		"engine args":   func(s *Spec) { s.EngineArgs = []string{"--bind", "/", "/"} },
		"socket dir":    func(s *Spec) { s.Workdir = at("sock") },
	} {
		spec := base()
		change(&spec)
		if _, err := Prepare(t.Context(), spec); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := Prepare(t.Context(), base())
	if err != nil {
		t.Fatal(err)
	}
	if !containerName().MatchString(s.plan.name) || !strings.HasPrefix(s.plan.name, "credproxy-"+strconv.Itoa(os.Getpid())+"-") {
		t.Errorf("name %q", s.plan.name)
	}
	if !strings.Contains(strings.Join(s.plan.command, " "), "true") || s.grace != 5*time.Second {
		t.Errorf("%+v", s)
	}
}
