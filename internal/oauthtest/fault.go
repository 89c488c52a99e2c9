package oauthtest

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault spoils one answer. Its parts combine: the request is processed (or not), the answer is edited or replaced,
// waits, and is sent whole, slowly, in part or not at all.
type Fault struct {
	// AfterIssue processes the request first, so that codes are spent and tokens issued and rotated, and then spoils
	// the answer. A fault that only edits, delays or slows the answer always does so; one that replaces it (Status,
	// Body, Drop) has the request processed only if AfterIssue says so.
	AfterIssue bool
	// Edit changes the fields of the JSON answer. Numbers are json.Number. It is not called for an answer that is not
	// a JSON object. It runs on a handler's goroutine.
	Edit func(answer map[string]any)

	Status int         // replaces the status; the default for a request that is not processed is 500
	Header http.Header // set over the headers
	Body   *string     // replaces the body

	// Wait holds the answer back until the channel is closed, Delay for a time; both end early when the client goes
	// away or the server closes.
	Wait  <-chan struct{}
	Delay time.Duration
	// Drip is the pause after each byte of the body.
	Drip time.Duration
	// Drop closes the connection in place of the answer; with DropAfter, after that many bytes of its body.
	Drop      bool
	DropAfter int
}

func (f *Fault) issues() bool {
	return f.AfterIssue || f.Edit != nil || (f.Status == 0 && f.Body == nil && !f.Drop)
}

// RateLimited is 429 with the given Retry-After, or without the header if that is empty.
func RateLimited(retryAfter string) Fault {
	f := ErrorAnswer(http.StatusTooManyRequests, "temporarily_unavailable")
	if retryAfter != "" {
		f.Header.Set("Retry-After", retryAfter)
	}
	return f
}

// ErrorAnswer is an OAuth error with any status, such as GitHub's errors with 200. The request is not processed.
func ErrorAnswer(status int, code string) Fault {
	body := `{"error":` + strconv.Quote(code) + `}`
	return Fault{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: &body}
}

// DroppedReply issues the tokens and closes the connection without a byte of an answer.
func DroppedReply() Fault { return Fault{AfterIssue: true, Drop: true} }

// Without removes a field of the answer.
func Without(name string) Fault {
	return Fault{Edit: func(a map[string]any) { delete(a, name) }}
}

// With sets a field of the answer to raw JSON: With("expires_in", `"3600"`).
func With(name, rawJSON string) Fault {
	return Fault{Edit: func(a map[string]any) { a[name] = json.RawMessage(rawJSON) }}
}

// Padded makes the answer at least n bytes long, as valid JSON.
func Padded(n int) Fault {
	return Fault{Edit: func(a map[string]any) { a["padding"] = strings.Repeat("x", n) }}
}

type queuedFault struct {
	fault Fault
	left  int // negative: for ever
}

// Fault queues f for the next times requests of the endpoint, behind those queued before; times < 0 means until
// [Server.ClearFaults].
func (s *Server) Fault(e Endpoint, f Fault, times int) {
	if times == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[e] = append(s.faults[e], &queuedFault{f, times})
}

// ClearFaults forgets the queued faults of all endpoints. Answers that already wait go on waiting.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

func (s *Server) nextFaultLocked(e Endpoint) *Fault {
	queue := s.faults[e]
	if len(queue) == 0 {
		return nil
	}
	q := queue[0]
	if q.left > 0 {
		q.left--
	}
	if q.left == 0 {
		s.faults[e] = queue[1:]
	}
	return &q.fault
}

// spoil makes the answer that the fault wants of the one that was due.
func (f *Fault) spoil(rep reply) reply {
	if f.Edit != nil {
		d := json.NewDecoder(bytes.NewReader(rep.body))
		d.UseNumber()
		var answer map[string]any
		if d.Decode(&answer) == nil {
			f.Edit(answer)
			rep.body = jsonReply(rep.status, answer).body
		}
	}
	if f.Status != 0 {
		rep.status = f.Status
	}
	rep.header = rep.header.Clone()
	maps.Copy(rep.header, f.Header)
	if f.Body != nil {
		rep.body = []byte(*f.Body)
	}
	return rep
}

// send delivers the answer as badly as the fault says. It panics with http.ErrAbortHandler to close the connection.
func (f *Fault) send(w http.ResponseWriter, r *http.Request, rep reply, done <-chan struct{}) {
	pause := func(wait <-chan struct{}, delay time.Duration) {
		var timer <-chan time.Time
		if delay > 0 {
			timer = time.After(delay)
		} else if wait == nil {
			return
		}
		select {
		case <-wait:
		case <-timer:
		case <-r.Context().Done():
		case <-done:
		}
	}
	pause(f.Wait, 0)
	pause(nil, f.Delay)
	if f.Drop && f.DropAfter == 0 {
		panic(http.ErrAbortHandler)
	}
	if !f.Drop && f.Drip == 0 {
		rep.write(w)
		return
	}
	maps.Copy(w.Header(), rep.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(rep.body)))
	w.WriteHeader(rep.status)
	part := rep.body
	if f.Drop {
		part = part[:min(f.DropAfter, len(part))]
	}
	step := max(len(part), 1)
	if f.Drip > 0 {
		step = 1
	}
	flush := http.NewResponseController(w)
	for chunk := range slices.Chunk(part, step) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
		_ = flush.Flush() // fails only where the client is gone, which Write tells next
		pause(nil, f.Drip)
	}
	if f.Drop {
		panic(http.ErrAbortHandler)
	}
}
