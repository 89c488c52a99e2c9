package sandbox

import (
	"debug/buildinfo"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// compile builds a static program for the system and architecture, as make does it; the stamp may be missing.
func compile(t *testing.T, goos, arch, stamp string) string {
	t.Helper()
	dir := t.TempDir()
	text := "package main\n\nvar stamp string\n\nfunc main() { println(stamp) }\n"
	for name, text := range map[string]string{"go.mod": "module example.com/credproxy\n\ngo 1.26\n", "main.go": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -X main.stamp="+stamp, "-o", out)
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch, "GOFLAGS=", "GOWORK=off")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFindGuest(t *testing.T) {
	amd64, arm64 := compile(t, "linux", "amd64", ""), compile(t, "linux", "arm64", "")
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(n string) string { return filepath.Join(root, n) }
	own := &debug.BuildInfo{Main: debug.Module{Path: "example.com/credproxy", Version: "(devel)"}}
	for _, n := range []string{"cellar/1/bin/credproxy", "beside/credproxy", "empty/bin/credproxy", "wrong/credproxy", "text/credproxy"} {
		copyFile(t, amd64, at(n))
	}
	copyFile(t, arm64, at("cellar/1/libexec/credproxy/credproxy-linux-arm64"))
	copyFile(t, amd64, at("beside/credproxy-linux-amd64"))
	copyFile(t, arm64, at("wrong/credproxy-linux-amd64"))
	if err := os.WriteFile(at("text/credproxy-linux-amd64"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../cellar/1/bin/credproxy", at("bin/credproxy")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ arch, executable, want, why string }{
		{"arm64", "cellar/1/bin/credproxy", "cellar/1/libexec/credproxy/credproxy-linux-arm64", ""},
		{"arm64", "bin/credproxy", "cellar/1/libexec/credproxy/credproxy-linux-arm64", ""},
		{"amd64", "beside/credproxy", "beside/credproxy-linux-amd64", ""},
		{"arm64", "beside/credproxy", "", "neither in " + at("beside") + " nor in " + at("libexec/credproxy")},
		{"amd64", "empty/bin/credproxy", "", "neither in " + at("empty/bin") + " nor in " + at("empty/libexec/credproxy")},
		{"amd64", "wrong/credproxy", "", "it is for another processor (aarch64)"},
		{"amd64", "text/credproxy", "", "not a program for Linux"},
	} {
		got, err := findGuest(c.arch, at(c.executable), own)
		if c.want != "" {
			if err != nil || got != at(c.want) {
				t.Errorf("%s for %s: %q, %v", c.executable, c.arch, got, err)
			}
			continue
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, ErrNoGuest) || !strings.Contains(err.Error(), c.why) || !strings.Contains(e.Hint(), "make ") {
			t.Errorf("%s for %s: %v", c.executable, c.arch, err)
		}
	}
	if err := checkGuest(compile(t, "darwin", "arm64", ""), "arm64", own); err == nil || err.Error() != "not a program for Linux" {
		t.Errorf("a program for macOS: %v", err)
	}
	if err := checkGuest(amd64, "amd64", &debug.BuildInfo{Main: debug.Module{Path: "example.com/other"}}); err == nil || err.Error() != "not credproxy" {
		t.Errorf("another program: %v", err)
	}
	if sh, err := os.ReadFile("/bin/sh"); err == nil && strings.Contains(string(sh[:4096]), "ld-linux") {
		if err := checkGuest("/bin/sh", runtime.GOARCH, own); err == nil || !strings.Contains(err.Error(), "ld-linux") {
			t.Errorf("a dynamic program: %v", err)
		}
	}
}

func TestGuestBinaryHere(t *testing.T) {
	for _, arch := range []string{"", runtime.GOARCH} {
		got, err := Host{}.GuestBinary(Engine{Kind: Docker, Arch: arch}, "/x/credproxy")
		if runtime.GOOS == "linux" && (got != "/x/credproxy" || err != nil) {
			t.Errorf("%q: %q, %v", arch, got, err)
		}
	}
	if _, err := (Host{}).GuestBinary(Engine{Kind: Docker, Arch: "riscv64"}, "/x/credproxy"); !errors.Is(err, ErrNoGuest) {
		t.Errorf("another architecture: %v", err)
	}
}

func TestSameBuild(t *testing.T) {
	build := func(version, revision string) *debug.BuildInfo {
		b := &debug.BuildInfo{Main: debug.Module{Path: "example.com/credproxy", Version: version}}
		if revision != "" {
			b.Settings = []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: revision}}
		}
		return b
	}
	const one, two = "0123456789abcdef0123", "ffff456789abcdef0123"
	for _, c := range []struct {
		own, theirs *debug.BuildInfo
		same        bool
	}{
		{build("(devel)", one), build("(devel)", one), true},
		{build("(devel)", one), build("(devel)", two), false},
		{build("(devel)", ""), build("(devel)", two), true}, // one does not know
		{build("v1.2.3", ""), build("v1.2.3", ""), true},
		{build("v1.2.3", ""), build("v1.2.4", ""), false},
		{nil, build("v1.2.3", one), true},
	} {
		if err := sameBuild(c.own, c.theirs); (err == nil) != c.same {
			t.Errorf("%v and %v: %v", c.own, c.theirs, err)
		}
	}
	if _, err := buildinfo.ReadFile(compile(t, "linux", "arm64", "")); err != nil {
		t.Errorf("a stripped program has no build information: %v", err)
	}
}

func TestSameStamp(t *testing.T) {
	one, two := stampBegin+"v1.2.3}", stampBegin+"v1.2.30}"
	stamped, bare := compile(t, "linux", "arm64", one), compile(t, "linux", "arm64", "")
	for _, c := range []struct{ path, own, want string }{
		{stamped, one, ""},
		{stamped, two, "it is of another version (v1.2.3, this is v1.2.30)"},
		{stamped, "", ""}, // we do not know
		{bare, one, ""},   // it does not know
	} {
		err := sameStamp(c.path, c.own)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s with the stamp %q: %v", c.path, c.own, err)
		}
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if set := "/sandbox.stamp=" + stampBegin + "$(VERSION)}"; !strings.Contains(string(makefile), set) {
		t.Errorf("the Makefile does not set %s", set)
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(self), stampBegin) {
		t.Error("a program without a stamp has something that looks like one")
	}
}

func TestPlaceGuest(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(n string) string { return filepath.Join(root, n) }
	copyFile(t, os.Args[0], at("opt/credproxy-linux-arm64"))
	copyFile(t, os.Args[0], at("home/me/bin/credproxy-linux-arm64"))
	if err := os.Symlink(at("home/me"), at("link")); err != nil {
		t.Fatal(err)
	}
	vm, home, runs := Engine{VM: true}, at("link"), at("home/me/state/runs")
	if got, err := placeGuest(Engine{}, at("opt/credproxy-linux-arm64"), home, runs); err != nil || got != at("opt/credproxy-linux-arm64") {
		t.Errorf("no virtual machine: %q, %v", got, err)
	}
	if got, err := placeGuest(vm, at("link/bin/credproxy-linux-arm64"), home, runs); err != nil || got != at("home/me/bin/credproxy-linux-arm64") {
		t.Errorf("below the home: %q, %v", got, err)
	}
	place := func() string {
		t.Helper()
		got, err := placeGuest(vm, at("opt/credproxy-linux-arm64"), home, runs)
		if err != nil || filepath.Dir(got) != filepath.Join(runs, GuestDir) {
			t.Fatalf("%q, %v", got, err)
		}
		return got
	}
	first := place()
	want, _ := os.ReadFile(at("opt/credproxy-linux-arm64"))
	check := func(what string) {
		t.Helper()
		info, err := os.Stat(first)
		have, _ := os.ReadFile(first)
		if err != nil || info.Mode().Perm() != 0o755 || string(have) != string(want) {
			t.Errorf("%s: %v, %v", what, info, err)
		}
	}
	check("the copy")
	before, _ := os.Stat(first)
	if again := place(); again != first {
		t.Errorf("another copy: %q", again)
	}
	if after, _ := os.Stat(first); !os.SameFile(before, after) {
		t.Error("the copy was made anew")
	}
	if err := os.WriteFile(first, []byte("damaged"), 0o755); err != nil {
		t.Fatal(err)
	}
	place()
	check("after damage")
	old := filepath.Join(filepath.Dir(first), "credproxy-0000000000000000")
	copyFile(t, os.Args[0], old)
	past := time.Now().Add(-guestUnused - time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	place()
	entries, _ := os.ReadDir(filepath.Dir(first))
	if len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	if removed, err := (Host{}).Sweep(t.Context(), runs); err != nil || removed != nil {
		t.Errorf("Sweep: %q, %v", removed, err)
	}
	check("after a sweep")
	if _, err := placeGuest(vm, at("nothing"), home, runs); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}
