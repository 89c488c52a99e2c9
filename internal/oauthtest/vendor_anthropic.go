package oauthtest

import (
	"net/http"
	"time"
)

// anthropic: the bodies are JSON, the exchange carries the state, and the page of the pasted code shows CODE#STATE.
func anthropic() *vendor {
	return &vendor{
		paths: map[Endpoint]string{
			Authorize: "/oauth/authorize", Token: "/v1/oauth/token", Paste: "/oauth/code/callback",
		},
		options: func(o *Options, base string) {
			o.client(Client{
				ID:           "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
				RedirectURIs: []string{base + "/oauth/code/callback", "http://localhost/callback"},
				Grants:       []string{GrantCode, GrantRefresh},
			})
			setDefault(&o.AccessLifetime, 8*time.Hour)
			setDefault(&o.Prefixes.Access, "sk-ant-oat01-at-")
			setDefault(&o.Prefixes.Refresh, "sk-ant-ort01-rt-")
			o.scopes("org:create_api_key", "user:profile", "user:inference", "user:sessions:claude_code", "user:mcp_servers", "user:file_upload")
		},
		requests: map[ask]form{
			askAuthorize: {
				need: []string{"code=true", "client_id", "response_type=code", "redirect_uri", "scope", "code_challenge", "code_challenge_method=S256", "state"},
				may:  []string{"orgUUID"},
				check: func(_ *http.Request, p map[string]string) string {
					if verified(p["code_challenge"], p["state"]) {
						return "state is the code verifier"
					}
					return ""
				},
			},
			askExchange: {
				encoding: JSONBody,
				need:     []string{"grant_type", "code", "redirect_uri", "client_id", "code_verifier", "state"},
				may:      []string{"expires_in"},
			},
			askRefresh: {encoding: JSONBody, need: []string{"grant_type", "refresh_token", "client_id"}, may: []string{"scope"}},
		},
		exchange: func(c *code, p map[string]string) string {
			if !sameSecret(c.state, p["state"]) {
				return "state is not the one of the authorisation request"
			}
			return ""
		},
		answerLocked: func(s *Server, a ask, _ *family, answer map[string]any) {
			if a == askExchange {
				answer["account"] = map[string]any{"uuid": s.opt.Account, "email_address": testEmail}
				answer["organization"] = map[string]any{"uuid": "test-organization", "name": "Test Organization"}
			}
		},
		failure: func(a ask, status int, f failure) (int, any) {
			switch {
			case f.code == "invalid_grant" && a == askRefresh:
				return http.StatusBadRequest, rfcError(failure{code: f.code, description: "Refresh token not found or invalid"})
			case f.code == "invalid_grant":
				return http.StatusUnauthorized, rfcError(f) // so it answers a bad code
			}
			kind := "invalid_request_error"
			if status == http.StatusUnauthorized {
				kind = "authentication_error"
			}
			return status, map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": f.description}}
		},
		page:    func(code, state string) string { return code + "#" + state },
		limited: `{"error":{"type":"rate_limit_error","message":"Rate limited. Please try again later."}}`,
	}
}
