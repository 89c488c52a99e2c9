package cli

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// A proxy holds little for long and much for moments: 500 connections, a few answers of megabytes. Both numbers are for
// that, and docs/benchmarks.md has what they do.
const (
	// gcPercent lets the heap grow by half, not to twice its size, before garbage is collected. Requests allocate next to
	// nothing, so this costs no time that can be measured.
	gcPercent = 50

	// lookEvery is how often keepSmall looks whether a load is over.
	lookEvery = 5 * time.Second
)

// keepSmall makes this process a small one for as long as it serves: what a load has made it allocate goes back to the
// system soon after the load has ended. Go by itself would keep it until a collection, which an idle process has no
// reason for. The caller calls stop, which waits for the goroutine.
func keepSmall() (stop func()) {
	old := debug.SetGCPercent(gcPercent)
	ctx, cancel := context.WithCancel(context.Background())
	var looking sync.WaitGroup
	looking.Go(func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		var l leftovers
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if l.after(allocated()) {
				debug.FreeOSMemory()
			}
		}
	})
	return func() {
		cancel()
		looking.Wait()
		debug.SetGCPercent(old)
	}
}

// allocated is the number of bytes that this process has ever allocated. Reading it stops the process for microseconds;
// runtime/metrics does not, for which its table of everything that can be asked stays in the memory of a process that asks for one.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

const (
	noLoad  = 256 << 10 // bytes allocated between two looks: no load
	worthIt = 4 << 20   // bytes allocated since memory was given back: it is worth a collection, some milliseconds
)

// leftovers tells when a load is over. The zero value is for the start of a process.
type leftovers struct{ seen, freed uint64 }

// after takes what has been allocated in all until now and reports whether memory is to be given back.
func (l *leftovers) after(total uint64) bool {
	recently := total - l.seen
	l.seen = total
	if recently > noLoad || total-l.freed < worthIt {
		return false
	}
	l.freed = total
	return true
}
