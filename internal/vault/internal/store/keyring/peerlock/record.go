package peerlock

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// old is the age at which the older version breaks a lock, and at which we take one that does not tell its owner.
	old = 30 * time.Second
	// unwritten is how long a lock of the older version may be empty, or half of one: it is made first and written then. Every other
	// client of that version breaks such a lock at once.
	unwritten = 5 * time.Second
	// startTolerance is how far apart two readings of when a process began may be: they come from clocks that are set.
	startTolerance = 2 * time.Second
	// longestRecord is far beyond any record.
	longestRecord = 4096
)

// form is what kind of record a lock has.
type form int

const (
	unknown   form = iota // perhaps one that is still being written
	ownerForm             // the newer version's
	stampForm             // the older version's, and others with no more than a process in them
)

// record is what a lock says about its owner.
type record struct {
	form      form
	token     string // ownerToken
	pid       int
	host      string
	start     time.Time // when the process began
	canonical bool      // start can be relied on
	stamp     time.Time // when the record was written; zero: it does not say
}

// ours are the tokens of all records that this process has in place or is about to put there. Another record with our
// process number is of a process that had it before.
var ours sync.Map // string → struct{}

// newToken returns a random UUID (RFC 9562, version 4).
func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newRecord returns a record of this process, in the newer version's form with the older one's timestamp at its end.
func newRecord(token string, now time.Time) ([]byte, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	r := struct {
		Version         int    `json:"version"`
		OwnerToken      string `json:"ownerToken"`
		PID             int    `json:"pid"`
		Hostname        string `json:"hostname"`
		StartTimeMS     int64  `json:"startTimeMs"`
		StartTimeSource string `json:"startTimeSource"`
		Timestamp       int64  `json:"timestamp"`
	}{1, token, os.Getpid(), host, 0, "unavailable", now.UnixMilli()}
	if _, start := process(r.PID); !start.IsZero() {
		r.StartTimeMS, r.StartTimeSource = start.UnixMilli(), "canonical"
	}
	return json.Marshal(r)
}

// restamp returns the record with a new timestamp of the same length, or nil if it has none at its end.
func restamp(content []byte, now time.Time) []byte {
	const before = `"timestamp":`
	i := bytes.LastIndex(content, []byte(before))
	fresh := fmt.Appendf(nil, "%s%s%d}", content[:max(i, 0)], before, now.UnixMilli())
	if i < 0 || len(fresh) != len(content) {
		return nil
	}
	return fresh
}

// parse reads a record as the original does: names are exact, other members do not matter.
func parse(content []byte) record {
	var m map[string]any
	if json.Unmarshal(content, &m) != nil {
		return record{}
	}
	number := func(name string) (n float64, ok bool) {
		n, ok = m[name].(float64)
		return n, ok
	}
	text := func(name string) string {
		s, _ := m[name].(string)
		return s
	}
	const safeInteger = 1<<53 - 1
	pid, ok := number("pid")
	if !ok || pid != math.Trunc(pid) || pid <= 0 || pid > safeInteger {
		return record{}
	}
	r := record{pid: int(min(pid, math.MaxInt32)), token: text("ownerToken"), host: text("hostname")}
	if ms, ok := number("timestamp"); ok && math.Abs(ms) <= safeInteger {
		r.stamp = time.UnixMilli(int64(ms))
	}
	start, hasStart := number("startTimeMs")
	version, hasVersion := number("version")
	switch {
	case version == 1 && r.token != "" && r.host != "" && hasStart && math.Abs(start) <= safeInteger:
		r.form = ownerForm
		r.start, r.canonical = time.UnixMilli(int64(start)), text("startTimeSource") == "canonical"
	case !hasVersion || version == 1:
		r.form = stampForm
	}
	return r
}

// seen is a lock at one moment.
type seen struct {
	record
	info    fs.FileInfo
	content []byte // nil: it could not be read
}

// same reports whether a and b are the same file in the same state. The number of the file alone does not tell: the next
// file often gets the one of the last that was deleted.
func (s *seen) same(b *seen) bool {
	return os.SameFile(s.info, b.info) && s.info.ModTime().Equal(b.info.ModTime()) && bytes.Equal(s.content, b.content)
}

var errDirectory = errors.New("there is a directory in the place of the lock")

// look reads a lock, fs.ErrNotExist if there is none. It follows no link, and waits for nobody at the other end of a pipe.
func look(dir *os.Root, name string) (*seen, error) {
	for {
		info, err := dir.Lstat(name)
		if err != nil {
			return nil, err
		}
		s := &seen{info: info}
		if info.IsDir() {
			return nil, errDirectory
		}
		if !info.Mode().IsRegular() {
			return s, nil
		}
		f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return s, nil
		case err != nil:
			return nil, err
		}
		s.info, err = f.Stat()
		if err == nil && s.info.Mode().IsRegular() {
			s.content, err = io.ReadAll(io.LimitReader(f, longestRecord+1))
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		if !os.SameFile(info, s.info) {
			continue // it was replaced between the two looks
		}
		if len(s.content) <= longestRecord {
			s.record = parse(s.content)
		}
		return s, nil
	}
}

// stale reports whether the lock's owner is gone for certain, or, where that cannot be told, is by the older version's
// measure. What another machine's process holds is never stale: nobody here can know. ages says that it is in a place of the older
// version's. There what may not be read is no half of a record, and has its 30 s.
func (s *seen) stale(now time.Time, ages bool) bool {
	switch s.form {
	case ownerForm:
		host, err := os.Hostname()
		return err == nil && s.host == host && s.ownerGone()
	case stampForm:
		stamp := s.stamp
		if stamp.IsZero() {
			stamp = s.info.ModTime()
		}
		return now.Sub(stamp) > old || s.ownerGone()
	}
	limit := old
	if ages && s.content != nil {
		limit = unwritten
	}
	return now.Sub(s.info.ModTime()) > limit
}

// ownerGone reports whether the process of the record, on this machine, has ended; another may have its number now.
func (s *seen) ownerGone() bool {
	if s.pid == os.Getpid() {
		_, live := ours.Load(s.token)
		return !live
	}
	runs, start := process(s.pid)
	return !runs || s.canonical && !start.IsZero() && s.start.Sub(start).Abs() > startTolerance
}

// oldFor reports whether the older version would break the lock now.
func (s *seen) oldFor(now time.Time) bool { return s.form == unknown || now.Sub(s.stamp) > old }

// who describes the owner in a message.
func (s *seen) who() string {
	if s.form == unknown {
		return "it has no owner that can be made out, and may be just being written"
	}
	if host, err := os.Hostname(); s.form == ownerForm && (err != nil || s.host != host) {
		return fmt.Sprintf("process %d of the machine %.80q has it; if that is gone for good, delete the file", s.pid, s.host)
	}
	return fmt.Sprintf("process %d has it", s.pid)
}
