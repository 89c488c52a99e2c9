package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// A Question is a login that a sandbox wants to begin, as a person on the host is told of it. Its strings are names, safe to
// print, and Terms is ours.
type Question struct {
	Profile, Provider, Bucket string
	Flow                      string      // "browser", "device" or "paste"; "" leaves it to the provider
	Terms                     string      // what the vendor says about such logins, as long as nobody has accepted it; a yes accepts it
	Replaces                  bool        // a login is stored under this name, and would be replaced
	Peer                      socket.Peer // who wants it
}

// How much of a person's attention a sandbox gets. It may begin and cancel logins as fast as the server lets it.
const (
	answerTime   = 25 * time.Second // for an answer: of the 29 that the request has, the rest is the provider's
	quietTime    = time.Minute      // without a question after a no
	retryAsking  = 5                // seconds, for those who come while somebody is asked
	lookTime     = 2 * time.Second  // to see whether a login is stored
	questions    = 5                // that end without an answer, at once, …
	questionsGap = 12 * time.Second // … and one more after each of these
	notices      = 10               // notices and log lines, likewise
	noticesGap   = 6 * time.Second
)

var (
	errDenied     = wire.E(wire.CodeUnauthorized, "the profile does not allow logging in from a sandbox")
	errNobody     = wire.E(wire.CodeUnauthorized, "the profile wants a person on the host to agree to the login, but nobody can be asked here; log in on the host: credproxy auth login")
	errRefused    = wire.E(wire.CodeUnauthorized, "a person on the host did not agree to the login")
	errQuiet      = wire.E(wire.CodeUnauthorized, "a person on the host did not agree to a login a moment ago; nobody is asked again for a minute")
	errUnanswered = wire.E(wire.CodeUnauthorized, "nobody on the host answered whether the login may begin; try again when somebody is there, or log in on the host: credproxy auth login")
	errAsking     = &wire.Error{Code: wire.CodeRateLimited, Message: "a person on the host is being asked about another login", RetryAfter: retryAsking}
	errEnding     = wire.E(wire.CodeInternal, "the proxy is shutting down")
	errTerms      = wire.E(wire.CodeInternal, "the host could not note that the vendor's terms are accepted; the proxy's log there says why")
)

// knowledge is what the policy asks of the vault.
type knowledge interface {
	CanBegin(provider, flow string) error
	Terms(provider string) (sentence string, accepted bool)
	AcceptTerms(provider string) error
	HasLogin(ctx context.Context, provider, bucket string) bool // true also when the store does not say
}

// policy decides whether a sandbox may begin a login that its profile has room for, and tells the host about it. allow may
// be called from any goroutine; mu guards what stands below it and is not held while somebody is asked.
type policy struct {
	profile      func() *config.Profile // the current one
	vault        knowledge
	ask          func(ctx context.Context, q Question) (bool, error) // nil: nobody can be asked
	askByDefault bool
	notice       func(q Question) // may be nil
	log          *slog.Logger
	ending       context.Context // ends with the proxy: a question must not keep it

	mu     sync.Mutex
	asking bool
	quiet  time.Time // no question before
	asked  allowance
	begun  telling // a flood of refused logins must not hide one that begins
	turned telling // away
}

// allow is server.Config.Login. The error is nil, or a *wire.Error, or that of ctx.
func (p *policy) allow(ctx context.Context, r server.LoginRequest) error {
	profile := p.profile()
	flow, err := vault.FlowNamed(r.Flow)
	if err != nil {
		return err
	}
	q := Question{Profile: profile.Name, Provider: r.Provider, Bucket: r.Bucket, Flow: flow, Peer: r.Peer}
	if profile.Login == config.LoginDeny { // the scope did not let it come here, unless it was edited just now
		return errDenied
	}
	if err := p.vault.CanBegin(r.Provider, flow); err != nil { // nobody is bothered in vain
		return err
	}
	switch {
	case profile.Login == config.LoginAsk || profile.Login == config.LoginUnset && p.askByDefault:
		err := p.question(ctx, &q)
		switch {
		case err != nil && ctx.Err() != nil:
			p.tell(&p.turned, slog.LevelInfo, "a sandbox no longer wants to log in: the question was withdrawn", q)
			return err
		case err != nil:
			err = naming(err, q)
			p.tell(&p.turned, slog.LevelWarn, "a sandbox may not log in", q, "reason", err.Error())
			return err
		}
	case p.notice != nil:
		p.look(ctx, &q)
	}
	if p.tell(&p.begun, slog.LevelInfo, "a sandbox logs in", q) && p.notice != nil {
		p.notice(q)
	}
	return nil
}

// naming completes a text that ends with the command by which the login could be made on the host.
func naming(err error, q Question) error {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || !strings.HasSuffix(e.Message, "credproxy auth login") {
		return err
	}
	name := q.Provider
	if q.Bucket != wire.DefaultBucket {
		name += "/" + q.Bucket
	}
	return wire.E(e.Code, e.Message+" "+name)
}

// question puts q, completed, to the person on the host, if it is the time for that. Without an error they have agreed.
func (p *policy) question(ctx context.Context, q *Question) error {
	if p.ask == nil {
		return errNobody
	}
	if err := p.begin(); err != nil {
		return err
	}
	yes, answered := false, false
	defer func() { p.end(yes, answered) }()

	p.look(ctx, q)
	if sentence, accepted := p.vault.Terms(q.Provider); !accepted {
		q.Terms = sentence
	}
	waiting, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer context.AfterFunc(p.ending, cancel)()
	agreed, err := p.ask(waiting, *q)
	switch {
	case err == nil:
		yes, answered = agreed, true
	case ctx.Err() != nil: // whoever asked for the login has gone
		return ctx.Err()
	case p.ending.Err() != nil:
		return errEnding
	case waiting.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return errUnanswered
	default:
		p.log.Error("nobody could be asked whether a login may begin", "error", err)
		return errNobody
	}
	if !yes {
		return errRefused
	}
	if q.Terms != "" {
		if err := p.vault.AcceptTerms(q.Provider); err != nil {
			p.log.Error("that the vendor's terms are accepted could not be noted", "provider", q.Provider, "error", err)
			return errTerms
		}
	}
	return nil
}

// begin takes the right to ask; end gives it back.
func (p *policy) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.asking {
		return errAsking
	}
	if now.Before(p.quiet) {
		return errQuiet
	}
	if wait := p.asked.take(now, questions, questionsGap); wait > 0 {
		return &wire.Error{Code: wire.CodeRateLimited, Message: "too many questions to a person on the host were not waited for",
			RetryAfter: int((wait + time.Second - 1) / time.Second)}
	}
	p.asking = true
	return nil
}

func (p *policy) end(yes, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = false
	if answered {
		p.asked.used = 0
		if !yes {
			p.quiet = time.Now().Add(quietTime)
		}
	}
}

// look sees whether q's login would replace one.
func (p *policy) look(ctx context.Context, q *Question) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	q.Replaces = p.vault.HasLogin(ctx, q.Provider, q.Bucket)
}

// telling is what has been told of logins, guarded by the policy's mu.
type telling struct {
	allowance
	missed int // since the last that was told
}

// tell logs what becomes of a login, and reports whether it did: of too many in a row only how many they were is logged.
func (p *policy) tell(t *telling, level slog.Level, what string, q Question, more ...any) bool {
	p.mu.Lock()
	missed := t.missed
	if t.take(time.Now(), notices, noticesGap) > 0 {
		t.missed++
		p.mu.Unlock()
		return false
	}
	t.missed = 0
	p.mu.Unlock()
	attrs := []any{"provider", q.Provider, "bucket", q.Bucket, "flow", q.Flow, "pid", q.Peer.PID, "uid", q.Peer.UID, "container", q.Peer.Container}
	if missed > 0 {
		more = append(more, "not_logged_before", missed)
	}
	p.log.Log(context.Background(), level, what, append(attrs, more...)...)
	return true
}

// allowance is so many at once, and one more after each gap.
type allowance struct {
	used int
	from time.Time // when one was given back last
}

// take uses one of most, or says how long it takes until there is one.
func (a *allowance) take(now time.Time, most int, gap time.Duration) (wait time.Duration) {
	back := int(min(max(now.Sub(a.from)/gap, 0), time.Duration(most)))
	a.from = a.from.Add(time.Duration(back) * gap)
	if a.used -= back; a.used <= 0 {
		a.used, a.from = 0, now
	}
	if a.used >= most {
		return a.from.Add(gap).Sub(now)
	}
	a.used++
	return 0
}
