package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectories(t *testing.T) {
	tests := []struct {
		goos string
		env  map[string]string
		want Dirs
		err  string
	}{
		{goos: "linux", env: map[string]string{"HOME": "/home/u"},
			want: Dirs{"/home/u/.config/credproxy", "/home/u/.local/state/credproxy", "/home/u/.local/share/credproxy"}},
		{goos: "linux", env: map[string]string{"HOME": "/home/u", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s/", "XDG_DATA_HOME": "/d"},
			want: Dirs{"/c/credproxy", "/s/credproxy", "/d/credproxy"}},
		{goos: "linux", env: map[string]string{"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d"},
			want: Dirs{"/c/credproxy", "/s/credproxy", "/d/credproxy"}},
		{goos: "linux", env: map[string]string{"HOME": "/home/u", "XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": "", "XDG_DATA_HOME": "../d"},
			want: Dirs{"/home/u/.config/credproxy", "/home/u/.local/state/credproxy", "/home/u/.local/share/credproxy"}},
		{goos: "darwin", env: map[string]string{"HOME": "/Users/u", "XDG_CONFIG_HOME": "/c"},
			want: Dirs{"/Users/u/Library/Application Support/credproxy", "/Users/u/Library/Application Support/credproxy/state",
				"/Users/u/Library/Application Support/credproxy/data"}},
		{goos: "linux", env: map[string]string{"HOME": "/home/u", "XDG_STATE_HOME": "/s", "CREDPROXY_HOME": "/p/"},
			want: Dirs{"/p", "/p/state", "/p/data"}},
		{goos: "darwin", env: map[string]string{"CREDPROXY_HOME": "/p"}, want: Dirs{"/p", "/p/state", "/p/data"}},
		{goos: "linux", env: map[string]string{"HOME": "/home/u", "CREDPROXY_HOME": "p"}, err: `CREDPROXY_HOME: "p" is not an absolute path`},
		{goos: "linux", err: "no home directory: set HOME or CREDPROXY_HOME to an absolute path"},
		{goos: "darwin", err: "no home directory: set HOME or CREDPROXY_HOME to an absolute path"},
		{goos: "linux", env: map[string]string{"HOME": "home"}, err: "no home directory: set HOME or CREDPROXY_HOME to an absolute path"},
	}
	for _, tt := range tests {
		got, err := directories(tt.goos, func(key string) string { return tt.env[key] })
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%s %v: error %v, want %s", tt.goos, tt.env, err, tt.err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s %v: %+v, %v; want %+v", tt.goos, tt.env, got, err, tt.want)
		}
	}
}

func TestConfigPath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("CREDPROXY_HOME", "/p")
	for value, want := range map[string]string{"": "/p/config.toml", "/x/y.toml": "/x/y.toml", "y.toml": filepath.Join(dir, "y.toml")} {
		t.Setenv("CREDPROXY_CONFIG", value)
		if got, err := ConfigPath(); err != nil || got != want {
			t.Errorf("CREDPROXY_CONFIG=%q: %q, %v; want %q", value, got, err, want)
		}
	}
	t.Setenv("CREDPROXY_CONFIG", "")
	t.Setenv("CREDPROXY_HOME", "relative")
	if got, err := ConfigPath(); err == nil {
		t.Errorf("%q with a relative home", got)
	}
}

func TestPrivateDir(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "a", "b")
	for range 2 { // made, then found
		if err := PrivateDir(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{path, filepath.Dir(path)} {
		if m := mustStat(t, dir).Mode(); m != fs.ModeDir|0o700 {
			t.Errorf("%s has mode %v", dir, m)
		}
	}
	link, open, file := filepath.Join(base, "link"), filepath.Join(base, "open"), filepath.Join(base, "file")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := PrivateDir(open); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o770|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	rewrite(t, file, "")
	for path, want := range map[string]string{
		link: "is a symbolic link", open: "can be written by other users (mode 0770); run: chmod 700 '" + open + "'", file: "not a directory",
	} {
		if err := PrivateDir(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("PrivateDir(%s): %v, want …%s…", path, err, want)
		}
	}
	if m := mustStat(t, open).Mode().Perm(); m != 0o770 {
		t.Errorf("the mode was changed to %v: a refusal must not repair", m)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if err := PrivateDir(path); err == nil || !strings.Contains(err.Error(), "belongs to UID 12345, not to this user; run: chown 0 '"+path+"'") {
			t.Errorf("a directory of someone else's: %v", err)
		}
	}
}
