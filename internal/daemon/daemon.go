// Package daemon joins the vault, the server, the audit log and the socket into a running proxy. [Start] returns once
// the socket listens; [Proxy.Close] ends everything it started.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/vault"
)

// Options say what to start.
type Options struct {
	Config  *config.Config // as loaded; its file is watched for edits
	Dirs    config.Dirs
	Profile string // must be one of Config's

	Capability []byte // what every handshake has to present; nil: nothing
	AllowUIDs  []int  // UIDs that may connect beside our own

	Passphrase func(ctx context.Context, confirm bool) (string, error) // see vault.Options
	Logger     *slog.Logger

	// Ask puts a login that a sandbox wants to begin to a person on the host, when the profile wants one to agree. It is
	// called for one login at a time, and ctx gives the person 25 s. It returns soon after ctx has ended, with an error:
	// false without one is a person's no, after which nobody is asked for a minute. nil: nobody can be asked, which
	// refuses such logins.
	Ask func(ctx context.Context, q Question) (bool, error)
	// AskByDefault has a person agree also where the profile does not say how logins begin.
	AskByDefault bool
	// Notice shows a login that may begin, after the answer if somebody was asked. It may be called concurrently, and
	// does not block. nil: the log has it, as it has in any case.
	Notice func(q Question)
}

// Proxy is a running proxy.
type Proxy struct {
	socket  *socket.Listener
	server  *server.Server
	vault   *vault.Vault
	audit   *audit.Log
	log     *slog.Logger
	profile string
	scope   atomic.Pointer[config.Profile]
	reached atomic.Bool // somebody has connected

	stop    context.CancelFunc // ends the watcher, the renewals and a question that nobody has answered
	workers sync.WaitGroup     // the watcher, the renewals, the server and what serves the bridge
	failed  chan error         // capacity 1: why the server ended by itself

	bridging sync.Mutex       // guards what follows
	bridge   *bridge.Listener // nil: nobody has asked for one
	closing  bool
}

// AuditPath is where the audit log of this user is.
func AuditPath(d config.Dirs) string { return filepath.Join(d.State, "audit.log") }

// Start opens the store, listens and serves. When it returns without an error the socket accepts connections.
func Start(ctx context.Context, o Options) (_ *Proxy, err error) {
	profile, err := o.Config.Profile(o.Profile)
	if err != nil {
		return nil, err
	}
	loginTimeout, err := config.LoginTimeout()
	if err != nil {
		return nil, err
	}
	p := &Proxy{log: o.Logger, profile: o.Profile, failed: make(chan error, 1)}
	p.scope.Store(profile)
	// What has been opened is closed again, last first, when a later step fails.
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()

	p.vault, err = vault.Open(ctx, vault.Options{
		Config: o.Config, Dirs: o.Dirs, LoginTimeout: loginTimeout, Passphrase: o.Passphrase, Logger: o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the credential store: %w", err)
	}
	undo = append(undo, func() { _ = p.vault.Close() })

	if err := privatedir.Make(o.Dirs.State); err != nil {
		return nil, err
	}
	p.audit, err = audit.Open(AuditPath(o.Dirs), audit.Options{Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	undo = append(undo, func() { _ = p.audit.Close(context.Background()) })

	p.socket, err = socket.Listen()
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	// That leftovers cannot be removed keeps nobody from working.
	if removed, err := socket.SweepStale(filepath.Dir(p.socket.Path())); err != nil {
		p.log.Warn("sockets of dead proxies were not removed", "error", err)
	} else if len(removed) > 0 {
		p.log.Info("removed sockets of dead proxies", "sockets", removed)
	}
	undo = append(undo, func() { _ = p.socket.Close() })

	running, stop := context.WithCancel(context.Background())
	p.stop = stop
	logins := &policy{
		profile: p.scope.Load, vault: p.vault, ask: o.Ask, askByDefault: o.AskByDefault, notice: o.Notice, log: o.Logger, ending: running,
	}
	p.server = server.New(server.Config{
		Vault: p.vault,
		Login: logins.allow,
		Scope: func() server.Scope { return p.scope.Load() },
		Identify: func(c net.Conn) (socket.Peer, error) {
			p.reached.Store(true)
			return identify(c)
		},
		OwnUID:            os.Geteuid(),
		AllowUIDs:         o.AllowUIDs,
		Capability:        o.Capability,
		RequestsPerSecond: o.Config.Limits.RequestsPerSecond,
		Connections:       o.Config.Limits.Connections,
		Audit:             p.audit,
		Logger:            o.Logger,
		Profile:           o.Profile,
	})
	p.workers.Go(func() { config.Watch(running, o.Config.Path, o.Config, p.edited, p.broken) })
	p.workers.Go(func() { p.vault.Renew(running) })
	p.workers.Go(func() {
		if err := p.server.Serve(p.socket); !errors.Is(err, server.ErrClosed) {
			p.failed <- err
		}
	})
	return p, nil
}

var _ net.Listener = (*socket.Listener)(nil)

// Socket is the path that goes into LLXPRT_CREDENTIAL_SOCKET.
func (p *Proxy) Socket() string { return p.socket.Path() }

// Reached reports whether anybody has connected yet, to the socket or through the bridge.
func (p *Proxy) Reached() bool { return p.reached.Load() }

// Failed delivers the error that ended the server before Close.
func (p *Proxy) Failed() <-chan error { return p.failed }

// edited applies an edited configuration to connections that exist and to those to come. A profile that is gone allows
// nothing: whoever removed it meant to take it away.
func (p *Proxy) edited(c *config.Config) {
	profile, err := c.Profile(p.profile)
	if err != nil {
		p.log.Warn("the profile of this proxy is no longer in the configuration: it allows nothing now", "profile", p.profile)
		profile = config.Nothing(p.profile)
	}
	p.scope.Store(profile)
	p.vault.SetProviders(c)
	p.vault.ReviewLogins()
	p.log.Info("the configuration was edited: applied", "file", c.Path, "profile", p.profile)
}

func (p *Proxy) broken(err error) {
	p.log.Error("the configuration was edited and cannot be used: the last good one stays in force", "error", err)
}

// Close stops accepting, gives requests in flight until ctx ends, and closes everything: connections, socket, audit
// log (complete on disk), logins that are under way, store. It waits for every goroutine that Start began.
func (p *Proxy) Close(ctx context.Context) error {
	p.bridging.Lock()
	p.closing = true
	p.bridging.Unlock()
	p.stop()
	// A disk that is full holds up the requests that the audit log has to record, and with them Shutdown: the log gets
	// a little longer than the requests, and then gives up, which lets them go.
	release := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
		defer cancel()
		_ = p.audit.Close(last)
	})
	err := p.server.Shutdown(ctx)
	_ = p.socket.Close()
	p.closeBridge()
	p.workers.Wait()
	p.vault.EndLogins() // what becomes of them is for the audit log
	release()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
	defer cancel()
	return errors.Join(err, p.audit.Close(last), p.vault.Close())
}

// lastWrite is how long the audit log may try to reach the disk when the proxy has ended.
const lastWrite = 2 * time.Second
