package journal

import (
	"io/fs"
	"os"
	"slices"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// held is a record that no directory took.
type held struct {
	seq   uint64
	entry entry
	after uint64      // the newest sequence that was on disk then
	place fs.FileInfo // the directory that has it; nil: none has
}

// Held reports whether the login's newest record is in memory alone.
func (j *Journal) Held(it store.Item) bool {
	s, _ := j.newest(it)
	return s.sum == inMemory
}

// Dir is the directory that has the login's newest record, "" if none has.
func (j *Journal) Dir(it store.Item) string {
	s, _ := j.newest(it)
	if s.seq == 0 || s.sum == inMemory {
		return ""
	}
	return j.dirs[s.dir]
}

// newest is what Read says, of disk and memory.
func (j *Journal) newest(it store.Item) (state, error) {
	// Memory first: what is held now and written to disk before we look there is found in the one or the other.
	j.mu.Lock()
	h, isHeld := j.held[it]
	j.mu.Unlock()
	disk, err := j.onDisk(it)
	if !isHeld {
		return disk, err
	}
	if disk.seq > h.after || disk.seq < h.after && err == nil && h.removedSince(j.dirs) {
		// Another process has written or removed it, under the lock, after us.
		j.mu.Lock()
		if j.held[it].seq == h.seq {
			delete(j.held, it)
		}
		j.mu.Unlock()
		return disk, err
	}
	return state{seq: h.seq, sum: inMemory, entry: h.entry}, err
}

const inMemory = "held" // in place of a checksum

// removedSince reports whether the directory that had a file is still there, so that the file was removed and not the
// directory unmounted.
func (h held) removedSince(dirs []string) bool {
	return h.place != nil && slices.ContainsFunc(dirs, func(dir string) bool {
		info, err := os.Lstat(dir)
		return err == nil && os.SameFile(info, h.place)
	})
}

// hold keeps h in memory.
func (j *Journal) hold(it store.Item, h held) {
	switch disk, err := j.onDisk(it); {
	case err != nil:
		h.after = h.seq // what is there now may come into reach later, and is older
	case disk.seq > 0:
		h.after = disk.seq
		h.place, _ = os.Lstat(j.dirs[disk.dir])
	}
	j.mu.Lock()
	j.held[it] = h
	j.lastDir = -1
	j.mu.Unlock()
}
