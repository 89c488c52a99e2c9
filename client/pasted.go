package client

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/credproxy/credproxy/wire"
)

// checkPasted looks at what a person pasted, before a code is spent on it. It returns the text to send, without white space
// around it, or a sentence: what is wrong with it. It knows the mistakes that would cost the login; what is no code at all
// is the proxy's to say, which does not.
func checkPasted(pasted, authURL string) (code, problem string) {
	code = strings.TrimSpace(pasted)
	switch {
	case code == "":
		return "", "nothing was pasted"
	case len(code) > wire.MaxCodeLen:
		return "", "this is too long for a code"
	case !utf8.ValidString(code) || strings.ContainsFunc(code, unicode.IsControl):
		return "", "this has characters in it that no code has"
	case code == strings.TrimSpace(authURL):
		return "", "this is the address to open: paste what its page shows in the end, or the address that it leads to"
	}
	want := ""
	if u, err := url.Parse(authURL); err == nil {
		want = u.Query().Get("state")
	}
	if got := pastedState(code); want != "" && got != "" && got != want {
		return "", "this code belongs to another login: use the page that was opened for this one"
	}
	return code, ""
}

// pastedState returns the state in what was pasted, "" when it has none: of code#state, or of the address that the
// browser was sent to (RFC 6749, section 4.1.2), whole or in part, with its answer in the query or in the fragment. Quotes
// around it may have come with it.
func pastedState(s string) string {
	s = strings.Trim(s, " \"'`<>“”„‘’«»")
	head, tail, _ := strings.Cut(s, "#")
	_, query, found := strings.Cut(head, "?")
	if !found {
		query = head
	}
	for _, part := range []string{query, tail} {
		if values, err := url.ParseQuery(part); err == nil && values.Has("state") {
			return values.Get("state")
		}
	}
	if found || strings.Contains(head, "://") || strings.Contains(tail, "=") && strings.HasPrefix(tail, "code") {
		return ""
	}
	return tail
}
