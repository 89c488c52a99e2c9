package bridge

import (
	"log/slog"
	"sync"
	"time"
)

// So many refused connections are told one by one, and one more every refusalInterval.
const (
	toldRefusals    = 16
	refusalInterval = 2 * time.Second
)

// refusals tells the log and the owner about refused connections, within a limit: anybody on this machine can make them.
type refusals struct {
	log  *slog.Logger
	tell func(remote string, why error) // nil: nobody

	mu     sync.Mutex
	told   bucket
	missed int // since the last that was told
}

func (r *refusals) note(remote string, why error) {
	ok, missed := r.take(time.Now())
	if !ok {
		return
	}
	args := []any{"remote", remote, "reason", why.Error()}
	if missed > 0 {
		args = append(args, "not_logged", missed)
	}
	r.log.Warn("a connection to the sandbox's listener was refused", args...)
	if r.tell != nil {
		r.tell(remote, why)
	}
}

// take reports whether a refusal at now is to be told, and how many before it were not.
func (r *refusals) take(now time.Time) (ok bool, missed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.told.take(now, toldRefusals, refusalInterval) {
		r.missed++
		return false, 0
	}
	missed, r.missed = r.missed, 0
	return true, missed
}

// bucket gives out so many at once, and one more every interval. The zero value is full.
type bucket struct {
	taken int
	from  time.Time // when the last was given back
}

func (b *bucket) take(now time.Time, most int, interval time.Duration) bool {
	back := int(min(max(now.Sub(b.from)/interval, 0), time.Duration(most)))
	b.from = b.from.Add(time.Duration(back) * interval)
	if b.taken -= back; b.taken <= 0 {
		b.taken, b.from = 0, now
	}
	if b.taken >= most {
		return false
	}
	b.taken++
	return true
}
