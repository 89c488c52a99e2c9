package oauthtest

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
)

// chatgpt is "Sign in with ChatGPT" for agents that OpenAI does not know: they begin as dynamic_agent_client, and the
// redirect brings, beside the code, the client id that this login goes on with.
func chatgpt() *vendor {
	const redirect = "http://127.0.0.1:1455/auth/callback"
	return &vendor{
		paths: map[Endpoint]string{Authorize: "/api/accounts/authorize", Token: "/api/accounts/oauth/token"},
		options: func(o *Options, _ string) {
			o.client(Client{ID: "dynamic_agent_client", RedirectURIs: []string{redirect}, Grants: []string{GrantCode}})
			o.scopes("openid", "profile", "email", "offline_access", "resource.invoke", "chatgpt.tokens.use.direct")
		},
		fixedPort: true,
		requests: map[ask]form{
			askAuthorize: {
				need: []string{
					"client_id", "agent_name_hint", "ext_agent_host_id", "response_type=code", "redirect_uri", "resource=https://api.openai.com/v1",
					"scope", "state", "code_challenge", "code_challenge_method=S256", "nonce",
				},
				check: func(r *http.Request, p map[string]string) string {
					if id, ok := strings.CutPrefix(p["ext_agent_host_id"], "urn:uuid:"); !ok || !uuid().MatchString(id) {
						return "ext_agent_host_id is not urn:uuid: and a UUID"
					}
					return ""
				},
			},
			askExchange: {need: []string{"grant_type", "code", "redirect_uri", "client_id", "code_verifier", "resource=https://api.openai.com/v1"}},
			askRefresh:  {need: []string{"grant_type", "refresh_token", "client_id", "resource=https://api.openai.com/v1"}},
		},
		approveLocked: func(s *Server, a *authRequest, values url.Values) {
			issued := &Client{ID: "test-agent-" + rand.Text(), RedirectURIs: a.client.RedirectURIs, Grants: []string{GrantCode, GrantRefresh}}
			s.state.clients = append(s.state.clients, issued)
			a.client = issued
			values.Set("client_id", issued.ID)
		},
		accessLocked: openAIAccessToken,
		answerLocked: func(s *Server, _ ask, f *family, answer map[string]any) {
			answer["id_token"] = openAIIDToken(s, f)
		},
		failure: openAIFailure,
	}
}
