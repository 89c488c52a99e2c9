package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

var (
	errOperation = wire.E(wire.CodeUnauthorized, "the profile does not allow this operation")
	errLogin     = wire.E(wire.CodeUnauthorized, "the profile does not allow logging in from a sandbox")
	errProvider  = wire.E(wire.CodeUnauthorized, "the profile does not allow this provider or bucket")
	errKey       = wire.E(wire.CodeUnauthorized, "the profile does not allow this key")

	errNoStore     = wire.E(wire.CodeInternal, "the host's credential store failed; the proxy's log on the host says why")
	errSlow        = wire.E(wire.CodeInternal, "the host's credential store did not answer in time")
	errSlowRefresh = wire.E(wire.CodeInternal, "the token was not renewed in time; the host goes on with it: ask again later")
	errSlowChange  = wire.E(wire.CodeInternal, "the host's credential store did not answer in time, or the token is being renewed")
	errShutdown    = wire.E(wire.CodeInternal, "the proxy is shutting down")
	errPanic       = wire.E(wire.CodeInternal, "the proxy failed; its log on the host says where")
)

// allowed says why scope does not cover the request, or nil.
func allowed(scope Scope, req *wire.Request) *wire.Error {
	if scope == nil || !scope.AllowsOperation(string(req.Op)) {
		if req.Op == wire.OpOAuthInitiate {
			return errLogin
		}
		return errOperation
	}
	switch req.Op {
	case wire.OpGetToken, wire.OpSaveToken, wire.OpRemoveToken, wire.OpGetBucketStats, wire.OpRefreshToken, wire.OpOAuthInitiate:
		if !scope.AllowsBucket(req.Provider, req.Bucket) {
			return errProvider
		}
	case wire.OpOAuthExchange, wire.OpOAuthPoll, wire.OpOAuthCancel:
		// Of a session that nobody knows, nothing is known but that.
		if req.Provider != "" && !scope.AllowsBucket(req.Provider, req.Bucket) {
			return errProvider
		}
	case wire.OpListBuckets:
		if !scope.AllowsProvider(req.Provider) {
			return errProvider
		}
	case wire.OpGetAPIKey, wire.OpHasAPIKey:
		if !scope.AllowsKey(req.Name) {
			return errKey
		}
	}
	return nil
}

// changes reports whether an operation changes what is stored, or what runs on the host, and has to be carried through
// for that. A refresh has not: the vault goes on with it by itself when whoever asked for it has gone, so only the waiting
// ends with the peer. Neither has the beginning of a login, which is worth nothing to a peer that has gone.
func changes(op wire.Op) bool {
	switch op {
	case wire.OpSaveToken, wire.OpRemoveToken, wire.OpOAuthExchange, wire.OpOAuthCancel:
		return true
	}
	return false
}

// patience returns how long the vault may take for an operation, and what is answered when it takes longer.
func (t *times) patience(op wire.Op) (time.Duration, *wire.Error) {
	switch op {
	case wire.OpRefreshToken:
		return t.refresh, errSlowRefresh
	case wire.OpSaveToken, wire.OpRemoveToken:
		return t.change, errSlowChange
	case wire.OpOAuthInitiate:
		return t.login, errSlowLogin
	case wire.OpOAuthExchange:
		return t.login, errSlowExchange
	}
	return t.operation, errSlow
}

// fromMemory answers what can be answered without waiting. Without data and without an error, it cannot.
func (s *Server) fromMemory(req *wire.Request) (data wire.Data, err error) {
	defer s.recovered(req.Op, &data, &err)
	switch req.Op {
	case wire.OpGetToken:
		if t, ok := s.cfg.Vault.CachedToken(req.Provider, req.Bucket); ok && t != nil {
			return t, nil
		}
	case wire.OpGetBucketStats:
		if req.Detail {
			break
		}
		if _, ok := s.cfg.Vault.CachedToken(req.Provider, req.Bucket); ok {
			return wire.BucketStats{Bucket: req.Bucket}, nil
		}
	case wire.OpGetAPIKey:
		if key, ok := s.cfg.Vault.CachedAPIKey(req.Name); ok {
			return key, nil
		}
	}
	return nil, nil
}

var errNothing = errors.New("the vault returned neither a result nor an error")

// ask answers a request from the vault. After what answers a credential or a list it asks for the scope once more: what
// was taken away while the vault was busy is not served. A token that was refreshed meanwhile is renewed all the same.
func (s *Server) ask(ctx context.Context, req *wire.Request, peer socket.Peer) (data wire.Data, err error) {
	defer s.recovered(req.Op, &data, &err)
	v := s.cfg.Vault
	var list []string
	switch req.Op {
	case wire.OpSaveToken:
		return wire.Empty{}, v.SaveToken(ctx, req.Provider, req.Bucket, req.Token)
	case wire.OpRemoveToken:
		return wire.Empty{}, s.removeToken(ctx, req)
	case wire.OpGetToken, wire.OpRefreshToken:
		get := v.Token
		if req.Op == wire.OpRefreshToken {
			get = v.RefreshToken
		}
		var t *wire.Token
		t, err = get(ctx, req.Provider, req.Bucket)
		data = t
		if t == nil && err == nil {
			err = errNothing
		}
	case wire.OpGetBucketStats:
		stats := wire.BucketStats{Bucket: req.Bucket}
		if !req.Detail {
			_, err = v.Token(ctx, req.Provider, req.Bucket)
		} else if stats.Login, err = v.LoginStatus(ctx, req.Provider, req.Bucket); stats.Login == nil && err == nil {
			err = errNothing
		}
		data = stats
	case wire.OpGetAPIKey:
		var key wire.APIKey
		key, err = v.APIKey(ctx, req.Name)
		data = key
	case wire.OpHasAPIKey:
		var exists bool
		exists, err = v.HasAPIKey(ctx, req.Name)
		data = wire.Exists(exists)
	case wire.OpListProviders:
		list, err = v.Providers(ctx)
	case wire.OpListBuckets:
		list, err = v.Buckets(ctx, req.Provider)
	case wire.OpListAPIKeys:
		list, err = v.APIKeys(ctx)
	case wire.OpOAuthInitiate, wire.OpOAuthExchange, wire.OpOAuthPoll, wire.OpOAuthCancel:
		return s.login(ctx, req, peer)
	default:
		return nil, fmt.Errorf("operation %q has no answer here", req.Op)
	}
	scope := s.cfg.Scope()
	if e := allowed(scope, req); e != nil {
		return nil, e
	}
	switch req.Op {
	case wire.OpListProviders:
		return wire.Providers(s.within(req.Op, list, err, scope.AllowsProvider)), nil
	case wire.OpListBuckets:
		allows := func(bucket string) bool { return scope.AllowsBucket(req.Provider, bucket) }
		return wire.Buckets(s.within(req.Op, list, err, allows)), nil
	case wire.OpListAPIKeys:
		return wire.APIKeys(s.within(req.Op, list, err, scope.AllowsKey)), nil
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// within returns the names that allow lets through. A store that failed has an empty list, which the protocol wants
// so: a client starts without credentials rather than not at all.
func (s *Server) within(op wire.Op, list []string, err error, allow func(string) bool) []string {
	if err != nil {
		s.log.Warn("the store failed; an empty list is answered", "op", string(op), "error", err)
		return nil
	}
	return slices.DeleteFunc(slices.Clone(list), func(name string) bool { return !allow(name) })
}

// removeToken answers success when the store fails, which the protocol wants so, and logs it. That it did not answer
// in time, or a failure that has a code of its own, is told.
func (s *Server) removeToken(ctx context.Context, req *wire.Request) error {
	err := s.cfg.Vault.RemoveToken(ctx, req.Provider, req.Bucket)
	if err == nil || errors.Is(err, wire.ErrNotFound) {
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Code != wire.CodeInternal {
		return err
	}
	s.log.Warn("the store failed to remove a token; success is answered",
		"provider", req.Provider, "bucket", req.Bucket, "error", err)
	return nil
}

// failure returns what the peer is told about err: the *wire.Error in it, or a fixed text by its kind. What more there
// is to know of a failure on the host is logged here. ctx is what the vault was called with: when it was that which ended,
// and not a time limit of the vault's own, the server knows better than the vault what is to be said.
func (s *Server) failure(ctx context.Context, req *wire.Request, err error) *wire.Error {
	e, level := errNoStore, slog.LevelWarn
	coded, ok := errors.AsType[*wire.Error](err)
	switch {
	case ok && (error(coded) == err || coded.Code != wire.CodeInternal):
		return coded
	case errors.Is(err, context.DeadlineExceeded) && (!ok || ctx.Err() != nil):
		_, e = s.times.patience(req.Op)
	case ok:
		e = coded
	case errors.Is(err, context.Canceled): // by the peer, who does not wait for this answer, or by Shutdown
		e, level = errShutdown, slog.LevelDebug
	}
	s.log.Log(context.Background(), level, "request failed", "op", string(req.Op), "provider", req.Provider, "bucket", req.Bucket, "key", req.Name, "error", err)
	return e
}

// recovered turns a panic of the vault into an error. It is deferred.
func (s *Server) recovered(op wire.Op, data *wire.Data, err *error) {
	if v := recover(); v != nil {
		s.logPanic(string(op), v)
		*data, *err = nil, errPanic
	}
}

// logPanic logs where the program panicked. A panic's value and a stack's arguments may hold a credential: of the
// value only the type is logged, unless it is an error of Go's runtime, and of the stack only the places.
func (s *Server) logPanic(where string, v any) {
	what := fmt.Sprintf("%T", v)
	if e, ok := errors.AsType[runtime.Error](asError(v)); ok {
		what = e.Error()
	}
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var stack strings.Builder
	for {
		f, more := frames.Next()
		stack.WriteString(f.Function + " " + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		if !more {
			break
		}
	}
	s.log.Error("panic", "in", where, "value", what, "stack", stack.String())
}

func asError(v any) error {
	err, _ := v.(error)
	return err
}
