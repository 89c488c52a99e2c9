package oauthtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// ask is a kind of request. Those of the token endpoint are named by their grant type.
type ask string

const (
	askAuthorize ask = "authorisation request"
	askExchange  ask = GrantCode
	askRefresh   ask = GrantRefresh
	askPoll      ask = GrantDevice
	askDevice    ask = "device request"
	askAuthPoll  ask = "poll of deviceauth"
	askRevoke    ask = "revocation request"
)

// vendor is how a dialect differs from the plain server: data, and hooks over the plain handlers. The plain server is
// the zero value with paths. A nil hook changes nothing; hooks whose names end in Locked run with Server.mu held.
type vendor struct {
	paths map[Endpoint]string
	// options sets what Options leave open: the client, scopes, lifetimes, prefixes. base is scheme and host of the server.
	options func(o *Options, base string)
	// requests are all that can be asked, and what each must look like. Nil: as the RFCs say, unknown members ignored.
	requests map[ask]form

	fixedPort bool // a loopback redirect URI has the port it is registered with
	noGrants  bool // the token endpoint takes codes alone, and no grant_type
	codeSize  int  // of a device code in characters, if that is fixed
	// forever says that access tokens of a client do not expire and come without expires_in.
	forever func(c *Client) bool

	// adapt makes a request of RFC 6749 or 8628 of the vendor's own, after it was checked and logged.
	adapt func(s *Server, a ask, values url.Values)
	// redirect says whether an answer may go to uri; nil: to what is registered.
	redirect func(c *Client, uri string) bool
	// approveLocked completes the redirect that carries a code, and may replace the request's client.
	approveLocked func(s *Server, a *authRequest, values url.Values)
	// exchange says why a code cannot be exchanged in this request, or nothing.
	exchange func(c *code, p map[string]string) string
	// accessLocked makes an access token that has id in it; nil: id itself.
	accessLocked func(s *Server, f *family, scope []string, id string) string
	// refreshableLocked says whether a new family gets a refresh token.
	refreshableLocked func(s *Server, f *family) bool
	// answerLocked edits a token answer, deviceAnswer that of the device endpoint.
	answerLocked func(s *Server, a ask, f *family, answer map[string]any)
	deviceAnswer func(answer map[string]any)
	// failure is the vendor's way to say an error.
	failure func(a ask, status int, f failure) (int, any)
	// deliver is the last word on an answer in JSON.
	deliver func(r *http.Request, rep reply) reply
	// page is the text that the paste page shows for a code.
	page func(code, state string) string
	// limited is the body of a 429.
	limited string

	handlers map[Endpoint]func(*Server, *http.Request, url.Values) reply // in place of the plain ones
}

// form is what a request must look like.
type form struct {
	encoding Encoding
	need     []string // names that must have a value; "name=value": that value
	may      []string // no other names than these and the needed ones are taken
	// noClient refuses a client secret, which otherwise is taken from the clients that have one.
	noClient bool
	check    func(r *http.Request, p map[string]string) (problem string)
}

// verifierForm is RFC 7636 section 4.1.
var verifierForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9._~-]{43,128}$`) })

// failure is an error in an answer. Handlers say it in the words of the RFCs; vendor.failure translates it.
type failure struct {
	code, description string
	interval          time.Duration // with slow_down: the new one
}

// Descriptions that vendors tell apart.
const (
	whyReused  = "the refresh token was used before"
	whyExpired = "the refresh token has expired"
	whyRevoked = "the refresh token was revoked"
)

// Dialects are the values of [Options].Dialect besides "".
func Dialects() []string {
	return slices.Sorted(maps.Keys(vendors))
}

var vendors = map[string]func() *vendor{
	"anthropic": anthropic, "codex": codex, "chatgpt": chatgpt, "gemini": gemini, "qwen": qwen,
	"github": github, "xai": xai, "kimi": kimi, "openrouter": openrouter,
}

func plain(issuerPath string) *vendor {
	v := &vendor{paths: map[Endpoint]string{
		Metadata:  string(Metadata) + issuerPath,  // RFC 8414 section 3.1
		Discovery: issuerPath + string(Discovery), // OpenID Connect Discovery section 4
	}}
	for _, e := range []Endpoint{Authorize, Token, Device, Verify, Revoke, Paste, Keys} {
		v.paths[e] = string(e)
	}
	return v
}

// askOf names a request; empty for one that vendors do not describe, such as a page.
func (v *vendor) askOf(r *http.Request, e Endpoint, p map[string]string) ask {
	switch {
	case e == Token && v.noGrants:
		return askExchange
	case e == Authorize && r.Method == http.MethodGet:
		return askAuthorize
	case e == Token:
		return ask(p["grant_type"])
	case e == Device:
		return askDevice
	case e == DevicePoll:
		return askAuthPoll
	case e == Revoke:
		return askRevoke
	}
	return ""
}

// check refuses what the vendor's description does not have.
func (v *vendor) check(r *http.Request, e Endpoint, a ask, values url.Values) *reply {
	if v.requests == nil || a == "" && e != Token {
		return nil
	}
	refuse := func(code, format string, args ...any) *reply {
		why := fmt.Sprintf(format, args...)
		if a == askAuthorize {
			return new(page(http.StatusBadRequest, "Invalid request", "<p>"+escape(why)+"</p>"))
		}
		return new(badRequest(code, why))
	}
	f, ok := v.requests[a]
	switch {
	case a == "":
		return refuse("invalid_request", "grant_type is missing")
	case !ok:
		return refuse("unsupported_grant_type", "grant type %q is not served here", a)
	}
	p, twice := once(values)
	if twice != "" {
		return refuse("invalid_request", "%s is repeated", twice)
	}
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isJSON := contentType == "application/json"
	switch {
	case r.Method == http.MethodPost && (isJSON && f.encoding == FormBody || !isJSON && f.encoding == JSONBody):
		return refuse("invalid_request", "the content type %s is not taken here", contentType)
	case r.Header.Get("Authorization") != "":
		return refuse("invalid_request", "a client does not authenticate by header here")
	case r.Method == http.MethodPost && r.URL.RawQuery != "":
		return refuse("invalid_request", "the address has a query")
	}
	known := slices.Clone(f.may)
	if r.Method == http.MethodPost && !f.noClient {
		known = append(known, "client_secret") // clientRequest says whose
	}
	for _, need := range f.need {
		name, value, exact := strings.Cut(need, "=")
		known = append(known, name)
		if p[name] == "" || exact && p[name] != value {
			return refuse("invalid_request", "%s is missing or wrong", need)
		}
	}
	for name := range values {
		if !slices.Contains(known, name) {
			return refuse("invalid_request", "%s does not belong to this request", name)
		}
	}
	if p["code_verifier"] != "" && !verifierForm().MatchString(p["code_verifier"]) {
		return refuse("invalid_request", "code_verifier is not 43 to 128 unreserved characters")
	}
	if f.check != nil {
		if problem := f.check(r, p); problem != "" {
			return refuse("invalid_request", "%s", problem)
		}
	}
	return nil
}

// say puts an answer into the vendor's words.
func (v *vendor) say(r *http.Request, e Endpoint, a ask, rep reply) reply {
	if rep.failure != nil && v.failure != nil {
		status, body := v.failure(a, rep.status, *rep.failure)
		rep = jsonReply(status, body)
	}
	if v.deliver != nil && e != Resource && rep.header.Get("Content-Type") == "application/json" {
		rep = v.deliver(r, rep)
	}
	return rep
}

// rfcError is the body of an error as RFC 6749 section 5.2 has it.
func rfcError(f failure) map[string]any {
	return map[string]any{"error": f.code, "error_description": f.description}
}

// Limited is 429 as the vendor says it, with the given Retry-After, or without the header if that is empty.
func (s *Server) Limited(retryAfter string) Fault {
	f := RateLimited(retryAfter)
	f.Header.Set("Cache-Control", "no-store")
	if s.vendor.limited != "" {
		f.Body = &s.vendor.limited
	}
	return f
}

// asForm turns a JSON answer into a form, as GitHub answers a client that does not ask for JSON.
func asForm(rep reply) reply {
	var fields map[string]any
	if json.Unmarshal(rep.body, &fields) != nil {
		return rep
	}
	values := url.Values{}
	for name, v := range fields {
		values.Set(name, fmt.Sprint(v))
	}
	return newReply(rep.status, "application/x-www-form-urlencoded; charset=utf-8", []byte(values.Encode()))
}
