package store

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// known is what one check found. It does not change any more.
type known[V any] struct {
	value   V
	err     error // "not stored", or why value cannot be decoded
	failed  bool  // err says that the store did not answer: not to be remembered
	version string
	checked time.Time // when the check began: what it found is at least as new
	size    int       // bytes of the stored value
}

// cost is about how many bytes of memory k holds: a decoded value has most of the stored one more than once.
func (k *known[V]) cost() int64 {
	if k == nil {
		return 0
	}
	return 4 * int64(k.size)
}

func (k *known[V]) fresh() bool { return k != nil && time.Since(k.checked) < freshFor }

// A slot holds what is known of one thing in the store.
//
// last is read without mu and written with it. A check may store what it found only if gen still is what it was when the
// check began: writes and forced checks count gen up, so what was read before a write cannot come back after it.
type slot[V any] struct {
	last atomic.Pointer[known[V]]
	used atomic.Int64  // Unix milliseconds
	held *atomic.Int64 // of slots

	mu     sync.Mutex
	gen    uint64
	flight *flight[V] // the check that a reader may wait for
}

// flight is one running check. found is set before done is closed.
type flight[V any] struct {
	done  chan struct{}
	found *known[V]
}

// read returns what is known if it is fresh, and what a check finds otherwise: the one that is running, or with now a
// new one.
func (s *slot[V]) read(ctx context.Context, owner *checks, now bool, check func(context.Context, *known[V]) *known[V]) (none V, _ error) {
	if err := ctx.Err(); err != nil {
		return none, err
	}
	s.mu.Lock()
	if last := s.last.Load(); !now && last.fresh() {
		s.mu.Unlock()
		return last.value, last.err
	}
	f := s.flight
	if f == nil || now {
		if now {
			s.gen++
		}
		f = &flight[V]{done: make(chan struct{})}
		gen := s.gen
		if !owner.start(ctx, func(ctx context.Context) {
			f.found = check(ctx, s.last.Load())
			s.landed(f, gen)
			close(f.done)
		}) {
			s.mu.Unlock()
			return none, errClosed
		}
		s.flight = f
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.found.value, f.found.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func (s *slot[V]) landed(f *flight[V], gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == f {
		s.flight = nil
	}
	if s.gen == gen && !f.found.failed {
		s.remember(f.found)
	}
}

// begin says that a write starts; end, that it is over and left now, nil for "unknown". If another write, or a forced check,
// began in between, nobody knows which value the store has, and the next read asks it. After end no reader joins a check
// that began before.
func (s *slot[V]) begin() (gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	s.flight = nil
	return s.gen
}

func (s *slot[V]) end(begun uint64, now *known[V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen != begun {
		now = nil
	}
	s.gen++
	s.flight = nil
	s.remember(now)
}

// remember replaces what is known. The caller has mu.
func (s *slot[V]) remember(k *known[V]) { s.held.Add(k.cost() - s.last.Swap(k).cost()) }

// drop makes the slot unknown. A check or a write that is on its way is not disturbed: it leaves what it finds.
func (s *slot[V]) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remember(nil)
}

func (s *slot[V]) idle(now time.Time) bool {
	limit := idleFor
	if last := s.last.Load(); last == nil || last.err != nil {
		limit = idleAbsent
	}
	return now.Sub(time.UnixMilli(s.used.Load())) > limit
}

// slots is a map of slots that drops the idle ones. The zero value is ready.
type slots[K comparable, V any] struct {
	mu   sync.RWMutex // guards m; a slot is marked as used with mu held, so none is dropped between get and its use
	m    map[K]*slot[V]
	held atomic.Int64 // the cost of all that is known in them
}

// peek returns the slot for a look at what is known, which does not count as use: what is known for longer than a moment is
// looked for with get.
func (t *slots[K, V]) peek(k K) *slot[V] {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[k]
}

func (t *slots[K, V]) get(k K) *slot[V] {
	now := time.Now()
	t.mu.RLock()
	s := t.m[k]
	if s != nil {
		s.touch(now)
	}
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.m[k]; s == nil {
		if t.m == nil {
			t.m = make(map[K]*slot[V])
		}
		s = &slot[V]{held: &t.held}
		t.m[k] = s
	}
	s.touch(now)
	return s
}

// touch marks the slot as used, about once a second: many readers of one item should not fight for its cache line.
func (s *slot[V]) touch(now time.Time) {
	if ms := now.UnixMilli(); ms-s.used.Load() >= 1000 {
		s.used.Store(ms)
	}
}

// sweep drops idle slots among the few that it looks at. A range over a map begins anywhere, so in time it finds all;
// there is no timer, and no request pays for more than a few.
func (t *slots[K, V]) sweep() {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := 0
	for k, s := range t.m {
		if s.idle(now) {
			s.drop()
			delete(t.m, k)
		}
		if seen++; seen == sweepAtOnce {
			return
		}
	}
}

// shrink makes slots unknown, any but the one of k, when they hold more than they may: who stores or reads many long values
// gets them from the store again, and does not fill the memory of this process. Half goes at once, so that it is rare.
func (t *slots[K, V]) shrink(k K) {
	if t.held.Load() <= maxHeld {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for other, s := range t.m {
		if t.held.Load() <= maxHeld/2 {
			return
		}
		if other != k {
			s.drop()
		}
	}
}

// forget makes every slot unknown. Slots stay: a write may be on its way in one.
func (t *slots[K, V]) forget() {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range t.m {
		s.end(0, nil)
	}
}
