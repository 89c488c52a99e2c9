package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/daemon"
)

// drainTime is how long requests in flight may take when the proxy ends.
const drainTime = 5 * time.Second

// Bounds of a capability token, in bytes. The protocol has none; these keep out what was cut off or is another file.
const (
	minCapability = 16
	maxCapability = 4096
)

func (a *app) serveCommand() *cobra.Command {
	var profile, capabilityFile string
	var allowUIDs []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy alone, in the foreground",
		Long: `Run the proxy until SIGINT, SIGQUIT, SIGTERM or SIGHUP, for sandboxes that
something else starts: mount the socket at its path and set the variable inside.
The first line on stdout comes once the socket listens, and a shell can eval it.
The log goes to stderr.

Where the profile says login = "ask", whoever sits at the terminal of serve is
asked when a sandbox wants to log in, as long as serve is in its foreground.

Requests in flight have up to 5 seconds when the proxy ends, and none after a
second signal. A provider that is answering a refresh is waited for in any case,
up to 15 seconds: its answer may hold the only copy of a new refresh token. The
socket is removed in any case.`,
		Example: `  credproxy serve --profile work
  credproxy serve --json --capability-file ~/.config/credproxy/capability`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			uids, err := parseUIDs(c, allowUIDs)
			if err != nil {
				return err
			}
			if c.Flags().Changed("capability-file") && capabilityFile == "" { // of "$FILE", where FILE is not set
				return usage("--capability-file names no file").about(c)
			}
			level := slog.LevelInfo
			if a.verbose {
				level = slog.LevelDebug
			}
			held := &heldLog{to: a.stderr}
			log := slog.New(slog.NewTextHandler(held, &slog.HandlerOptions{Level: level}))
			asked := &consent{log: log, held: held}
			o := proxyOptions{profile: profile, capabilityFile: capabilityFile, allowUIDs: uids, log: log, ask: asked.ask}
			return failed("serve", a.serve(c.Context(), o, asJSON))
		},
	}
	c.Flags().StringVar(&profile, "profile", config.DefaultProfile, "what the sandbox may use")
	c.Flags().StringVar(&capabilityFile, "capability-file", "", "demand the token in this file (mode 0600) in every handshake")
	c.Flags().StringArrayVar(&allowUIDs, "allow-uid", nil, "one more UID that may connect (may be repeated)")
	c.Flags().BoolVar(&asJSON, "json", false, `print {"socket","pid","version"} in place of the shell line`)
	_ = c.RegisterFlagCompletionFunc("profile", completeProfiles)
	return c
}

func parseUIDs(c *cobra.Command, values []string) ([]int, error) {
	var uids []int
	for _, v := range values {
		uid, err := strconv.ParseUint(v, 10, 32)
		if err != nil || uid == math.MaxUint32 || strings.HasPrefix(v, "+") {
			return nil, usage("--allow-uid takes a number from 0 to %d (id -u prints one)", uint32(math.MaxUint32-1)).about(c)
		}
		uids = append(uids, int(uid))
	}
	return uids, nil
}

// proxyOptions are what serve and run start a proxy with.
type proxyOptions struct {
	profile        string
	capabilityFile string
	allowUIDs      []int
	log            *slog.Logger

	ask          func(context.Context, daemon.Question) (bool, error)
	askByDefault bool
	notice       func(daemon.Question) // nil: the log is enough
}

// startProxy reads the configuration and starts the proxy. From here on signals wait for its end.
func (a *app) startProxy(ctx context.Context, o proxyOptions) (*daemon.Proxy, *config.Config, config.Dirs, error) {
	a.signals.held.Store(true)
	c, dirs, err := settings()
	if err != nil {
		return nil, nil, dirs, err
	}
	if _, err := findProfile(c, o.profile); err != nil {
		return nil, nil, dirs, err
	}
	if err := makeState(dirs); err != nil {
		return nil, nil, dirs, err
	}
	var capability []byte
	if o.capabilityFile != "" {
		if capability, err = readPrivate(o.capabilityFile, minCapability, maxCapability); err != nil {
			return nil, nil, dirs, &failure{what: "the capability file", err: err,
				hint: "make one: (umask 077; head -c 32 /dev/urandom | base64 > FILE)"}
		}
	}
	passphrase, err := a.unlock(ctx, c, dirs)
	if err != nil {
		return nil, nil, dirs, err
	}
	if a.unprotected != nil {
		o.log.Warn("other processes of this user may read this one's memory", "error", a.unprotected)
	}
	p, err := daemon.Start(ctx, daemon.Options{
		Config: c, Dirs: dirs, Profile: o.profile, Capability: capability, AllowUIDs: o.allowUIDs,
		Passphrase: passphrase, Logger: o.log,
		Ask: o.ask, AskByDefault: o.askByDefault, Notice: o.notice,
	})
	if err != nil {
		hint := "credproxy doctor says what is wrong and what to do"
		if inside() { // where doctor has nothing to look at
			hint = "this is a sandbox: run it on the host" + ifHost
		}
		return nil, nil, dirs, &failure{what: "starting the proxy", err: err, hint: hint}
	}
	return p, c, dirs, nil
}

func (a *app) serve(ctx context.Context, o proxyOptions, asJSON bool) (err error) {
	defer keepSmall()()
	p, _, _, err := a.startProxy(ctx, o)
	if ctx.Err() != nil && err != nil {
		return nil // told to stop before it had begun
	}
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := a.stopProxy(p, o.log); err == nil {
			err = closeErr
		}
	}()
	if asJSON {
		err = a.writeJSON(struct {
			Socket  string `json:"socket"`
			PID     int    `json:"pid"`
			Version string `json:"version"`
		}{p.Socket(), os.Getpid(), buildInfo().Version})
	} else {
		err = a.write(fmt.Sprintf("%s=%s; export %[1]s;\n", socketVariable, shellQuote(p.Socket())))
	}
	if err != nil && !errors.Is(err, errNobodyReads) {
		return err
	}
	o.log.Info("the proxy listens", "socket", p.Socket(), "profile", o.profile)

	select {
	case <-ctx.Done():
		o.log.Info("the proxy ends", "cause", endCause(ctx))
		return nil
	case err := <-p.Failed():
		if err == nil {
			err = errors.New("the server ended")
		}
		return fmt.Errorf("the proxy ended by itself: %w", err)
	}
}

func endCause(ctx context.Context) string {
	var by interrupted
	if errors.As(context.Cause(ctx), &by) {
		return by.signal.String()
	}
	return "cancelled"
}

// stopProxy gives requests in flight their time, or none after a further signal, and waits for the end of the proxy. A
// provider that is answering is waited for in any case: its answer may be the only copy of a new refresh token.
func (a *app) stopProxy(p *daemon.Proxy, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	closed := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-a.signals.hurry:
			log.Warn("told to end again: requests in flight are not waited for any more, only a provider that is answering")
			cancel()
		case <-closed:
		}
	})
	defer watching.Wait()
	defer close(closed)
	err := p.Close(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		log.Warn("the proxy has ended in a hurry", "error", err)
		return nil
	}
	return failed("stopping the proxy", err)
}

// shellQuote quotes s for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
