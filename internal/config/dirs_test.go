package config

import (
	"path/filepath"
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
		{goos: "linux", env: map[string]string{"HOME": "/home/u", "CREDPROXY_HOME": "/p", "TMPDIR": "t"}, err: `TMPDIR: "t" is not an absolute path`},
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

func TestRecovery(t *testing.T) {
	a, b := Dirs{State: "/s/a"}, Dirs{State: "/s/b"}
	if got := a.Recovery("file"); got[0] != "/s/a/recovery/file" || !filepath.IsAbs(got[1]) {
		t.Errorf("Recovery = %q", got)
	}
	if a.Recovery("file")[1] == b.Recovery("file")[1] || a.Recovery("file")[1] == a.Recovery("keyring")[1] {
		t.Error("two stores share a directory")
	}
}
