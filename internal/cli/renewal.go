package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

const (
	// refreshLimit is how long a refresh takes at most, for who waits for it.
	refreshLimit = 30 * time.Second

	// answerLimit is how long closing the vault waits for a provider that is answering.
	answerLimit = 15 * time.Second
)

// waitForAnswer is why a command does not end at once.
const waitForAnswer = "a provider's answer (or a login could be lost)"

// newToken has source refresh a login. The error is fit for people, with its exit status and hint.
//
// On the host it is this process that asks the provider, so from here on a signal ends the command, but not before the
// provider's answer is stored, and a second signal nothing more: the answer may be the only copy of the new refresh token.
func (a *app) newToken(ctx context.Context, source tokens, l login) (*wire.Token, error) {
	if h, ok := source.(*host); ok {
		a.signals.held.Store(true)
		if err := safe(ctx, h, l); err != nil && ctx.Err() == nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	ctrlC := cancels
	if _, ours := source.(*host); ours {
		ctrlC = endsLater
	}
	defer a.waiting(wait{what: "a new token from " + shown(l.provider, "PROVIDER"), limit: refreshLimit, soon: true, ctrlC: ctrlC})()
	t, err := source.RefreshToken(ctx, l.provider, l.bucket)
	switch {
	case errors.Is(err, wire.ErrNotFound), err == nil && t == nil:
		return nil, &failure{err: errNotStored, status: exitNotFound, hint: loginHint(ctx, source, l)}
	case err != nil:
		return nil, notRefreshed(err, source, l)
	}
	return t, nil
}

// safe is an error when a new token would be safe nowhere: neither a recovery file nor the store takes it, and this process
// ends. Of everything else the vault decides.
func safe(ctx context.Context, h *host, l login) error {
	_, nowhere := h.CheckRecovery(ctx)
	if nowhere == nil || h.Check(ctx) == nil || h.Reserved(ctx, l.provider, l.bucket) {
		return nil
	}
	return &failure{err: fmt.Errorf("the provider was not asked: its answer could be lost: %w", nowhere), hint: recoveryHint}
}

const recoveryHint = "make room, or make the directory one of your own that can be written; credproxy doctor checks it"

// How errors begin that cross the socket and have no code of their own; the details of a login's status begin so too.
const (
	saysClient = "the provider does not accept this client"
	saysUnsafe = "nothing can be written where"
	saysUnread = "the recovery files"
)

// notRefreshed says why there is no new token, in the words of whoever knows best.
func notRefreshed(err error, source tokens, l login) error {
	crossing, isCrossing := errors.AsType[*wire.Error](err)
	asked, wasAsked := errors.AsType[*vault.ProviderError](err)
	switch {
	case !isCrossing:
		return err
	case crossing.LoginNeeded():
		reason := strings.TrimPrefix(crossing.Message, wire.LoginNeededPrefix)
		return &failure{err: errors.New("a new login is needed: " + reason), status: exitLoginNeeded, hint: loginCommand(l)}
	case crossing.Code == wire.CodeRateLimited && crossing.RetryAfter > 0:
		again := atMost(time.Duration(crossing.RetryAfter) * time.Second)
		return &failure{err: errors.New(crossing.Message), status: exitRateLimited, hint: "try again in " + again}
	case crossing.Code == wire.CodeProviderNotFound:
		f := &failure{err: errors.New(crossing.Message), status: exitNotFound, hint: "describe it on the host, in [providers." + shown(l.provider, "NAME") + "] of the configuration"}
		if h, ok := source.(*host); ok {
			f.hint = "describe it in [providers." + shown(l.provider, "NAME") + "] of " + h.config.Path
		}
		return f
	case strings.HasPrefix(crossing.Message, saysClient):
		return &failure{err: errors.New(crossing.Message), status: exitFailed, hint: clientHint(source, l)}
	case strings.HasPrefix(crossing.Message, saysUnsafe):
		return &failure{err: errors.New(crossing.Message), status: exitFailed, hint: "on the host: " + recoveryHint}
	case strings.HasPrefix(crossing.Message, saysUnread):
		return &failure{err: err, status: exitFailed, hint: unreadHint}
	case wasAsked:
		hint := "try again later"
		if asked.RetryAfter > 0 {
			hint = "try again in " + atMost(max(asked.RetryAfter, askedEvery))
		}
		return &failure{err: asked, status: exitFailed, hint: hint + "; credproxy auth status shows how the login stands"}
	}
	return err
}

const unreadHint = "on the host, make the directory one of your own that can be read and written; credproxy doctor there checks it"

// askedEvery is the least time between two questions to a provider, from the beginning of the one to that of the next.
const askedEvery = 30 * time.Second

// clientHint says where a client that the provider does not accept is described.
func clientHint(source tokens, l login) string {
	section := "[providers." + shown(l.provider, "NAME") + "]"
	h, ok := source.(*host)
	if !ok {
		return "on the host, mend " + section + " of the configuration: credproxy doctor there says where it is"
	}
	return clientHintIn(section, h.config.Path)
}

func clientHintIn(section, path string) string {
	return "mend client_id, or the key that client_secret_key names, in " + section + " of " + path
}

// loginStatus is how the login stands, nil if that is not known.
func loginStatus(ctx context.Context, source tokens, l login) *wire.LoginStatus {
	var s *wire.LoginStatus
	var err error
	switch from := source.(type) {
	case *host:
		s, err = from.LoginStatus(ctx, l.provider, l.bucket)
	case *client.TokenStore:
		s, err = from.Status(ctx, l.provider, l.bucket)
	}
	if err != nil {
		return nil
	}
	return s
}

// warnUnsaved is loud about a new token that the store did not take, and says where it is.
func (a *app) warnUnsaved(source tokens, s *wire.LoginStatus, l login) (unsaved bool) {
	if s == nil || s.State != string(vault.StateUnsaved) {
		return false
	}
	hint := "credproxy doctor says what is wrong with the store"
	if inside() {
		hint += "; run it on the host"
	}
	what := l.full() + " has a new token: " + s.Detail
	if h, ok := source.(*host); ok {
		what += keptIn(h.RecoveryDir(l.provider, l.bucket), h.dirs.Recovery(h.StoreName())[0])
	}
	a.warn(what, hint)
	return true
}

// keptIn says where a token is that the store did not take; preferred is the directory that is meant for it.
func keptIn(dir, preferred string) string {
	switch dir {
	case "":
		return ""
	case preferred:
		return "; until then it is kept in " + dir
	}
	return "; until then it is kept in " + dir + ", which may not survive a restart of this machine"
}

// errLost is for a token that nothing but the memory of this process had.
func errLost(err error) error {
	return &failure{err: fmt.Errorf("the new login was in memory only, and is lost: %w", err), hint: "make room for the store and log in again"}
}
