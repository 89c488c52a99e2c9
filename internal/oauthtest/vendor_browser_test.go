package oauthtest

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"
)

func TestAnthropic(t *testing.T) {
	s := start(t, Options{Dialect: "anthropic", Approval: AskUser})
	id, verifier := "9d1c250a-e61b-44d9-88ed-5944d1962f5e", oauth2.GenerateVerifier()
	challenge, paste := oauth2.S256ChallengeFromVerifier(verifier), s.URL()+"/oauth/code/callback"
	q := members([]string{
		"code", "true", "client_id", id, "response_type", "code", "redirect_uri", paste, "scope", "user:profile user:inference",
		"code_challenge", challenge, "code_challenge_method", "S256", "state", "test-state",
	})
	refusedQueries(t, s, q, [2]string{"code", ""}, [2]string{"code", "1"}, [2]string{"state", ""}, [2]string{"state", verifier}, [2]string{"scope", ""},
		[2]string{"code_challenge", ""}, [2]string{"code_challenge_method", "plain"}, [2]string{"code_verifier", verifier}, [2]string{"client_id", "x"},
		[2]string{"redirect_uri", "http://127.0.0.1:8765/callback"}, [2]string{"redirect_uri", "http://127.0.0.1:1/oauth/code/callback"})

	pasted, err := s.Copy(t.Context(), s.URL()+"/oauth/authorize?"+q.Encode())
	if err != nil || !regexp.MustCompile(`^ac-\w+#test-state$`).MatchString(pasted) {
		t.Fatalf("pasted %q, %v", pasted, err)
	}
	code, _, _ := strings.Cut(pasted, "#")
	exchange := func(code, redirect string) body {
		return inJSON("grant_type", GrantCode, "code", code, "redirect_uri", redirect, "client_id", id, "code_verifier", verifier, "state", "test-state")
	}
	good := exchange(code, paste)
	wrong(t, s, Token, 400, "invalid_request_error", good.but("", formType), good.but("state", ""), good.but("extra", "y"), good.but("code_verifier", "short"), good.but("grant_type", ""),
		good.but("grant_type", GrantDevice), good.with("Authorization", "Basic eDp5"))
	wrong(t, s, Token, 401, "authentication_error", good.but("client_secret", "x"), good.but("client_id", "x"))
	wrong(t, s, Token, 401, "invalid_grant", good.but("code", pasted))
	first := mustSend(t, s, Token, good)
	has(t, first, "access_token", "refresh_token", "expires_in", "scope", "token_type", "account", "organization")
	if first["expires_in"] != 28800.0 || first["scope"] != "user:profile user:inference" || !strings.HasPrefix(text(first, "access_token"), "sk-ant-oat01-") {
		t.Errorf("the answer: %v %v", first["expires_in"], first["scope"])
	}
	works(t, s, first)
	refresh := inJSON("grant_type", GrantRefresh, "refresh_token", text(first, "refresh_token"), "client_id", id)
	wrong(t, s, Token, 400, "invalid_request_error", refresh.but("", formType), refresh.but("state", "x"))
	second := mustSend(t, s, Token, refresh)
	has(t, second, "access_token", "refresh_token", "expires_in", "scope", "token_type")
	status, answer := sendBody(t, s, Token, refresh)
	if status != 400 || answer["error"] != "invalid_grant" || answer["error_description"] != "Refresh token not found or invalid" || s.Valid(text(second, "refresh_token")) {
		t.Errorf("a refresh token twice: %d %v", status, answer)
	}
	if s.EndpointURL(Revoke) != "" || s.EndpointURL(Device) != "" || s.EndpointURL(Metadata) != "" {
		t.Error("an endpoint that the vendor does not have")
	}

	// The loopback redirect, with another state in the exchange.
	q.Set("redirect_uri", "http://localhost:8765/callback")
	to, back := approveURL(t, s, q)
	if to != "http://localhost:8765/callback" || back.Get("state") != "test-state" {
		t.Fatalf("sent to %s", to)
	}
	wrong(t, s, Token, 401, "invalid_grant", exchange(back.Get("code"), to).but("state", "another-state"), exchange(back.Get("code"), to))

	s.Fault(Token, s.Limited("30"), 1)
	wrong(t, s, Token, 429, "rate_limit_error", refresh)
	denied, err := s.Deny(t.Context(), s.URL()+"/oauth/authorize?"+q.Encode())
	if err != nil || !strings.Contains(denied, "error=access_denied") {
		t.Errorf("denied: %s %v", denied, err)
	}
}

func TestCodex(t *testing.T) {
	s := start(t, Options{Dialect: "codex"})
	id, verifier := "app_EMoamEEZ73f0CkXaXp7hrann", oauth2.GenerateVerifier()
	q := members([]string{
		"response_type", "code", "client_id", id, "redirect_uri", "http://localhost:1455/auth/callback", "scope", "openid profile email offline_access",
		"code_challenge", oauth2.S256ChallengeFromVerifier(verifier), "code_challenge_method", "S256",
		"id_token_add_organizations", "true", "codex_cli_simplified_flow", "true", "state", "test-state", "originator", "test",
	})
	refusedQueries(t, s, q, [2]string{"originator", ""}, [2]string{"id_token_add_organizations", ""}, [2]string{"codex_cli_simplified_flow", "false"},
		[2]string{"state", ""}, [2]string{"redirect_uri", "http://localhost:1456/auth/callback"}, [2]string{"redirect_uri", "http://127.0.0.1:1455/auth/callback"},
		[2]string{"code", "true"})
	rep := get(t, s, s.URL()+"/oauth/authorize?"+q.Encode()) // spaces as +
	if rep.Body.Close(); rep.StatusCode != 400 {
		t.Errorf("spaces as +: %d", rep.StatusCode)
	}
	q.Set("redirect_uri", "http://localhost:1457/auth/callback")
	to, back := approveURL(t, s, q)
	good := inForm("grant_type", GrantCode, "code", back.Get("code"), "redirect_uri", to, "client_id", id, "code_verifier", verifier)
	wrong(t, s, Token, 400, "invalid_request", good.but("", "application/json"), good.but("state", "test-state"), good.but("code_verifier", ""))
	wrong(t, s, Token, 401, "invalid_client", good.but("client_secret", "x"))
	wrong(t, s, Token, 400, "unsupported_grant_type", good.but("grant_type", GrantDevice))
	first := mustSend(t, s, Token, good)
	has(t, first, "access_token", "refresh_token", "id_token", "expires_in", "token_type")
	works(t, s, first)
	for _, name := range []string{"id_token", "access_token"} {
		claim, _ := claimsOf(t, first[name])["https://api.openai.com/auth"].(map[string]any)
		if claim["chatgpt_account_id"] != "test-account" || first["token_type"] != "bearer" {
			t.Errorf("%s: %v, %v", name, claim, first["token_type"])
		}
	}
	if jti := text(claimsOf(t, first["access_token"]), "jti"); !strings.HasPrefix(jti, "at-") {
		t.Errorf("jti %q", jti)
	}
	refresh := inForm("grant_type", GrantRefresh, "refresh_token", text(first, "refresh_token"), "client_id", id)
	wrong(t, s, Token, 400, "invalid_request", refresh.but("scope", "openid"))
	second := mustSend(t, s, Token, refresh)
	third := mustSend(t, s, Token, refresh.but("", "application/json").but("refresh_token", text(second, "refresh_token")))

	revoke := inJSON("token", text(third, "access_token"), "token_type_hint", "access_token")
	wrong(t, s, Revoke, 400, "invalid_request", revoke.but("client_id", id), revoke.but("token_type_hint", "refresh_token"), revoke.but("", formType), revoke.but("token_type_hint", ""))
	mustSend(t, s, Revoke, revoke)
	if s.Valid(text(third, "access_token")) || !s.Valid(text(third, "refresh_token")) {
		t.Error("revocation of an access token")
	}
	mustSend(t, s, Revoke, inJSON("token", text(third, "refresh_token"), "token_type_hint", "refresh_token", "client_id", id))
	wrong(t, s, Token, 401, "refresh_token_invalidated", refresh.but("refresh_token", text(third, "refresh_token")))
	wrong(t, s, Token, 401, "refresh_token_reused", refresh)
}

func TestCodexDevice(t *testing.T) {
	s := start(t, Options{Dialect: "codex", Approval: AskUser})
	id := "app_EMoamEEZ73f0CkXaXp7hrann"
	wrong(t, s, Device, 400, "invalid_request", inForm("client_id", id), inJSON("client_id", id, "scope", "openid"), inJSON())
	device := mustSend(t, s, Device, inJSON("client_id", id))
	has(t, device, "device_auth_id", "user_code", "interval")
	if device["interval"] != "5" {
		t.Errorf("interval %v", device["interval"])
	}
	poll := inJSON("device_auth_id", text(device, "device_auth_id"), "user_code", text(device, "user_code"))
	wrong(t, s, DevicePoll, 400, "invalid_request", poll.but("user_code", ""), poll.but("client_id", id), poll.but("", formType))
	wrong(t, s, DevicePoll, 400, "deviceauth_unknown", poll.but("user_code", "X"))
	wrong(t, s, DevicePoll, 404, "not_found", poll)
	wrong(t, s, DevicePoll, 403, "slow_down", poll)
	if !s.Decide(text(device, "user_code"), true) {
		t.Fatal("no device waits")
	}
	got := mustSend(t, s, DevicePoll, poll)
	has(t, got, "authorization_code", "code_challenge", "code_verifier")
	wrong(t, s, DevicePoll, 400, "invalid_grant", poll)
	exchange := inForm("grant_type", GrantCode, "code", text(got, "authorization_code"), "redirect_uri", s.URL()+"/deviceauth/callback",
		"client_id", id, "code_verifier", text(got, "code_verifier"))
	works(t, s, mustSend(t, s, Token, exchange))
	if !slices.Contains(s.Issued().All(), text(got, "code_verifier")) {
		t.Error("the verifier is not among the secrets")
	}
	wrong(t, s, Token, 400, "invalid_grant", exchange)

	s.SetApproval(DenyAll)
	device = mustSend(t, s, Device, inJSON("client_id", id))
	wrong(t, s, DevicePoll, 400, "access_denied", inJSON("device_auth_id", text(device, "device_auth_id"), "user_code", text(device, "user_code")))
}

func TestChatGPT(t *testing.T) {
	s := start(t, Options{Dialect: "chatgpt", Approval: AskUser})
	verifier, resource := oauth2.GenerateVerifier(), "https://api.openai.com/v1"
	q := members([]string{
		"client_id", "dynamic_agent_client", "agent_name_hint", "test", "ext_agent_host_id", "urn:uuid:01234567-89ab-cdef-0123-456789abcdef",
		"response_type", "code", "redirect_uri", "http://127.0.0.1:1455/auth/callback", "resource", resource, "scope", "openid chatgpt.tokens.use.direct",
		"state", "test-state", "code_challenge", oauth2.S256ChallengeFromVerifier(verifier), "code_challenge_method", "S256", "nonce", "test-nonce",
	})
	refusedQueries(t, s, q, [2]string{"agent_name_hint", ""}, [2]string{"ext_agent_host_id", "01234567-89ab-cdef-0123-456789abcdef"}, [2]string{"nonce", ""},
		[2]string{"resource", "https://api.openai.com"}, [2]string{"redirect_uri", "http://localhost:1455/auth/callback"},
		[2]string{"redirect_uri", "http://127.0.0.1:1457/auth/callback"}, [2]string{"originator", "test"})
	to, back := approveURL(t, s, q)
	issued := back.Get("client_id")
	if issued == "" || issued == "dynamic_agent_client" || back.Get("state") != "test-state" {
		t.Fatalf("came back: client_id %q", issued)
	}
	good := inForm("grant_type", GrantCode, "code", back.Get("code"), "redirect_uri", to, "client_id", issued, "code_verifier", verifier, "resource", resource)
	wrong(t, s, Token, 400, "invalid_request", good.but("", "application/json"), good.but("resource", ""), good.but("state", "test-state"))
	wrong(t, s, Token, 400, "unauthorized_client", good.but("client_id", "dynamic_agent_client").but("grant_type", GrantRefresh).but("code", "").
		but("redirect_uri", "").but("code_verifier", "").but("refresh_token", "x"))
	wrong(t, s, Token, 400, "invalid_grant", good.but("client_id", "dynamic_agent_client"))
	wrong(t, s, Token, 401, "invalid_client", good.but("client_id", "test-agent-x"))
	token := mustSend(t, s, Token, good)
	has(t, token, "access_token", "refresh_token", "id_token", "expires_in", "scope", "token_type")
	works(t, s, token)
	if text(claimsOf(t, token["id_token"]), "nonce") != "test-nonce" || s.Families()[0].ClientID != issued {
		t.Error("the nonce or the client is not that of the login")
	}
	refresh := inForm("grant_type", GrantRefresh, "refresh_token", text(token, "refresh_token"), "client_id", issued, "resource", resource)
	wrong(t, s, Token, 400, "invalid_request", refresh.but("resource", ""), refresh.but("", "application/json"))

	// Another login has another client, which cannot refresh this one's tokens.
	_, other := approveURL(t, s, q)
	wrong(t, s, Token, 401, "refresh_token_invalidated", refresh.but("client_id", other.Get("client_id")))
	mustSend(t, s, Token, refresh)
}

func TestGemini(t *testing.T) {
	s := start(t, Options{Dialect: "gemini", Approval: AskUser})
	id := s.opt.Clients[0].ID
	verifier, paste := oauth2.GenerateVerifier(), s.URL()+"/authcode"
	q := members([]string{
		"client_id", id, "redirect_uri", paste, "response_type", "code", "scope", "https://www.googleapis.com/auth/cloud-platform", "access_type", "offline",
		"state", "test-state", "code_challenge", oauth2.S256ChallengeFromVerifier(verifier), "code_challenge_method", "S256",
	})
	refusedQueries(t, s, q, [2]string{"access_type", ""}, [2]string{"state", ""}, [2]string{"code_challenge", ""}, [2]string{"client_secret", ClientSecret},
		[2]string{"redirect_uri", "http://127.0.0.1:9/callback"}, [2]string{"redirect_uri", "http://localhost:9/oauth2callback"})
	login := func(q url.Values) map[string]any {
		t.Helper()
		pasted, err := s.Copy(t.Context(), s.URL()+"/o/oauth2/v2/auth?"+q.Encode())
		if err != nil || !regexp.MustCompile(`^ac-\w+$`).MatchString(pasted) {
			t.Fatalf("pasted %q, %v", pasted, err)
		}
		good := inForm("grant_type", GrantCode, "code", pasted, "redirect_uri", paste, "client_id", id, "client_secret", ClientSecret, "code_verifier", verifier)
		wrong(t, s, Token, 400, "invalid_request", good.but("client_secret", ""), good.but("", "application/json"), good.but("state", "test-state"),
			good.but("client_secret", "").with("Authorization", "Basic eDp5"))
		wrong(t, s, Token, 401, "invalid_client", good.but("client_secret", "x"))
		answer := mustSend(t, s, Token, good)
		works(t, s, answer)
		return answer
	}
	first := login(q)
	has(t, first, "access_token", "refresh_token", "id_token", "expires_in", "scope", "token_type")
	has(t, login(q), "access_token", "id_token", "expires_in", "scope", "token_type") // the user has agreed before
	q.Set("prompt", "consent")
	has(t, login(q), "access_token", "refresh_token", "id_token", "expires_in", "scope", "token_type")
	q.Del("prompt")

	refresh := inForm("grant_type", GrantRefresh, "refresh_token", text(first, "refresh_token"), "client_id", id, "client_secret", ClientSecret)
	for range 2 {
		has(t, mustSend(t, s, Token, refresh), "access_token", "id_token", "expires_in", "scope", "token_type")
	}
	revoke := inForm("token", text(first, "refresh_token"))
	wrong(t, s, Revoke, 400, "invalid_request", revoke.but("client_secret", ClientSecret), revoke.but("token", ""), revoke.but("", "application/json"))
	mustSend(t, s, Revoke, revoke)
	wrong(t, s, Token, 400, "invalid_grant", refresh)
	has(t, login(q), "access_token", "refresh_token", "id_token", "expires_in", "scope", "token_type") // consent began anew

	// On loopback it can be without PKCE.
	for _, name := range []string{"code_challenge", "code_challenge_method"} {
		q.Del(name)
	}
	q.Set("redirect_uri", "http://127.0.0.1:5000/oauth2callback")
	to, back := approveURL(t, s, q)
	mustSend(t, s, Token, inForm("grant_type", GrantCode, "code", back.Get("code"), "redirect_uri", to, "client_id", id, "client_secret", ClientSecret))
}

func TestOpenRouter(t *testing.T) {
	s := start(t, Options{Dialect: "openrouter", Approval: AskUser})
	verifier := oauth2.GenerateVerifier()
	q := members([]string{
		"callback_url", "http://localhost:3000/test-random-path", "code_challenge", oauth2.S256ChallengeFromVerifier(verifier), "code_challenge_method", "S256",
	})
	refusedQueries(t, s, q, [2]string{"callback_url", ""}, [2]string{"callback_url", "http://a.example/"}, [2]string{"callback_url", "http://localhost:3000/#x"},
		[2]string{"code_challenge_method", "plain"}, [2]string{"code_challenge", ""}, [2]string{"state", "test-state"}, [2]string{"client_id", "x"})
	to, back := approveURL(t, s, q)
	if to != "http://localhost:3000/test-random-path" || len(back) != 1 {
		t.Fatalf("sent to %s with %d values", to, len(back))
	}
	good := inJSON("code", back.Get("code"), "code_verifier", verifier, "code_challenge_method", "S256")
	wrong(t, s, Token, 400, "400", good.but("", formType), good.but("code_challenge_method", ""), good.but("code_challenge_method", "plain"),
		good.but("grant_type", GrantCode), good.but("client_id", "x"), good.but("client_secret", "x"))
	wrong(t, s, Token, 403, "403", good.but("code", "x"))
	key := mustSend(t, s, Token, good)
	has(t, key, "key")
	works(t, s, map[string]any{"access_token": key["key"]})
	wrong(t, s, Token, 403, "403", good)
	if s.Valid(text(key, "key")) {
		t.Error("a code twice did not end the key")
	}
	_, back = approveURL(t, s, q)
	wrong(t, s, Token, 403, "403", inJSON("code", back.Get("code"), "code_verifier", oauth2.GenerateVerifier(), "code_challenge_method", "S256"))
}
