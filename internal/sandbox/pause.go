package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrNotRunning is what [Sandbox.Pause] returns when no command runs, or when the one that does has been told to end.
	ErrNotRunning = errors.New("no command is running")
	// ErrRestless is what [Sandbox.Pause] and [Paused.Still] return when something in the sandbox runs that was stopped.
	ErrRestless = errors.New("the sandbox does not stand still")
)

const resumeLimit = 2 * time.Second // for whoever has paused, once Over is closed

// pauseLimit is for Pause: a process may be deep in the kernel. Only tests change it, before they begin.
var pauseLimit = 2 * time.Second

// pausing is what Run and Pause share.
type pausing struct {
	mu      sync.Mutex
	client  *process // nil: nothing runs, or it is about to end
	program string   // ours, for the waker; empty: none is needed
	paused  *Paused  // nil: nothing is paused
}

// Paused is a sandbox that stands still. Whoever got it calls Resume, soon after Over is closed at the latest.
type Paused struct {
	of      *pausing
	family  *family // set by take
	over    chan struct{}
	resume  sync.Once
	resumed chan struct{}
}

// Pause stops all that Run has started, so that somebody else can use the terminal: with bwrap the sandbox itself, which may have
// it open; with docker and podman the engine's client, through which all goes that the container reads and writes. When it
// returns without an error nothing of that runs any more. What was stopped before (a job after Ctrl-Z) stays so in the end.
//
// Should this process be killed meanwhile, the sandbox ends as it would have otherwise.
func (s *Sandbox) Pause(ctx context.Context) (*Paused, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, pauseLimit, ErrRestless)
	defer cancel()
	p := &Paused{of: &s.pausing, over: make(chan struct{}), resumed: make(chan struct{})}
	if err := s.pausing.take(p); err != nil {
		return nil, fmt.Errorf("pausing the sandbox: %w", err)
	}
	if err := p.family.stop(ctx, p.over); err != nil {
		p.Resume()
		return nil, fmt.Errorf("pausing the sandbox: %w", err)
	}
	return p, nil
}

// Over is closed when Run wants to go on: the command is to get a signal, or has ended. Run waits for Resume then, though not
// for long.
func (p *Paused) Over() <-chan struct{} { return p.over }

// Still returns ErrRestless if anything that was stopped has run since, or has ended. A process can be woken by a signal that it
// arranged beforehand (a timer, input on a terminal), and could have painted over a question that is being asked.
func (p *Paused) Still() error {
	select {
	case <-p.over:
		return ErrNotRunning
	default:
		return p.family.still()
	}
}

// Has reports whether a process group is one of the sandbox's. Our own may be one.
func (p *Paused) Has(pgrp int) bool { return p.family.has(pgrp) }

// Resume lets everything go on that Pause has stopped. Further calls do nothing.
func (p *Paused) Resume() {
	p.resume.Do(func() {
		p.family.resume()
		p.of.give(p)
		close(p.resumed)
	})
}

func (g *pausing) take(p *Paused) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.client == nil:
		return ErrNotRunning
	case g.paused != nil:
		return errors.New("it is paused already")
	}
	p.family = newFamily(g.client, g.program)
	g.paused = p
	return nil
}

func (g *pausing) give(p *Paused) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused == p {
		g.paused = nil
	}
}

// begin makes Pause work. A client that is not killed but told to end when we die would not hear of it while it is stopped: for it
// program, ours, is started as a waker.
func (g *pausing) begin(client *process, program string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.client, g.program = client, program
}

// goOn ends a pause, so that the command hears what it is sent; last says that there must be no further one. It belongs to the
// goroutine of Run. Who has paused gets the time limit to put things in order.
func (g *pausing) goOn(last bool, limit time.Duration) {
	g.mu.Lock()
	if last {
		g.client = nil
	}
	p := g.paused
	g.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case <-p.over:
	default:
		close(p.over)
	}
	select {
	case <-p.resumed:
	case <-time.After(limit):
		p.Resume()
	}
}
