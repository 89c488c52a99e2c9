package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault"
)

// passphraseFile names the variable with the path of a file that holds the file store's passphrase, for hosts where
// nobody can be asked. The passphrase itself is never in the environment.
const passphraseFile = "CREDPROXY_PASSPHRASE_FILE"

// directories says where credproxy's own files are.
func directories() (config.Dirs, error) {
	dirs, err := config.Directories()
	for _, name := range []string{homeVariable, "TMPDIR"} {
		if err != nil && strings.HasPrefix(err.Error(), name+": ") {
			err = &failure{err: err, hint: "unset " + name + ", or set it to a path from / on"}
		}
	}
	return dirs, err
}

const homeVariable = "CREDPROXY_HOME"

// makeState makes the state directory, or says which it is and what has chosen it.
func makeState(dirs config.Dirs) error {
	err := privatedir.Make(dirs.State)
	if err == nil {
		return nil
	}
	cause := bare(err)
	if cause == err { // in words of ours
		return &failure{err: err, hint: "credproxy doctor says what is wrong and what to do"}
	}
	f := &failure{what: "the state directory " + dirs.State, err: cause}
	switch {
	case os.Getenv(homeVariable) != "":
		f.hint = homeVariable + " has chosen it: unset that, or name a directory that this user may make or write to"
	case filepath.IsAbs(os.Getenv("XDG_STATE_HOME")) && runtime.GOOS != "darwin":
		f.hint = "XDG_STATE_HOME has chosen it: it has to be one that this user may write to"
	default:
		f.hint = "HOME has chosen it; another place is named with " + homeVariable
	}
	return f
}

// bare is the cause of an error of the file system without the operation and the path, which the message names in its own words.
func bare(err error) error {
	var path *fs.PathError
	var call *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &call):
		return call.Err
	}
	return err
}

// settings reads the user's configuration.
func settings() (*config.Config, config.Dirs, error) {
	dirs, err := directories()
	if err != nil {
		return nil, dirs, err
	}
	path, err := config.ConfigPath()
	if err != nil {
		return nil, dirs, err
	}
	c, err := config.Load(path)
	if err != nil {
		return nil, dirs, failed("configuration", err)
	}
	return c, dirs, nil
}

// host is the store of this machine, opened for its owner: profiles do not restrict it.
type host struct {
	*vault.Vault
	config *config.Config
	dirs   config.Dirs
}

// openHost opens the store that the configuration names. The caller closes it.
func (a *app) openHost(ctx context.Context) (*host, error) {
	c, dirs, err := settings()
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, a.vaultOptions(c, dirs, a.log))
	if err != nil {
		return nil, &failure{what: "opening the credential store", err: err, hint: "credproxy doctor says what is wrong with it"}
	}
	return &host{v, c, dirs}, nil
}

func (a *app) vaultOptions(c *config.Config, dirs config.Dirs, log *slog.Logger) vault.Options {
	timeout, _ := config.LoginTimeout() // a login complains of one that cannot be; nothing else has to do with it
	return vault.Options{Config: c, Dirs: dirs, LoginTimeout: timeout, Passphrase: a.passphrase, Logger: log}
}

// passphrase asks for the passphrase of the file store: on the terminal, twice when it is a new one, else in the file
// that CREDPROXY_PASSPHRASE_FILE names.
func (a *app) passphrase(ctx context.Context, confirm bool) (string, error) {
	if path := os.Getenv(passphraseFile); path != "" {
		b, err := readPrivate(path, 1, 4096)
		if err != nil {
			return "", fmt.Errorf("the passphrase file: %w", err)
		}
		return string(b), nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil || !term.IsTerminal(int(tty.Fd())) {
		if err == nil {
			_ = tty.Close()
		}
		return "", errors.New("the file store needs its passphrase, and there is no terminal to ask on: put it into a file of mode 0600 and its path into " + passphraseFile)
	}
	defer tty.Close()
	first, err := ask(ctx, tty, "passphrase of the credproxy store: ")
	if err != nil {
		return "", err
	}
	if len(first) == 0 {
		return "", errors.New("the passphrase is empty")
	}
	if confirm {
		second, err := ask(ctx, tty, "the same again: ")
		if err != nil {
			return "", err
		}
		if first != second {
			return "", errors.New("the two passphrases differ")
		}
	}
	return first, nil
}

// unlock asks for the passphrase of the file store, if that has one, before the proxy starts: later the terminal may belong
// to the command in the sandbox. The function that it returns gives the answer to the proxy.
func (a *app) unlock(ctx context.Context, c *config.Config, dirs config.Dirs) (func(context.Context, bool) (string, error), error) {
	if os.Getenv(passphraseFile) != "" {
		return a.passphrase, nil
	}
	late := errors.New("the file store wants its passphrase, which is asked for only when the proxy starts: log in or set a key first")
	answer := func(context.Context, bool) (string, error) { return "", late }
	if c.FileStoreKey != "passphrase" || c.Store == "keyring" {
		return answer, nil
	}
	var typed string
	o := a.vaultOptions(c, dirs, a.log)
	o.Passphrase = func(ctx context.Context, confirm bool) (s string, err error) {
		typed, err = a.passphrase(ctx, confirm)
		return typed, err
	}
	v, err := vault.Open(ctx, o)
	if err != nil {
		return nil, failed("opening the credential store", err)
	}
	defer v.Close()
	if v.StoreName() != "file" {
		return answer, nil
	}
	if err := v.Check(ctx); err != nil {
		return nil, failed("opening the credential store", err)
	}
	if typed == "" { // there is nothing stored yet, and no key
		return answer, nil
	}
	return func(context.Context, bool) (string, error) { return typed, nil }, nil
}

// ask reads a line from the terminal without showing it.
func ask(ctx context.Context, tty *os.File, prompt string) (string, error) {
	return (&hidden{in: tty, screen: tty, prompt: prompt}).ask(ctx)
}

// readPrivate reads a secret that lies in a file: regular, not a symbolic link, ours, closed to everybody else, shortest
// to longest bytes of printable text after one newline at its end is taken off. No error repeats the content.
func readPrivate(path string, shortest, longest int) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s: is a symbolic link; name the file itself", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, bare(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch owner := int(info.Sys().(*syscall.Stat_t).Uid); {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is not a regular file", path)
	case owner != os.Geteuid():
		return nil, fmt.Errorf("%s: belongs to UID %d, not to this user", path, owner)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s: others can read it (mode %04o); run: chmod 600 '%s'", path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(longest)+3))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if rest, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		b = bytes.TrimSuffix(rest, []byte("\r"))
	}
	if len(b) < shortest || len(b) > longest {
		return nil, fmt.Errorf("%s: holds less than %d or more than %d bytes", path, shortest, longest)
	}
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return nil, fmt.Errorf("%s: holds characters that cannot be printed, such as a second line", path)
		}
	}
	return b, nil
}
