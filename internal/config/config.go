// Package config reads the configuration file, says where credproxy keeps its files, and answers what a profile allows.
//
// A command calls [ConfigPath] and [Load], picks a profile with [Config.Profile] and, when it keeps running, gives the result to
// [Watch]. The server asks the [Profile] itself on every request. [Directories] is for the packages that keep files of
// their own.
//
// Reading is strict: an unknown key, a wrong type or a value that cannot work is an [*Error] with the file and the line. Whoever
// can write this file decides what a sandbox gets, so a file that others could write is refused too.
package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// maxFileSize is the most that a configuration file may have, in bytes.
const maxFileSize = 1 << 20

// Config is one state of the configuration. It is not changed after Load returned it, so goroutines may share it.
type Config struct {
	Path   string // the file it came from, or would come from
	Exists bool   // false: there is no file and these are the defaults

	Store        string // "auto", "keyring" or "file"
	FileStoreKey string // where the file store's key lives: "auto", "keyring", "file" or "passphrase"
	Limits       Limits
	Profiles     map[string]*Profile // always has "default"
	Providers    map[string]*Provider

	digest [sha256.Size]byte // of the file's bytes; Watch compares it
}

// Limits bound what one sandbox may ask for.
type Limits struct {
	RequestsPerSecond int // per connection, and over all connections of one sandbox; 1 to 1,000,000
	Connections       int // of one sandbox at a time; 1 to 65,536
}

// Provider describes an OAuth 2.0 provider from the file. All endpoints are https, or http on loopback; one that is not used, or
// that the issuer's metadata has to name, is empty. Either TokenURL or Issuer is there.
type Provider struct {
	Name            string
	Dialect         string   // one of Dialects: "oauth2", or the built-in provider that it talks like
	Issuer          string   // RFC 8414, RFC 9207; empty: nothing is discovered, and an answer's issuer is not checked
	Flows           []string // of Flows, in the order of preference; nil: those that dialect, endpoints and the issuer's metadata make possible
	ClientID        string   // may be empty for a dialect other than "oauth2", which then uses its own, if it needs one
	ClientSecretKey string   // the name of a stored key; see Profile.AllowsKey
	AuthorizeURL    string
	TokenURL        string
	DeviceURL       string
	RevokeURL       string
	RedirectURL     string
	Scopes          []string
	TokenFields     []string // extra fields of a token answer that may go inside
	TokenEncoding   string   // "form" or "json"; empty: the dialect's own
	AuthorizeParams map[string]string
}

// An Error is what is wrong with the configuration file. It prints as one line.
type Error struct {
	Path    string
	Line    int // 1 is the first; 0 when the file as a whole is meant
	Problem string
	Err     error // the cause, when the system gave one
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Path + ": " + e.Problem
	}
	return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Problem)
}

func (e *Error) Unwrap() error { return e.Err }

// Default is the configuration without a file: everything is allowed in the profile "default".
func Default() *Config {
	return &Config{
		Store:        "auto",
		FileStoreKey: "auto",
		Limits:       Limits{RequestsPerSecond: 60, Connections: 64},
		Profiles:     map[string]*Profile{DefaultProfile: builtinProfile()},
		Providers:    map[string]*Provider{},
	}
}

// Load reads the file at path. A file that does not exist gives the defaults; everything else that is wrong is an *Error, the one
// with the lowest line number if there are several.
func Load(path string) (*Config, error) {
	data, err := readFile(path)
	if errors.Is(err, errMissing) {
		c := Default()
		c.Path = path
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	return parse(path, data)
}

// parse is Load for bytes that are already in memory; path only names them in errors.
func parse(path string, data []byte) (*Config, error) {
	root, err := parseTree(path, data)
	if err != nil {
		return nil, err
	}
	d := decoder{path: path}
	c := d.config(root)
	if err := d.first(); err != nil {
		return nil, err
	}
	c.Path, c.Exists, c.digest = path, true, sha256.Sum256(data)
	return c, nil
}

// Profile returns the profile called name. The error of an unknown one names the nearest that there is.
func (c *Config) Profile(name string) (*Profile, error) {
	if p, ok := c.Profiles[name]; ok {
		return p, nil
	}
	names := make([]string, 0, len(c.Profiles))
	for n := range c.Profiles {
		names = append(names, n)
	}
	slices.Sort(names)
	return nil, &Error{Path: c.Path, Problem: fmt.Sprintf("there is no profile %s%s", quote(name), suggest(name, names))}
}

// errMissing is readFile's answer for a path with nothing at it. It is not exported: callers see Config.Exists.
var errMissing = errors.New("no such file")

// readFile returns the file's bytes after it has made sure that nobody but this user and root could have written them.
func readFile(path string) ([]byte, error) {
	fail := func(err error, format string, args ...any) ([]byte, error) {
		return nil, &Error{Path: path, Problem: fmt.Sprintf(format, args...), Err: err}
	}
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(path); lerr == nil {
			return fail(err, "is a symbolic link to a file that does not exist")
		}
		return nil, errMissing
	}
	if err != nil {
		return fail(err, "cannot be opened: %v", errors.Unwrap(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err, "cannot be examined: %v", errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() {
		return fail(nil, "is not a regular file")
	}
	if why := foreignWriters(path, info); why != "" {
		return fail(nil, "%s", why)
	}
	// Both ends of a symbolic link count: who can replace either one decides what is read.
	dirs := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			return fail(err, "its directory cannot be examined: %v", errors.Unwrap(err))
		}
		if why := foreignWriters(dir, info); why != "" {
			return fail(nil, "its directory %s %s", dir, why)
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return fail(err, "cannot be read: %v", errors.Unwrap(err))
	}
	if len(data) > maxFileSize {
		return fail(nil, "is larger than %d bytes", maxFileSize)
	}
	return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), nil // some editors begin a UTF-8 file with a byte order mark
}

// foreignWriters says who besides this user and root could write to or replace path, and what to do; empty if nobody.
func foreignWriters(path string, info fs.FileInfo) string {
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && int(uid) != os.Geteuid() {
		return fmt.Sprintf("belongs to UID %d, who could change what a sandbox may use; run: chown %d '%s'", uid, os.Geteuid(), path)
	}
	// In a sticky directory (/tmp) others can add files but not replace this user's.
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return ""
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Sprintf("can be written by other users (mode %04o), who could change what a sandbox may use; run: chmod go-w '%s'",
			info.Mode().Perm(), path)
	}
	return ""
}
