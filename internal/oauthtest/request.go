package oauthtest

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxBody is the size at which a request body is refused.
const maxBody = 64 << 10

// reply is a whole answer, built before a byte of it is sent so that a [Fault] can replace or spoil it.
type reply struct {
	status int
	header http.Header
	body   []byte
	// failure is what went wrong, for a vendor that says it otherwise. Nil for a page or a good answer.
	failure *failure
}

// noStore: RFC 6749 section 5.1 for tokens; the pages carry codes, so they get it too.
func newReply(status int, contentType string, body []byte) reply {
	return reply{status: status, header: http.Header{
		"Content-Type": {contentType}, "Cache-Control": {"no-store"}, "Pragma": {"no-cache"},
		"Referrer-Policy": {"no-referrer"},
	}, body: body}
}

func jsonReply(status int, v any) reply {
	b, err := json.Marshal(v)
	if err != nil { // Options.Extra can hold something that is not JSON
		return errorReply(http.StatusInternalServerError, "server_error", "the answer cannot be encoded")
	}
	return newReply(status, "application/json", append(b, '\n'))
}

// errorReply has the shape of RFC 6749 section 5.2.
func errorReply(status int, code, description string) reply {
	return failureReply(status, failure{code: code, description: description})
}

func failureReply(status int, f failure) reply {
	rep := jsonReply(status, rfcError(f))
	rep.failure = &f
	return rep
}

func badRequest(code, description string) reply {
	return errorReply(http.StatusBadRequest, code, description)
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, r := range []struct {
		method   string
		endpoint Endpoint
		handle   func(*http.Request, url.Values) reply
	}{
		{"GET", Authorize, s.authorize}, {"POST", Authorize, s.decideAuthorize},
		{"POST", Token, s.token},
		{"POST", Device, s.device},
		{"GET", Verify, s.verifyPage}, {"POST", Verify, s.decideDevice},
		{"POST", Revoke, s.revoke},
		{"GET", Resource, s.resource},
		{"GET", Metadata, s.metadata}, {"GET", Discovery, s.discovery}, {"GET", Keys, s.keys},
		{"GET", Paste, s.pastePage},
		{"POST", DevicePoll, nil},
		{"GET", DeviceDone, s.donePage},
	} {
		path, ok := s.vendor.paths[r.endpoint]
		if !ok {
			continue
		}
		if own := s.vendor.handlers[r.endpoint]; own != nil {
			r.handle = func(req *http.Request, values url.Values) reply { return own(s, req, values) }
		}
		mux.HandleFunc(r.method+" "+path, func(w http.ResponseWriter, req *http.Request) {
			s.exchange(w, req, r.endpoint, r.handle)
		})
	}
	noted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			entry, _ := s.arrive(r, Elsewhere, r.URL.Query())
			s.setStatus(entry, http.StatusNotFound)
		}
		mux.ServeHTTP(w, r)
	})
	// A page of another origin must not be able to press the approve button.
	return http.NewCrossOriginProtection().Handler(noted)
}

// exchange reads one request, logs it, and answers it, with the next fault of its endpoint if there is one.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, e Endpoint, handle func(*http.Request, url.Values) reply) {
	values, refusal := s.readParams(w, r, e)
	entry, fault := s.arrive(r, e, values)
	p, _ := once(values)
	a := s.vendor.askOf(r, e, p)
	if refusal == nil {
		if refusal = s.vendor.check(r, e, a, values); refusal != nil {
			s.useUnprocessed(e, values)
		}
	}
	var rep reply
	switch {
	case fault != nil && !fault.issues():
		rep = reply{status: http.StatusInternalServerError, header: http.Header{}}
		if refusal == nil {
			s.useUnprocessed(e, values)
		}
	case refusal != nil:
		rep = *refusal
	default:
		if s.vendor.adapt != nil {
			values = maps.Clone(values)
			s.vendor.adapt(s, a, values)
		}
		rep = handle(r, values)
	}
	rep = s.vendor.say(r, e, a, rep)
	if fault == nil {
		s.setStatus(entry, rep.status)
		rep.write(w)
		return
	}
	rep = fault.spoil(rep)
	s.setStatus(entry, rep.status)
	fault.send(w, r, rep, s.done)
}

func (rep reply) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), rep.header)
	w.WriteHeader(rep.status)
	_, _ = w.Write(rep.body) // the client's departure is its own affair
}

// arrive logs the request and takes the next fault of its endpoint.
func (s *Server) arrive(r *http.Request, e Endpoint, values url.Values) (*Request, *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.nextFaultLocked(e)
	entry := &Request{
		Endpoint: e, Method: r.Method, Path: r.URL.Path, Params: values, Header: r.Header.Clone(), Faulted: f != nil, Time: time.Now(),
	}
	s.log = append(s.log, entry)
	close(s.arrived)
	s.arrived = make(chan struct{})
	return entry, f
}

func (s *Server) setStatus(entry *Request, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entry.Status = status
}

// readParams takes parameters from the query of a GET and from the body of a POST, nowhere else (RFC 6749 section 2.3.1).
func (s *Server) readParams(w http.ResponseWriter, r *http.Request, e Endpoint) (url.Values, *reply) {
	refuse := func(status int, why string) (url.Values, *reply) {
		return nil, new(errorReply(status, "invalid_request", why))
	}
	if r.Method != http.MethodPost {
		values, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return refuse(http.StatusBadRequest, "the query is malformed")
		}
		return values, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, "the body is too large")
	} else if err != nil {
		return refuse(http.StatusBadRequest, "the body cannot be read")
	}
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	page := e == Authorize || e == Verify // browsers send forms
	// What a vendor takes depends on more than the endpoint: vendor.check
	encoding := s.opt.Encoding
	if s.vendor.requests != nil {
		encoding = FormOrJSONBody
	}
	switch {
	case contentType == "application/x-www-form-urlencoded" && (page || encoding != JSONBody):
		values, err := url.ParseQuery(string(body))
		if err != nil {
			return refuse(http.StatusBadRequest, "the form is malformed")
		}
		return values, nil
	case contentType == "application/json" && !page && encoding != FormBody:
		values, err := parseJSON(body)
		if err != nil {
			return refuse(http.StatusBadRequest, "the JSON body is not one flat object")
		}
		return values, nil
	}
	return refuse(http.StatusBadRequest, "this content type is not accepted")
}

// parseJSON reads one object of scalars; a name that comes twice has two values, as in a form.
func parseJSON(body []byte) (url.Values, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	values := url.Values{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		value, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch v := value.(type) {
		case json.Delim:
			return nil, errors.New("nested")
		case nil: // as if it were not there
		default:
			values.Add(name.(string), fmt.Sprint(v))
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("trailing data")
	}
	return values, nil
}

// once makes one value of each parameter. RFC 6749 section 3.1: a parameter without a value counts as omitted, and none
// may come twice; RFC 8707 lets resource be repeated. The second result names one that came twice.
func once(values url.Values) (map[string]string, string) {
	p, twice := make(map[string]string, len(values)), ""
	for name, v := range values {
		if len(v) > 1 && name != "resource" {
			twice = name
			continue
		}
		if v[0] != "" {
			p[name] = v[0]
		}
	}
	return p, twice
}

// clientRequest does what the token, device and revocation endpoints have in common: parameters once, client
// authenticated (RFC 6749 sections 2.3.1 and 3.2.1).
func (s *Server) clientRequest(r *http.Request, values url.Values) (map[string]string, *Client, *reply) {
	p, twice := once(values)
	if twice != "" {
		return nil, nil, new(badRequest("invalid_request", "a parameter is repeated"))
	}
	for _, secret := range []string{"client_secret", "code", "refresh_token", "device_code", "token"} {
		if r.URL.Query().Has(secret) {
			return nil, nil, new(badRequest("invalid_request", "a parameter of the body is in the URI"))
		}
	}
	id, secret := p["client_id"], p["client_secret"]
	if auth := r.Header.Get("Authorization"); auth != "" {
		user, pass, ok := r.BasicAuth()
		user, err1 := url.QueryUnescape(user)
		pass, err2 := url.QueryUnescape(pass)
		if !ok || err1 != nil || err2 != nil {
			return nil, nil, new(invalidClient())
		}
		if secret != "" || (id != "" && id != user) {
			return nil, nil, new(badRequest("invalid_request", "the client authenticates in two ways"))
		}
		id, secret = user, pass
	}
	if id == "" {
		return nil, nil, new(badRequest("invalid_request", "client_id is missing"))
	}
	s.mu.Lock()
	c := s.clientByIDLocked(id)
	s.mu.Unlock()
	if c == nil || !sameSecret(c.Secret, secret) {
		return nil, nil, new(invalidClient())
	}
	return p, c, nil
}

func (s *Server) clientByIDLocked(id string) *Client {
	for i := range s.opt.Clients {
		if s.opt.Clients[i].ID == id {
			return &s.opt.Clients[i]
		}
	}
	for _, c := range s.state.clients {
		if c.ID == id {
			return c
		}
	}
	return nil
}

func invalidClient() reply {
	rep := errorReply(http.StatusUnauthorized, "invalid_client", "the client is unknown or did not authenticate")
	rep.header.Set("WWW-Authenticate", `Basic realm="oauthtest"`)
	return rep
}

func sameSecret(a, b string) bool {
	x, y := digestOf(a), digestOf(b)
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// parseScope checks the grammar of RFC 6749 section 3.3 and what the server knows. No scope asked for: all there are.
func (s *Server) parseScope(raw string) ([]string, bool) {
	if raw == "" {
		return s.opt.Scopes, true
	}
	scope := strings.Split(raw, " ")
	for _, one := range scope {
		if one == "" || strings.ContainsFunc(one, func(r rune) bool { return r < 0x21 || r > 0x7e || r == '"' || r == '\\' }) {
			return nil, false
		}
	}
	return scope, len(s.opt.Scopes) == 0 || subset(scope, s.opt.Scopes)
}
