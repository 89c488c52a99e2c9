package sandbox

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// patience is how long Pause waits for a thread that sleeps in the kernel where signals do not reach it. After that it counts
// as stopped if it is about to be: it cannot return to its program any more.
const patience = 200 * time.Millisecond

// settled is how long nothing must have run.
const settled = 100 * time.Millisecond

// procID is a process for as long as the machine runs: numbers are used again.
type procID struct {
	pid   int
	start uint64 // clock ticks since boot
}

// procStat is what is needed of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	procID
	ppid, pgrp int
}

// thread is the state of one thread and how often it has given up a CPU. What has run since has done so more often, or is about
// to: then its state says that it runs.
type thread struct {
	state    byte // R, S, D, T, t, Z, X
	stopping bool // a stop signal waits for it
	switches uint64
}

// family is a process and all below it. mu guards the fields; what is done to the processes is done under it.
type family struct {
	client  *process
	program string // for the waker; empty: none is needed

	mu      sync.Mutex
	waker   *waker
	root    procID // the client; its zero value: it has ended
	order   []procID
	ours    map[procID]bool // whether we stopped it; it may have been stopped before
	groups  map[int]bool
	stood   map[procID]map[int]thread // as everything stood still
	resumed bool
}

func newFamily(client *process, program string) *family {
	t := &family{client: client, program: program, ours: map[procID]bool{}}
	if s, err := readStat(client.Pid); err == nil && s.ppid == os.Getpid() {
		t.root = s.procID
	}
	return t
}

// stop stops the family, parents before children, so that no parent sees its child stop: an interactive shell would take the
// terminal then. It looks again until nothing new has appeared and nothing has run for a while: a thread counts as stopped a
// moment before it leaves its processor, which on a busy machine may be a long moment.
func (t *family) stop(ctx context.Context, over <-chan struct{}) error {
	begun, since := time.Now(), time.Now()
	var before map[procID]map[int]thread
	for {
		procs, err := t.round(ctx, over)
		if err != nil {
			return err
		}
		now := threadsOf(procs)
		if !equal(before, now) {
			since = time.Now()
		} else if stands(now, time.Since(begun) > patience) && time.Since(since) >= settled {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.stood, t.groups = now, map[int]bool{}
			for _, p := range procs {
				t.groups[p.pgrp] = true
			}
			return nil
		}
		before = now
		select {
		case <-time.After(5 * time.Millisecond):
		case <-over:
			return ErrNotRunning
		case <-t.client.done:
			return ErrNotRunning
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// round sends SIGSTOP to whatever runs in the family, and returns all that is in it. The waker hears of a process before that is
// stopped.
func (t *family) round(ctx context.Context, over <-chan struct{}) (procs []procStat, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resumed {
		return nil, ErrNotRunning
	}
	if t.program != "" && t.waker == nil {
		if t.waker, err = startWaker(t.program); err != nil {
			return nil, err
		}
	}
	if procs = descendants(t.root); len(procs) == 0 {
		return nil, ErrNotRunning
	}
	for _, p := range procs {
		if _, known := t.ours[p.procID]; !known {
			t.order = append(t.order, p.procID)
			t.ours[p.procID] = false
		}
		if stopped(readThreads(p.procID)) {
			continue // by us, by Ctrl-Z, or by a debugger that is in the family itself
		}
		if t.waker != nil {
			if err := t.waker.add(p.procID); err != nil {
				return nil, err
			}
		}
		t.ours[p.procID] = true
		if err := p.signal(syscall.SIGSTOP); err != nil {
			return nil, err
		}
		t.await(ctx, over, p.procID)
	}
	return procs, nil
}

// await waits until a process that has got SIGSTOP has stopped. On a busy machine that is when it has had a processor, for each of its
// threads: before that none of its children may stop. One that sleeps where no signal reaches it is waited for a moment only.
func (t *family) await(ctx context.Context, over <-chan struct{}, p procID) {
	for i := 0; ; i++ {
		threads := readThreads(p)
		if stopped(threads) || i >= 20 && !wakes(threads) {
			return
		}
		select {
		case <-time.After(time.Millisecond / 2):
		case <-over:
			return
		case <-t.client.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// wakes reports whether a thread is yet to hear of a signal that wakes it.
func wakes(threads map[int]thread) bool {
	for _, th := range threads {
		if th.state == 'R' || th.state == 'S' {
			return true
		}
	}
	return false
}

// still compares the family with what it was when it stood.
func (t *family) still() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resumed {
		return ErrNotRunning
	}
	if !equal(t.stood, threadsOf(descendants(t.root))) {
		return ErrRestless
	}
	return nil
}

func (t *family) has(pgrp int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.groups[pgrp]
}

// resume lets what we have stopped go on, children before parents: what a parent finds is a child that runs.
func (t *family) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resumed = true
	for _, p := range slices.Backward(t.order) {
		if t.ours[p] {
			_ = p.signal(syscall.SIGCONT) // it may have been killed
		}
	}
	if t.waker != nil {
		t.waker.end()
		t.waker = nil
	}
}

// signal does nothing to a process that has ended, or to another that has got its number.
func (p procID) signal(sig syscall.Signal) error {
	h, err := openHandle(p.pid)
	if err != nil {
		return ignoreEnded(err)
	}
	defer h.close()
	if now, err := readStat(p.pid); err != nil || now.procID != p {
		return nil
	}
	return ignoreEnded(h.signal(sig))
}

func ignoreEnded(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// descendants returns a process and all that descend from it, each before its children; nothing if it has ended. A process that is a
// zombie is there as long as one of its threads runs.
func descendants(root procID) []procStat {
	entries, _ := os.ReadDir("/proc")
	children := map[int][]procStat{}
	var found []procStat
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		s, err := readStat(pid)
		if err != nil {
			continue
		}
		if s.procID == root {
			found = append(found, s)
		} else {
			children[s.ppid] = append(children[s.ppid], s)
		}
	}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	// Field 2 is the program's name in parentheses and may hold anything; field 3 comes after the last one.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return procStat{}, errors.New("not what proc(5) says")
	}
	s := procStat{procID: procID{pid: pid}}
	var errs [3]error
	s.ppid, errs[0] = strconv.Atoi(string(fields[1]))
	s.pgrp, errs[1] = strconv.Atoi(string(fields[2]))
	s.start, errs[2] = strconv.ParseUint(string(fields[19]), 10, 64)
	return s, errors.Join(errs[:]...)
}

// readThreads returns the threads of a process that have not ended, by their ids.
func readThreads(p procID) map[int]thread {
	dir := "/proc/" + strconv.Itoa(p.pid) + "/task/"
	entries, _ := os.ReadDir(dir)
	threads := map[int]thread{}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(dir + e.Name() + "/status")
		if err != nil {
			continue
		}
		if th := parseThread(b); th.state != 'Z' && th.state != 'X' {
			threads[tid] = th
		}
	}
	if now, err := readStat(p.pid); err != nil || now.procID != p {
		return nil
	}
	return threads
}

// parseThread reads proc_pid_status(5).
func parseThread(status []byte) thread {
	var th thread
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		value = bytes.TrimSpace(value)
		if len(value) == 0 {
			continue
		}
		switch string(name) {
		case "State":
			th.state = value[0]
		case "ShdPnd":
			pending, _ := strconv.ParseUint(string(value), 16, 64)
			th.stopping = pending&(1<<(syscall.SIGSTOP-1)) != 0
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			n, _ := strconv.ParseUint(string(value), 10, 64)
			th.switches += n
		}
	}
	return th
}

func (th thread) stopped() bool { return th.state == 'T' || th.state == 't' }

func stopped(threads map[int]thread) bool {
	for _, th := range threads {
		if !th.stopped() {
			return false
		}
	}
	return true
}

func threadsOf(procs []procStat) map[procID]map[int]thread {
	all := map[procID]map[int]thread{}
	for _, p := range procs {
		if threads := readThreads(p.procID); len(threads) > 0 {
			all[p.procID] = threads
		}
	}
	return all
}

// stands reports whether no thread can run; with patient, also of those that sleep where no signal reaches them and that a stop
// waits for: one of the process, or the one that the other threads have followed.
func stands(all map[procID]map[int]thread, patient bool) bool {
	for _, threads := range all {
		var halted bool
		for _, th := range threads {
			halted = halted || th.stopped()
		}
		for _, th := range threads {
			if !th.stopped() && !(patient && th.state == 'D' && (th.stopping || halted)) {
				return false
			}
		}
	}
	return true
}

func equal(a, b map[procID]map[int]thread) bool {
	return maps.EqualFunc(a, b, func(x, y map[int]thread) bool { return maps.Equal(x, y) })
}
