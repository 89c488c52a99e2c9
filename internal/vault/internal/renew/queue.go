package renew

import (
	"container/heap"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// An entry is a watched item. The Scheduler's lock guards it.
type entry struct {
	item     store.Item
	expiry   time.Time     // of the token that is watched; zero: forgotten, kept only until the renewal returns
	due      time.Time     // of the next renewal, or of the one that is running
	wait     time.Duration // due, seen from when it was scheduled
	begun    time.Time     // the last renewal; with its monotonic reading, for time.Since alone
	failures int           // in a row
	place    int           // in the queue, or notQueued
	running  bool          // a renewal
	outdated bool          // what the running renewal answers is dropped: the item was watched anew or forgotten since
}

const notQueued = -1

// A queue is a heap of entries, the one that is due first at index 0.
type queue []*entry

func (q *queue) init() { heap.Init((*entryHeap)(q)) }

// put adds e, or moves it to where its due time belongs.
func (q *queue) put(e *entry) {
	if e.place == notQueued {
		heap.Push((*entryHeap)(q), e)
	} else {
		heap.Fix((*entryHeap)(q), e.place)
	}
}

// remove takes e out, if it is in.
func (q *queue) remove(e *entry) {
	if e.place != notQueued {
		heap.Remove((*entryHeap)(q), e.place)
	}
}

// entryHeap has the methods that container/heap wants.
type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.place = len(*h)
	*h = append(*h, e)
}

func (h *entryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = notQueued
	return e
}
