package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/internal/socket"
)

// Results of a check.
const (
	resultOK   = "ok"
	resultWarn = "warn"
	resultFail = "FAIL"
)

// check is one line of the doctor, and one object of `doctor --json`.
type check struct {
	Check  string `json:"check"`
	Result string `json:"result"` // "ok", "warn" or "FAIL"
	Detail string `json:"detail"`
	Hint   string `json:"hint"` // what to do; "" when there is nothing to do
}

func ok(name, format string, args ...any) check {
	return check{Check: name, Result: resultOK, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, hint, format string, args ...any) check {
	return check{Check: name, Result: resultWarn, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

func fail(name, hint string, err error) check {
	return check{Check: name, Result: resultFail, Detail: err.Error(), Hint: hint}
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine: stores, engines, directories, configuration",
		Long: `Check everything that credproxy needs on this machine and say what to do about
what is wrong. Each line is ok, warn (it works, but not as well as it could) or
FAIL. The exit status is 1 if something fails.

It looks at configuration, directories, clock, protection of the process, program,
stores, recovery files, logins and engines; "guest program" is what runs inside
containers, "leftovers" is what killed runs have left. It starts no container:
credproxy demo does.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if inside() {
				return hostOnly("doctor", "this is a sandbox: what it checks is on the host")
			}
			checks := a.examine(c.Context())
			if c.Context().Err() != nil {
				return c.Context().Err()
			}
			if asJSON {
				if err := a.writeJSON(checks); err != nil {
					return err
				}
			} else if err := a.write(a.doctorText(checks)); err != nil {
				return err
			}
			for _, c := range checks {
				if c.Result == resultFail {
					return exitStatus(exitFailed)
				}
			}
			return nil
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) doctorText(checks []check) string {
	p := a.paint(a.stdout)
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Check))
	}
	var b strings.Builder
	for _, c := range checks {
		result := fmt.Sprintf("%-4s", c.Result)
		switch c.Result {
		case resultOK:
			result = p.green(result)
		case resultWarn:
			result = p.yellow(result)
		default:
			result = p.red(result)
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", result, width, c.Check, oneLine(c.Detail))
		if c.Hint != "" {
			fmt.Fprintf(&b, "%*s  hint: %s\n", width+6, "", oneLine(c.Hint))
		}
	}
	return b.String()
}

// examine makes all checks, those that may take long (engines, stores) at the same time.
func (a *app) examine(ctx context.Context) []check {
	dirs, err := config.Directories()
	if err != nil {
		return []check{fail("directories", hintOfDirs(err), err)}
	}
	host := sandbox.Host{Environ: os.Environ(), UID: os.Geteuid()}
	if dir, err := os.Getwd(); err == nil {
		host.Avoid = []string{dir}
	}
	configured, checks := checkConfiguration()
	program, own := checkBinary()
	var engines, stores []check
	var slow sync.WaitGroup
	slow.Go(func() { engines = checkEngines(ctx, host, own) })
	slow.Go(func() { stores = a.checkStores(ctx, configured, dirs) })
	if _, err := config.LoginTimeout(); err != nil {
		checks = append(checks, fail("time for a login", "correct the variable, or unset it", err))
	}
	checks = append(checks, checkStateDir(dirs), checkSocket(), checkClock(dirs, time.Now()), a.checkProtection(), program)
	slow.Wait()
	checks = append(checks, stores...)
	checks = append(checks, engines...)
	return append(checks, checkLeftovers(dirs))
}

// checkConfiguration returns the defaults beside an error, so that the other checks can go on.
func checkConfiguration() (*config.Config, []check) {
	const name = "configuration"
	path, err := config.ConfigPath()
	if err != nil {
		return config.Default(), []check{fail(name, hintOfDirs(err), err)}
	}
	c, err := config.Load(path)
	switch {
	case err != nil:
		return config.Default(), []check{fail(name, "correct the file; until then every command that reads it fails", err)}
	case !c.Exists && os.Getenv("CREDPROXY_CONFIG") != "":
		return c, []check{warn(name, "create it, or correct or unset CREDPROXY_CONFIG", "CREDPROXY_CONFIG names %s, which does not exist: the defaults apply", path)}
	case !c.Exists:
		return c, []check{ok(name, "no file at %s: the defaults apply", path)}
	}
	return c, []check{ok(name, "%s: %s, %s", path, count(len(c.Profiles), "profile"), count(len(c.Providers), "provider"))}
}

func checkStateDir(dirs config.Dirs) check {
	if err := privatedir.Make(dirs.State); err != nil {
		return fail("state directory", "the audit log goes there: make it a directory of your own", err)
	}
	if f, err := os.CreateTemp(dirs.State, ".doctor-*"); err != nil {
		return fail("state directory", "make room, or make it writable: the audit log goes there", err)
	} else {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	return ok("state directory", "%s", dirs.State)
}

func checkSocket() check {
	const name = "socket directory"
	path, err := trySocket()
	if err != nil {
		_, hint := judge(err)
		return fail(name, hint, err)
	}
	return ok(name, "%s (socket paths of %d bytes)", filepath.Dir(path), len(path))
}

// trySocket listens for real, for a moment: permissions, path length and what others put there all show. It returns the path; an
// error has a hint.
func trySocket() (string, error) {
	if tmp := os.TempDir(); !filepath.IsAbs(tmp) {
		return "", &failure{err: fmt.Errorf("TMPDIR: %q is not an absolute path", tmp), hint: notAbsoluteHint}
	}
	l, err := socket.Listen()
	if err == nil {
		path := l.Path()
		return path, l.Close()
	}
	// What to do is the end of most errors of that package.
	for _, advice := range []string{"set TMPDIR to ", "find out who ", "use a umask "} {
		if why, rest, ok := strings.Cut(err.Error(), "; "+advice); ok {
			return "", &failure{err: errors.New(why), hint: advice + rest}
		}
	}
	return "", &failure{err: err, hint: "it has to be a directory of this user with mode 0700: look at what lies there, or set TMPDIR to another directory"}
}

const notAbsoluteHint = "set it to an absolute path, or unset it"

// hintOfDirs is about an error of config.Directories: a variable that is no absolute path, or no variable at all, which the error
// says how to mend.
func hintOfDirs(err error) string {
	if strings.Contains(err.Error(), "is not an absolute path") {
		return notAbsoluteHint
	}
	return ""
}

// checkClock compares the clock with times that must be in the past: tokens expire by it, and with a wrong clock every
// token looks expired or none does.
func checkClock(dirs config.Dirs, now time.Time) check {
	const name = "clock"
	const hint = "set the clock (timedatectl set-ntp true): tokens expire by it"
	past := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	if t, err := time.Parse(time.RFC3339, buildInfo().Time); err == nil && t.After(past) {
		past = t
	}
	what := "this program was built"
	for _, dir := range []string{dirs.State, dirs.Data} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.ModTime().After(past) {
				past, what = info.ModTime(), filepath.Join(dir, e.Name())+" was written"
			}
		}
	}
	// A minute for file servers whose clock is not quite ours.
	if now.Add(time.Minute).Before(past) {
		return fail(name, hint, fmt.Errorf("it says %s, but %s later, at %s", now.UTC().Format(time.RFC3339), what, past.UTC().Format(time.RFC3339)))
	}
	return ok(name, "%s", now.UTC().Format(time.RFC3339))
}

func (a *app) checkProtection() check {
	const name = "process"
	if a.unprotected != nil {
		return warn(name, "other processes of this user may be able to read the memory of the proxy", "not protected: %v", a.unprotected)
	}
	return ok(name, "no core dumps, closed to debuggers")
}

// checkLeftovers looks for what killed runs left; the next run removes it.
func checkLeftovers(dirs config.Dirs) check {
	const name = "leftovers"
	entries, err := os.ReadDir(runDir(dirs))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return warn(name, "", "%v", err)
	}
	records := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") {
			records++
		}
	}
	if records == 0 {
		return ok(name, "nothing is left of killed runs")
	}
	return ok(name, "%s on record; what killed ones left is removed by the next credproxy run", count(records, "run"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
