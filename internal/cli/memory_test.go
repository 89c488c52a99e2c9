package cli

import (
	"runtime/debug"
	"testing"
)

func TestLeftovers(t *testing.T) {
	var l leftovers
	const mib = 1 << 20
	for i, step := range []struct {
		total uint64
		free  bool
	}{
		{3 * mib, false},               // starting
		{3*mib + 1, false},             // idle, and not worth it
		{50 * mib, false},              // a load
		{90 * mib, false},              // goes on
		{90*mib + 100<<10, true},       // is over
		{90*mib + 200<<10, false},      // once
		{90*mib + 200<<10 + 1, false},  //
		{92 * mib, false},              // a small one,
		{92 * mib, false},              // not worth it
		{95*mib + 200<<10, false},      // but together
		{95*mib + 200<<10 + 10, true},  // they are
		{95*mib + 200<<10 + 10, false}, //
	} {
		if got := l.after(step.total); got != step.free {
			t.Errorf("step %d, %d bytes: %v, want %v", i, step.total, got, step.free)
		}
	}
}

func TestKeepSmallIsUndone(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	stop := keepSmall()
	if got := debug.SetGCPercent(gcPercent); got != gcPercent {
		t.Errorf("GC percent is %d while serving", got)
	}
	stop()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GC percent is %d afterwards", got)
	}
	if allocated() == 0 {
		t.Error("nothing was ever allocated")
	}
}
