package config

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollInterval and settleTime together stay well under the second within which an edit has to reach a running proxy. Polling
	// and not inotify or kqueue: a stat costs microseconds, and it works the same on network file systems, through symbolic
	// links, across the rename with which editors save, and for a directory that does not exist yet.
	pollInterval = 400 * time.Millisecond

	// settleTime is how long a changed file must stay as it is before it counts. An editor that truncates and then writes shows
	// half a file for a moment, and half a file can be a valid one that allows more.
	settleTime = 100 * time.Millisecond

	// clockGranule: a file that was changed less than this before it was looked at is read again, because a second change may
	// leave the same times behind.
	clockGranule = 2 * time.Second
)

// Watch follows the file at path, of which first is the last known state, until ctx is done. It calls onChange with every new good
// configuration, and onError once for everything that is wrong: the last good configuration then stays in force. That holds for a
// file that is gone or empty too, since the defaults allow more than most files do. After an error onChange is called for the next
// good state even if that equals the last good one.
//
// Watch blocks; it calls both functions from the caller's goroutine, starts none, and leaves nothing behind.
func Watch(ctx context.Context, path string, first *Config, onChange func(*Config), onError func(error)) {
	w := watcher{path: path, good: first, onChange: onChange, onError: onError}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(w.poll())
	}
}

type watcher struct {
	path     string
	good     *Config
	onChange func(*Config)
	onError  func(error)

	checked  stamp // of the file when it last was found to be what good was read from
	valid    bool  // checked is set
	seen     stamp // of a change that has yet to settle
	settling bool
	failed   string // tells the state that was reported last; empty: none since good
}

// A stamp changes whenever the file does; the zero one stands for no file.
type stamp struct {
	dev, ino     uint64
	size         int64
	mode, uid    uint32
	mtime, ctime unix.Timespec
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return stamp{}
	}
	return stamp{uint64(st.Dev), st.Ino, st.Size, uint32(st.Mode), st.Uid, st.Mtim, st.Ctim}
}

// fresh reports whether the file changed so shortly before now that its times may not tell a further change.
func (s stamp) fresh(now time.Time) bool { return now.Sub(time.Unix(s.ctime.Unix())) < clockGranule }

// poll looks at the file once and returns when to look again.
func (w *watcher) poll() time.Duration {
	now := stampOf(w.path)
	if w.valid && now == w.checked && w.failed == "" && !now.fresh(time.Now()) {
		w.settling = false
		return pollInterval
	}
	c, state, err := w.load()
	if c == w.good && w.failed == "" {
		w.checked, w.valid, w.settling = now, true, false
		return pollInterval
	}
	if !w.settling || now != w.seen {
		w.seen, w.settling = now, true
		return settleTime
	}
	w.settling = false
	if stampOf(w.path) != now { // changed while it was read
		return settleTime
	}
	if err != nil {
		if state != w.failed {
			w.failed = state
			w.onError(err)
		}
		return pollInterval
	}
	w.good, w.checked, w.valid, w.failed = c, now, true, ""
	w.onChange(c)
	return pollInterval
}

// load reads the file as Load does, but does not take the defaults for a file that was there before. It returns w.good itself if
// nothing changed; with an error, a text that tells this broken state from others.
func (w *watcher) load() (c *Config, state string, err error) {
	data, err := readFile(w.path)
	digest := sha256.Sum256(data)
	switch {
	case err == nil && w.good.Exists && digest == w.good.digest, errors.Is(err, errMissing) && !w.good.Exists:
		return w.good, "", nil
	case errors.Is(err, errMissing):
		err = &Error{Path: w.path, Problem: "the file is gone; the last good configuration stays in force", Err: fs.ErrNotExist}
	case err == nil && w.good.Exists && len(bytes.TrimSpace(data)) == 0:
		err = &Error{Path: w.path, Problem: "the file is empty; the last good configuration stays in force (a comment alone stands for the defaults)"}
	case err == nil:
		c, err = parse(w.path, data)
	}
	if err != nil {
		return nil, err.Error() + string(digest[:]), err
	}
	return c, "", nil
}
