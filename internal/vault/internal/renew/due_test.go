package renew

import (
	"testing"
	"time"
)

func TestDue(t *testing.T) {
	const year = 365 * day
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		left, jitter, want time.Duration // want and left from now
	}{
		{-10 * year, 0, 30 * time.Second},
		{-time.Second, 29 * time.Second, 30 * time.Second},
		{0, 0, 30 * time.Second},
		{1, 0, time.Second},
		{1 * time.Second, 0, time.Second},
		{2 * time.Second, 0, time.Second},
		{3 * time.Second, 0, 1500 * time.Millisecond},
		{10 * time.Second, 29 * time.Second, 5 * time.Second},
		{23 * time.Second, 0, 11500 * time.Millisecond},
		{59 * time.Second, 0, 29500 * time.Millisecond},
		{60 * time.Second, 0, 30 * time.Second},
		{61 * time.Second, 0, 30500 * time.Millisecond},
		{121 * time.Second, 29 * time.Second, 60500 * time.Millisecond},
		{299 * time.Second, 0, 149500 * time.Millisecond},
		{300 * time.Second, 0, 150 * time.Second},
		{301 * time.Second, 0, time.Second},
		{301 * time.Second, time.Second, 150500 * time.Millisecond},
		{301 * time.Second, 29 * time.Second, 150500 * time.Millisecond},
		{330 * time.Second, 29 * time.Second, time.Second},
		{10 * time.Minute, 0, 5 * time.Minute},
		{50 * time.Minute, 0, 45 * time.Minute},
		{time.Hour, 0, 54 * time.Minute},
		{time.Hour, 29 * time.Second, 53*time.Minute + 31*time.Second},
		{8 * time.Hour, 0, 7*time.Hour + 12*time.Minute},
		{30 * day, 10 * time.Second, 27*day - 10*time.Second},
		{10 * year, 0, 9 * year},
		{290 * year, 0, 261 * year},
	} {
		if got := Due(now, now.Add(test.left), test.jitter); got != now.Add(test.want) {
			t.Errorf("%v left, jitter %v: due in %v, want %v", test.left, test.jitter, got.Sub(now), test.want)
		}
	}
}

// Answers that no clock can hold and numbers that no provider should send.
func TestDueExtremes(t *testing.T) {
	now := time.Now()
	if due := Due(now, time.Time{}, 0); !due.IsZero() {
		t.Errorf("unknown expiry: due %v", due)
	}
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // 8000 years: a Duration holds 292
	if due := Due(now, far, MaxJitter); due.Year() < 9900 || !due.Before(far) {
		t.Errorf("expires %v: due %v", far, due)
	}
	long := time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)
	if due := Due(now, long, 0); due.Sub(now.Round(0)) != Cooldown {
		t.Errorf("expired long ago: due in %v", due.Sub(now))
	}
	// A reading of the monotonic clock would decide the comparison and hide a suspend.
	if due := Due(now, now.Add(time.Hour), 0); due != due.Round(0) {
		t.Errorf("due %v has a monotonic reading", due)
	}
}

// For every lifetime: never at once, and before the expiry unless that is within the second. By the rule for short
// lifetimes half of what is left is kept for a provider that is not to be asked yet.
func TestDueForEveryLifetime(t *testing.T) {
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	for left := time.Duration(0); left < 2*time.Hour; left += 500 * time.Millisecond {
		for jitter := time.Duration(0); jitter <= MaxJitter; jitter += 7250 * time.Millisecond {
			due := Due(now, now.Add(left), jitter).Sub(now)
			switch {
			case due <= 0:
				t.Errorf("%v left, jitter %v: due in %v", left, jitter, due)
			case left == 0:
				if due != Cooldown {
					t.Errorf("expired: due in %v, want %v", due, Cooldown)
				}
			case left <= MinLead && due != max(left/2, time.Second):
				t.Errorf("%v left, jitter %v: due in %v, want half of it", left, jitter, due)
			case left > time.Second && due >= left:
				t.Errorf("%v left, jitter %v: due in %v", left, jitter, due)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	want := []time.Duration{30, 60, 120, 240, 480, 960, 1800, 1800, 1800, 1800}
	for i, seconds := range want {
		if got := retryAfter(i + 1); got != seconds*time.Second {
			t.Errorf("failure %d: wait %v, want %v s", i+1, got, seconds)
		}
	}
}

func TestJitter(t *testing.T) {
	s := New(Options{})
	seen := map[time.Duration]bool{}
	for range 10_000 {
		j := s.jitter()
		if j < 0 || j > MaxJitter {
			t.Fatalf("jitter %v", j)
		}
		seen[j.Truncate(time.Second)] = true
	}
	if len(seen) < 29 {
		t.Errorf("10,000 jitters fell into %d of 29 seconds", len(seen))
	}
}
