package sandbox

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseVolume(t *testing.T) {
	for value, want := range map[string]Volume{
		"/a:/b":       {"/a", "/b", false},
		"/a/../c:/b/": {"/c", "/b", false},
		"./x:/b:ro":   {"/dir/x", "/b", true},
		"..:/b:rw":    {"/b2", "/b", false},
		"x/y:/b:ro,z": {"/dir/x/y", "/b", true},
		"cache:/b":    {"cache", "/b", false},
		"a b/c,d:/b":  {"/dir/a b/c,d", "/b", false},
	} {
		dir := "/dir"
		if strings.HasPrefix(value, "..") {
			dir = "/b2/dir"
		}
		if got, err := ParseVolume(value, dir); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", value, got, err, want)
		}
	}
	for _, bad := range []string{"", "/a", ":/b", "/a:b", "/a:", "/a:/b:exec", "/a:/b:ro:x", "a,b:/x", "a b:/x", "/a:/b\x00", "d:/x", "_d:/x", "~:/x", "~/a:/x", "~me:/x", "/a:"} {
		if _, err := ParseVolume(bad, "/dir"); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A name without ./ is the engine's, which would make an empty volume where a directory is meant.
func TestParseVolumeOfALocalName(t *testing.T) {
	dir := tree(t, "data/", "file")
	for value, hint := range map[string]string{
		"data:/s": "write ./data:/s", "file:/s:ro": "write ./file:/s", "foo": "--volume ./models:/models:ro", "/a:/b:ro:x": "a path with a colon in it cannot be mounted",
		"d:/s": "names have at least two characters", "~/data:/s": "write $HOME in its place", "./data:s": "--volume ./models",
	} {
		_, err := ParseVolume(value, dir)
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Hint(), hint) {
			t.Errorf("%s: %v", value, err)
		}
	}
	for value, want := range map[string]Volume{"./data:/s": {filepath.Join(dir, "data"), "/s", false}, "cache:/s": {"cache", "/s", false}} {
		if got, err := ParseVolume(value, dir); err != nil || got != want {
			t.Errorf("%s: %v, %v", value, got, err)
		}
	}
	// In a directory that has been removed.
	if _, err := ParseVolume("./data:/s", ""); !errors.Is(err, ErrRefused) {
		t.Errorf("a relative path from nowhere: %v", err)
	}
	if got, err := ParseVolume("data:/s", ""); err != nil || got.Source != "data" {
		t.Errorf("a volume: %v, %v", got, err)
	}
}

// What to do depends on whether somebody has asked for the mount, or only stands there.
func TestGuardHints(t *testing.T) {
	root := tree(t, "home/", "own/", "never/s", "p/never/")
	at := func(n string) string { return filepath.Join(root, n) }
	const fromElsewhere = "run from a directory of its own, or with --no-workdir"
	for _, c := range []struct{ source, target, hint string }{
		{at("home"), "/x", mountBelow}, {at("own"), "/x", mountNone}, {at("never"), "/x", mountNone}, {at("p"), "/x", mountOther},
		{at("p"), "/", mountInside}, {"/", "/x", mountBelow}, {at("nothing"), "/x", "make it first"},
	} {
		for _, workdir := range []string{"", c.source} {
			g := guard{home: at("home"), dirs: []string{at("own")}, never: []string{at("never"), at("p/never")}, workdir: workdir}
			_, err := g.mounts([]Volume{{Source: c.source, Target: c.target}})
			want := c.hint
			if workdir != "" && c.source != at("nothing") {
				want = fromElsewhere
			}
			if e, ok := errors.AsType[*Error](err); !ok || !strings.HasPrefix(e.Hint(), want) {
				t.Errorf("%s at %s, in %q: %v, want %q", c.source, c.target, workdir, err, want)
			}
		}
	}
}

// An engine that is spoken to in JSON would be asked for a file of another name.
func TestGuardNames(t *testing.T) {
	root := tree(t, "bytes \xff/", "two\nlines/", "漢字, \"é\":/")
	for _, c := range []struct {
		name  string
		text  bool
		fails bool
	}{
		{"bytes \xff", true, true}, {"bytes \xff", false, false}, {"two\nlines", false, true}, {"漢字, \"é\":", true, false},
	} {
		source := filepath.Join(root, c.name)
		g := guard{text: c.text, workdir: source}
		_, err := g.mounts([]Volume{{Source: source, Target: source}})
		e, refused := errors.AsType[*Error](err)
		if (err != nil) != c.fails || refused != c.fails || refused && !strings.Contains(e.Hint(), "--no-workdir") {
			t.Errorf("%q: %v", c.name, err)
		}
	}
}

// tree makes directories (names that end in /), files, and symlinks (name -> target) in a fresh directory.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		name, target, link := strings.Cut(n, " -> ")
		full := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(full), 0o700)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, full)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o700)
		default:
			err = os.WriteFile(full, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name    string
		tree    string
		dirs    string
		files   string
		source  string
		target  string // empty: the same
		want    string // the mounts as kind:target, below the root
		refused string
	}{
		{name: "beside", tree: "work/ home/", dirs: "home", source: "work", want: "bind:work"},
		{name: "itself", tree: "home/", dirs: "home", source: "home", refused: "belongs to credproxy"},
		{name: "inside", tree: "home/a/b/", dirs: "home", source: "home/a/b", refused: "belongs to credproxy"},
		{name: "a file inside", tree: "home/a", dirs: "home", source: "home/a", refused: "belongs to credproxy"},
		{name: "by a symlink", tree: "home/ work/; work/l -> ../home", dirs: "home", source: "work/l", refused: "belongs to credproxy"},
		{name: "direct child", tree: "p/home/", dirs: "p/home", source: "p", want: "bind:p tmpfs:p/home"},
		{name: "direct child, elsewhere inside", tree: "p/home/", dirs: "p/home", source: "p", target: "q", want: "bind:q tmpfs:q/home"},
		{name: "direct child, missing", tree: "p/", dirs: "p/home", source: "p", want: "bind:p tmpfs:p/home"},
		{name: "below a covered one", tree: "p/home/a/", dirs: "p/home p/home/a p/home/b/c", source: "p", want: "bind:p tmpfs:p/home"},
		{name: "below a covered one, missing", tree: "p/", dirs: "p/home p/home/a p/home/b/c", source: "p", want: "bind:p tmpfs:p/home"},
		{name: "deeper", tree: "p/a/home/", dirs: "p/a/home", source: "p", refused: "deeper"},
		{name: "deeper, missing", tree: "p/", dirs: "p/a/home", source: "p", refused: "deeper"},
		{name: "two", tree: "p/home/ p/sock/", dirs: "p/home p/sock", source: "p", want: "bind:p tmpfs:p/home tmpfs:p/sock"},
		{name: "one deeper", tree: "p/home/ p/a/sock/", dirs: "p/home p/a/sock", source: "p", refused: "deeper"},
		{name: "reached through a symlink in it", tree: "data/; p/home -> ../data", dirs: "p/home", source: "p", refused: "deeper"},
		{name: "reached through a symlink beside it", tree: "p/data/; l -> p/data", dirs: "l", source: "p", want: "bind:p tmpfs:p/data"},
		{name: "symlinked source", tree: "p/home/; l -> p", dirs: "p/home", source: "l", target: "l", want: "bind:l tmpfs:l/home"},
		{name: "file", tree: "p/c.toml", files: "p/c.toml", source: "p", refused: "could change what it may use"},
		{name: "missing file", tree: "p/", files: "p/c.toml", source: "p", refused: "could change what it may use"},
		{name: "deeper file", tree: "p/a/c.toml", files: "p/a/c.toml", source: "p", refused: "deeper"},
		{name: "the file itself", tree: "p/c.toml", files: "p/c.toml", source: "p/c.toml", refused: "belongs to credproxy"},
		{name: "home directory", tree: "H/", source: "H", refused: "home directory"},
		{name: "in the home directory", tree: "H/p/", source: "H/p", want: "bind:H/p"},
		{name: "above the home directory", tree: "u/H/", source: "u", want: "bind:u tmpfs:u/H"},
		{name: "never", tree: "never/bus", source: "never/bus", refused: "reachable"},
		{name: "in never", tree: "never/x/", source: "never/x", refused: "reachable"},
		{name: "above never", tree: "a/never/x", source: "a", refused: "reachable"},
		{name: "socket's place", tree: "p/", source: "p", target: "inner", refused: "has to mount"},
		{name: "above our program's place", tree: "p/", source: "p", target: "bin", refused: "has to mount"},
		{name: "missing", source: "nothing", refused: "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			for part := range strings.SplitSeq(c.tree, "; ") {
				if strings.Contains(part, " -> ") {
					names = append(names, part)
				} else {
					names = append(names, strings.Fields(part)...)
				}
			}
			root := tree(t, names...)
			abs := func(list string) (out []string) {
				for n := range strings.FieldsSeq(list) {
					out = append(out, filepath.Join(root, n))
				}
				return out
			}
			g := guard{dirs: abs(c.dirs), files: abs(c.files), never: abs("never a/never"), inner: abs("inner/socket bin/credproxy")}
			for _, h := range abs("H u/H") {
				if _, err := os.Stat(h); err == nil {
					g.home = h
				}
			}
			if c.target == "" {
				c.target = c.source
			}
			got, err := g.mounts([]Volume{{Source: filepath.Join(root, c.source), Target: filepath.Join(root, c.target)}})
			if c.refused != "" {
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %v, %v, want %q", got, err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var text []string
			for _, m := range got {
				kind := "bind:"
				if m.kind == tmpfs {
					kind = "tmpfs:"
				}
				text = append(text, kind+strings.TrimPrefix(m.target, root+"/"))
			}
			if strings.Join(text, " ") != c.want {
				t.Errorf("got %q, want %q", text, c.want)
			}
			if (len(g.warnings) > 0) != (c.files != "") {
				t.Errorf("warnings: %q", g.warnings)
			}
			for _, m := range got {
				if m.kind == tmpfs && c.target == c.source && c.name != "symlinked source" {
					if info, err := os.Stat(m.target); err != nil || info.Mode().Perm() != 0o700 {
						t.Errorf("%s was not made: %v", m.target, err)
					}
				}
			}
		})
	}
}

func TestGuardHostDirectories(t *testing.T) {
	g := guard{never: neverMounted(os.Getuid(), "/home/u", []string{
		"DBUS_SESSION_BUS_ADDRESS=unix:path=/tmp/dbus-x,guid=0;unix:abstract=/y", "DOCKER_HOST=unix:///var/docker.sock", "XDG_RUNTIME_DIR=/xdg",
	})}
	for _, want := range []string{"/tmp/dbus-x", "/var/docker.sock", "/xdg/bus", "/xdg/keyring", "/run/docker.sock", "/home/u/.local/share/keyrings",
		"/var/run/docker.sock", "/home/u/.docker/run", "/home/u/.colima", "/home/u/.orbstack",
	} {
		if !slices.Contains(g.never, want) {
			t.Errorf("%s may be mounted: %q", want, g.never)
		}
	}
	for _, source := range []string{"/", "/proc", "/proc/self", "/dev", "/dev/null"} {
		if _, err := g.mounts([]Volume{{Source: source, Target: "/x"}}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// What the environment names as a socket runs commands, signs, or draws for whoever can connect to it.
func TestGuardSocketsOfTheEnvironment(t *testing.T) {
	root := tree(t, "agent/", "work/", "file")
	at := func(n string) string { return filepath.Join(root, n) }
	l, err := net.Listen("unix", at("agent/a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, v := range []string{"SSH_AUTH_SOCK=" + at("agent/a.sock"), "TMUX=" + at("agent/a.sock") + ",17,0", "KITTY_LISTEN_ON=unix:" + at("agent/a.sock")} {
		g := guard{never: neverMounted(os.Getuid(), "", []string{"FILE=" + at("file"), SocketEnv + "=" + at("work"), v})}
		for source, refused := range map[string]bool{"agent": true, "agent/a.sock": true, ".": true, "work": false, "file": false} {
			if _, err := g.mounts([]Volume{{Source: at(source), Target: "/x"}}); errors.Is(err, ErrRefused) != refused {
				t.Errorf("%s: mount of %s: %v", v, source, err)
			}
		}
	}
	uid := strconv.Itoa(os.Getuid())
	if never := neverMounted(os.Getuid(), "", nil); !slices.Contains(never, "/tmp/tmux-"+uid) {
		t.Errorf("the sockets of tmux may be mounted: %q", never)
	}
}

func TestRunRefusesADirectoryAsStdin(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, stdio := range []Stdio{{In: dir}, {Out: dir}, {Err: dir}} {
		if status, err := new(Sandbox).Run(t.Context(), stdio); status != ExitEngine || !errors.Is(err, ErrRefused) {
			t.Errorf("status %d, %v", status, err)
		}
	}
}

func TestSocketDirs(t *testing.T) {
	root := tree(t, "t m/p/llxprt-cred-1/", "other/", "table")
	dir := filepath.Join(root, "t m/p/llxprt-cred-1")
	table := filepath.Join(root, "table")
	const start = "0000000000000000: 00000002 00000000 00010000 0001 01 12345"
	text := "Num       RefCount Protocol Flags    Type St Inode Path\n" + start + "\n" + start + " @/abstract\n" +
		start + " " + filepath.Join(root, "other/a.sock") + "\n" +
		start + " " + filepath.Join(dir, "llxprt-cred-17-0123456789abcdef.sock") + "\n" +
		start + " " + filepath.Join(dir, "llxprt-cred-18-0123456789abcdef.sock") + "\n" +
		start + " /nowhere/llxprt-cred-1/llxprt-cred-19-0123456789abcdef.sock\n"
	if err := os.WriteFile(table, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := socketDirs(table, os.Getuid()); !slices.Equal(got, []string{dir}) {
		t.Errorf("got %q, want %q", got, dir)
	}
	if got := socketDirs(table, os.Getuid()+1); got != nil {
		t.Errorf("of another user: %q", got)
	}
	if got := socketDirs(filepath.Join(root, "none"), 0); got != nil {
		t.Errorf("without a table: %q", got)
	}
}

func TestPrivateSystem(t *testing.T) {
	root := tree(t, "open", "shadow", "private/key", "ssh/config", "ssh/host_key", "link -> shadow")
	for name, mode := range map[string]os.FileMode{"": 0o755, "open": 0o644, "shadow": 0o640, "private": 0o710, "private/key": 0o644, "ssh": 0o755, "ssh/config": 0o644, "ssh/host_key": 0o600} {
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	dirs, files := privateSystem(root)
	if want := []string{root + "/private"}; !slices.Equal(dirs, want) {
		t.Errorf("directories %q, want %q", dirs, want)
	}
	if want := []string{root + "/shadow", root + "/ssh/host_key"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
}

func TestGuardOrder(t *testing.T) {
	root := tree(t, "a/b/", "a-b/", "c/")
	at := func(n string) string { return filepath.Join(root, n) }
	got, err := (&guard{}).mounts([]Volume{{at("c"), "/x/y/z", false}, {at("a/b"), "/x/y", false}, {at("a-b"), "/x-y", true}, {at("a"), "/x", false}})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, m := range got {
		order = append(order, m.target)
	}
	if !slices.Equal(order, []string{"/x-y", "/x", "/x/y", "/x/y/z"}) {
		t.Errorf("order: %q", order)
	}
	if _, err := (&guard{}).mounts([]Volume{{at("a"), "/x", false}, {at("c"), "/x/", false}}); !errors.Is(err, ErrRefused) {
		t.Errorf("two in one place: %v", err)
	}
}

func TestMaskedSystem(t *testing.T) {
	root := tree(t, "opt/", "opt/cp/", "home/")
	at := func(n string) string { return filepath.Join(root, n) }
	got := maskedSystem([]systemDir{{path: at("opt")}, {at("bin"), "opt"}}, []string{at("opt/cp"), at("opt/new/data"), at("home"), at("opt/cp")})
	if want := []string{at("opt/cp"), at("opt/new/data")}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSystemDirs(t *testing.T) {
	root := tree(t, "usr/bin/", "etc/", "home/", "bin -> usr/bin")
	want := []systemDir{{path: "/usr"}, {"/bin", "usr/bin"}, {path: "/etc"}}
	if got := systemDirs(root); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSystemDirectoriesAreNotMountedWritable(t *testing.T) {
	for _, dir := range []string{"/etc", "/usr", "/var", "/home"} {
		g := &guard{}
		if _, err := g.source(mount{kind: bind, source: dir, target: dir}); err == nil || !strings.Contains(err.Error(), "directory of the system") {
			t.Errorf("%s, writable: %v", dir, err)
		}
		if _, err := g.source(mount{kind: bind, source: dir, target: dir, readOnly: true}); err != nil {
			t.Errorf("%s, read-only: %v", dir, err)
		}
	}
}
