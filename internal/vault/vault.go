// Package vault is the only door to the credentials on this machine. Its exported API speaks wire types and plain
// values: a refresh token, a client secret or a verifier has no type that leaves the packages below it.
//
// [Open] opens the store that the configuration names. What a sandbox may reach through a server is in tokens.go,
// refresh.go, keys.go and sessions.go; what only the person on the host may do, logging in and out and setting keys, is in
// login.go, terms.go, status.go and keys.go.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/journal"
	flows "github.com/credproxy/credproxy/internal/vault/internal/login"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
	"github.com/credproxy/credproxy/internal/vault/internal/renew"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/backend"
	"github.com/credproxy/credproxy/wire"
)

// Options say what to open.
type Options struct {
	Config *config.Config
	Dirs   config.Dirs

	// Passphrase returns the passphrase of a file store whose key is sealed with one; confirm is true when the key
	// is being made, so that a typo must not lock it away. nil: nobody can be asked.
	Passphrase func(ctx context.Context, confirm bool) (string, error)

	LoginTimeout time.Duration // that a person has to finish a login; 0 is 10 minutes

	Logger *slog.Logger // never nil
}

// Vault holds the open store and what has been decrypted of it. It is safe for concurrent use.
type Vault struct {
	store     store.Store // with the coordinator's overlay
	opened    store.Store // closed with the vault
	journal   *journal.Journal
	refresh   *refresh.Coordinator
	renewals  *renew.Scheduler
	logins    *store.Cache[login]
	keys      *store.Cache[wire.APIKey]
	providers atomic.Pointer[map[string]*provider.Provider]
	client    *provider.Client
	sessions  *flows.Sessions // the logins that a sandbox has begun
	failures  sparing         // of those, in the log
	created   atomic.Int64    // bytes of new logins that SaveToken has stored
	round     atomic.Uint64   // see served; 0 while nothing is renewed
	log       *slog.Logger

	state        string // the directory of terms.go
	loginTimeout time.Duration
}

// login is a stored login, decoded once: the grant, and what of it may go inside.
type login struct {
	grant  *grant.Grant
	token  *wire.Token    // nil when refused
	err    error          // why token is nil
	served *atomic.Uint64 // the round in which its renewal was last scheduled
}

// Open opens the store. It reads no credential yet.
func Open(ctx context.Context, o Options) (*Vault, error) {
	s, err := backend.Open(ctx, o.storeOptions())
	if err != nil {
		return nil, hostError(err)
	}
	j, err := journal.New(journal.Options{
		Dirs:   o.Dirs.Recovery(s.Name()),
		Key:    func(ctx context.Context) (journal.Sealer, error) { return s.Sealer(ctx) },
		Logger: o.Logger,
	})
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return open(s, j, provider.NewClient(), o), nil
}

// storeOptions is where the stores keep their files: the file store in the data directory, the keyring's locks in the
// state directory.
func (o Options) storeOptions() backend.Options {
	return backend.Options{
		Kind:        o.Config.Store,
		Dir:         o.Dirs.Data,
		LockDir:     filepath.Join(o.Dirs.State, "locks"),
		RecoveryDir: o.Dirs.Recovery("keyring")[0],
		Key:         o.Config.FileStoreKey,
		Passphrase:  o.Passphrase,
		Logger:      o.Logger,
	}
}

func open(s store.Store, j *journal.Journal, client *provider.Client, o Options) *Vault {
	log := o.Logger
	v := &Vault{opened: s, journal: j, client: client, log: log, state: o.Dirs.State, loginTimeout: o.LoginTimeout}
	if v.loginTimeout <= 0 {
		v.loginTimeout = flows.DefaultTimeout
	}
	client.SetInstall(v.install)
	v.sessions = flows.NewSessions(flows.SessionsOptions{Timeout: v.loginTimeout, Store: v.storeLogin, Failure: v.loginFailure})
	v.refresh = refresh.New(refresh.Options{
		Store: s, Journal: j, Client: client, Provider: v.provider, Secret: v.clientSecret,
		Changed: func(it store.Item) { v.logins.Expire(it) },
		Logger:  log,
	})
	v.store = v.refresh.Store()
	v.renewals = renew.New(renew.Options{Renew: v.renew, GaveUp: v.gaveUp})
	v.logins = store.NewCache(v.store, v.decodeLogin)
	v.keys = store.NewCache(v.store, decodeKey)
	v.SetProviders(o.Config)
	return v
}

// Close ends the logins of sandboxes and waits for what is being read, and for a provider that is answering: up to 15 s, for
// to leave then could lose a login. Then it releases the store.
func (v *Vault) Close() error {
	v.EndLogins()
	v.refresh.Close()
	v.client.Close()
	return errors.Join(v.logins.Close(), v.keys.Close(), v.journal.Close(), v.opened.Close())
}

// StoreName is the name of the store in use: "keyring", "file" or "memory".
func (v *Vault) StoreName() string { return v.store.Name() }

// SetProviders replaces the descriptions of providers by those of an edited configuration. Tokens that are served from
// now on have the fields that the new descriptions allow.
func (v *Vault) SetProviders(c *config.Config) {
	providers := make(map[string]*provider.Provider, len(c.Providers))
	for name, described := range c.Providers {
		providers[name] = provider.FromConfig(described)
	}
	v.providers.Store(&providers)
	v.logins.Forget()
}

// configured returns the description of a configured provider.
func (v *Vault) configured(name string) (*provider.Provider, bool) {
	p, ok := (*v.providers.Load())[name]
	return p, ok
}

// provider returns the description of a configured or a built-in provider.
func (v *Vault) provider(name string) (*provider.Provider, bool) {
	if p, ok := v.configured(name); ok {
		return p, true
	}
	return provider.Builtin(name)
}

// allowedFields are the members of a provider's answer that may go inside.
func (v *Vault) allowedFields(name string) []string {
	if p, ok := v.provider(name); ok {
		return p.Fields
	}
	return grant.DefaultFields
}

func loginItem(providerName, bucket string) store.Item {
	return store.Item{Service: store.ServiceLogins, Account: providerName + ":" + bucket}
}

func keyItem(name string) store.Item {
	return store.Item{Service: store.ServiceKeys, Account: name}
}

// splitAccount is the reverse of loginItem. Accounts that no request can name, such as those that other programs keep
// under the same service, are not ours.
func splitAccount(account string) (providerName, bucket string, ok bool) {
	providerName, bucket, ok = strings.Cut(account, ":")
	return providerName, bucket, ok && wire.ValidName(providerName) && wire.ValidName(bucket)
}

func (v *Vault) decodeLogin(it store.Item, sealed secret.String) (login, error) {
	g, err := grant.Parse(sealed)
	if err != nil {
		return login{}, fmt.Errorf("%s in the %s store: %w", it.Account, v.store.Name(), err)
	}
	providerName, _, _ := splitAccount(it.Account)
	t, err := g.Wire(v.allowedFields(providerName))
	return login{grant: g, token: t, err: err, served: new(atomic.Uint64)}, nil
}

func decodeKey(_ store.Item, sealed secret.String) (wire.APIKey, error) {
	return wire.APIKey(sealed.Reveal()), nil
}

const (
	// lockLimit is how long a change of a login waits for a refresh that is running.
	lockLimit = 30 * time.Second

	// issuedLimit is how long a login waits that a provider has just issued: as long as a refresh can take whose provider drips its
	// answer and whose store is slow. A person would have to log in anew.
	issuedLimit = time.Minute
)

// underLock runs f with the item's lock, for read-merge-write. Nobody else, in this process or another, writes the item
// meanwhile.
func (v *Vault) underLock(ctx context.Context, it store.Item, f func() error) error {
	return v.underLockWithin(ctx, lockLimit, it, f)
}

// underLockWithin is underLock that waits for at most limit.
func (v *Vault) underLockWithin(ctx context.Context, limit time.Duration, it store.Item, f func() error) error {
	wait, cancel := context.WithTimeout(ctx, limit)
	unlock, err := v.store.Lock(wait, it)
	cancel()
	if err != nil {
		return hostError(fmt.Errorf("waiting for the lock of %s: %w", it.Account, err))
	}
	defer unlock()
	return f()
}

// failure is an error of the host with what may be said of it over a socket.
type failure struct {
	crossing *wire.Error
	err      error
}

func (f *failure) Error() string   { return f.err.Error() }
func (f *failure) Unwrap() []error { return []error{f.err, f.crossing} }

// hostError gives an error of a store its code and its constant text for the socket. The error itself stays as it is
// for the host.
func hostError(err error) error {
	var crossing *wire.Error
	limited, isLimited := errors.AsType[*refresh.LimitedError](err)
	needed, isNeeded := errors.AsType[*refresh.LoginNeededError](err)
	_, isClient := errors.AsType[*refresh.ClientRefusedError](err)
	_, isProvider := errors.AsType[*provider.Error](err)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &crossing):
		return err
	case isLimited:
		crossing = wire.E(wire.CodeRateLimited, "the provider was asked a moment ago")
		if limited.Reason != "" {
			crossing.Message += "; " + limited.Reason
		}
		crossing.RetryAfter = int((limited.After + time.Second - 1) / time.Second)
	case isNeeded:
		crossing = wire.E(wire.CodeInternal, wire.LoginNeededPrefix+needed.Reason)
	case isClient:
		crossing = wire.E(wire.CodeInternal, "the provider does not accept this client: client_id or the client secret in the host's configuration has to be mended")
	case errors.Is(err, refresh.ErrUnsafe):
		crossing = wire.E(wire.CodeInternal, refresh.ErrUnsafe.Error())
	case errors.Is(err, journal.ErrUnreadable):
		crossing = wire.E(wire.CodeInternal, "the recovery files on the host cannot be read, and may have a newer token: credproxy doctor there says more")
	case isProvider:
		crossing = wire.E(wire.CodeInternal, "the provider did not give a new token: the host's log and credproxy auth status say why")
	case errors.Is(err, refresh.ErrNoProvider):
		crossing = wire.E(wire.CodeProviderNotFound, refresh.ErrNoProvider.Error())
	case errors.Is(err, store.ErrNotFound):
		crossing = wire.E(wire.CodeNotFound, "nothing is stored under this name")
	case errors.Is(err, store.ErrTooLarge):
		crossing = wire.E(wire.CodeInvalidRequest, "this is larger than what can be stored: 1 MiB, with what is stored already")
	case errors.Is(err, store.ErrLocked):
		crossing = wire.E(wire.CodeInternal, "the keyring on the host is locked: unlock it there and try again")
	case errors.Is(err, store.ErrUnavailable):
		crossing = wire.E(wire.CodeInternal, "the credential store on the host does not answer")
	case errors.Is(err, store.ErrDamaged), errors.Is(err, grant.ErrMalformed):
		crossing = wire.E(wire.CodeInternal, "the stored credential is damaged: look at the host")
	case errors.Is(err, context.DeadlineExceeded):
		crossing = wire.E(wire.CodeInternal, "the credential store on the host did not answer in time")
	default:
		crossing = wire.E(wire.CodeInternal, "the credential store on the host failed: look at the host's log")
	}
	return &failure{crossing: crossing, err: err}
}

// now is the clock of expiry decisions.
func now() int64 { return time.Now().Unix() }
