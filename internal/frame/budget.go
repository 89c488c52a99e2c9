package frame

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// freeLen is the number of bytes that a frame may have without asking the budget.
const freeLen = 64 << 10

// Budget is the number of bytes that all connections of a server may hold together for frames beyond 64 KiB each. A
// reader takes what its frame will need in one piece, once the first 64 KiB have arrived, so readers never hold parts
// that the others wait for. Requests are served in order. A nil Budget has no end.
type Budget struct {
	size int64
	sem  *semaphore.Weighted
}

// NewBudget returns a budget of size bytes.
func NewBudget(size int) *Budget {
	return &Budget{int64(size), semaphore.NewWeighted(int64(size))}
}

// acquire takes n bytes, or all there are if that is less, and returns how many it took. It waits until ctx is done.
func (b *Budget) acquire(ctx context.Context, n int) (int64, error) {
	if b == nil {
		return 0, nil
	}
	take := min(int64(n), b.size)
	return take, b.sem.Acquire(ctx, take)
}

func (b *Budget) release(n int64) {
	if b != nil && n > 0 {
		b.sem.Release(n)
	}
}
