package provider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind tells what a failure means for the login.
type Kind int

const (
	// Refused: the provider said no to this very request; the same request gets the same answer.
	Refused Kind = iota + 1
	// Transient: the network, the provider's own trouble or its rate limit; a later attempt may succeed.
	Transient
	// Malformed: the provider answered something that is no token response, or broke off behind a new refresh token.
	Malformed
	// Unclear: the provider said no for a reason that is not known here, so it may change its mind.
	Unclear
	// Pending: of a login by device code, the person is not done yet; ask again after the interval.
	Pending
	// SlowDown: as Pending, but from now on with Error.Interval, or with 5 s more if that is 0.
	SlowDown
	// Denied: the person, or the provider for them, said no to the login.
	Denied
	// Expired: the code of the login is over before the person was done.
	Expired
)

// Error is a failed request to a provider. Its text is made of constants, the provider's name, the HTTP status and an
// OAuth error code that passed [PlainCode]; nothing else of the answer is in it.
type Error struct {
	Kind       Kind
	Provider   string
	Status     int           // HTTP status; 0 when there was no answer or the status was 200
	Code       string        // OAuth error code such as invalid_grant, lower case; "" when there was none
	RetryAfter time.Duration // how long the provider wants to be left alone, at most an hour; 0 when it did not say
	Interval   time.Duration // of SlowDown: the new interval between polls; 0 is 5 s more than before
	Revoked    bool          // of a refresh: this refresh token is dead for good
	reason     string        // a constant of this package
	hint       string        // what to do, behind the reason; it may name this machine's configuration
	err        error         // the network's error; it names hosts, never a request's content
}

// Reason is why the request failed, in words that are constants of this package: nothing of the answer, of the request
// or of the configuration, and no address. It can be recorded.
func (e *Error) Reason() string { return e.reason }

func (e *Error) Error() string {
	text := "provider " + e.Provider + ": " + e.reason + e.hint
	switch {
	case e.Code != "" && e.Status != 0:
		text += fmt.Sprintf(" (%s, HTTP %d)", e.Code, e.Status)
	case e.Code != "":
		text += " (" + e.Code + ")"
	case e.Status != 0:
		text += fmt.Sprintf(" (HTTP %d)", e.Status)
	}
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.err }

// Codes that mean the same from every provider.
var (
	transientCodes = []string{"temporarily_unavailable", "server_error", "slow_down", "rate_limit_error"}
	// RFC 6749 section 4.1.2.1, RFC 8628 section 3.5, and xAI's own name for it.
	deniedCodes = []string{"access_denied", "authorization_denied"}
	// Never about the token: RFC 6749 section 5.2, and GitHub's own name for invalid_client.
	clientCodes = []string{"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "incorrect_client_credentials"}
)

// failure makes the error of an answer: of any that is no success, and of a success that holds an error. refreshing
// says that the request was about a refresh token.
func (p *Provider) failure(status int, body []byte, refreshing bool) *Error {
	members := decode(body)
	code := errorCode(members)
	e := &Error{Provider: p.Name, Status: status}
	if code != "" {
		e.Code = PlainCode(code)
	}
	if status/100 == 2 {
		e.Status = 0
	}
	d := p.dialect().Token
	refuse := func(dead bool) {
		e.Kind, e.reason, e.Revoked = Refused, "it refused the request", dead && refreshing
	}
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500, slices.Contains(transientCodes, code):
		e.Kind, e.reason = Transient, "it cannot answer now"
	case status/100 == 3:
		e.Kind, e.Code, e.reason = Malformed, "", "it answered with a redirect, which is not followed"
	case slices.Contains(clientCodes, code):
		refuse(false)
	case code == "device_flow_disabled": // this and the next are GitHub's
		refuse(false)
		e.reason = "it does not let this client log in by device code"
	case code == "incorrect_device_code":
		refuse(false)
		e.reason = "it does not know the device code"
	case code == "invalid_grant", slices.Contains(d.DeadCodes, code), slices.Contains(d.DeadStatuses, status):
		refuse(true)
	case code == "invalid_request", status == http.StatusUnauthorized:
		refuse(false)
	case status/100 == 2 && code == "":
		e.Kind, e.reason = Malformed, "its answer holds no access token"
		if members == nil {
			e.reason = "its answer is not a JSON object"
		}
	default:
		e.Kind, e.reason = Unclear, "it refused the request for a reason that is not known"
	}
	return e
}

// errorCode returns the error code of an answer in lower case: `error` as RFC 6749 section 5.2 has it, error.code or
// error.type as some providers nest it, or a `code` of the answer itself; "" when there is none.
func errorCode(members map[string]json.RawMessage) string {
	code := text(members["error"])
	if code == "" {
		var nested map[string]json.RawMessage
		_ = json.Unmarshal(members["error"], &nested)
		code = text(nested["code"])
		if code == "" {
			code = text(nested["type"])
		}
	}
	if code == "" {
		code = text(members["code"])
	}
	return strings.ToLower(code)
}

// text is a JSON string's value, "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s)
	return s
}

// codeWords are what OAuth error codes are made of: those of the IANA registry of OAuth parameters, of OpenID Connect,
// and of the providers in the dialects.
var codeWords = func() map[string]bool {
	words := map[string]bool{}
	for word := range strings.FieldsSeq(`
		access account admin api app application authentication authorization bad cannot client code consent
		credentials denied device deviceauth disabled discontinued dpop error exceeded expired failed flow forbidden
		found grant id incorrect insufficient interaction internal invalid invalidated is issuer limit limited login
		malformed metadata mfa mismatch missing nonce not object of organization overloaded pending permission policy
		proof quota rate reached redirect refresh registration request requested requests required response restricted
		reused revoked scope selection server service session slow down software statement supported suspended target
		temporarily timeout token too many type unapproved unauthenticated unauthorized unavailable unknown unmet
		unsupported uri url use used user verification requirements`) {
		words[word] = true
	}
	return words
}()

// PlainCode returns code if it is made of words that OAuth error codes are made of, in lower case with _ or - between
// them, and "unknown_error" otherwise. So nothing that a provider wrote freely, or echoed, gets into an error: not a
// token, not a number, not a name.
func PlainCode(code string) string {
	words := strings.FieldsFunc(code, func(r rune) bool { return r == '_' || r == '-' })
	if len(words) == 0 || len(code) > 48 || slices.ContainsFunc(words, func(w string) bool { return !codeWords[w] }) {
		return "unknown_error"
	}
	return code
}

// maxRetryAfter bounds what a provider can ask for: a login that waits longer looks broken.
const maxRetryAfter = time.Hour

// retryAfter reads Retry-After: seconds or an HTTP date (RFC 9110 section 10.2.3). A date counts from the answer's own
// Date, so that this machine's clock may be wrong. What is neither, or past, counts as absent.
func retryAfter(h http.Header) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.Atoi(value)
		if err != nil || seconds > int(maxRetryAfter/time.Second) { // the error is "out of range"
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	from, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		from = time.Now()
	}
	return min(max(until.Sub(from), 0), maxRetryAfter)
}
