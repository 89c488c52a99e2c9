package wire

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// Session is the data of oauth_initiate: a login that has begun, and what the user has to do for it. AuthURL is set with
// [FlowPKCERedirect] and [FlowBrowserRedirect], VerificationURL and UserCode with [FlowDeviceCode].
//
// ExpiresInMS and VerificationURLComplete are an extension of the protocol: a server sets them for a request with
// [Request.Detail] only.
//
// AuthURL holds the state of the login, and who has ID can cancel it: a Session prints, formats and logs as a placeholder.
type Session struct {
	ID                      string   `json:"session_id"`
	Flow                    FlowType `json:"flow_type"`
	AuthURL                 string   `json:"auth_url,omitempty"`
	VerificationURL         string   `json:"verification_url,omitempty"`
	UserCode                string   `json:"user_code,omitempty"`
	PollIntervalMS          int      `json:"pollIntervalMs,omitempty"`            // milliseconds
	ExpiresInMS             int      `json:"expiresInMs,omitempty"`               // milliseconds from the answer until the login is over
	VerificationURLComplete string   `json:"verification_url_complete,omitempty"` // VerificationURL with the user code in it
}

const redactedSession = "wire.Session(redacted)"

// String, GoString, Format and LogValue keep a login's state and id out of whatever prints a Session.
func (Session) String() string             { return redactedSession }
func (Session) GoString() string           { return redactedSession }
func (Session) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redactedSession)) }
func (Session) LogValue() slog.Value       { return slog.StringValue(redactedSession) }

// PollStatus is the state of a login in oauth_poll.
type PollStatus string

// The states of a login.
const (
	PollPending  PollStatus = "pending"
	PollComplete PollStatus = "complete"
	PollError    PollStatus = "error"
)

// Poll is the data of oauth_poll: with PollPending the interval, with PollComplete the token, with PollError the
// error. Without an interval (0) the last one stays.
type Poll struct {
	Status         PollStatus
	PollIntervalMS int // milliseconds
	Token          *Token
	Err            *Error
}

// sessionNames has the texts first, then the numbers.
var sessionNames = []string{
	"session_id", "flow_type", "auth_url", "verification_url", "user_code", "verification_url_complete",
	"pollIntervalMs", "expiresInMs",
}

func (s Session) appendData(dst []byte) []byte {
	dst = appendMember(dst, `{"session_id":`, s.ID)
	dst = appendMember(dst, `,"flow_type":`, string(s.Flow))
	if s.AuthURL != "" {
		dst = appendMember(dst, `,"auth_url":`, s.AuthURL)
	}
	if s.VerificationURL != "" {
		dst = appendMember(dst, `,"verification_url":`, s.VerificationURL)
	}
	if s.UserCode != "" {
		dst = appendMember(dst, `,"user_code":`, s.UserCode)
	}
	dst = appendMillis(dst, `,"pollIntervalMs":`, s.PollIntervalMS)
	dst = appendMillis(dst, `,"expiresInMs":`, s.ExpiresInMS)
	if s.VerificationURLComplete != "" {
		dst = appendMember(dst, `,"verification_url_complete":`, s.VerificationURLComplete)
	}
	return append(dst, '}')
}

func (p Poll) appendData(dst []byte) []byte {
	dst = appendMember(dst, `{"status":`, string(p.Status))
	switch {
	case p.Status == PollPending:
		// An interval of 0 is left out: there are clients that would then ask without a pause.
		dst = appendMillis(dst, `,"pollIntervalMs":`, p.PollIntervalMS)
	case p.Status == PollComplete && p.Token != nil:
		dst = p.Token.withoutPollNames().appendMembers(append(dst, ','))
	case p.Status == PollError:
		e := p.Err
		if e == nil {
			e = ErrInternal
		}
		dst = appendMember(dst, `,"code":`, string(e.Code))
		dst = appendMember(dst, `,"error":`, e.message())
	}
	return append(dst, '}')
}

// appendMillis appends a number of milliseconds, unless it says nothing.
func appendMillis(dst []byte, prefix string, ms int) []byte {
	if ms <= 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, prefix...), int64(ms), 10)
}

var pollNames = []string{"status", "pollIntervalMs"}

// isPollName reports whether a further field of a token could be taken for a member of oauth_poll's data.
func isPollName(name string) bool {
	return strings.EqualFold(name, pollNames[0]) || strings.EqualFold(name, pollNames[1])
}

// withoutPollNames returns t, or a copy of it that lacks the further fields that a poll has no place for.
func (t *Token) withoutPollNames() *Token {
	n := 0
	for _, f := range t.extra {
		if isPollName(f.Name) {
			n++
		}
	}
	if n == 0 {
		return t
	}
	c := *t
	c.extra = make([]Field, 0, len(t.extra)-n)
	for _, f := range t.extra {
		if !isPollName(f.Name) {
			c.extra = append(c.extra, f)
		}
	}
	return &c
}

// millis returns the value of raw when it is a whole number of milliseconds, and 0 when the member is absent or null.
func millis(raw []byte) (ms int, ok bool) {
	if raw == nil || raw[0] == 'n' {
		return 0, true
	}
	ms, ok = integer(raw)
	return ms, ok && ms >= 0
}

const millisRule = " must be an integer that is not negative"

// UnmarshalJSON decodes the data of oauth_initiate. Its texts are shown to people: control characters are refused.
func (s *Session) UnmarshalJSON(raw []byte) error {
	var (
		m    [8][]byte
		flow string
		d    Session
	)
	if err := decodeObject(raw, sessionNames, m[:]); err != nil {
		return err
	}
	texts := []*string{&d.ID, &flow, &d.AuthURL, &d.VerificationURL, &d.UserCode, &d.VerificationURLComplete}
	for i, p := range texts {
		var ok bool
		if *p, ok = optionalText(m[i]); !ok || i < 2 && *p == "" || hasControl([]byte(*p)) {
			return &RuleError{sessionNames[i] + " must be a string without control characters"}
		}
	}
	d.Flow = FlowType(flow)
	for i, p := range []*int{&d.PollIntervalMS, &d.ExpiresInMS} {
		i += len(texts)
		var ok bool
		if *p, ok = millis(m[i]); !ok {
			return &RuleError{sessionNames[i] + millisRule}
		}
	}
	*s = d
	return nil
}

// UnmarshalJSON decodes the data of oauth_poll.
func (p *Poll) UnmarshalJSON(raw []byte) error {
	var m [2][]byte
	if err := decodeObject(raw, pollNames, m[:]); err != nil {
		return err
	}
	status, _ := text(m[0])
	d := Poll{Status: PollStatus(status)}
	switch d.Status {
	case PollPending:
		var ok bool
		if d.PollIntervalMS, ok = millis(m[1]); !ok {
			return &RuleError{pollNames[1] + millisRule}
		}
	case PollComplete:
		t, err := decodeToken(raw, true)
		if err != nil {
			return err
		}
		d.Token = t
	case PollError:
		var failure [replyMembers][]byte
		if err := decodeObject(raw, replyNames, failure[:]); err != nil {
			return err
		}
		d.Err = decodeFailure(failure[:])
	default:
		return &RuleError{"status must be pending, complete or error"}
	}
	*p = d
	return nil
}
