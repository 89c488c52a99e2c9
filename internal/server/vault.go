package server

import (
	"context"

	"github.com/credproxy/credproxy/wire"
)

// Vault is what the server asks of the host's credentials. It has wire types only, so nothing that outlives a
// sandbox can come through it.
//
// Methods return a *wire.Error where the protocol has a code for the failure (wire.CodeNotFound, …); any other error
// is answered as wire.CodeInternal with a fixed text and logged on the host. Names are valid ([wire.ValidName]) and
// within the scope when a method is called. All methods are called concurrently, and return soon after their ctx ends.
type Vault interface {
	// CachedToken and CachedAPIKey answer from memory or not at all: they never block and never touch a store.
	CachedToken(provider, bucket string) (*wire.Token, bool)
	CachedAPIKey(name string) (wire.APIKey, bool)

	Token(ctx context.Context, provider, bucket string) (*wire.Token, error)
	// RefreshToken has the provider renew the token and returns what is stored then. ctx is that of one waiter: when it
	// ends the waiter leaves, with ctx's error, and a request that is at the provider goes on without any.
	RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error)
	// LoginStatus returns how the stored login stands. Its texts are as safe as those of a *wire.Error.
	LoginStatus(ctx context.Context, provider, bucket string) (*wire.LoginStatus, error)
	// SaveToken and RemoveToken wait for a refresh of the same token.
	SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error
	RemoveToken(ctx context.Context, provider, bucket string) error
	Providers(ctx context.Context) ([]string, error)
	Buckets(ctx context.Context, provider string) ([]string, error)

	APIKey(ctx context.Context, name string) (wire.APIKey, error)
	HasAPIKey(ctx context.Context, name string) (bool, error)
	APIKeys(ctx context.Context) ([]string, error)

	// A login that a sandbox begins is a session, bound to the UID that began it (-1 where peers are not identified): its
	// id alone is worth nothing to another user.

	// BeginLogin begins a login by flow, or by the provider's first if that is "". The Session has the members that are
	// an extension. The vault asks allowed again before it stores what the login yields, for as long as the session lives.
	// It calls ended when a login that needs no code has come to its end by itself, whether anybody asks for that or not:
	// with nil when what it yielded is stored, or with why not.
	BeginLogin(ctx context.Context, uid int, provider, bucket string, flow wire.FlowType, allowed func() bool, ended func(*wire.Error)) (*wire.Session, error)
	// ExchangeLogin ends a login with the code that its user has pasted. The code is spent when the provider has been
	// asked, whatever becomes of ctx, and what it yields is stored.
	ExchangeLogin(ctx context.Context, uid int, sessionID, code string) (*wire.Token, error)
	// PollLogin says how a login stands that needs no code. It does not wait.
	PollLogin(ctx context.Context, uid int, sessionID string) (*wire.Poll, error)
	CancelLogin(ctx context.Context, uid int, sessionID string) error
	// LoginOf says what a session is for, from memory.
	LoginOf(sessionID string) (provider, bucket string, ok bool)
}

// Scope is what one sandbox may use. The server asks it for every request, before the vault, and asks Config.Scope
// for the current one each time, so an edited profile applies to connections that exist already.
type Scope interface {
	AllowsOperation(op string) bool      // by its name on the wire
	AllowsProvider(provider string) bool // any bucket of it
	AllowsBucket(provider, bucket string) bool
	AllowsKey(name string) bool
}
