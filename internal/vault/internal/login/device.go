package login

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

const (
	minInterval  = time.Second
	slowDownStep = 5 * time.Second // RFC 8628 section 3.5
	maxBackOff   = time.Minute
)

// device is what a login by device code polls with. Its fields but the interval belong to whoever calls Wait.
type device struct {
	code     *provider.Device
	begun    time.Time
	expires  deadline
	interval atomic.Int64 // nanoseconds; written by poll
}

func (l *Login) startDevice(ctx context.Context, p *provider.Provider) error {
	d, err := l.client.StartDevice(ctx, p, l.secret)
	if err != nil {
		return err
	}
	l.URL, l.URLComplete, l.UserCode = d.VerificationURL, d.VerificationURLComplete, d.UserCode
	l.Interval, l.Lifetime = max(d.Interval, minInterval), d.Lifetime
	now := time.Now()
	l.device = &device{code: d, begun: now, expires: newDeadline(now, d.Lifetime)}
	l.device.interval.Store(int64(l.Interval))
	return nil
}

// poll asks until there is an answer (RFC 8628 sections 3.4 and 3.5): an interval after the beginning for the first time,
// and never when the code's lifetime is over.
func (l *Login) poll(ctx context.Context) (*grant.Grant, error) {
	d := l.device
	interval := l.Interval
	pause := interval
	for next := d.begun.Add(pause); ; next = time.Now().Add(pause) {
		if err := d.sleep(ctx, next); err != nil {
			return nil, err
		}
		g, err := l.client.PollDevice(ctx, d.code, l.secret)
		failed, ok := errors.AsType[*provider.Error](err)
		if !ok || ctx.Err() != nil {
			return g, err
		}
		switch failed.Kind {
		case provider.Pending:
			pause = interval
		case provider.SlowDown:
			// "the interval MUST be increased by 5 seconds for this and all subsequent requests", unless the provider
			// names one that is longer.
			if failed.Interval > interval {
				interval = failed.Interval
			} else {
				interval += slowDownStep
			}
			d.interval.Store(int64(interval))
			pause = interval
		case provider.Transient:
			// "the client MUST unilaterally reduce its polling frequency", by exponential backoff.
			pause = max(interval, min(2*pause, maxBackOff))
		case provider.Expired:
			return nil, ErrExpired
		default:
			return nil, err
		}
		pause = max(pause, failed.RetryAfter)
	}
}

// sleep returns nil at next, ErrExpired when the code expires before that, and ctx's error.
func (d *device) sleep(ctx context.Context, next time.Time) error {
	timer := time.NewTimer(min(time.Until(next), time.Until(d.expires.running)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	if d.expires.passed(time.Now()) {
		return ErrExpired
	}
	return nil
}

// deadline is a moment by both clocks, whichever gets there first. The running clock stands still while the machine is
// suspended, the wall clock may be set back.
type deadline struct {
	running time.Time // with a monotonic reading
	wall    time.Time // without
}

func newDeadline(now time.Time, after time.Duration) deadline {
	return deadline{running: now.Add(after), wall: now.Round(0).Add(after)}
}

func (d deadline) passed(now time.Time) bool {
	return !now.Before(d.running) || !now.Round(0).Before(d.wall)
}

// left is how long it is until then, 0 at least.
func (d deadline) left(now time.Time) time.Duration {
	return max(0, min(d.running.Sub(now), d.wall.Sub(now.Round(0))))
}
