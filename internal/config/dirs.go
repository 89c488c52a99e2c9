package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Dirs are absolute paths of the directories that hold credproxy's own files. They need not exist yet.
type Dirs struct {
	Config string // config.toml
	State  string // audit log, recovery files
	Data   string // the file store
}

// Recovery returns the directories for what a provider has answered until the store, of the kind "file" or "keyring", has
// it, in the order in which they are tried: one below the state, and for when that cannot be written, one in the temporary
// directory that belongs to this user and this state. Each kind has its own: what one kind is waiting for is nothing to
// another.
func (d Dirs) Recovery(store string) []string {
	sum := sha256.Sum256([]byte(d.State))
	aside := fmt.Sprintf("credproxy-recovery-%d-%x-%s", os.Geteuid(), sum[:4], store)
	return []string{filepath.Join(d.State, "recovery", store), filepath.Join(os.TempDir(), aside)}
}

// Directories says where the files are: all under $CREDPROXY_HOME if that is set; else where the XDG Base Directory
// Specification puts them, or on macOS under ~/Library/Application Support/credproxy.
func Directories() (Dirs, error) { return directories(runtime.GOOS, os.Getenv) }

// ConfigPath is the configuration file's absolute path: $CREDPROXY_CONFIG, else config.toml in Dirs.Config.
func ConfigPath() (string, error) {
	if path := os.Getenv("CREDPROXY_CONFIG"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("CREDPROXY_CONFIG: %w", err)
		}
		return abs, nil
	}
	dirs, err := Directories()
	if err != nil {
		return "", err
	}
	return filepath.Join(dirs.Config, "config.toml"), nil
}

func directories(goos string, getenv func(string) string) (Dirs, error) {
	if tmp := getenv("TMPDIR"); tmp != "" && !filepath.IsAbs(tmp) { // see Recovery: all processes have to mean one directory
		return Dirs{}, fmt.Errorf("TMPDIR: %q is not an absolute path", tmp)
	}
	if home := getenv("CREDPROXY_HOME"); home != "" {
		if !filepath.IsAbs(home) {
			return Dirs{}, fmt.Errorf("CREDPROXY_HOME: %q is not an absolute path", home)
		}
		return Dirs{Config: filepath.Clean(home), State: filepath.Join(home, "state"), Data: filepath.Join(home, "data")}, nil
	}
	home := getenv("HOME")
	under := func(rest string) (string, error) {
		if !filepath.IsAbs(home) {
			return "", errors.New("no home directory: set HOME or CREDPROXY_HOME to an absolute path")
		}
		return filepath.Join(home, rest, "credproxy"), nil
	}
	if goos == "darwin" {
		base, err := under("Library/Application Support")
		return Dirs{Config: base, State: filepath.Join(base, "state"), Data: filepath.Join(base, "data")}, err
	}
	var d Dirs
	for _, e := range []struct {
		dst            *string
		variable, rest string
	}{{&d.Config, "XDG_CONFIG_HOME", ".config"}, {&d.State, "XDG_STATE_HOME", ".local/state"}, {&d.Data, "XDG_DATA_HOME", ".local/share"}} {
		// "All paths must be absolute. If an implementation encounters a relative path […] it should consider the path invalid
		// and ignore it." (XDG Base Directory Specification)
		if base := getenv(e.variable); filepath.IsAbs(base) {
			*e.dst = filepath.Join(base, "credproxy")
			continue
		}
		var err error
		if *e.dst, err = under(e.rest); err != nil {
			return Dirs{}, err
		}
	}
	return d, nil
}
