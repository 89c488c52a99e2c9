package oauthtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// codex: redirects to two ports only, an exchange in a form, refresh in either encoding, revocation in JSON, tokens that
// are JWTs, and a device flow of its own ("deviceauth") whose code verifier the server makes.
func codex() *vendor {
	return &vendor{
		paths: map[Endpoint]string{
			Authorize: "/oauth/authorize", Token: "/oauth/token", Revoke: "/oauth/revoke",
			Device: "/api/accounts/deviceauth/usercode", DevicePoll: "/api/accounts/deviceauth/token",
			Verify: "/codex/device", DeviceDone: "/deviceauth/callback",
		},
		options: func(o *Options, _ string) {
			o.client(Client{
				ID:           "app_EMoamEEZ73f0CkXaXp7hrann",
				RedirectURIs: []string{"http://localhost:1455/auth/callback", "http://localhost:1457/auth/callback"},
				Grants:       []string{GrantCode, GrantRefresh, GrantDevice},
			})
			setDefault(&o.DeviceLifetime, 15*time.Minute)
			o.scopes("openid", "profile", "email", "offline_access", "api.connectors.read", "api.connectors.invoke")
		},
		fixedPort: true,
		requests: map[ask]form{
			askAuthorize: {
				need: []string{
					"response_type=code", "client_id", "redirect_uri", "scope", "code_challenge", "code_challenge_method=S256",
					"id_token_add_organizations=true", "codex_cli_simplified_flow=true", "state", "originator",
				},
				may: []string{"allowed_workspace_id", "theme"},
				check: func(r *http.Request, _ map[string]string) string {
					if strings.Contains(r.URL.RawQuery, "+") {
						return "spaces are written as %20 here"
					}
					return ""
				},
			},
			askExchange: {need: []string{"grant_type", "code", "redirect_uri", "client_id", "code_verifier"}},
			askRefresh:  {encoding: FormOrJSONBody, need: []string{"grant_type", "refresh_token", "client_id"}},
			askDevice:   {encoding: JSONBody, need: []string{"client_id"}},
			askAuthPoll: {encoding: JSONBody, need: []string{"device_auth_id", "user_code"}, noClient: true},
			askRevoke: {
				encoding: JSONBody, need: []string{"token", "token_type_hint"}, may: []string{"client_id"},
				check: func(_ *http.Request, p map[string]string) string {
					switch {
					case p["token_type_hint"] != "refresh_token" && p["token_type_hint"] != "access_token":
						return "token_type_hint is unknown"
					case (p["token_type_hint"] == "refresh_token") != (p["client_id"] != ""):
						return "client_id goes with a refresh token, and only with that"
					}
					return ""
				},
			},
		},
		accessLocked: openAIAccessToken,
		answerLocked: func(s *Server, _ ask, f *family, answer map[string]any) {
			answer["id_token"] = openAIIDToken(s, f)
			answer["token_type"] = "bearer"
			delete(answer, "scope")
		},
		failure: openAIFailure,
		handlers: map[Endpoint]func(*Server, *http.Request, url.Values) reply{
			Device: (*Server).deviceAuth, DevicePoll: (*Server).pollDeviceAuth, Revoke: (*Server).revokeByToken,
		},
	}
}

// openAIFailure: an object, with the code in it; a refresh token's end is always 401.
func openAIFailure(a ask, status int, f failure) (int, any) {
	if a == askRefresh && f.code == "invalid_grant" {
		status = http.StatusUnauthorized
		switch f.description {
		case whyReused:
			f = failure{
				code:        "refresh_token_reused",
				description: "Your refresh token has already been used to generate a new access token. Please try signing in again.",
			}
		case whyExpired:
			f = failure{code: "refresh_token_expired", description: "Your refresh token has expired. Please try signing in again."}
		default:
			f = failure{code: "refresh_token_invalidated", description: "Your refresh token has been invalidated. Please try signing in again."}
		}
	}
	return status, map[string]any{"error": map[string]any{
		"message": f.description, "type": "invalid_request_error", "param": nil, "code": f.code,
	}}
}

func openAIClaims(s *Server, id string) map[string]any {
	now := time.Now()
	return map[string]any{
		"jti": id, "iss": s.opt.Issuer, "sub": "test-user", "iat": now.Unix(), "exp": now.Add(s.opt.AccessLifetime).Unix(),
		"https://api.openai.com/auth": map[string]any{
			"chatgpt_account_id": s.opt.Account, "chatgpt_plan_type": "plus", "chatgpt_user_id": "test-user", "user_id": "test-user",
		},
	}
}

func openAIAccessToken(s *Server, f *family, scope []string, id string) string {
	claims := openAIClaims(s, id)
	claims["aud"], claims["client_id"], claims["scp"] = []string{"https://api.openai.com/v1"}, f.client, scope
	claims["https://api.openai.com/profile"] = map[string]any{"email": testEmail, "email_verified": true}
	return jwt(claims)
}

func openAIIDToken(s *Server, f *family) string {
	claims := openAIClaims(s, "id-"+rand.Text())
	claims["aud"], claims["email"], claims["email_verified"] = []string{f.client}, testEmail, true
	if nonce := f.params["nonce"]; nonce != "" {
		claims["nonce"] = nonce // OpenID Connect Core section 3.1.3.6
	}
	v := jwt(claims)
	s.state.issued.IDTokens = append(s.state.issued.IDTokens, v)
	return v
}

// deviceAuth begins the device flow. The interval is a string.
func (s *Server) deviceAuth(r *http.Request, values url.Values) reply {
	_, client, refusal := s.clientRequest(r, values)
	switch {
	case refusal != nil:
		return *refusal
	case !client.may(GrantDevice):
		return errorReply(http.StatusNotFound, "deviceauth_not_enabled", "device logins are not enabled")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	value, user, d := s.newDeviceLocked(client, s.opt.Scopes, "")
	return jsonReply(http.StatusOK, map[string]any{
		"device_auth_id": value, "user_code": user, "interval": strconv.Itoa(int(d.interval / time.Second)),
	})
}

// pollDeviceAuth answers "pending" in the two ways that are in use by turns, 404 first, and in the end with a code for
// the token endpoint and the verifier for it.
func (s *Server) pollDeviceAuth(_ *http.Request, values url.Values) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.state.devices[digestOf(values.Get("device_auth_id"))]
	if d == nil || s.state.byUser[bareUserCode(values.Get("user_code"))] != d {
		return badRequest("deviceauth_unknown", "device_auth_id and user_code do not belong together")
	}
	if f := d.pollLocked(time.Now()); f != nil {
		switch f.code {
		case "authorization_pending":
			if d.polls%2 == 1 {
				return errorReply(http.StatusNotFound, "not_found", "no authorisation yet")
			}
			return errorReply(http.StatusForbidden, "deviceauth_authorization_pending", "the user has not decided")
		case "slow_down":
			return errorReply(http.StatusForbidden, f.code, f.description)
		}
		return badRequest(f.code, f.description)
	}
	d.status = deviceSpent
	verifier := "cv-" + rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(verifier))
	done := s.EndpointURL(DeviceDone)
	a := authRequest{
		client: s.clientByIDLocked(d.client), redirect: done, redirectArg: done, scope: d.scope,
		challenge: base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	s.state.issued.Verifiers = append(s.state.issued.Verifiers, verifier)
	return jsonReply(http.StatusOK, map[string]any{
		"authorization_code": s.newCodeLocked(a), "code_challenge": a.challenge, "code_verifier": verifier,
	})
}

// revokeByToken is a revocation endpoint that asks for no client; one that is named must be the token's.
func (s *Server) revokeByToken(_ *http.Request, values url.Values) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(values.Get("token"))]
	switch id := values.Get("client_id"); {
	case id != "" && s.clientByIDLocked(id) == nil:
		return errorReply(http.StatusUnauthorized, "invalid_client", "the client is unknown")
	case t != nil && id != "" && id != t.family.client:
		return badRequest("invalid_grant", "the token was issued to another client")
	case t != nil:
		t.revokeLocked("revoked by the client")
	}
	return jsonReply(http.StatusOK, map[string]any{})
}
