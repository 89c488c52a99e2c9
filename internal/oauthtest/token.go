package oauthtest

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// token is the token endpoint: RFC 6749 section 3.2.
func (s *Server) token(r *http.Request, values url.Values) reply {
	p, client, refusal := s.clientRequest(r, values)
	if refusal != nil {
		s.useUnprocessed(Token, values)
		return *refusal
	}
	grants := map[string]func(*Client, map[string]string) reply{
		GrantCode: s.exchangeCodeLocked, GrantRefresh: s.refreshLocked, GrantDevice: s.pollDeviceLocked,
	}
	grant := grants[p["grant_type"]]
	switch {
	case p["grant_type"] == "":
		return badRequest("invalid_request", "grant_type is missing")
	case grant == nil:
		return badRequest("unsupported_grant_type", "the grant type is unknown")
	case !client.may(p["grant_type"]):
		return badRequest("unauthorized_client", "the client may not use this grant")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return grant(client, p)
}

// exchangeCodeLocked: RFC 6749 section 4.1.3, RFC 7636 section 4.6.
func (s *Server) exchangeCodeLocked(client *Client, p map[string]string) reply {
	if p["code"] == "" {
		return badRequest("invalid_request", "code is missing")
	}
	c := s.state.codes[digestOf(p["code"])]
	if c == nil {
		return badRequest("invalid_grant", "the code is unknown")
	}
	if c.spent {
		// Section 4.1.2: who comes second may be the thief, or the first was.
		if c.family != nil {
			c.family.revoke("code reused")
		}
		return badRequest("invalid_grant", "the code was used before")
	}
	if c.client.ID != client.ID {
		return badRequest("invalid_grant", "the code was issued to another client")
	}
	if c.challenge != "" && p["code_verifier"] == "" {
		return badRequest("invalid_request", "code_verifier is missing")
	}
	if c.redirectArg != "" && p["redirect_uri"] == "" {
		return badRequest("invalid_request", "redirect_uri is missing")
	}
	c.spent = true // whatever follows: a code that is tried with the wrong companions is in the wrong hands
	switch {
	case !time.Now().Before(c.expires):
		return badRequest("invalid_grant", "the code has expired")
	case p["redirect_uri"] != c.redirectArg && p["redirect_uri"] != c.redirect:
		return badRequest("invalid_grant", "redirect_uri is not the one of the authorisation request")
	case !verified(c.challenge, p["code_verifier"]):
		return badRequest("invalid_grant", "the code verifier does not match")
	}
	if s.vendor.exchange != nil {
		if why := s.vendor.exchange(c, p); why != "" {
			return badRequest("invalid_grant", why)
		}
	}
	c.family = s.newFamilyLocked(client.ID, c.scope)
	c.family.params = c.params
	return s.issueLocked(askExchange, client, c.family)
}

// verified compares a verifier with its S256 challenge. Without a challenge there must be no verifier either: RFC 9700
// section 4.8.2, the downgrade.
func verified(challenge, verifier string) bool {
	if challenge == "" {
		return verifier == ""
	}
	sum := sha256.Sum256([]byte(verifier))
	return sameSecret(base64.RawURLEncoding.EncodeToString(sum[:]), challenge)
}

// refreshLocked: RFC 6749 section 6, and RFC 9700 section 4.14.2 for reuse.
func (s *Server) refreshLocked(client *Client, p map[string]string) reply {
	if p["refresh_token"] == "" {
		return badRequest("invalid_request", "refresh_token is missing")
	}
	use := func(o Outcome) {
		s.state.uses = append(s.state.uses, RefreshUse{Token: p["refresh_token"], Outcome: o, Time: time.Now()})
	}
	t := s.state.tokens[digestOf(p["refresh_token"])]
	if t == nil || !t.refresh || t.family.client != client.ID {
		use(Refused)
		return badRequest("invalid_grant", "the refresh token is unknown or belongs to another client")
	}
	if t.spent {
		t.family.revoke("refresh token reused")
		use(Reused)
		return badRequest("invalid_grant", whyReused)
	}
	if !t.live(time.Now()) {
		use(Refused)
		if t.revoked || t.family.revoked != "" {
			return badRequest("invalid_grant", whyRevoked)
		}
		return badRequest("invalid_grant", whyExpired)
	}
	scope := t.scope
	if p["scope"] != "" {
		narrow, ok := s.parseScope(p["scope"])
		if !ok || !subset(narrow, t.scope) {
			use(Refused)
			return badRequest("invalid_scope", "more is asked for than was granted")
		}
		scope = narrow // of this access token; the refresh token keeps what was granted
	}
	use(Accepted)
	answer := s.answerLocked(askRefresh, t.family, scope)
	switch s.opt.Rotation {
	case Rotate:
		t.spent = true
		answer["refresh_token"] = s.newRefreshLocked(t.family)
	case KeepAndRepeat:
		answer["refresh_token"] = p["refresh_token"]
	}
	return jsonReply(http.StatusOK, answer)
}

// issueLocked answers a first grant: RFC 6749 section 5.1.
func (s *Server) issueLocked(a ask, client *Client, f *family) reply {
	answer := s.answerLocked(a, f, f.scope)
	if client.may(GrantRefresh) && (s.vendor.refreshableLocked == nil || s.vendor.refreshableLocked(s, f)) {
		answer["refresh_token"] = s.newRefreshLocked(f)
	}
	return jsonReply(http.StatusOK, answer)
}

func (s *Server) answerLocked(a ask, f *family, scope []string) map[string]any {
	answer := map[string]any{"access_token": s.newAccessLocked(f, scope), "token_type": "Bearer"}
	if !s.lastsLocked(f) {
		answer["expires_in"] = int64(s.opt.AccessLifetime / time.Second)
	}
	if len(scope) > 0 {
		answer["scope"] = strings.Join(scope, " ")
	}
	if s.vendor.answerLocked != nil {
		s.vendor.answerLocked(s, a, f, answer)
	}
	maps.Copy(answer, s.opt.Extra)
	return answer
}

// revoke: RFC 7009 section 2. A hint never changes the outcome, so it is not read.
func (s *Server) revoke(r *http.Request, values url.Values) reply {
	p, client, refusal := s.clientRequest(r, values)
	if refusal != nil {
		return *refusal
	}
	if p["token"] == "" {
		return badRequest("invalid_request", "token is missing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(p["token"])]
	if t != nil && t.family.client != client.ID {
		return badRequest("invalid_grant", "the token was issued to another client")
	}
	if t != nil {
		t.revokeLocked("revoked by the client")
	}
	return newReply(http.StatusOK, "application/json", nil) // also for a token nobody knows: section 2.2
}

// resource is a protected resource: RFC 6750 sections 2.1 and 3.
func (s *Server) resource(r *http.Request, _ url.Values) reply {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || value == "" {
		// No error code for a request that brought no token.
		rep := jsonReply(http.StatusUnauthorized, map[string]any{"active": false})
		rep.header.Set("WWW-Authenticate", `Bearer realm="oauthtest"`)
		return rep
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(value)]
	if t == nil || t.refresh || !t.live(time.Now()) {
		rep := jsonReply(http.StatusUnauthorized, map[string]any{"active": false})
		rep.header.Set("WWW-Authenticate", `Bearer realm="oauthtest", error="invalid_token"`)
		return rep
	}
	return jsonReply(http.StatusOK, map[string]any{
		"active": true, "client_id": t.family.client, "scope": strings.Join(t.scope, " "), "exp": t.expires.Unix(),
	})
}
