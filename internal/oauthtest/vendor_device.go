package oauthtest

import (
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// uuid is RFC 9562 section 4, in lower case as most write it, or in upper.
var uuid = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
})

func asksForJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json")
}

// qwen: PKCE in the device flow, no interval, slow_down with 429, and scope null.
func qwen() *vendor {
	check := func(r *http.Request, _ map[string]string) string {
		if !asksForJSON(r) {
			return "the request does not accept application/json"
		}
		return ""
	}
	return &vendor{
		paths: map[Endpoint]string{
			Device: "/api/v1/oauth2/device/code", Token: "/api/v1/oauth2/token", Verify: "/authorize",
		},
		options: func(o *Options, _ string) {
			o.client(Client{ID: "f0304373b74a44d2b584a3fb70ca9e56", Grants: []string{GrantDevice, GrantRefresh}})
			setDefault(&o.DeviceInterval, 2*time.Second) // its own client's pace, when no interval is sent
			o.scopes("openid", "profile", "email", "model.completion")
		},
		requests: map[ask]form{
			askDevice: {
				need: []string{"client_id", "scope", "code_challenge", "code_challenge_method=S256"},
				check: func(r *http.Request, p map[string]string) string {
					if !uuid().MatchString(r.Header.Get("X-Request-Id")) {
						return "x-request-id is not a UUID"
					}
					return check(r, p)
				},
			},
			askPoll:    {need: []string{"grant_type", "client_id", "device_code", "code_verifier"}, check: check},
			askRefresh: {need: []string{"grant_type", "refresh_token", "client_id"}, check: check},
		},
		deviceAnswer: func(answer map[string]any) { delete(answer, "interval") },
		answerLocked: func(_ *Server, _ ask, _ *family, answer map[string]any) {
			answer["scope"] = nil
			answer["resource_url"] = "portal.qwen.invalid" // a host without a scheme
		},
		failure: func(a ask, status int, f failure) (int, any) {
			switch {
			case f.code == "slow_down":
				status = http.StatusTooManyRequests
			case f.code == "expired_token":
				status = http.StatusUnauthorized
			}
			return status, rfcError(f)
		},
	}
}

// xai: RFC 8628 with a word of its own for "the user said no", and refresh tokens that stay.
func xai() *vendor {
	return &vendor{
		paths: map[Endpoint]string{Device: "/oauth2/device/code", Token: "/oauth2/token", Verify: "/oauth2/device"},
		options: func(o *Options, _ string) {
			o.client(Client{ID: "b1a00492-073a-47ea-816f-4c329264a828", Grants: []string{GrantDevice, GrantRefresh}})
			o.scopes("openid", "profile", "email", "offline_access", "grok-cli:access", "api:access")
			setDefault(&o.Rotation, Keep)
		},
		requests: map[ask]form{
			askDevice:  {need: []string{"client_id", "scope"}, may: []string{"referrer"}},
			askPoll:    {need: []string{"grant_type", "client_id", "device_code"}},
			askRefresh: {need: []string{"grant_type", "refresh_token", "client_id"}},
		},
		failure: func(_ ask, status int, f failure) (int, any) {
			if f.code == "access_denied" {
				f.code = "authorization_denied"
			}
			return status, rfcError(f)
		},
	}
}

// kimi: RFC 8628 without scopes. A refresh token that is no good gets 401, one that was revoked 403.
func kimi() *vendor {
	return &vendor{
		paths: map[Endpoint]string{Device: "/api/oauth/device_authorization", Token: "/api/oauth/token", Verify: "/device"},
		options: func(o *Options, _ string) {
			o.client(Client{ID: "17e5f671-d194-4dfb-9706-5516cb48c098", Grants: []string{GrantDevice, GrantRefresh}})
		},
		requests: map[ask]form{
			askDevice:  {need: []string{"client_id"}},
			askPoll:    {need: []string{"grant_type", "client_id", "device_code"}},
			askRefresh: {need: []string{"grant_type", "refresh_token", "client_id"}},
		},
		failure: func(a ask, status int, f failure) (int, any) {
			if a == askRefresh && f.code == "invalid_grant" {
				status = http.StatusUnauthorized
				if f.description == whyRevoked {
					status = http.StatusForbidden
				}
			}
			return status, rfcError(f)
		},
	}
}

// github: errors come with 200, slow_down names the new interval, tokens last and are not refreshed. A client whose
// Grants name [GrantRefresh] is a GitHub App: its tokens end after 8 hours and come with a refresh token.
func github() *vendor {
	return &vendor{
		paths: map[Endpoint]string{
			Device: "/login/device/code", Token: "/login/oauth/access_token", Verify: "/login/device",
		},
		options: func(o *Options, _ string) {
			o.client(Client{ID: "178c6fc778ccc68e1d6a", Grants: []string{GrantDevice}})
			setDefault(&o.DeviceLifetime, 15*time.Minute)
			setDefault(&o.AccessLifetime, 8*time.Hour)
			setDefault(&o.RefreshLifetime, 184*24*time.Hour)
			app := o.Clients[0].expires()
			setDefault(&o.Prefixes.Access, map[bool]string{false: "gho_at-", true: "ghu_at-"}[app])
			setDefault(&o.Prefixes.Refresh, "ghr_rt-")
		},
		codeSize: 40,
		forever:  func(c *Client) bool { return !c.expires() },
		requests: map[ask]form{
			askDevice:  {need: []string{"client_id"}, may: []string{"scope"}},
			askPoll:    {need: []string{"client_id", "device_code", "grant_type"}},
			askRefresh: {need: []string{"client_id", "refresh_token", "grant_type"}},
		},
		deviceAnswer: func(answer map[string]any) { delete(answer, "verification_uri_complete") },
		answerLocked: func(s *Server, _ ask, f *family, answer map[string]any) {
			answer["token_type"], answer["scope"] = "bearer", strings.Join(f.scope, ",")
			if s.clientByIDLocked(f.client).expires() {
				answer["refresh_token_expires_in"] = int64(s.opt.RefreshLifetime / time.Second)
			}
		},
		failure: func(a ask, _ int, f failure) (int, any) {
			switch {
			case f.code == "invalid_client":
				f.code = "incorrect_client_credentials"
			case f.code == "unauthorized_client" && a != askRefresh:
				f.code = "device_flow_disabled"
			case f.code == "invalid_grant" && a == askPoll:
				f.code = "incorrect_device_code"
			case f.code == "invalid_grant":
				f.code = "bad_refresh_token"
			}
			body := rfcError(f)
			body["error_uri"] = "https://docs.github.invalid/" + f.code
			if f.code == "slow_down" {
				body["interval"] = int64(f.interval / time.Second)
			}
			return http.StatusOK, body
		},
		deliver: func(r *http.Request, rep reply) reply {
			if asksForJSON(r) {
				return rep
			}
			return asForm(rep)
		},
	}
}
