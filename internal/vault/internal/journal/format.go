package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/store/filename"
)

// A half is a power of two of bytes, so the second one is found even if the first and the file's length are damaged.
const (
	magic   = "credproxy-journal"
	version = 1
	minHalf = 16 << 10
	maxHalf = 8 << 20 // a record with the longest answer that is read, sealed and in base64, is a fifth of that
	maxLine = 160
	maxSeq  = 1 << 62

	suffix  = ".journal"
	damaged = ".damaged-"
)

var (
	errDamaged  = errors.New("it is damaged")
	errNewer    = errors.New("a newer version of credproxy has written it: use that one, or finish its refresh there before going back")
	errNoPlace  = errors.New("it is not a directory")
	errTooLarge = errors.New("the record is too large")
)

// fileName is the login's file in each directory: the account escaped, with a hash in place of the end of a name that is
// too long for a file ("+" does not occur in escaped ones). The record itself says whose it is.
func fileName(account string) string {
	const longest = 200
	name := filename.Escape(account)
	if len(name) > longest {
		sum := sha256.Sum256([]byte(name))
		name = name[:longest-2*len(sum)-1] + "+" + hex.EncodeToString(sum[:])
	}
	return name + suffix
}

// entry is a record as it is in the file, in JSON. Times are milliseconds since 1970, 0 for none.
type entry struct {
	Account     string  `json:"account"`
	Removed     bool    `json:"removed,omitempty"` // in place of a file that could not be removed: there is no record
	Phase       Phase   `json:"phase,omitempty"`
	Attempt     int64   `json:"attempt,omitempty"`
	Next        int64   `json:"next,omitempty"`
	Refreshed   int64   `json:"refreshed,omitempty"`
	Issued      int64   `json:"issued,omitempty"`
	Sent        string  `json:"sent,omitempty"`
	Request     string  `json:"request,omitempty"`
	Outcome     Outcome `json:"outcome,omitempty"`
	Code        string  `json:"code,omitempty"`
	Status      int     `json:"status,omitempty"`
	Reason      string  `json:"reason,omitempty"`
	Revoked     bool    `json:"revoked,omitempty"`
	Interrupted bool    `json:"interrupted,omitempty"`
	Sealed      []byte  `json:"sealed,omitempty"`
}

func newEntry(account string, r Record) entry {
	return entry{
		Account: account, Phase: r.Phase, Attempt: millis(r.Attempt), Next: millis(r.Next), Refreshed: millis(r.Refreshed), Issued: millis(r.Issued), Reason: r.Reason,
		Sent: r.Sent, Request: r.Request, Outcome: r.Outcome, Code: r.Code, Status: r.Status, Revoked: r.Revoked,
		Interrupted: r.Interrupted, Sealed: bytes.Clone(r.Sealed),
	}
}

func (e entry) record() Record {
	return Record{
		Phase: e.Phase, Attempt: fromMillis(e.Attempt), Next: fromMillis(e.Next), Refreshed: fromMillis(e.Refreshed), Issued: fromMillis(e.Issued), Reason: e.Reason,
		Sent: e.Sent, Request: e.Request, Outcome: e.Outcome, Code: e.Code, Status: e.Status, Revoked: e.Revoked,
		Interrupted: e.Interrupted, Sealed: bytes.Clone(e.Sealed),
	}
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// halfFor is the size of a half that takes n bytes of JSON, or 0 if none does.
func halfFor(n int) int {
	for half := minHalf; half <= maxHalf; half *= 2 {
		if maxLine+n <= half {
			return half
		}
	}
	return 0
}

// roomFor is what n more bytes of Sealed need in JSON, with some for the other members that a later record has.
func roomFor(n int) int {
	if n <= 0 {
		return 0
	}
	return base64.StdEncoding.EncodedLen(min(n, maxHalf)) + 1024
}

// encode makes a half of a file.
func encode(half int, seq uint64, payload []byte) []byte {
	line := fmt.Appendf(make([]byte, 0, half), "%s %d %d %d %d ", magic, version, half, seq, len(payload))
	line = fmt.Appendf(line, "%s\n", sumOf(line, payload))
	b := append(line, payload...)
	return append(b, bytes.Repeat([]byte{' '}, half-len(b))...)
}

// sumOf covers the line as far as it goes before the sum, so no part of it is believed when one is damaged.
func sumOf(line, payload []byte) string {
	h := sha256.New()
	_, _ = h.Write(line)
	_, _ = h.Write(payload)
	return hex.EncodeToString(h.Sum(nil))
}

// content is what a file says.
type content struct {
	seq    uint64 // of the newest whole half; 0: neither is whole
	sum    string // its checksum
	newest int    // 0 or 1: which half that is
	half   int    // the size of its halves
	intact bool   // both halves are whole, and nothing else is there
	sized  bool   // the file is as long as two halves
	newer  bool   // a later version has written it: entry is unknown

	payload []byte // until it is parsed
	entry   entry
}

// decode reads a file's bytes, whatever they are.
func decode(data []byte) content { return scan(data).parse() }

// scan finds the newest half, and leaves its JSON in payload.
func scan(data []byte) content {
	var halves [2]half
	first, ok := decodeHalf(data, 0)
	if ok {
		halves[0] = first
		if first.size < len(data) {
			halves[1], _ = decodeHalf(data[first.size:], first.size)
		}
	} else {
		for size := minHalf; size <= maxHalf && size < len(data) && halves[1].seq == 0; size *= 2 {
			halves[1], _ = decodeHalf(data[size:], size)
		}
	}
	newest := 0
	if halves[1].seq > halves[0].seq {
		newest = 1
	}
	h := halves[newest]
	c := content{seq: h.seq, sum: h.sum, newest: newest, half: h.size, payload: h.payload}
	c.newer = halves[0].version > version || halves[1].version > version
	c.sized = h.size > 0 && len(data) == 2*h.size
	c.intact = c.sized && halves[0].seq > 0 && halves[1].seq > 0
	return c
}

// parse reads the JSON. If that is none of ours, though the sum is right, nothing is left.
func (c content) parse() content {
	if c.seq > 0 && !c.newer && json.Unmarshal(c.payload, &c.entry) != nil {
		return content{}
	}
	c.payload = nil
	return c
}

// half is one half of a file that is whole: the sum is right.
type half struct {
	version uint64
	size    int
	seq     uint64 // never 0
	sum     string
	payload []byte
}

// decodeHalf reads the half that data begins with. expect is its size, 0 if that is not known.
func decodeHalf(data []byte, expect int) (half, bool) {
	head := data[:min(len(data), maxLine)]
	if !bytes.HasPrefix(head, []byte(magic+" ")) {
		return half{}, false
	}
	end := bytes.IndexByte(head, '\n')
	if end < 0 {
		return half{}, false
	}
	fields := strings.Split(string(head[:end]), " ")
	if len(fields) != 6 {
		return half{}, false
	}
	var n [4]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(fields[1+i], 10, 64); err != nil {
			return half{}, false
		}
	}
	h := half{version: n[0], size: int(min(n[1], maxHalf+1)), seq: n[2], sum: fields[5]}
	if h.version == 0 || h.seq == 0 || h.seq > maxSeq || h.size < minHalf || h.size > maxHalf || h.size&(h.size-1) != 0 || expect != 0 && h.size != expect {
		return half{}, false
	}
	body := data[end+1 : min(len(data), h.size)]
	if n[3] > uint64(len(body)) {
		return half{}, false
	}
	h.payload = body[:n[3]]
	if sumOf(head[:end-len(h.sum)], h.payload) != h.sum {
		return half{}, false
	}
	return h, true
}
