// Package cli is the credproxy command. A program calls [Main] and exits with what it returns; everything else here is
// one file a command, and the files that commands share:
//
//	failure.go   exit statuses, and the two lines that an error is
//	names.go     PROVIDER[/BUCKET] and names of keys, with the nearest one that exists
//	terminal.go  colours, tables, relative times, the line that shows a wait
//	host.go      the configuration, the store and the passphrase on the host
//	renewal.go   a refresh, for the commands that make one: the wait, signals, and why there is no new token
//	inside.go    the same questions answered through the proxy's socket
//
// Commands print results on stdout and everything else on stderr, so that `$(credproxy token acme)` is a token.
package cli

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/protect"
	"github.com/credproxy/credproxy/internal/sandbox"
)

// app is one invocation: its streams and the flags that every command has.
type app struct {
	stdin       *os.File
	stdout      *os.File
	stderr      *os.File
	verbose     bool
	signals     *signals
	unprotected error        // why this process is open to debuggers; nil: it is not
	log         *slog.Logger // debug to stderr with --verbose, else nowhere; serve and run have one of their own
}

// Main runs the command with os.Args and returns its exit status.
func Main() int {
	sandbox.Enter() // returns, unless this is the first process of a sandbox

	// Before anything secret is read: no core dumps, no debugger.
	unprotected := protect.Harden()

	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, unprotected: unprotected, log: slog.New(slog.DiscardHandler)}
	ctx, signals, stop := watchSignals(context.Background())
	defer stop()
	a.signals = signals
	return a.report(ctx, a.root().ExecuteContext(ctx))
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return "cancelled" }

// signals are SIGINT, SIGQUIT, SIGTERM and SIGHUP of this process. The first ends a context. If somebody holds the process
// open, to clean up or for what a provider is answering, the second closes a channel and others do nothing; else it kills the
// process as usual, for a step that does not listen. SIGPIPE does nothing: to write where nobody reads is an error.
// Whoever calls watchSignals calls the function it returns, which waits for the goroutine.
type signals struct {
	held  atomic.Bool   // only the first signal ends anything by itself
	hurry chan struct{} // closed by the second signal
}

func watchSignals(parent context.Context) (_ context.Context, s *signals, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	s = &signals{hurry: make(chan struct{})}
	// Notify and not Ignore: what is ignored stays so in the programs that are started.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	caught := make(chan os.Signal, 2)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1) asked for that
		signal.Notify(caught, syscall.SIGHUP)
	}
	var watching sync.WaitGroup
	quit := make(chan struct{})
	watching.Go(func() {
		select {
		case first := <-caught:
			// Cancelled first: whoever holds the process from here on finds that out by looking at the context.
			cancel(interrupted{first.(syscall.Signal)})
			if !s.held.Load() {
				signal.Stop(caught)
			}
		case <-quit:
			return
		}
		select {
		case <-caught:
			close(s.hurry)
		case <-quit:
		}
	})
	return ctx, s, sync.OnceFunc(func() {
		signal.Stop(caught)
		close(quit)
		watching.Wait()
		cancel(nil)
	})
}

const rootHelp = `credproxy keeps OAuth logins and API keys on this machine and lets programs in
sandboxes use them. A sandbox gets one Unix socket and, through it, short-lived
access tokens; refresh tokens never leave the host.

Log in once, then run a program in a sandbox:

  credproxy auth login acme
  credproxy run -- agent

In the sandbox the same command answers, through the socket:

  curl -H "Authorization: Bearer $(credproxy token acme)" https://api.acme.example/

Inside, where LLXPRT_CREDENTIAL_SOCKET is set, every auth, token and key command
goes through that socket; on the host they act on the stores of this machine.`

// Groups of commands in the help.
const (
	groupUse   = "use"
	groupStore = "store"
	groupAbout = "about"
)

// root builds the command tree. Building it reads nothing and costs microseconds; what a command needs it opens itself.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "credproxy",
		Short:             "Short-lived credentials for programs in sandboxes",
		Long:              rootHelp,
		Args:              noCommand,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			if a.verbose {
				a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
		},
	}
	root.SetOut(quietPipe{a.stdout})
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "log what is done, on stderr")
	root.AddGroup(
		&cobra.Group{ID: groupUse, Title: "Give a sandbox credentials:"},
		&cobra.Group{ID: groupStore, Title: "Logins, tokens and keys (on the host and inside):"},
		&cobra.Group{ID: groupAbout, Title: "Look around:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupUse, a.runCommand(), a.serveCommand())
	add(groupStore, a.authCommand(), a.tokenCommand(), a.keyCommand())
	add(groupAbout, a.providersCommand(), a.profileCommand(), a.doctorCommand(), a.demoCommand(), a.versionCommand(), a.completionCommand())
	root.AddCommand(a.probeCommand())
	root.SetHelpCommandGroupID(groupAbout)
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = helpTopic
	}
	return root
}

// helpTopic refuses `help nosuch`, for which cobra prints the help of root as if that had been asked for.
func helpTopic(help *cobra.Command, names []string) error {
	c, rest, err := help.Root().Find(names)
	if err == nil && !c.HasSubCommands() && len(rest) > 0 {
		return usage("too many arguments").about(help)
	}
	return noCommand(c, rest)
}

// group is a command that only holds others.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: noCommand, RunE: func(c *cobra.Command, _ []string) error {
		return usage("which %s command? one of: %s", c.Name(), listNames(c)).about(c)
	}}
	c.AddCommand(commands...)
	return c
}

// exactly is the check of positional arguments: names says what they are, in order, for the message.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s is missing", names[len(args)]).about(c)
		case len(args) > len(names):
			// What is too much is not repeated: it may be a secret in the wrong place.
			return usage("too many arguments").about(c)
		}
		return nil
	}
}

// noCommand refuses what is no subcommand.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	what := "unknown command"
	if c.HasParent() {
		what = "unknown " + c.Name() + " command"
	}
	if near := nearestCommand(c, args[0]); near != "" {
		if meant, _, err := c.Find(strings.Fields(near)); err == nil && len(args) > 1 && strings.Contains(meant.Use, "PROVIDER") {
			if l, err := parseLogin(meant, args[1]); err == nil {
				near += " " + l.String()
			}
		}
		return usage("%s %s; did you mean %s?", what, quote(args[0]), near).about(c)
	}
	if c.HasParent() {
		what += "; one of: " + listNames(c)
	}
	return usage("%s", what).about(c)
}

// nearestCommand is the command of c that was probably meant, or one of a group in c: "auth login". "" if nobody can tell.
func nearestCommand(c *cobra.Command, typed string) string {
	paths := map[string][]string{} // by name
	for _, sub := range c.Commands() {
		if sub.Hidden {
			continue
		}
		paths[sub.Name()] = append(paths[sub.Name()], sub.Name())
		for _, deeper := range sub.Commands() {
			paths[deeper.Name()] = append(paths[deeper.Name()], sub.Name()+" "+deeper.Name())
		}
	}
	maps.DeleteFunc(paths, func(_ string, of []string) bool { return len(of) > 1 })
	name := typed
	if paths[name] == nil {
		name = nearest(typed, slices.Sorted(maps.Keys(paths)))
	}
	return strings.Join(paths[name], "")
}
