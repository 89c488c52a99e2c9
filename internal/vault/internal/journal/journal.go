// Package journal is the durable record of each login's refreshes: what a refresh is about to do, and what it got, before
// anything else is done with it. [New] opens it; a refresh calls [Journal.Write] before and after it talks to the provider,
// with the login's lock held; anybody calls [Journal.Read], [Journal.Version] and [Journal.List], with no lock at all.
// What a provider issued goes through [Journal.Seal] first: no file has a secret in plain text.
//
// # The files
//
// A login has one file ACCOUNT.journal (escaped as package filename does) in one of the directories, which are private to
// the user. It is made once, by way of a temporary file, with all of its blocks written. From then on it is written in
// place, which needs neither free space nor a directory that can be written to: the answer that a provider gave while the
// disk filled up has its place already.
//
// The file has two halves of equal size, a power of two of at least 16 KiB. Each is a line of text, JSON, and spaces up to
// its end:
//
//	credproxy-journal VERSION SIZE SEQUENCE LENGTH SHA256
//	{"account":"acme:default","phase":"called","attempt":1764000000000,…}
//
// VERSION is 1, SIZE that of the half, LENGTH that of the JSON, all in decimal. SHA256, in hexadecimal, is that of the line
// up to and with the space before it, followed by the JSON. Later versions keep the line as it is. Times are milliseconds since
// 1970. A write goes to the half with the lower SEQUENCE, and is then synced: one that is cut off, by kill -9 or by the
// power, damages that half alone. The record is the one in the whole half with the higher SEQUENCE; a reader that finds a half
// that is not whole reads again until nothing changes, for someone may be writing it.
//
// SEQUENCE is the time in microseconds, or one more than the last: so a file in a directory that was out of reach for a
// while does not come back as the newest.
//
// On file systems that never write in place (btrfs, zfs) a write to a full disk may fail all the same; then the next
// directory is tried.
package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// ErrNotDurable: no directory took the record, or what the provider will issue could not be sealed. The record is in memory
// alone, or is no help after a crash.
var ErrNotDurable = errors.New("it is not safe on disk")

// ErrUnreadable: there is a place that this journal writes to, and what it has of the login cannot be read: it belongs to
// somebody else, is open to others, was written by a later version, or the disk fails. It may have a newer token.
var ErrUnreadable = errors.New("the recovery files cannot be read, and may have a newer token")

// Options say where the journal is.
type Options struct {
	// Dirs are absolute, in order of preference; made when they are first written to. A record goes to the first that takes it.
	Dirs []string

	// Key is asked for the key with every intent (Phase Called), and when something is sealed or opened before. It may be
	// called concurrently, and must be quick when nothing has changed.
	Key func(context.Context) (Sealer, error)

	Logger *slog.Logger // nil: nothing is logged
}

// Phase is where a refresh is.
type Phase string

// The phases of a refresh.
const (
	Idle     Phase = ""
	Called   Phase = "called"   // the provider is about to be asked, or was
	Received Phase = "received" // it has answered, and the store does not have the answer yet: it is Sealed
)

// Outcome is what an attempt came to.
type Outcome string

// The outcomes of an attempt.
const (
	Never   Outcome = ""        // none has ended yet
	OK      Outcome = "ok"      //
	Failed  Outcome = "failed"  // a later attempt may succeed
	Refused Outcome = "refused" // the same request will never succeed
)

// Record is what is known of a login's refreshes. Times are kept to the millisecond.
type Record struct {
	Phase     Phase
	Attempt   time.Time // when the last attempt began, by the wall clock
	Next      time.Time // no provider call before
	Refreshed time.Time // the last success
	Issued    time.Time // when the token was issued that is stored, by a refresh or a login
	Sent      string    // fingerprint of the refresh token that was sent
	Request   string    // fingerprint of all that decides the provider's answer, at the last attempt
	Outcome   Outcome   // of the last attempt that ended
	Code      string    // the provider's error code
	Status    int       // HTTP status
	Reason    string    // why it failed, in words of ours
	Revoked   bool      // the refresh token that was sent is dead for good
	// Interrupted: since the last success an attempt began that nobody ended; it may have used up the refresh token.
	Interrupted bool
	Sealed      []byte // from [Journal.Seal]: an answer that the store does not have yet; nil: none
}

// Journal is safe for concurrent use, and several processes may have the same directories. Who calls Write, Remove or
// Reserved has the login's lock. It keeps no file open between calls.
type Journal struct {
	dirs   []string
	sweeps []sync.Once // of temporary files that killed processes left, with the first write to a directory
	ask    func(context.Context) (Sealer, error)
	log    *slog.Logger
	lone   lone // for what is sealed while there is no key

	mu      sync.Mutex // guards all below; never held during I/O
	sealer  Sealer     // what ask answered last; nil: not yet
	held    map[store.Item]held
	lastDir int                 // where the last write went; -1: nowhere
	told    map[string]struct{} // files that were reported as damaged
}

// state is the newest that is known of a login.
type state struct {
	seq   uint64 // 0: nothing
	sum   string
	entry entry
	dir   int // which of the directories has it
}

// New returns the journal in o.Dirs. It touches nothing yet.
func New(o Options) (*Journal, error) {
	if len(o.Dirs) == 0 || o.Key == nil {
		return nil, errors.New("journal: it needs a directory and a key")
	}
	j := &Journal{ask: o.Key, log: o.Logger, held: make(map[store.Item]held), told: make(map[string]struct{})}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range o.Dirs {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("journal: %q is not an absolute path", dir)
		}
		if dir = filepath.Clean(dir); !slices.Contains(j.dirs, dir) {
			j.dirs = append(j.dirs, dir)
		}
	}
	j.sweeps = make([]sync.Once, len(j.dirs))
	return j, nil
}

func check(it store.Item) error {
	if err := store.CheckItem(it); err != nil {
		return err
	}
	if it.Service != store.ServiceLogins {
		return fmt.Errorf("journal: %s is not a login", it)
	}
	return nil
}

func begin(ctx context.Context, it store.Item) error {
	if ctx.Err() != nil {
		return fmt.Errorf("journal of %s: %w", it, ctx.Err())
	}
	return check(it)
}

// Read returns the login's record, the zero Record if there is none. It is one that was written, whole: while another one is
// being written, that one or the one before. With an error, it is the newest of what could be read: a directory that cannot be
// read may have a newer one.
func (j *Journal) Read(ctx context.Context, it store.Item) (Record, error) {
	if err := begin(ctx, it); err != nil {
		return Record{}, err
	}
	s, err := j.newest(it)
	if s.entry.Removed {
		return Record{}, err
	}
	return s.entry.record(), err
}

// Absent is the version of a login that has no record.
const Absent = "absent"

// Version changes with every Write and Remove of any process, also within one tick of the clock, and with what is held in
// memory. Errors are those of Read.
func (j *Journal) Version(ctx context.Context, it store.Item) (string, error) {
	if err := begin(ctx, it); err != nil {
		return "", err
	}
	s, err := j.newest(it)
	if s.seq == 0 {
		return Absent, err
	}
	return fmt.Sprintf("%d-%.16s", s.seq, s.sum), err
}

// List returns the logins that have a record, sorted. With an error, they are those that could be read.
func (j *Journal) List(ctx context.Context) ([]store.Item, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("list of the journal: %w", ctx.Err())
	}
	var candidates []string
	var failed []error
	j.mu.Lock()
	for it := range j.held {
		candidates = append(candidates, it.Account)
	}
	j.mu.Unlock()
	for _, dir := range j.dirs {
		accounts, err := accountsIn(dir)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", dir, err))
		}
		candidates = append(candidates, accounts...)
	}
	slices.Sort(candidates)
	var list []store.Item
	for _, account := range slices.Compact(candidates) {
		it := store.Item{Service: store.ServiceLogins, Account: account}
		// Its errors are those that accountsIn has had, or a removal since.
		if s, _ := j.newest(it); s.seq > 0 && !s.entry.Removed {
			list = append(list, it)
		}
	}
	return list, join("list of the journal", failed)
}

// Write makes r the login's record. When it returns nil, r is durable. An error wraps [ErrNotDurable]: then r is held in memory,
// where this Journal finds it until another process has written a newer one or a later Write succeeds.
//
// With Phase Called, nil says as well that the answer will have a durable place: there is a key to seal it with, and room for as
// many bytes of Sealed is reserved. If only that fails, r itself is on disk. In other phases room is reserved if it can be.
//
// ctx ends the wait for the key, never the writing.
func (j *Journal) Write(ctx context.Context, it store.Item, r Record, room int) error {
	if err := check(it); err != nil {
		return err
	}
	var noKey error
	if r.Phase == Called {
		_, noKey = j.freshKey(ctx)
	}
	noRoom, err := j.put(it, newEntry(it.Account, r), room)
	switch {
	case err != nil:
		return err
	case noKey != nil:
		return fmt.Errorf("journal of %s: %w: an answer could not be sealed: %w", it, ErrNotDurable, noKey)
	case noRoom != nil && r.Phase == Called:
		return fmt.Errorf("journal of %s: %w: an answer of %d bytes might not fit: %w", it, ErrNotDurable, room, noRoom)
	}
	return nil
}

// Remove forgets the login, in every directory and in memory. An error wraps [ErrNotDurable]: this Journal has forgotten it, and
// a file that could not be removed may bring it back in another.
func (j *Journal) Remove(_ context.Context, it store.Item) error {
	if err := check(it); err != nil {
		return err
	}
	type place struct {
		dir string
		seq uint64
	}
	var places []place
	for _, dir := range j.dirs {
		f, _ := readIn(dir, it.Account) // what cannot be read may be removed all the same
		places = append(places, place{dir, f.seq})
	}
	// The newest last: if we are cut off, the ones before must not count.
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.seq, b.seq) })
	var failed []error
	for _, p := range places {
		if err := removeIn(p.dir, it.Account); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.dir, err))
		}
	}
	if len(failed) == 0 {
		j.mu.Lock()
		delete(j.held, it)
		j.mu.Unlock()
		return nil
	}
	j.log.Warn("a journal file could not be removed; that the login is removed is noted instead", "login", it.String(), "error", join("remove", failed))
	gone := entry{Account: it.Account, Removed: true}
	if _, err := j.put(it, gone, 0); err != nil {
		return err
	}
	_, _ = j.put(it, gone, 0) // again, for the other half
	return nil
}

// Check tries each directory until one takes a file of the size that a new record needs, and says which, "" for none. The error
// is why those before it do not.
func (j *Journal) Check(ctx context.Context) (dir string, err error) {
	var failed []error
	for _, dir := range j.dirs {
		if ctx.Err() != nil {
			return "", fmt.Errorf("check of the journal: %w", ctx.Err())
		}
		err := probe(dir)
		if err == nil {
			return dir, join("the journal cannot be written", failed)
		}
		failed = append(failed, fmt.Errorf("%s: %w", dir, err))
	}
	return "", join("the journal cannot be written", failed)
}

// Close returns an error if tokens were only in memory, which are lost now.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var lost []string
	for it, h := range j.held {
		if h.entry.Sealed != nil {
			lost = append(lost, it.Account)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	slices.Sort(lost)
	return fmt.Errorf("%w: the newest token of %s was in memory only and is lost: log in again", ErrNotDurable, strings.Join(lost, ", "))
}

// onDisk looks through the directories from the last to the first: a writer that moves a record to an earlier one removes the
// later after that.
func (j *Journal) onDisk(it store.Item) (state, error) {
	var best state
	var failed []error
	unreadable := false
	for i, dir := range slices.Backward(j.dirs) {
		f, err := readIn(dir, it.Account)
		switch {
		case errors.Is(err, errDamaged):
			j.tellDamage(dir, it, err)
		case err != nil && i > 0 && ofAnother(dir):
			continue // somebody made it first: it never was ours
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", filepath.Join(dir, fileName(it.Account)), err))
			unreadable = unreadable || !errors.Is(err, errNoPlace)
		}
		if errors.Is(err, errDamaged) && best.seq == 0 {
			best.entry.Interrupted = true // what it had is lost
		}
		if f.seq > best.seq {
			best = state{f.seq, f.sum, f.entry, i}
		}
	}
	err := join("journal of "+it.String(), failed)
	if unreadable {
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return best, err
}

// tellDamage reports a damaged file once. The next Write, which has the lock, sets it aside.
func (j *Journal) tellDamage(dir string, it store.Item, why error) {
	path := filepath.Join(dir, fileName(it.Account))
	j.mu.Lock()
	_, told := j.told[path]
	j.told[path] = struct{}{}
	j.mu.Unlock()
	if !told {
		j.log.Error("a journal file is damaged: it is not known whether its login was being refreshed", "file", path, "error", why)
	}
}

// put writes e to the first directory that takes it with room, or else to the first that takes it without, or else holds it.
// noRoom is why it is without.
func (j *Journal) put(it store.Item, e entry, room int) (noRoom, err error) {
	prior, _ := j.newest(it) // what cannot be read is older, by its sequence
	seq := max(prior.seq, uint64(time.Now().UnixMicro()))
	for {
		var failed []error
		for i, dir := range j.dirs {
			seq++ // a failed attempt may be on disk after all, and the next one has to win over it
			if err := j.writeIn(i, seq, e, room); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", dir, err))
				continue
			}
			j.took(it, i, join("write", failed))
			return noRoom, nil
		}
		err := join("write", failed)
		if room == 0 {
			j.hold(it, held{seq: seq + 1, entry: e})
			return nil, fmt.Errorf("journal of %s: %w: %w", it, ErrNotDurable, err)
		}
		room, noRoom = 0, err
	}
}

// took is after the directory number i has taken a record of the login; the ones before it have not.
func (j *Journal) took(it store.Item, i int, before error) {
	j.mu.Lock()
	delete(j.held, it)
	delete(j.told, filepath.Join(j.dirs[i], fileName(it.Account)))
	moved := j.lastDir != i
	j.lastDir = i
	j.mu.Unlock()
	if moved && before != nil {
		j.log.Warn("the journal goes to another directory", "dir", j.dirs[i], "error", before)
	}
	for _, later := range j.dirs[i+1:] {
		_ = removeIn(later, it.Account) // one that stays is older
	}
}

// probe writes a file as the first record of a login does, and removes it. The name is always the same, so that one that is left
// is found by the next probe.
func probe(dir string) error {
	root, err := privatedir.Open(dir, true)
	if err != nil {
		return atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	const name = ".check"
	if err := atomicfile.WriteFile(root, name, make([]byte, 2*minHalf)); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Cause(err)
	}
	return nil
}

// join is an error in one line, nil if there are none.
func join(what string, errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return &joined{what, errs}
}

type joined struct {
	what string
	errs []error
}

func (e *joined) Unwrap() []error { return e.errs }

func (e *joined) Error() string {
	var texts []string
	for _, err := range e.errs {
		texts = append(texts, err.Error())
	}
	return e.what + ": " + strings.Join(texts, "; ")
}
