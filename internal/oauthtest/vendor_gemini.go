package oauthtest

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"time"
)

// gemini is Google for an installed program, which has a secret: it is in the body of each token request. The refresh
// token comes with the first consent, or with prompt=consent, and stays as it is. The page of the pasted code is there
// for requests with PKCE.
func gemini() *vendor {
	const authCode = "/authcode"
	return &vendor{
		paths: map[Endpoint]string{Authorize: "/o/oauth2/v2/auth", Token: "/token", Revoke: "/revoke", Paste: authCode},
		options: func(o *Options, base string) {
			o.client(Client{
				ID:           "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
				Secret:       ClientSecret,
				RedirectURIs: []string{base + authCode, "http://127.0.0.1/oauth2callback"},
				Grants:       []string{GrantCode, GrantRefresh},
			})
			setDefault(&o.AccessLifetime, 3599*time.Second)
			o.scopes("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email", "https://www.googleapis.com/auth/userinfo.profile")
			o.PKCEOptional = true
			setDefault(&o.Rotation, Keep)
		},
		requests: map[ask]form{
			askAuthorize: {
				need: []string{"client_id", "redirect_uri", "response_type=code", "scope", "access_type=offline", "state"},
				may:  []string{"prompt", "code_challenge", "code_challenge_method"},
				check: func(_ *http.Request, p map[string]string) string {
					u, err := url.Parse(p["redirect_uri"])
					if err == nil && u.Path == authCode && p["code_challenge"] == "" {
						return "a code that is pasted needs a code challenge"
					}
					return ""
				},
			},
			askExchange: {need: []string{"grant_type", "code", "redirect_uri", "client_id", "client_secret"}, may: []string{"code_verifier"}},
			askRefresh:  {need: []string{"grant_type", "refresh_token", "client_id", "client_secret"}},
			askRevoke:   {need: []string{"token"}, may: []string{"token_type_hint"}, noClient: true},
		},
		refreshableLocked: func(s *Server, f *family) bool {
			first := !s.state.consents[f.client]
			s.state.consents[f.client] = true
			return first || f.params["prompt"] == "consent"
		},
		answerLocked: func(s *Server, _ ask, f *family, answer map[string]any) {
			now := time.Now()
			v := jwt(map[string]any{
				"jti": "id-" + rand.Text(), "iss": s.opt.Issuer, "sub": s.opt.Account, "aud": f.client, "azp": f.client,
				"email": testEmail, "email_verified": true, "iat": now.Unix(), "exp": now.Add(s.opt.AccessLifetime).Unix(),
			})
			s.state.issued.IDTokens = append(s.state.issued.IDTokens, v)
			answer["id_token"] = v
		},
		failure: func(a ask, status int, f failure) (int, any) {
			if a == askRefresh && f.code == "invalid_grant" {
				f.description = "Token has been expired or revoked."
			}
			return status, rfcError(f)
		},
		handlers: map[Endpoint]func(*Server, *http.Request, url.Values) reply{
			// With the last of its tokens the consent is gone, so that the next login asks for it again.
			Revoke: func(s *Server, r *http.Request, values url.Values) reply {
				rep := s.revokeByToken(r, values)
				s.mu.Lock()
				defer s.mu.Unlock()
				if t := s.state.tokens[digestOf(values.Get("token"))]; t != nil && t.refresh {
					delete(s.state.consents, t.family.client)
				}
				return rep
			},
		},
	}
}
