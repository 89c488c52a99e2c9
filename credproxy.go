// Package credproxy gives a program credentials without telling it where they come from: inside a sandbox through the
// proxy's socket, on the host from the stores of this machine.
//
//	tokens, err := credproxy.Tokens(ctx)            // once a process, shared
//	token, err := tokens.Token(ctx, "acme", "default")
//
//	keys, err := credproxy.Keys(ctx)
//	key, found, err := keys.APIKey(ctx, "openai")
//
//	token, err := credproxy.Login(ctx, client.LoginOptions{Provider: "acme", Face: myFace})
//
// Which of the two it is decides LLXPRT_CREDENTIAL_SOCKET; neither hands out a refresh token. [StartProxy] runs a proxy
// for a sandbox that the program starts itself.
package credproxy

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/daemon"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// SocketVariable names the environment variable that holds the proxy's socket inside a sandbox.
const SocketVariable = "LLXPRT_CREDENTIAL_SOCKET"

// opened is what the two factories share: one proxy client, or one vault. It is never closed: it lives as long as the
// process.
var opened struct {
	sync.Mutex
	tokens client.Tokens
	keys   client.Keys
	login  func(context.Context, client.LoginOptions) (*wire.Token, error)
}

// Tokens returns the process's token store: the proxy's if [SocketVariable] is set, this machine's otherwise. The first
// call that succeeds decides for the process.
func Tokens(ctx context.Context) (client.Tokens, error) {
	if err := openOnce(ctx); err != nil {
		return nil, err
	}
	return opened.tokens, nil
}

// Keys returns the process's API key store, from the same side as [Tokens].
func Keys(ctx context.Context) (client.Keys, error) {
	if err := openOnce(ctx); err != nil {
		return nil, err
	}
	return opened.keys, nil
}

// Login logs a person in, by the same side as [Tokens]: over the socket, where the host does it and keeps what it yields, or
// on this machine. The face shows what the person has to do. The token is what [client.Tokens] answers from then on.
func Login(ctx context.Context, o client.LoginOptions) (*wire.Token, error) {
	if err := openOnce(ctx); err != nil {
		return nil, err
	}
	return opened.login(ctx, o)
}

func openOnce(ctx context.Context) error {
	opened.Lock()
	defer opened.Unlock()
	if opened.tokens != nil {
		return nil
	}
	if socket := os.Getenv(SocketVariable); socket != "" {
		c := client.New(client.Options{Socket: socket})
		opened.tokens, opened.keys, opened.login = c.Tokens(), c.Keys(), c.Login
		return nil
	}
	settings, dirs, err := load("")
	if err != nil {
		return err
	}
	timeout, err := config.LoginTimeout()
	if err != nil {
		return err
	}
	v, err := vault.Open(ctx, vault.Options{Config: settings, Dirs: dirs, LoginTimeout: timeout, Logger: slog.Default()})
	if err != nil {
		return err
	}
	opened.tokens, opened.keys, opened.login = directTokens{v}, directKeys{v}, directTokens{v}.logIn
	return nil
}

// load reads the configuration at path, or at its usual place.
func load(path string) (*config.Config, config.Dirs, error) {
	dirs, err := config.Directories()
	if err != nil {
		return nil, dirs, err
	}
	if path == "" {
		if path, err = config.ConfigPath(); err != nil {
			return nil, dirs, err
		}
	}
	settings, err := config.Load(path)
	return settings, dirs, err
}

// ProxyOptions say which proxy to start. The zero value serves the profile "default" of the user's configuration.
type ProxyOptions struct {
	Config  string       // the configuration file; "" is the user's
	Profile string       // "" is "default"
	Logger  *slog.Logger // nil is slog.Default()
}

// Proxy is a proxy of this process.
type Proxy struct{ p *daemon.Proxy }

// StartProxy starts a proxy for one sandbox. Once it returns, the socket listens: mount it into the sandbox at the same
// path and set [SocketVariable] to it there.
func StartProxy(ctx context.Context, o ProxyOptions) (*Proxy, error) {
	settings, dirs, err := load(o.Config)
	if err != nil {
		return nil, err
	}
	if o.Profile == "" {
		o.Profile = config.DefaultProfile
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	p, err := daemon.Start(ctx, daemon.Options{Config: settings, Dirs: dirs, Profile: o.Profile, Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("credential proxy: %w", err)
	}
	return &Proxy{p}, nil
}

// Socket is the path of the proxy's socket.
func (p *Proxy) Socket() string { return p.p.Socket() }

// Close lets requests in flight finish until ctx ends, removes the socket and waits for everything the proxy started.
func (p *Proxy) Close(ctx context.Context) error { return p.p.Close(ctx) }
