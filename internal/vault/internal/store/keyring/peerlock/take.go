package peerlock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Why no two can hold one lock, be they of ours or clients of the newer version that follow its rules:
//
//  1. A record comes into its place only by link(2), which fails if there is one, or by an exchange (3). It is written
//     before, so no half of one is ever seen.
//  2. A record leaves its place by the hand of its owner, or else because its owner is dead, by the hand of whoever has
//     the fence: a lock beside the lock, taken by link(2) as well, that one has at a time. Under the fence the lock is
//     read again and must be the same file with the same content as was judged, and be judged the same again. A dead
//     owner does not release, nobody without the fence removes, so until the fence is given up the lock is that file.
//  3. We take a dead owner's lock by exchanging it for ours in one step of the kernel's, and look at what came out. If
//     that is not what was judged, we exchange back, and the lock was never free in between. (Where the file system
//     cannot exchange, it is compared, removed, and ours linked. The newer version does the same: remove, then link.)
//  4. A fence whose owner is dead is exchanged for ours in the same way, so a live fence is not removed in place of a
//     dead one, and what we put there is then removed again. We do not go on under it: others that have read the dead
//     fence may be about to remove it, and do so by name. We wait, as for any lock, and take the fence anew, by link(2).
//     And when the lock has been exchanged, the fence must still be ours; if it is not, someone else may be about to
//     remove by name what they have read before, and we give up the lock.
//
// A client of the older version knows no fence. It reads a lock, finds that it is more than 30 s old, and removes it by
// name. It cannot be kept from that, so: a lock of ours has its timestamp renewed while it is held and is not old; a
// lock of theirs is not lost to our exchange (3); and after we have taken over a lock that such a client may have judged
// as well, we wait for longer than it takes from reading to removing, and look if ours is still there.
//
// All of this supposes that nobody stops for long between reading and removing by name. The original has no better
// means; we do, where the kernel exchanges.

// beat is how often the timestamp of a lock that is held is renewed; it must be well below old.
const beat = 10 * time.Second

// settle is how long a client of the older version may take from reading a lock to removing it.
const settle = 250 * time.Millisecond

// busyError is that ctx ended while someone else had the lock.
type busyError struct {
	path  string
	owner *seen
	cause error
}

func (e *busyError) who() string {
	if e.owner == nil {
		return "lock " + e.path
	}
	return "lock " + e.path + ": " + e.owner.who()
}
func (e *busyError) Error() string { return e.who() + ": " + e.cause.Error() }
func (e *busyError) Unwrap() error { return e.cause }

// held is a record of ours in its place. A goroutine renews its timestamp from take to release.
type held struct {
	dir     *os.Root
	name    string
	token   string
	file    *os.File
	content []byte // the goroutine's

	stop    chan struct{} // closed by release
	stopped chan struct{} // closed by the goroutine
}

// claim is one caller's attempt to get one lock.
type claim struct {
	dir   *os.Root
	name  string
	ages  bool
	token string
}

// take takes the lock and waits for it until ctx is done. What it returns owns dir then. An error that is not a
// *busyError is one of the file system.
func take(ctx context.Context, dir *os.Root, name string, ages bool, p pace) (*held, error) {
	c := claim{dir, name, ages, newToken()}
	ours.Store(c.token, struct{}{})
	busy := &busyError{path: filepath.Join(dir.Name(), name), cause: ctx.Err()}
	for wait := p.first; busy.cause == nil; wait = min(2*wait, p.longest) {
		h, owner, err := c.try(ctx)
		if h != nil {
			h.stop, h.stopped = make(chan struct{}), make(chan struct{})
			go h.renew()
			return h, nil
		}
		if err != nil {
			ours.Delete(c.token)
			return nil, err
		}
		busy.owner = owner
		select {
		case <-ctx.Done():
			busy.cause = ctx.Err()
		case <-time.After(wait*3/4 + rand.N(wait/2)):
		}
	}
	ours.Delete(c.token)
	return nil, busy
}

// try takes the lock if it can be had now. Otherwise it returns who has it.
func (c *claim) try(ctx context.Context) (*held, *seen, error) {
	var owner *seen
	for range 3 { // again only if someone let go of the lock, or took it, between two calls
		var err error
		owner, err = look(c.dir, c.name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if h, err := c.publish(c.name); h != nil || err != nil {
				return h, nil, err
			}
		case err != nil:
			return nil, nil, err
		case !owner.stale(time.Now(), c.ages):
			return nil, owner, nil
		default:
			h, err := c.takeOver(ctx, owner)
			return h, owner, err
		}
	}
	return nil, owner, nil
}

// takeOver takes the lock of a dead owner. It returns nil if it cannot now.
func (c *claim) takeOver(ctx context.Context, dead *seen) (*held, error) {
	fenceName := c.name + ".fence"
	fence, err := c.publish(fenceName)
	if err != nil {
		return nil, err
	}
	if fence == nil {
		owner, err := look(c.dir, fenceName)
		if err == nil && owner.stale(time.Now(), false) {
			if fence, err = c.replace(fenceName, owner); fence != nil {
				fence.remove()
			}
		}
		return nil, unlessAbsent(err)
	}
	defer fence.remove()
	again, err := look(c.dir, c.name)
	if err != nil || !again.same(dead) || !again.stale(time.Now(), c.ages) {
		return nil, unlessAbsent(err)
	}
	h, err := c.replace(c.name, again)
	if h == nil {
		return nil, unlessAbsent(err)
	}
	_ = c.dir.Remove(tempName(c.name, again.token)) // if its owner was killed between writing it and linking it
	keep := fence.inPlace()
	if keep && c.ages && again.oldFor(time.Now()) {
		select {
		case <-time.After(settle):
			keep = h.inPlace()
		case <-ctx.Done():
			keep = false
		}
	}
	if !keep {
		h.remove()
		return nil, nil
	}
	return h, nil
}

// unlessAbsent is err, or nil if it only says that someone else has removed the file meanwhile.
func unlessAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func tempName(name, token string) string { return name + "." + token + ".tmp" }

// write writes a record of ours to a file beside its place. It is made durable: after a crash of the machine, an empty
// lock would stop the original for good.
func (c *claim) write(name string) (h *held, temp string, err error) {
	content, err := newRecord(c.token, time.Now())
	if err != nil {
		return nil, "", err
	}
	temp = tempName(name, c.token)
	f, err := c.dir.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, "", err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		_ = c.dir.Remove(temp)
		return nil, "", err
	}
	return &held{dir: c.dir, name: name, token: c.token, file: f, content: content}, temp, nil
}

// publish puts a record of ours in its place, or returns nil if there is one.
func (c *claim) publish(name string) (*held, error) {
	h, temp, err := c.write(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.dir.Remove(temp) }()
	err = c.dir.Link(temp, name)
	if err == nil {
		return h, nil
	}
	_ = h.file.Close()
	if errors.Is(err, fs.ErrExist) {
		return nil, nil
	}
	return nil, err
}

// replace puts a record of ours in the place of the one that was seen there, or returns nil if that is no longer there.
func (c *claim) replace(name string, was *seen) (*held, error) {
	h, temp, err := c.write(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.dir.Remove(temp) }()
	won, err := c.swap(temp, name, was)
	if errors.Is(err, errors.ErrUnsupported) {
		won, err = c.removeAndLink(temp, name, was)
	}
	if !won {
		_ = h.file.Close()
		return nil, unlessAbsent(err)
	}
	return h, nil
}

// swap is replace with an exchange. What it has left under the name temp is to be deleted.
func (c *claim) swap(temp, name string, was *seen) (won bool, err error) {
	if err := exchange(c.dir, temp, name); err != nil {
		return false, err
	}
	out, err := look(c.dir, temp)
	if err == nil && out.same(was) {
		return true, nil
	}
	// The live owner of what came out may have released it by now, by removing ours: then nothing is to be given back.
	return false, errors.Join(err, unlessAbsent(exchange(c.dir, temp, name)))
}

// removeAndLink is replace where the file system cannot exchange.
func (c *claim) removeAndLink(temp, name string, was *seen) (won bool, err error) {
	now, err := look(c.dir, name)
	if err != nil || !now.same(was) {
		return false, err
	}
	if err := c.dir.Remove(name); err != nil {
		return false, err
	}
	if err := c.dir.Link(temp, name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return false, err
	}
	return true, nil
}

// inPlace reports whether the record is still there.
func (h *held) inPlace() bool {
	now, err := look(h.dir, h.name)
	return err == nil && now.token == h.token
}

// remove takes the record out of its place, if it is still ours.
func (h *held) remove() {
	if h.inPlace() {
		_ = h.dir.Remove(h.name) // if it stays: we know that we no longer have it, others when this process has ended
	}
	_ = h.file.Close()
}

// release gives the lock back.
func (h *held) release() {
	close(h.stop)
	<-h.stopped
	h.remove()
	ours.Delete(h.token)
	_ = h.dir.Close()
}

// renew renews the timestamp until release. It writes to the file that was put in place, wherever that is by now, so it
// can hurt nobody's lock, and writes digits over digits, so who reads at that moment finds a time between the two.
func (h *held) renew() {
	defer close(h.stopped)
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		select {
		case <-h.stop:
			return
		case now := <-t.C:
			was := make([]byte, len(h.content))
			fresh := restamp(h.content, now)
			if _, err := h.file.ReadAt(was, 0); err != nil || fresh == nil || !bytes.Equal(was, h.content) {
				continue
			}
			if _, err := h.file.WriteAt(fresh, 0); err == nil {
				h.content = fresh
			}
		}
	}
}

// unsupported marks an error of exchange as the file system's having no such thing.
func unsupported(err error) error { return fmt.Errorf("%w: %w", errors.ErrUnsupported, err) }
