package oauthtest

import (
	"crypto/rand"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// s256 is base64url of 32 bytes without padding: RFC 7636 section 4.2.
var s256 = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`) })

// authorize answers an authorisation request: RFC 6749 section 4.1.1, RFC 7636 section 4.3.
func (s *Server) authorize(_ *http.Request, values url.Values) reply {
	p, twice := once(values)
	// Until client and redirect URI are known to be good, an error is shown, never redirected (section 4.1.2.1).
	s.mu.Lock()
	defer s.mu.Unlock()
	client := s.clientByIDLocked(p["client_id"])
	if client == nil || twice == "client_id" || twice == "redirect_uri" {
		return page(http.StatusBadRequest, "Unknown client", "<p>The request names no registered client.</p>")
	}
	a := authRequest{client: client, redirect: p["redirect_uri"], redirectArg: p["redirect_uri"], state: p["state"], params: p}
	if a.redirect == "" && len(client.RedirectURIs) == 1 {
		a.redirect = client.RedirectURIs[0]
	}
	if !s.redirectable(client, a.redirect) {
		return page(http.StatusBadRequest, "Unknown redirect URI", "<p>The request names no redirect URI registered for this client.</p>")
	}
	scope, scopeOK := s.parseScope(p["scope"])
	challenge, method := p["code_challenge"], p["code_challenge_method"]
	switch {
	case twice != "":
		return s.refuse(a, "invalid_request", "a parameter is repeated")
	case p["response_type"] == "":
		return s.refuse(a, "invalid_request", "response_type is missing")
	case p["response_type"] != "code":
		return s.refuse(a, "unsupported_response_type", "only code is supported")
	case !client.may(GrantCode):
		return s.refuse(a, "unauthorized_client", "the client may not use this grant")
	case !scopeOK:
		return s.refuse(a, "invalid_scope", "a scope is malformed or unknown")
	case challenge == "" && (!s.opt.PKCEOptional || method != ""):
		return s.refuse(a, "invalid_request", "code challenge required")
	case challenge != "" && method != "S256": // absent means plain
		return s.refuse(a, "invalid_request", "transform algorithm not supported")
	case challenge != "" && !s256().MatchString(challenge):
		return s.refuse(a, "invalid_request", "the code challenge is malformed")
	}
	a.scope, a.challenge = scope, challenge
	switch s.opt.Approval {
	case ApproveAll:
		return s.approveLocked(a)
	case DenyAll:
		return s.refuse(a, "access_denied", "the user said no")
	}
	id := rand.Text()
	s.state.requests[digestOf(id)] = &a
	return page(http.StatusOK, "Allow access?", fmt.Sprintf(
		`<p>%s asks for %s.</p><form method="post" action="%s"><input type="hidden" name="request" value="%s">%s</form>`,
		escape(client.ID), scopeText(scope), s.vendor.paths[Authorize], id, buttons))
}

// decideAuthorize takes the user's answer to the page. The page's id is good once and stands for the whole request.
func (s *Server) decideAuthorize(_ *http.Request, values url.Values) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := digestOf(values.Get("request"))
	a := s.state.requests[id]
	decision := values.Get("decision")
	if a == nil || (decision != "approve" && decision != "deny") {
		return page(http.StatusBadRequest, "Nothing to decide", "<p>This request is unknown or was already answered.</p>")
	}
	delete(s.state.requests, id)
	var rep reply
	if decision == "approve" {
		rep = s.approveLocked(*a)
	} else {
		rep = s.refuse(*a, "access_denied", "the user said no")
	}
	rep.status = http.StatusSeeOther // RFC 9700 section 4.12: the browser must not repeat the POST there
	return rep
}

func (s *Server) approveLocked(a authRequest) reply {
	values := url.Values{}
	if s.vendor.approveLocked != nil {
		s.vendor.approveLocked(s, &a, values)
	}
	values.Set("code", s.newCodeLocked(a))
	return s.redirect(a, values)
}

func (s *Server) refuse(a authRequest, code, description string) reply {
	return s.redirect(a, url.Values{"error": {code}, "error_description": {description}})
}

// redirect sends the browser to the client's redirect URI, whose own query stays as it is (RFC 6749 section 3.1.2).
func (s *Server) redirect(a authRequest, values url.Values) reply {
	if a.state != "" {
		values.Set("state", a.state)
	}
	if s.opt.SendIssuer {
		values.Set("iss", s.opt.Issuer)
	}
	u, err := url.Parse(a.redirect)
	if err != nil {
		return page(http.StatusBadRequest, "Bad redirect URI", "")
	}
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += values.Encode()
	rep := newReply(http.StatusFound, "text/html; charset=utf-8", nil)
	rep.header.Set("Location", u.String())
	return rep
}

// pastePage shows the user what a redirect brought, to be copied.
func (s *Server) pastePage(_ *http.Request, values url.Values) reply {
	p, _ := once(values)
	if p["code"] == "" {
		return page(http.StatusOK, "No code", "<p>Access was not given: "+escape(p["error"])+"</p>")
	}
	text := p["code"]
	if s.vendor.page != nil {
		text = s.vendor.page(p["code"], p["state"])
	}
	return page(http.StatusOK, "Copy this code", `<p>Paste it where you are asked for it:</p><p><code id="code">`+escape(text)+`</code></p>`)
}

// donePage is where a browser would end if it were ever sent to the redirect URI of a device login.
func (s *Server) donePage(*http.Request, url.Values) reply {
	return page(http.StatusOK, "Done", "<p>You can go back to the device.</p>")
}

// redirectable says whether an answer for a client may be sent to uri.
func (s *Server) redirectable(c *Client, uri string) bool {
	switch {
	case s.vendor.redirect != nil:
		return s.vendor.redirect(c, uri)
	case s.vendor.fixedPort:
		return slices.Contains(c.RedirectURIs, uri)
	}
	// A page of this server is not a program's listener, though both are on loopback.
	for _, r := range c.RedirectURIs {
		if strings.HasPrefix(r, s.base+"/") && uri != r && sameLoopback(uri, r) {
			return false
		}
	}
	return c.registered(uri)
}

func (c *Client) registered(uri string) bool {
	for _, r := range c.RedirectURIs {
		if uri == r || sameLoopback(uri, r) {
			return true
		}
	}
	return false
}

// sameLoopback compares without the port: RFC 8252 section 7.3. It asks for IP literals; localhost is treated alike
// because providers do so.
func sameLoopback(a, b string) bool {
	u, err1 := url.Parse(a)
	v, err2 := url.Parse(b)
	if err1 != nil || err2 != nil || u.Scheme != "http" || u.User != nil || strings.Contains(a, "#") {
		return false
	}
	switch u.Hostname() {
	case "127.0.0.1", "::1", "localhost":
	default:
		return false
	}
	u.Host, v.Host = u.Hostname(), v.Hostname()
	return *u == *v
}

const buttons = `<button name="decision" value="approve">Allow</button> <button name="decision" value="deny">Deny</button>`

func scopeText(scope []string) string {
	if len(scope) == 0 {
		return "access"
	}
	return escape(strings.Join(scope, ", "))
}

func escape(s string) string { return html.EscapeString(s) }

// page is plain text formatting on purpose: html/template would make the linker keep every exported method of the
// whole binary.
func page(status int, title, body string) reply {
	title = escape(title)
	rep := newReply(status, "text/html; charset=utf-8", fmt.Appendf(nil,
		"<!doctype html><html lang=en><meta charset=utf-8><title>%s</title><h1>%s</h1>%s</html>\n", title, title, body))
	rep.header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	return rep
}
