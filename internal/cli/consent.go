package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"unicode"

	"github.com/credproxy/credproxy/internal/daemon"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/internal/socket"
)

// consent asks the person at this process's terminal whether a sandbox may log in, and tells them that one does. Its methods may
// be called by any goroutine. The sandbox is not to be trusted: it may show what it likes before the question, make the
// terminal send things, and read what is typed; so it is stopped before anything is shown, and has no part in the answer.
type consent struct {
	log  *slog.Logger
	held *heldLog // what this process itself prints on that terminal; nil: nothing

	// Of run, whose command has the terminal: nobody is asked before it runs.
	mustPause bool

	mu      sync.Mutex // held while somebody is asked: one question at a time
	sandbox *sandbox.Sandbox
	agreed  daemon.Question // to which the person agreed last
}

var (
	errNoTerminal = errors.New("this process has no terminal")
	errElsewhere  = errors.New("another program has the terminal at present")
)

// runs says what is to be paused when somebody is asked.
func (c *consent) runs(s *sandbox.Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sandbox = s
}

// ask is daemon.Options.Ask. Without an error the person has answered; what is no clear yes is a no. An error is that of ctx, or
// says why nobody could be asked.
func (c *consent) ask(ctx context.Context, q daemon.Question) (agreed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agreed = daemon.Question{}
	t, err := openTTY()
	if err != nil {
		return false, err
	}
	defer t.close()
	if c.held != nil {
		defer c.held.hold()()
	}
	var paused *sandbox.Paused
	if c.mustPause {
		if c.sandbox == nil {
			return false, sandbox.ErrNotRunning
		}
		if paused, err = c.sandbox.Pause(ctx); err != nil {
			return false, err
		}
		defer func() {
			if t.asked {
				t.redraw()
			}
		}()
		defer paused.Resume()
		t.over = paused.Over()
	}
	if err := t.take(func(pgrp int) bool { return paused != nil && paused.Has(pgrp) }); err != nil {
		return false, err
	}
	defer t.giveBack()
	agreed, err = t.ask(ctx, questionLines(q))
	if agreed && paused != nil {
		if err := paused.Still(); err != nil {
			c.log.Error("a sandbox did not stand still while a person was asked about its login: their answer does not count", "error", err)
			agreed = false
		}
	}
	switch {
	case agreed:
		t.say("allowed")
		c.agreed = q
	case errors.Is(err, context.DeadlineExceeded):
		t.say("no answer: not allowed")
	case errors.Is(err, context.Canceled), errors.Is(err, errOver):
		t.say("withdrawn")
	default:
		t.say("not allowed")
	}
	return agreed, err
}

// notice is daemon.Options.Notice of run: one line, unless the person has just agreed to that login.
func (c *consent) notice(q daemon.Question) {
	if !c.mu.TryLock() {
		return // a question is on the screen
	}
	defer c.mu.Unlock()
	told := q == c.agreed
	c.agreed = daemon.Question{}
	if told {
		return
	}
	t, err := openTTY()
	if err != nil {
		return // the log says it too
	}
	defer t.close()
	replaces := ""
	if q.Replaces {
		replaces = ", in place of the login that is stored"
	}
	// The command may have put the terminal into any mode.
	t.write(fmt.Sprintf("\r\ncredproxy: the sandbox (%s) asks to log in to %s%s\r\n", asker(q.Peer), loginOf(q), replaces))
}

// questionLines is what a person is told before they are asked, a line a fact.
func questionLines(q daemon.Question) []string {
	how := map[string]string{"browser": ", in the browser", "device": ", by a device code", "paste": ", by a pasted code"}[q.Flow]
	lines := []string{
		"credproxy: a sandbox asks to log in",
		"  who:      " + asker(q.Peer) + ", with the profile " + printable(q.Profile),
		"  for:      " + loginOf(q) + how,
	}
	if q.Replaces {
		lines = append(lines, "  replaces: the login that is stored under this name")
	}
	if q.Terms != "" {
		lines = append(lines, "  terms:    "+printable(q.Terms), "            (to allow it is to accept them)")
	}
	return lines
}

func loginOf(q daemon.Question) string { return printable(q.Provider) + "/" + printable(q.Bucket) }

// asker says what is known of the process that asks.
func asker(p socket.Peer) string {
	who := "a process"
	if p.PID > 0 {
		who = fmt.Sprintf("pid %d", p.PID)
	}
	if p.Container != "" && !strings.HasPrefix(p.Container, "pidns:") { // which nobody would recognise
		who += " in container " + printable(p.Container)
	}
	return who
}

// printable keeps what a terminal only shows, and not too much of it.
func printable(s string) string {
	const most = 400
	var b strings.Builder
	for i, r := range []rune(s) {
		switch {
		case i == most:
			return b.String() + "..."
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// heldLog is where a log goes that shares a terminal with questions: while one is on the screen, it waits.
type heldLog struct {
	to io.Writer

	mu      sync.Mutex
	holding bool
	waiting []byte
}

// maxHeld is how much of a log waits, in bytes; more is dropped. A question does not last long.
const maxHeld = 64 << 10

func (h *heldLog) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.holding {
		return h.to.Write(b)
	}
	if len(h.waiting)+len(b) <= maxHeld {
		h.waiting = append(h.waiting, b...)
	}
	return len(b), nil
}

func (h *heldLog) hold() (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		_, _ = h.to.Write(h.waiting)
		h.holding, h.waiting = false, nil
	}
}
