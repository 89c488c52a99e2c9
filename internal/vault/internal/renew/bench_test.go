package renew

import (
	"runtime"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// BenchmarkWatch: with 10,000 items, a token that is watched already (what every request may do), and one that is new.
func BenchmarkWatch(b *testing.B) {
	const items = 10_000
	names := make([]store.Item, items)
	for n := range names {
		names[n] = item(n)
	}
	expiry := time.Now().Add(time.Hour)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := New(Options{})
	for _, it := range names {
		s.Watch(it, expiry)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	perItem := float64(after.HeapAlloc-before.HeapAlloc) / items

	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			s.Watch(names[n%items], expiry)
		}
		b.ReportMetric(perItem, "B/item")
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			s.Watch(names[n%items], expiry.Add(time.Duration(n)*time.Second))
		}
	})
}
