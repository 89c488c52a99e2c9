package audit

import (
	"strconv"
	"time"
)

// Outcome is how an operation ended. The zero value is Error: what nobody has set was not a success.
type Outcome uint8

const (
	Error  Outcome = iota // it was tried and failed
	OK                    // it was done
	Denied                // it was refused before anything was tried: by the profile, a limit, or the check of the peer
)

func (o Outcome) String() string {
	switch o {
	case OK:
		return "ok"
	case Denied:
		return "denied"
	}
	return "error"
}

// An Event is one operation as the log keeps it. It has no field for free text: every string is a name or a code of at most 64
// characters of A–Z a–z 0–9 . _ -, and anything else is written as "?", so that neither a secret nor a line break gets in by
// mistake. Empty strings are left out of the line.
type Event struct {
	Time      time.Time // when it arrived; zero: when it is recorded
	Profile   string
	Op        string // the operation's name on the wire, or "connect"
	Provider  string
	Bucket    string
	Key       string // the name of an API key
	Outcome   Outcome
	Code      string        // the error code that was answered
	Duration  time.Duration // until the answer was ready
	UID       int           // the peer's; negative: none or not known
	PID       int           // the peer's; 0 or less: not known
	Container string        // the peer's, its short id
}

// appendEvent appends e as one line. It allocates nothing if b has room.
func appendEvent(b []byte, e *Event, proxy int) []byte {
	t := e.Time
	if t.IsZero() {
		t = time.Now()
	}
	b = append(b, `{"time":"`...)
	b = t.UTC().AppendFormat(b, time.RFC3339) // a layout that package time has a short way for; it ends in Z
	b = append3(append(b[:len(b)-1], '.'), t.Nanosecond()/1e6)
	b = append(b, `Z","proxy":`...)
	b = strconv.AppendInt(b, int64(proxy), 10)
	b = appendName(b, `,"profile":"`, e.Profile)
	b = appendName(b, `,"op":"`, e.Op)
	b = appendName(b, `,"provider":"`, e.Provider)
	b = appendName(b, `,"bucket":"`, e.Bucket)
	b = appendName(b, `,"key":"`, e.Key)
	b = append(b, `,"outcome":"`...)
	b = append(b, e.Outcome.String()...)
	b = append(b, '"')
	b = appendName(b, `,"code":"`, e.Code)
	b = append(b, `,"duration_ms":`...)
	us := max(e.Duration, 0).Microseconds()
	b = strconv.AppendInt(b, us/1000, 10)
	b = append3(append(b, '.'), int(us%1000))
	if e.UID >= 0 {
		b = append(b, `,"uid":`...)
		b = strconv.AppendInt(b, int64(e.UID), 10)
	}
	if e.PID > 0 {
		b = append(b, `,"pid":`...)
		b = strconv.AppendInt(b, int64(e.PID), 10)
	}
	b = appendName(b, `,"container":"`, e.Container)
	return append(b, '}', '\n')
}

// append3 appends n, less than 1000, as three digits.
func append3(b []byte, n int) []byte {
	return append(b, byte('0'+n/100), byte('0'+n/10%10), byte('0'+n%10))
}

// appendName appends a field that holds a name. What is in the set of a name's characters needs no escaping in JSON.
func appendName(b []byte, field, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, field...)
	if isName(value) {
		b = append(b, value...)
	} else {
		b = append(b, '?')
	}
	return append(b, '"')
}

func isName(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
