package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/wire"
)

func TestNearest(t *testing.T) {
	names := []string{"acme", "github", "anthropic", "ls"}
	for name, want := range map[string]string{
		"acne": "acme", "amce": "acme", "gihub": "github", "Anthropic": "anthropic", "antrophic": "anthropic", "xy": "", "globex": "", "": "",
		strings.Repeat("a", 65): "", "l": "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestSpans(t *testing.T) {
	for d, want := range map[time.Duration]struct{ nearest, longest string }{
		0:                              {"0 seconds", "0 seconds"},
		time.Second:                    {"1 second", "1 second"},
		1400 * time.Millisecond:        {"1 second", "2 seconds"},
		time.Minute:                    {"60 seconds", "60 seconds"},
		100 * time.Second:              {"100 seconds", "100 seconds"},
		119*time.Second + 1:            {"119 seconds", "2 minutes"},
		2 * time.Minute:                {"2 minutes", "2 minutes"},
		2*time.Minute + 1:              {"2 minutes", "3 minutes"},
		5*time.Minute - 1:              {"5 minutes", "5 minutes"},
		time.Hour - 1:                  {"60 minutes", "60 minutes"},
		90 * time.Minute:               {"90 minutes", "90 minutes"},
		2*time.Hour + 29*time.Minute:   {"2 hours", "3 hours"},
		2*time.Hour + 31*time.Minute:   {"3 hours", "3 hours"},
		25 * time.Hour:                 {"25 hours", "25 hours"},
		72 * time.Hour:                 {"3 days", "3 days"},
		400*24*time.Hour + time.Second: {"400 days", "401 days"},
	} {
		if nearest, longest := span(d), atMost(d); nearest != want.nearest || longest != want.longest {
			t.Errorf("%v: %q and at most %q, want %q", d, nearest, longest, want)
		}
	}
}

func TestRelative(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for d, want := range map[time.Duration]string{
		0: "now", 400 * time.Millisecond: "now", time.Second: "in 1 second", 5*time.Minute - time.Millisecond: "in 5 minutes",
		-400 * time.Millisecond: "just now", -time.Second: "1 second ago", -time.Hour: "60 minutes ago",
	} {
		if got := relative(now.Add(d), now); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// The line of serve is evaluated by a shell, so whatever TMPDIR is called must come out as it is.
func TestShellQuote(t *testing.T) {
	for path, want := range map[string]string{"/tmp/x": "'/tmp/x'", "/tmp/it's $HOME": `'/tmp/it'\''s $HOME'`} {
		if got := shellQuote(path); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", path, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(" a\nb\x1b[2Jc\td\u009b "); got != "a b\uFFFD[2Jc d\uFFFD" {
		t.Errorf("%q", got)
	}
}

func TestExitStatuses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), exitFailed},
		{wire.ErrNotFound, exitNotFound},
		{wire.ErrProviderNotFound, exitNotFound},
		{fmt.Errorf("reading: %w", wire.ErrUnauthorized), exitRefused},
		{wire.ErrRateLimited, exitRateLimited},
		{wire.ErrInternal, exitFailed},
		{client.ErrConnectionLost, exitUnreachable},
		{fmt.Errorf("dial: %w", client.ErrUnreachable), exitUnreachable},
		{sandbox.ErrNoEngine, exitUnreachable},
		{client.ErrSandboxKeys, exitFailed},
		{usage("wrong"), exitUsage},
		{failed("outer", failed("inner", usage("wrong"))), exitUsage},
		{failed("outer", &failure{err: wire.ErrInternal, status: exitLoginNeeded}), exitLoginNeeded},
		{failed("outer", &failure{err: wire.ErrUnauthorized}), exitRefused},
		{asEngineFailure(errors.New("x")), sandbox.ExitEngine},
		{asEngineFailure(sandbox.ErrRefused), exitUsage},
		{asEngineFailure(sandbox.ErrNoEngine), exitUnreachable},
		{asEngineFailure(&failure{err: errors.New("x"), status: exitNotFound}), exitNotFound},
	} {
		if got, _ := judge(c.err); got != c.want {
			t.Errorf("%v: status %d, want %d", c.err, got, c.want)
		}
	}
	if failed("x", nil) != nil {
		t.Error("no error became one")
	}
	// The outermost hint counts, but an inner one is better than none.
	if _, hint := judge(failed("outer", &failure{err: errors.New("x"), hint: "inner"})); hint != "inner" {
		t.Errorf("hint %q", hint)
	}
}

func TestReportOfASignal(t *testing.T) {
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	a := &app{stderr: stderr}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(interrupted{signal: 2})
	if got := a.report(ctx, failed("login to acme", ctx.Err())); got != 130 {
		t.Errorf("status %d", got)
	}
	if b, _ := os.ReadFile(stderr.Name()); string(b) != "credproxy: login to acme: cancelled\n" {
		t.Errorf("%q", b)
	}
}

// Every command has a text to read, and none has flags that the others spell in another way.
func TestEveryCommandHasHelp(t *testing.T) {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short text is %q", c.CommandPath(), c.Short)
		}
		for line := range strings.Lines(c.Long) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 84 {
				t.Errorf("%s: a line of %d characters: %s", c.CommandPath(), n, line)
			}
		}
		if c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		if f := c.Flags().Lookup("json"); f != nil && f.Value.Type() != "bool" {
			t.Errorf("%s: --json is no switch", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(a.root())
}

// docs/commands.md names every command and every flag.
func TestCommandsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if !c.Hidden && !c.HasSubCommands() && !strings.Contains(text, c.Name()) {
			t.Errorf("docs/commands.md says nothing of %s", c.CommandPath())
		}
		if !c.Hidden {
			for word := range strings.FieldsSeq(c.LocalNonPersistentFlags().FlagUsages()) {
				if flag, ok := strings.CutPrefix(word, "--"); ok && !strings.Contains(text, "--"+flag) {
					t.Errorf("docs/commands.md says nothing of %s --%s", c.CommandPath(), flag)
				}
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(a.root())
}

func TestParseLogin(t *testing.T) {
	c := &cobra.Command{Use: "x"}
	for arg, want := range map[string]login{"acme": {"acme", "default"}, "acme/work": {"acme", "work"}, "acme/default": {"acme", "default"}} {
		if got, err := parseLogin(c, arg); err != nil || got != want {
			t.Errorf("%s: %v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "/", "acme/", "/work", "a/b/c", "acme:work", "ac me", "ä", strings.Repeat("a", 65)} {
		if got, err := parseLogin(c, arg); err == nil {
			t.Errorf("%q was taken as %v", arg, got)
		}
	}
	long := login{strings.Repeat("k", 25), strings.Repeat("k", 25)}
	if long.String() != "PROVIDER/BUCKET" || long.name() == long.String() {
		t.Errorf("%s, %s", long, long.name())
	}
}

// Several writers, more than fits: no file grows beyond the bound, all are private, and what was written last is there.
func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proxy.log")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 3 {
		l, err := openLogFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			defer l.Close()
			log := slog.New(slog.NewTextHandler(l, nil))
			for range 1500 {
				log.Info("a line", "writer", i, "filling", strings.Repeat("x", 1000))
			}
			log.Info("the last line", "writer", i)
		})
	}
	writers.Wait()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		// Each writer counts for itself, so the bound may be missed by what the others have written since.
		if info.Size() > 3*proxyLogSize || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", e.Name(), info.Size(), info.Mode())
		}
	}
	if len(entries) != 2 {
		t.Errorf("%d files", len(entries))
	}
	if err := os.Symlink("elsewhere", path+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogFile(path + ".link"); err == nil {
		t.Error("a symbolic link was followed")
	}
}

func TestClock(t *testing.T) {
	dirs := config.Dirs{State: t.TempDir(), Data: t.TempDir()}
	now := time.Now()
	if c := checkClock(dirs, now); c.Result != resultOK {
		t.Errorf("%+v", c)
	}
	if c := checkClock(dirs, time.Unix(1_000_000_000, 0)); c.Result != resultFail || c.Hint == "" {
		t.Errorf("%+v", c)
	}
	file := filepath.Join(dirs.State, "audit.log")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, now.Add(time.Hour), now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if c := checkClock(dirs, now); c.Result != resultFail || !strings.Contains(c.Detail, "audit.log") {
		t.Errorf("%+v", c)
	}
}

func TestHidePassphrase(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"home/project", "secrets"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := func() sandbox.Spec {
		return sandbox.Spec{Home: filepath.Join(top, "home"), Workdir: filepath.Join(top, "home/project")}
	}
	for _, c := range []struct {
		file   string
		refuse bool
		hide   string
	}{
		{"secrets/pass", false, "secrets"},
		{"home/pass", false, ""}, // the home directory is hidden as it is
		{"home/project/pass", true, ""},
	} {
		t.Setenv(passphraseFile, filepath.Join(top, c.file))
		s := spec()
		err := hidePassphrase(&s)
		if (err != nil) != c.refuse {
			t.Errorf("%s: %v", c.file, err)
		}
		want := []string(nil)
		if c.hide != "" {
			want = []string{filepath.Join(top, c.hide)}
		}
		if !c.refuse && fmt.Sprint(s.ProtectedDirs) != fmt.Sprint(want) {
			t.Errorf("%s: hides %v, want %v", c.file, s.ProtectedDirs, want)
		}
	}
	t.Setenv(passphraseFile, "")
	s := spec()
	if err := hidePassphrase(&s); err != nil || s.ProtectedDirs != nil {
		t.Errorf("without one: %v, %v", err, s.ProtectedDirs)
	}
}

func TestBrowserCommands(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "opened")
	script := filepath.Join(dir, "browser")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$#:$*\" >'"+out+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		script:                            "1:http://x/?a=b&c",
		script + " --new %s --more":       "3:--new http://x/?a=b&c --more",
		"nosuch: :false:" + script + " a": "2:a http://x/?a=b&c",
	} {
		if err := openWith(t.Context(), strings.Split(command, ":"), "http://x/?a=b&c"); err != nil {
			t.Errorf("%s: %v", command, err)
		}
		if b, _ := os.ReadFile(out); strings.TrimSpace(string(b)) != want {
			t.Errorf("%s opened %q, want %q", command, b, want)
		}
	}
	if err := openWith(t.Context(), []string{"false"}, "http://x/"); err == nil {
		t.Error("a command that failed counts as a browser")
	}
	if err := openWith(t.Context(), []string{"", " "}, "http://x/"); err == nil {
		t.Error("no command counts as a browser")
	}
	if err := openWith(t.Context(), []string{filepath.Join(dir, "none")}, "http://x/"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestTableIsAligned(t *testing.T) {
	got := table([][]string{{"A", "B", "C"}, {"äöü", "x", ""}, {"a", "bb", "c"}}, nil)
	if want := "A    B   C\näöü  x\na    bb  c\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
