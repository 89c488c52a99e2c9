package oauthtest

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// device is the device authorisation endpoint: RFC 8628 section 3.1. A code_challenge is taken and held to, as Qwen does.
func (s *Server) device(r *http.Request, values url.Values) reply {
	p, client, refusal := s.clientRequest(r, values)
	if refusal != nil {
		return *refusal
	}
	scope, ok := s.parseScope(p["scope"])
	challenge := p["code_challenge"]
	switch {
	case !client.may(GrantDevice):
		return badRequest("unauthorized_client", "the client may not use this grant")
	case !ok:
		return badRequest("invalid_scope", "a scope is malformed or unknown")
	case challenge != "" && (p["code_challenge_method"] != "S256" || !s256().MatchString(challenge)):
		return badRequest("invalid_request", "only S256 challenges are supported")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	value, user, d := s.newDeviceLocked(client, scope, challenge)
	answer := map[string]any{
		"device_code": value, "user_code": user,
		"verification_uri":          s.EndpointURL(Verify),
		"verification_uri_complete": s.EndpointURL(Verify) + "?user_code=" + user,
		"expires_in":                int64(s.opt.DeviceLifetime / time.Second),
		"interval":                  int64(d.interval / time.Second),
	}
	if s.vendor.deviceAnswer != nil {
		s.vendor.deviceAnswer(answer)
	}
	return jsonReply(http.StatusOK, answer)
}

func (s *Server) newDeviceLocked(client *Client, scope []string, challenge string) (value, user string, d *device) {
	value, user = s.opt.Prefixes.Device+rand.Text(), newUserCode()
	if n := s.vendor.codeSize; n > 0 {
		value = (value + rand.Text() + rand.Text())[:n]
	}
	for s.state.byUser[bareUserCode(user)] != nil {
		user = newUserCode()
	}
	d = &device{
		client: client.ID, scope: scope, challenge: challenge,
		expires: time.Now().Add(s.opt.DeviceLifetime), interval: s.opt.DeviceInterval,
	}
	switch s.opt.Approval {
	case ApproveAll:
		d.status = deviceApproved
	case DenyAll:
		d.status = deviceDenied
	}
	s.state.devices[digestOf(value)] = d
	s.state.byUser[bareUserCode(user)] = d
	s.state.issued.DeviceCodes = append(s.state.issued.DeviceCodes, value)
	s.state.issued.UserCodes = append(s.state.issued.UserCodes, user)
	return value, user, d
}

// pollDeviceLocked: RFC 8628 sections 3.4 and 3.5.
func (s *Server) pollDeviceLocked(client *Client, p map[string]string) reply {
	if p["device_code"] == "" {
		return badRequest("invalid_request", "device_code is missing")
	}
	d := s.state.devices[digestOf(p["device_code"])]
	if d == nil || d.client != client.ID {
		return badRequest("invalid_grant", "the device code is unknown or belongs to another client")
	}
	f := d.pollLocked(time.Now())
	switch {
	case f != nil:
		return failureReply(http.StatusBadRequest, *f)
	case d.challenge != "" && p["code_verifier"] == "":
		return badRequest("invalid_request", "code_verifier is missing")
	case !verified(d.challenge, p["code_verifier"]):
		return badRequest("invalid_grant", "the code verifier does not match")
	}
	d.status = deviceSpent
	d.family = s.newFamilyLocked(client.ID, d.scope)
	return s.issueLocked(askPoll, client, d.family)
}

// pollLocked says why a poll gets nothing yet or ever; nil: the user has agreed.
func (d *device) pollLocked(now time.Time) *failure {
	last := d.lastPoll
	d.lastPoll = now
	d.polls++
	switch {
	case d.status == deviceSpent:
		if d.family != nil {
			d.family.revoke("device code reused")
		}
		return &failure{code: "invalid_grant", description: "the device code was used before"}
	case !now.Before(d.expires):
		return &failure{code: "expired_token", description: "the device code has expired"}
	case d.status == deviceDenied:
		return &failure{code: "access_denied", description: "the user said no"}
	case d.status == devicePending && !last.IsZero() && now.Sub(last) < d.interval-d.interval/10:
		// A tenth is forgiven: a client that ticks exactly can arrive early by what the network saved it.
		d.interval += 5 * time.Second
		return &failure{code: "slow_down", description: "polled sooner than the interval allows", interval: d.interval}
	case d.status == devicePending:
		return &failure{code: "authorization_pending", description: "the user has not decided"}
	}
	return nil
}

// verifyPage asks; it never approves by being opened, even with the code in its address (RFC 8628 section 5.4).
func (s *Server) verifyPage(_ *http.Request, values url.Values) reply {
	return page(http.StatusOK, "Connect a device", fmt.Sprintf(
		`<form method="post" action="%s"><label>Code <input name="user_code" value="%s"></label> %s</form>`,
		s.vendor.paths[Verify], escape(values.Get("user_code")), buttons))
}

func (s *Server) decideDevice(_ *http.Request, values url.Values) reply {
	decision := values.Get("decision")
	if decision != "approve" && decision != "deny" {
		return page(http.StatusBadRequest, "Nothing to decide", "<p>Allow or deny?</p>")
	}
	if !s.Decide(values.Get("user_code"), decision == "approve") {
		return page(http.StatusBadRequest, "Unknown code", "<p>This code is unknown, has expired or was already answered.</p>")
	}
	return page(http.StatusOK, "Done", "<p>You can go back to the device.</p>")
}

// Decide answers for the user: it approves or denies the device that shows userCode, and reports whether one waits
// for that.
func (s *Server) Decide(userCode string, approve bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.state.byUser[bareUserCode(userCode)]
	if d == nil || d.status != devicePending || !time.Now().Before(d.expires) {
		return false
	}
	d.status = deviceDenied
	if approve {
		d.status = deviceApproved
	}
	return true
}
