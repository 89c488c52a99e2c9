package peerlock

import (
	"os"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// SetPace makes waiters of this process look at a lock more often. It is for a process of a test's own, at its beginning.
func SetPace(first, longest time.Duration) { refreshPace = pace{first, longest} }

func RefreshName(it store.Item) string { return refreshName(it) }
func WriteName(it store.Item) string   { return writeName(it) }

// Directories are where the locks are looked for.
func (l *Locks) Directories() (refresh, write []string) {
	for _, p := range l.refresh {
		refresh = append(refresh, p.String())
	}
	for _, p := range l.write {
		write = append(write, p.String())
	}
	return refresh, write
}

// Skip is how an error of a place is sorted.
func (l *Locks) Skip(err error) error { return l.skip(l.refresh[0], err) }

// ProcessStart is when a process began.
func ProcessStart(pid int) time.Time {
	_, start := process(pid)
	return start
}

// Replace judges the lock name as it was before change runs, and then replaces that. With exchanging false it does so
// as on a file system that cannot exchange.
func Replace(dir *os.Root, name string, exchanging bool, change func()) (won bool, err error) {
	was, err := look(dir, name)
	if err != nil {
		return false, err
	}
	change()
	c := claim{dir, name, false, newToken()}
	if exchanging {
		h, err := c.replace(name, was)
		if h != nil {
			_ = h.file.Close()
		}
		return h != nil, err
	}
	h, temp, err := c.write(name)
	if err != nil {
		return false, err
	}
	defer func() { _ = dir.Remove(temp) }()
	defer func() { _ = h.file.Close() }()
	return c.removeAndLink(temp, name, was)
}
