package client

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/credproxy/credproxy/wire"
)

// checkPasted looks at what a person pasted, before a code is spent on it. It returns the text to send, without white space
// around it, or a sentence: what is wrong with it. The proxy looks closer; this is for mistakes that are made every day.
func checkPasted(pasted, authURL string) (code, problem string) {
	code = strings.TrimSpace(pasted)
	switch {
	case code == "":
		return "", "nothing was pasted"
	case len(code) > wire.MaxCodeLen:
		return "", "that is too long for a code"
	case !utf8.ValidString(code) || strings.ContainsFunc(code, unicode.IsControl):
		return "", "that has characters in it that no code has"
	case code == strings.TrimSpace(authURL):
		return "", "that is the address to open; paste what the browser shows in the end"
	}
	state, found := pastedState(code)
	if !found {
		return "", "there is no code in that"
	}
	if want := stateOf(authURL); want != "" && state != "" && state != want {
		return "", "that is from another login; paste what the address of this one leads to"
	}
	return code, ""
}

// pastedState returns the state in what was pasted, "" when it has none, and whether it has a code, or an answer in its
// place, at all. The forms are a code, code#state, and the address that the browser was sent to (RFC 6749, section 4.1.2),
// whole or from its query on.
func pastedState(s string) (state string, found bool) {
	query := ""
	if u, err := url.Parse(s); err == nil && u.Scheme != "" && u.Host != "" {
		query = u.RawQuery
	} else if q := strings.TrimPrefix(s, "?"); strings.HasPrefix(q, "code=") || strings.HasPrefix(q, "state=") || q != s {
		query = q
	} else {
		code, state, _ := strings.Cut(s, "#")
		return state, code != ""
	}
	values, _ := url.ParseQuery(query)
	return values.Get("state"), values.Get("code") != "" || values.Get("error") != ""
}

// stateOf returns the state in an authorisation address, "" when there is none.
func stateOf(authURL string) string {
	u, err := url.Parse(authURL)
	if err != nil {
		return ""
	}
	return u.Query().Get("state")
}
