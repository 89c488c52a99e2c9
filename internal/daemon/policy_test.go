package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

// memKnowledge knows what is stored and which terms are accepted, and forgets nothing.
type memKnowledge struct {
	mu       sync.Mutex
	stored   map[string]bool // "provider/bucket"
	terms    map[string]string
	accepted map[string]bool
	fault    error
}

func (k *memKnowledge) Terms(provider string) (string, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.terms[provider], k.terms[provider] == "" || k.accepted[provider]
}

var errNothingToBegin = wire.E(wire.CodeProviderNotFound, "no such provider")

func (k *memKnowledge) CanBegin(provider, _ string) error {
	if provider == "unknown" {
		return errNothingToBegin
	}
	return nil
}

func (k *memKnowledge) AcceptTerms(provider string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fault != nil {
		return k.fault
	}
	k.accepted[provider] = true
	return nil
}

func (k *memKnowledge) HasLogin(_ context.Context, provider, bucket string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fault != nil || k.stored[provider+"/"+bucket]
}

// host is a policy with a person: they read each question and answer after a while, unless it is withdrawn before.
type host struct {
	policy
	know    *memKnowledge
	login   atomic.Value // config.LoginPolicy
	out     bytes.Buffer
	end     context.CancelFunc
	mu      sync.Mutex
	asked   []Question
	notices []Question
	answer  bool
	after   time.Duration
	fault   error
}

// same reports whether err is the one that is wanted, with the login's name behind it if it says how to log in on the host.
func same(err, want error) bool {
	return err == want || err != nil && want != nil && err.Error() == want.Error()+" acme"
}

func newHost(login config.LoginPolicy, somebody bool) *host {
	h := &host{know: &memKnowledge{stored: map[string]bool{}, terms: map[string]string{}, accepted: map[string]bool{}}, answer: true, after: time.Second}
	h.login.Store(login)
	h.vault, h.log = h.know, slog.New(slog.NewTextHandler(&h.out, nil))
	h.ending, h.end = context.WithCancel(context.Background())
	h.profile = func() *config.Profile {
		return &config.Profile{Name: "work", Login: h.login.Load().(config.LoginPolicy)}
	}
	h.notice = func(q Question) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.notices = append(h.notices, q)
	}
	if somebody {
		h.ask = h.person
	}
	return h
}

func (h *host) person(ctx context.Context, q Question) (bool, error) {
	h.mu.Lock()
	h.asked = append(h.asked, q)
	answer, after, fault := h.answer, h.after, h.fault
	h.mu.Unlock()
	if fault != nil {
		return false, fault
	}
	select {
	case <-time.After(after):
		return answer, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

func (h *host) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

var peer = socket.Peer{UID: 1000, PID: 4711, Container: "3f2a9c0b1d4e"}

func wish(provider string) server.LoginRequest {
	return server.LoginRequest{Provider: provider, Bucket: "default", Flow: wire.FlowDeviceCode, Peer: peer}
}

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		login     config.LoginPolicy
		byDefault bool
		somebody  bool
		asked     bool
		want      error
	}{
		{config.LoginAllow, false, false, false, nil},
		{config.LoginAllow, true, true, false, nil},
		{config.LoginUnset, false, false, false, nil},
		{config.LoginUnset, false, true, false, nil},
		{config.LoginUnset, true, true, true, nil},
		{config.LoginUnset, true, false, false, errNobody},
		{config.LoginAsk, false, true, true, nil},
		{config.LoginAsk, false, false, false, errNobody},
		{config.LoginDeny, true, true, false, errDenied},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(tt.login, tt.somebody)
			h.askByDefault = tt.byDefault
			err := h.allow(t.Context(), wish("acme"))
			if !same(err, tt.want) || len(h.asked) != map[bool]int{true: 1}[tt.asked] || len(h.notices) != map[bool]int{true: 1}[tt.want == nil] {
				t.Errorf("%+v: %v, %d questions, %d notices", tt, err, len(h.asked), len(h.notices))
			}
			want := Question{Profile: "work", Provider: "acme", Bucket: "default", Flow: "device", Peer: peer}
			for _, q := range append(h.asked, h.notices...) {
				if q != want {
					t.Errorf("%+v: told %+v, want %+v", tt, q, want)
				}
			}
			log := h.out.String()
			if strings.Contains(log, "provider=acme bucket=default flow=device pid=4711 uid=1000 container=3f2a9c0b1d4e") == (tt.want == errDenied) {
				t.Errorf("%+v: the log is %q", tt, log)
			}
		})
	}
	// Nobody is bothered for what does not exist.
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		if err := h.allow(t.Context(), wish("unknown")); !errors.Is(err, errNothingToBegin) || len(h.asked)+len(h.notices)+h.out.Len() != 0 {
			t.Errorf("%v, %d questions, %d notices", err, len(h.asked), len(h.notices))
		}
	})
	// The profile of this moment counts.
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAllow, true)
		_ = h.allow(t.Context(), wish("acme"))
		h.login.Store(config.LoginAsk)
		if err := h.allow(t.Context(), wish("acme")); err != nil || len(h.asked) != 1 {
			t.Errorf("edited to ask: %v, %d questions", err, len(h.asked))
		}
	})
}

// What the person reads is what matters for their answer.
func TestQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		h.know.stored["acme/default"] = true
		h.know.terms["acme"] = "the vendor does not permit this"
		h.answer = false
		if err := h.allow(t.Context(), wish("acme")); err != errRefused || !h.asked[0].Replaces || h.asked[0].Terms != "the vendor does not permit this" {
			t.Errorf("%v, asked %+v", err, h.asked)
		}
		if _, accepted := h.know.Terms("acme"); accepted {
			t.Error("a no accepted the terms")
		}
		time.Sleep(quietTime)
		h.answer = true
		if err := h.allow(t.Context(), wish("acme")); err != nil {
			t.Error(err)
		}
		if _, accepted := h.know.Terms("acme"); !accepted {
			t.Error("a yes to the terms is not noted")
		}
		if err := h.allow(t.Context(), wish("acme")); err != nil || h.asked[2].Terms != "" || !h.asked[2].Replaces {
			t.Errorf("%v, asked %+v", err, h.asked[2])
		}
		// A store that does not answer may hold a login; terms that cannot be noted are not accepted.
		h.know.terms["other"] = "nor does this one"
		h.know.fault = errors.New("test-detail-1")
		if err := h.allow(t.Context(), wish("other")); err != errTerms || !h.asked[3].Replaces || strings.Contains(err.Error(), "test-detail-1") {
			t.Errorf("%v, asked %+v", err, h.asked[3])
		}
		if !strings.Contains(h.out.String(), "test-detail-1") {
			t.Error("the log does not say why")
		}
	})
}

// A person is asked one thing at a time, and not at all for a minute after a no.
func TestOneQuestionAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		h.answer, h.after = false, 3*time.Second
		var first error
		var wg sync.WaitGroup
		wg.Go(func() { first = h.allow(context.Background(), wish("acme")) })
		synctest.Wait()
		for range 100 {
			if err := h.allow(t.Context(), wish("other")); !errors.Is(err, wire.ErrRateLimited) || err.(*wire.Error).RetryAfter != 5 {
				t.Fatalf("meanwhile: %v", err)
			}
		}
		wg.Wait()
		if first != errRefused || len(h.asked) != 1 {
			t.Errorf("%v, %d questions", first, len(h.asked))
		}
		h.set(func() { h.answer = true })
		time.Sleep(quietTime - time.Nanosecond)
		for range 100 {
			if err := h.allow(t.Context(), wish("acme")); err != errQuiet {
				t.Fatalf("before the minute is over: %v", err)
			}
		}
		time.Sleep(time.Nanosecond)
		if err := h.allow(t.Context(), wish("acme")); err != nil || len(h.asked) != 2 {
			t.Errorf("after the minute: %v, %d questions", err, len(h.asked))
		}
		if n := strings.Count(h.out.String(), "\n"); n > 2*notices+2 { // in a good minute
			t.Errorf("%d lines in the log for 200 requests", n)
		}
		if len(h.notices) != 1 {
			t.Errorf("%d notices for one login", len(h.notices))
		}
	})
}

// A question ends with its time, with the request it is about, and with the proxy; none of that is a no.
func TestQuestionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		h.after = time.Hour
		begun := time.Now()
		if err := h.allow(t.Context(), wish("acme")); !same(err, errUnanswered) || time.Since(begun) != answerTime {
			t.Errorf("unanswered: %v after %v", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if err := h.allow(ctx, wish("acme")); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("the request is over: %v after %v", err, time.Since(begun))
		}
		h.fault = errors.New("test-detail-1: the terminal is gone")
		if err := h.allow(t.Context(), wish("acme")); !same(err, errNobody) || !strings.Contains(h.out.String(), "test-detail-1") {
			t.Errorf("the terminal is gone: %v", err)
		}
		h.fault = nil
		time.AfterFunc(2*time.Second, h.end)
		begun = time.Now()
		if err := h.allow(t.Context(), wish("acme")); err != errEnding || time.Since(begun) != 2*time.Second {
			t.Errorf("the proxy ends: %v after %v", err, time.Since(begun))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		h.after = time.Hour
		_ = h.allow(t.Context(), wish("acme"))
		h.after = answerTime - time.Nanosecond
		if err := h.allow(t.Context(), wish("acme")); err != nil {
			t.Errorf("answered at the last moment, after one that was not: %v", err)
		}
	})
}

// A sandbox that begins and withdraws logins as fast as it can fills neither the screen nor the log.
func TestQuestionsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAsk, true)
		begun := time.Now()
		var last error
		for time.Since(begun) < time.Minute {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			last = h.allow(ctx, wish("acme"))
			cancel()
			time.Sleep(50 * time.Millisecond)
		}
		if e, ok := errors.AsType[*wire.Error](last); !ok || e.Code != wire.CodeRateLimited || e.RetryAfter < 1 || e.RetryAfter > 12 {
			t.Errorf("in the end: %v", last)
		}
		if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || len(h.asked) < most-1 {
			t.Errorf("%d questions in a minute, want %d or one less", len(h.asked), most)
		}
		if n, most := strings.Count(h.out.String(), "\n"), notices+int(time.Minute/noticesGap); n > most {
			t.Errorf("%d lines in the log, want at most %d", n, most)
		}
		time.Sleep(questionsGap)
		if err := h.allow(t.Context(), wish("acme")); err != nil {
			t.Errorf("later: %v", err)
		}
		// An answer makes up for what was withdrawn.
		for range questions {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := h.allow(ctx, wish("acme")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after an answer: %v", err)
			}
			cancel()
		}
	})
}

func TestNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(config.LoginAllow, false)
		h.know.stored["acme/default"] = true
		for range 1000 {
			if err := h.allow(t.Context(), wish("acme")); err != nil {
				t.Fatal(err)
			}
		}
		if len(h.notices) != notices || !h.notices[0].Replaces {
			t.Errorf("%d notices, want %d", len(h.notices), notices)
		}
		time.Sleep(noticesGap)
		_ = h.allow(t.Context(), wish("acme"))
		if len(h.notices) != notices+1 || !strings.Contains(h.out.String(), fmt.Sprintf("not_logged_before=%d\n", 1000-notices)) {
			t.Errorf("%d notices, and the log is\n%s", len(h.notices), h.out.String())
		}
		h.notice = nil
		if err := h.allow(t.Context(), wish("acme")); err != nil {
			t.Errorf("nobody wants notices: %v", err)
		}
	})
}
