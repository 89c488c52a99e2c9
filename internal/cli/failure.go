package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/wire"
)

// Exit statuses. `run` exits with the command's own status, or 125 to 127 as docker does; a command that a signal ended
// exits with 128 and the signal's number.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitLoginNeeded = 4
	exitRefused     = 5
	exitRateLimited = 6
	exitUnreachable = 7
	exitSignal      = 128
)

// failure is an error with what a person can do about it. A status of 0 is decided from the error itself.
type failure struct {
	what   string // what failed: "token acme"; may be empty
	err    error  // why
	hint   string
	status int
}

func (f *failure) Error() string {
	if f.what == "" {
		return f.err.Error()
	}
	return f.what + ": " + f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// failed says what was being done when err happened; nil stays nil.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{what: what, err: err}
}

func (f *failure) about(c *cobra.Command) *failure {
	if path, ok := strings.CutPrefix(c.CommandPath(), "credproxy "); ok {
		f.what = path
	}
	f.hint = c.CommandPath() + " --help"
	return f
}

// usage is wrong usage: exit status 2.
func usage(format string, args ...any) *failure {
	return &failure{err: fmt.Errorf(format, args...), status: exitUsage}
}

// flagError puts pflag's errors into our form. What was typed in place of a flag is repeated only as far as it is a
// flag's name: `key set openai -sk-…` must not print the rest.
func flagError(c *cobra.Command, err error) error {
	if typed := c.Flags().Args(); !c.HasParent() && len(typed) > 0 { // a flag of a command that is not there
		return noCommand(c, typed)
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return usage("unknown flag -%s", name[:1]).about(c)
		}
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest(name, names); near != "" {
			return usage("unknown flag --%s; did you mean --%s?", name, near).about(c)
		}
		if sub, _, err := c.Find([]string{name}); err == nil && sub != c {
			return usage("unknown flag --%s; did you mean %s?", name, sub.CommandPath()).about(c)
		}
		return usage("unknown flag").about(c)
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) { // every flag that is not a switch takes any string
		return usage("--%s is a switch: it takes no value", invalid.GetFlag().Name).about(c)
	}
	return usage("%s", err.Error()).about(c)
}

// hostOnly refuses what a sandbox has no use for. The variable may be set on the host as well: serve prints it for eval.
func hostOnly(what, why string) *failure {
	return &failure{what: what, err: errors.New(why), hint: "run it on the host" + ifHost}
}

const ifHost = "; if this is the host: unset " + socketVariable

// hinter is an error of ours that knows what to do.
type hinter interface{ Hint() string }

// report prints the error and returns the exit status.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	code, hint := judge(err)
	var by interrupted
	if errors.Is(err, context.Canceled) || errors.As(err, &by) {
		if errors.As(context.Cause(ctx), &by) {
			code, hint, err = exitSignal+int(by.signal), "", &failure{what: whatFailed(err), err: by}
		}
	}
	p := a.paint(a.stderr)
	fmt.Fprintf(a.stderr, "%s %s\n", p.red("credproxy:"), oneLine(err.Error()))
	if hint != "" {
		fmt.Fprintf(a.stderr, "%s %s\n", p.yellow("hint:"), oneLine(hint))
	}
	return code
}

// exitStatus is the exit status of something that has printed what there was to print, such as a command in a sandbox.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func whatFailed(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.what
	}
	return ""
}

// judge returns the exit status of err and what to do about it. What commands said comes first, the outermost of all.
func judge(err error) (status int, hint string) {
	var f *failure
	for e := err; errors.As(e, &f); e = f.err {
		if status == 0 {
			status = f.status
		}
		if hint == "" {
			hint = f.hint
		}
	}
	if status == 0 {
		status = statusOf(err)
	}
	if hint == "" {
		hint = hintOf(err)
	}
	return status, hint
}

func statusOf(err error) int {
	var crossing *wire.Error
	switch {
	case errors.Is(err, client.ErrUnreachable), errors.Is(err, client.ErrConnectionLost), errors.Is(err, sandbox.ErrNoEngine):
		return exitUnreachable
	case errors.As(err, &crossing):
		switch crossing.Code {
		case wire.CodeNotFound, wire.CodeProviderNotFound:
			return exitNotFound
		case wire.CodeUnauthorized:
			return exitRefused
		case wire.CodeRateLimited:
			return exitRateLimited
		}
		if crossing.LoginNeeded() {
			return exitLoginNeeded
		}
	}
	return exitFailed
}

func hintOf(err error) string {
	var h hinter
	var bad *config.Error
	switch {
	case errors.As(err, &h):
		return h.Hint()
	case errors.Is(err, client.ErrSandboxKeys):
		return "run it on the host, outside the sandbox"
	case errors.Is(err, client.ErrConnectionLost), errors.Is(err, client.ErrUnreachable):
		if os.Getenv(socketVariable) != "" {
			return "is the proxy still running on the host? start the sandbox again with credproxy run, or credproxy serve" + ifHost
		}
	case errors.Is(err, wire.ErrUnauthorized):
		return "the profile of this sandbox decides: on the host, see credproxy profile list"
	case errors.Is(err, wire.ErrRateLimited):
		return "wait a second; limits.requests_per_second in the configuration of the host sets the pace"
	case errors.As(err, &bad):
		return "credproxy doctor checks the configuration"
	}
	return ""
}

// warn prints what went wrong beside a result that there is all the same.
func (a *app) warn(what, hint string) {
	p := a.paint(a.stderr)
	fmt.Fprintf(a.stderr, "%s %s\n", p.red("credproxy: warning:"), oneLine(what))
	if hint != "" {
		fmt.Fprintf(a.stderr, "%s %s\n", p.yellow("hint:"), oneLine(hint))
	}
}

// note says on stderr what is not wrong, and not what one would expect either.
func (a *app) note(format string, args ...any) {
	p := a.paint(a.stderr)
	fmt.Fprintf(a.stderr, "%s %s\n", p.yellow("credproxy:"), oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps an error one line, and keeps what others wrote from driving the terminal.
func oneLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\r' {
			return ' '
		}
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// errNobodyReads is for a result whose reader has gone away, as head(1) does: no news to anybody, and the exit status that
// a shell reports of other programs then.
const errNobodyReads = exitStatus(exitSignal + int(syscall.SIGPIPE))

// write sends a command's result to stdout.
func (a *app) write(s string) error {
	_, err := io.WriteString(a.stdout, s)
	if errors.Is(err, syscall.EPIPE) {
		return errNobodyReads
	}
	return failed("writing the result", err)
}

// quietPipe is a stream for help, of which nobody has to read all.
type quietPipe struct{ f *os.File }

func (q quietPipe) Write(b []byte) (int, error) {
	n, err := q.f.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		return len(b), nil
	}
	return n, err
}
