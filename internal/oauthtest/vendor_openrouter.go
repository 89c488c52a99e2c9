package oauthtest

import (
	"net/http"
	"net/url"
	"strings"
)

// openrouter has no clients, no state and no token endpoint: the code buys an API key, which does not expire.
func openrouter() *vendor {
	const anyone = "openrouter"
	return &vendor{
		paths: map[Endpoint]string{Authorize: "/auth", Token: "/api/v1/auth/keys"},
		options: func(o *Options, _ string) {
			o.client(Client{ID: anyone, Grants: []string{GrantCode}})
			setDefault(&o.Prefixes.Access, "sk-or-v1-at-")
		},
		requests: map[ask]form{
			askAuthorize: {need: []string{"callback_url", "code_challenge", "code_challenge_method=S256"}},
			askExchange: {
				encoding: JSONBody, noClient: true,
				need: []string{"code", "code_verifier", "code_challenge_method=S256"},
			},
		},
		noGrants: true,
		forever:  func(*Client) bool { return true },
		adapt: func(s *Server, a ask, values url.Values) {
			values.Set("client_id", s.opt.Clients[0].ID)
			switch a {
			case askAuthorize:
				values.Set("response_type", "code")
				values.Set("redirect_uri", values.Get("callback_url"))
			case askExchange:
				values.Set("grant_type", GrantCode)
			}
		},
		redirect: func(_ *Client, uri string) bool {
			u, err := url.Parse(uri)
			return err == nil && !strings.Contains(uri, "#") && u.User == nil && (u.Scheme == "https" && u.Host != "" || sameLoopback(uri, uri))
		},
		// The exchange does not repeat the address.
		approveLocked: func(_ *Server, a *authRequest, _ url.Values) { a.redirectArg = "" },
		answerLocked: func(_ *Server, _ ask, _ *family, answer map[string]any) {
			key := answer["access_token"]
			clear(answer)
			answer["key"] = key
		},
		failure: func(_ ask, status int, f failure) (int, any) {
			if f.code == "invalid_grant" {
				status, f.description = http.StatusForbidden, "Invalid code or code_verifier"
			}
			return status, map[string]any{"error": map[string]any{"code": status, "message": f.description}}
		},
	}
}
