package provider

import (
	"encoding/json"
	"fmt"
)

// Kind tells what a failure means for the login.
type Kind int

const (
	// Refused: the provider said no to this code, token or client; trying again gives the same answer.
	Refused Kind = iota + 1
	// Transient: the network, the provider's own trouble or its rate limit; a later attempt may succeed.
	Transient
	// Malformed: the provider answered something that is no token response.
	Malformed
)

// Error is a failed request to a provider. Its text is made of constants, the provider's name, the HTTP status and an
// OAuth error code in the characters RFC 6749 allows; nothing of the answer's body is in it.
type Error struct {
	Kind     Kind
	Provider string
	Status   int    // HTTP status; 0 when there was no answer or the status was 200
	Code     string // OAuth error code such as invalid_grant; "" when there was none
	reason   string
	err      error // the network's error; it names hosts, never a request's content
}

func (e *Error) Error() string {
	text := "provider " + e.Provider + ": " + e.reason
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

// refusal classifies an OAuth error code.
func refusal(code string, status int) *Error {
	switch code {
	case "temporarily_unavailable", "server_error", "slow_down":
		return &Error{Kind: Transient, Code: code, Status: status, reason: "it cannot answer now"}
	}
	return &Error{Kind: Refused, Code: code, Status: status, reason: "it refused the request"}
}

// oauthCode returns the error code of an answer: `error` as RFC 6749 section 5.2 has it, or error.code as some
// providers nest it. Anything but a short plain token counts as none, so that a body cannot smuggle text into an error.
func oauthCode(members map[string]json.RawMessage) string {
	raw, ok := members["error"]
	if !ok {
		return ""
	}
	var code string
	if json.Unmarshal(raw, &code) != nil {
		var nested struct {
			Code string `json:"code"`
			Type string `json:"type"`
		}
		if json.Unmarshal(raw, &nested) != nil {
			return ""
		}
		code = nested.Code
		if code == "" {
			code = nested.Type
		}
	}
	return PlainCode(code)
}

// PlainCode returns code if it looks like a registered OAuth error code, "unknown_error" otherwise, so that nothing a
// provider wrote freely gets into an error.
func PlainCode(code string) string {
	if code == "" || len(code) > 40 {
		return "unknown_error"
	}
	for i := range len(code) {
		c := code[i]
		if (c < 'a' || c > 'z') && c != '_' && c != '-' {
			return "unknown_error"
		}
	}
	return code
}
