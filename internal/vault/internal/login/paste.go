package login

import (
	"context"
	"crypto/subtle"
	"net/url"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// maxPaste is how long a pasted text may be, in bytes.
const maxPaste = 4096

func (l *Login) startPaste(ctx context.Context, p *provider.Provider) (err error) {
	l.authorization, err = l.client.Authorize(ctx, p, p.PasteRedirect())
	if err == nil {
		l.URL = l.authorization.URL
	}
	return err
}

// Finish exchanges what the person pasted for a grant. The text may be a code, code#state, code=…&state=…, or the whole
// address that the provider's page led to. Errors are ErrPaste and ErrOtherLogin, with which nothing was sent, and
// *provider.Error, with which the code is spent.
func (l *Login) Finish(ctx context.Context, pasted string) (*grant.Grant, error) {
	q, err := l.read(pasted)
	if err != nil {
		return nil, err
	}
	return l.finish(ctx, q)
}

// read finds the authorization response in a pasted text. An address has the state of the login, which the provider must
// send back (RFC 6749 section 4.1.2), unless its end is missing, and with it perhaps the end of the code.
func (l *Login) read(pasted string) (url.Values, error) {
	q, err := parsePaste(pasted)
	if s := unwrap(pasted); err == nil && isAddress(s) {
		switch stateless := l.authorization.Mine(""); {
		case stateless && !l.leads(s):
			return nil, ErrOtherLogin
		case !stateless && !q.Has("state"):
			return nil, errCutOff
		}
	}
	return q, err
}

// leads reports whether an address is the one that this login's browser is sent to. Without a state its path is what tells
// logins apart.
func (l *Login) leads(address string) bool {
	u, err := url.Parse(address)
	want, err2 := url.Parse(l.authorization.Redirect)
	return err == nil && err2 == nil && subtle.ConstantTimeCompare([]byte(u.Path), []byte(want.Path)) == 1
}

// finish exchanges what read found.
func (l *Login) finish(ctx context.Context, q url.Values) (*grant.Grant, error) {
	if q.Has("state") && !l.authorization.Mine(q.Get("state")) {
		return nil, ErrOtherLogin
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.closing, func() { cancel(ErrClosed) })()
	g, err := l.client.Exchange(ctx, l.authorization, q, l.secret)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return g, err
}

// answerParams are the parameters of an authorization response that are looked at: RFC 6749 section 4.1.2, RFC 9207, and
// the client id that "Sign in with ChatGPT" issues. Each comes once, or not at all.
var answerParams = []string{"code", "error", "state", "iss", "client_id"}

// parsePaste finds the authorization response in a pasted text: code or error, and what else is there of answerParams.
// The error is an ErrPaste.
func parsePaste(pasted string) (url.Values, error) {
	s := unwrap(pasted)
	switch {
	case s == "":
		return nil, errNothing
	case len(pasted) > maxPaste:
		return nil, errLong
	case !plain(s):
		return nil, errStrange
	}
	var q url.Values
	var err error
	if isAddress(s) {
		address, fragment, _ := strings.Cut(s, "#")
		_, query, _ := strings.Cut(address, "?")
		q, err = fromAddress(query, fragment)
	} else if query, state, _ := strings.Cut(s, "#"); isQuery(query) {
		q, err = url.ParseQuery(query)
		if err == nil && state != "" && !q.Has("state") {
			q.Set("state", state)
		}
	} else if isQuery(state) { // a fragment with its #
		q, err = url.ParseQuery(state)
	} else {
		q, err = bare(s)
	}
	switch {
	case err != nil:
		return nil, ErrPaste
	case q.Has("code_challenge"):
		return nil, errOpened
	case isAddress(s) && q.Get("code") == "" && q.Get("error") == "":
		return nil, errNoCode
	}
	return answer(q)
}

func isAddress(s string) bool { return strings.Contains(s, "://") || strings.Contains(s, "?") }

// quotes are what people, mail programs and terminals put around a text.
var quotes = [][2]string{{`"`, `"`}, {`'`, `'`}, {"`", "`"}, {"<", ">"}, {"“", "”"}, {"„", "“"}, {"‘", "’"}, {"«", "»"}}

// unwrap removes white space and pairs of quotes around a text.
func unwrap(s string) string {
	s = strings.TrimSpace(s)
	for again := true; again; {
		again = false
		for _, q := range quotes {
			inner, ok := strings.CutPrefix(s, q[0])
			if inner, ok2 := strings.CutSuffix(inner, q[1]); ok && ok2 {
				s, again = strings.TrimSpace(inner), true
			}
		}
	}
	return s
}

// plain reports whether s has only visible characters of ASCII: of those are codes and states (VSCHAR, RFC 6749 appendix A)
// and addresses. A space within means that more was copied, or less.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// isQuery reports whether s is parameters in the form of a query: a code may have "=" at its end, but no such name before it.
func isQuery(s string) bool {
	for pair := range strings.SplitSeq(s, "&") {
		if name, _, ok := strings.Cut(pair, "="); ok && (name == "code" || name == "error") {
			return true
		}
	}
	return false
}

// fromAddress takes the parameters of an address from its query, or from its fragment if they are there.
func fromAddress(query, fragment string) (url.Values, error) {
	switch inQuery, inFragment := isQuery(query), isQuery(fragment); {
	case inQuery && inFragment:
		return nil, ErrPaste
	case inFragment:
		return url.ParseQuery(fragment)
	}
	return url.ParseQuery(query)
}

// bare takes a code, or a code and its state as the page of some providers shows them: code#state.
func bare(s string) (url.Values, error) {
	code, state, both := strings.Cut(s, "#")
	if both && (state == "" || strings.Contains(state, "#")) {
		return nil, ErrPaste
	}
	q := url.Values{"code": {code}}
	if both {
		q.Set("state", state)
	}
	return q, nil
}

// answer keeps what is of use of q: once each, and made of what it can be made of.
func answer(q url.Values) (url.Values, error) {
	a := url.Values{}
	for _, name := range answerParams {
		values := q[name]
		if len(values) > 1 || len(values) == 1 && !plain(values[0]) {
			return nil, ErrPaste
		}
		if len(values) == 1 && values[0] != "" {
			a[name] = values
		}
	}
	if a.Has("code") == a.Has("error") {
		return nil, ErrPaste
	}
	return a, nil
}
