package oauthtest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"
)

const formType = "application/x-www-form-urlencoded"

// body is what is sent to a vendor: by its content type and members.
type body struct {
	contentType string
	members     url.Values
	header      http.Header
}

func inForm(pairs ...string) body { return body{contentType: formType, members: members(pairs)} }
func inJSON(pairs ...string) body {
	return body{contentType: "application/json", members: members(pairs)}
}

func members(pairs []string) url.Values {
	v := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		v.Set(pair[0], pair[1])
	}
	return v
}

// but changes one member, or removes it with an empty value, or with an empty name the content type.
func (b body) but(name, value string) body {
	changed := body{b.contentType, url.Values{}, b.header.Clone()}
	for k, v := range b.members {
		changed.members[k] = v
	}
	switch {
	case name == "":
		changed.contentType = value
	case value == "":
		changed.members.Del(name)
	default:
		changed.members.Set(name, value)
	}
	return changed
}

func (b body) with(header, value string) body {
	b = b.but("none", "")
	if b.header == nil {
		b.header = http.Header{}
	}
	b.header.Set(header, value)
	return b
}

// ask sends a body and returns the answer.
func sendBody(t *testing.T, s *Server, e Endpoint, b body) (int, map[string]any) {
	t.Helper()
	text := b.members.Encode()
	if b.contentType == "application/json" {
		flat := map[string]string{}
		for name := range b.members {
			flat[name] = b.members.Get(name)
		}
		raw, err := json.Marshal(flat)
		if err != nil {
			t.Fatal(err)
		}
		text = string(raw)
	}
	rep, answer := send(t, s, e, b.contentType, text, b.header)
	return rep.StatusCode, answer
}

func mustSend(t *testing.T, s *Server, e Endpoint, b body) map[string]any {
	t.Helper()
	status, answer := sendBody(t, s, e, b)
	if status != 200 || answer["error"] != nil {
		t.Fatalf("%s: %d %v", e, status, answer)
	}
	return answer
}

// errorCode finds the code of an error in the shapes that are in use.
func errorCode(answer map[string]any) string {
	switch e := answer["error"].(type) {
	case string:
		return e
	case map[string]any:
		for _, name := range []string{"code", "type"} {
			if code, ok := e[name].(string); ok {
				return code
			}
		}
	}
	return ""
}

// wrong are requests that a vendor must refuse.
func wrong(t *testing.T, s *Server, e Endpoint, status int, code string, bodies ...body) {
	t.Helper()
	for _, b := range bodies {
		got, answer := sendBody(t, s, e, b)
		if got != status || errorCode(answer) != code {
			t.Errorf("%s with %v: %d %q, want %d %q", e, slices.Sorted(keys(b.members)), got, errorCode(answer), status, code)
		}
	}
}

func keys(v url.Values) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range v {
			if !yield(name) {
				return
			}
		}
	}
}

// approveURL opens an authorisation request and returns what came back.
func approveURL(t *testing.T, s *Server, query url.Values) (string, url.Values) {
	t.Helper()
	redirect, err := s.Approve(t.Context(), s.EndpointURL(Authorize)+"?"+strings.ReplaceAll(query.Encode(), "+", "%20"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(redirect)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	u.RawQuery = ""
	return u.String(), q
}

// refusedQueries are authorisation requests that end on a page with 400 and never in a redirect.
func refusedQueries(t *testing.T, s *Server, good url.Values, changes ...[2]string) {
	t.Helper()
	for _, c := range changes {
		q := inForm().but("", "").members
		for k, v := range good {
			q[k] = v
		}
		if q.Set(c[0], c[1]); c[1] == "" {
			q.Del(c[0])
		}
		rep := get(t, s, s.EndpointURL(Authorize)+"?"+strings.ReplaceAll(q.Encode(), "+", "%20"))
		text, _ := io.ReadAll(rep.Body)
		if rep.Body.Close(); rep.StatusCode != 400 || rep.Header.Get("Location") != "" {
			t.Errorf("authorise with %s=%q: %d %s", c[0], c[1], rep.StatusCode, text)
		}
	}
}

func claimsOf(t *testing.T, token any) map[string]any {
	t.Helper()
	parts := strings.Split(token.(string), ".")
	if len(parts) != 3 {
		t.Fatalf("a JWT of %d parts", len(parts))
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func text(answer map[string]any, name string) string { s, _ := answer[name].(string); return s }

func works(t *testing.T, s *Server, answer map[string]any) {
	t.Helper()
	access := text(answer, "access_token")
	if status, _ := use(t, s, access); status != 200 || !slices.Contains(s.Issued().All(), access) {
		t.Errorf("the access token: %d", status)
	}
}

func has(t *testing.T, answer map[string]any, names ...string) {
	t.Helper()
	var got []string
	for name := range answer {
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("the answer has %v, want %v", got, names)
	}
}

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
	wrong(t, s, Token, 400, "invalid_request_error", good.but("", formType), good.but("state", ""), good.but("client_secret", "x").but("extra", "y"),
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

func TestQwen(t *testing.T) {
	s := start(t, Options{Dialect: "qwen", Approval: AskUser})
	id, verifier := "f0304373b74a44d2b584a3fb70ca9e56", oauth2.GenerateVerifier()
	begin := inForm("client_id", id, "scope", "openid profile email model.completion", "code_challenge", oauth2.S256ChallengeFromVerifier(verifier), "code_challenge_method", "S256").
		with("Accept", "application/json").with("x-request-id", "01234567-89ab-cdef-0123-456789abcdef")
	wrong(t, s, Device, 400, "invalid_request", begin.but("code_challenge", ""), begin.but("scope", ""), begin.but("", "application/json"),
		begin.with("x-request-id", "1"), begin.with("Accept", "*/*"), begin.but("code_verifier", verifier))
	device := mustSend(t, s, Device, begin)
	has(t, device, "device_code", "user_code", "verification_uri", "verification_uri_complete", "expires_in")
	poll := inForm("grant_type", GrantDevice, "client_id", id, "device_code", text(device, "device_code"), "code_verifier", verifier).with("Accept", "application/json")
	wrong(t, s, Token, 400, "invalid_request", poll.but("code_verifier", ""), poll.but("scope", "openid"))
	wrong(t, s, Token, 400, "authorization_pending", poll)
	wrong(t, s, Token, 429, "slow_down", poll)
	s.Decide(text(device, "user_code"), true)
	wrong(t, s, Token, 400, "invalid_grant", poll.but("code_verifier", oauth2.GenerateVerifier()))
	token := mustSend(t, s, Token, poll)
	has(t, token, "access_token", "refresh_token", "expires_in", "scope", "token_type", "resource_url")
	if token["scope"] != nil || strings.Contains(text(token, "resource_url"), "/") {
		t.Errorf("scope %v, resource_url %v", token["scope"], token["resource_url"])
	}
	works(t, s, token)
	mustSend(t, s, Token, inForm("grant_type", GrantRefresh, "refresh_token", text(token, "refresh_token"), "client_id", id).with("Accept", "application/json"))
	s.SetApproval(DenyAll)
	wrong(t, s, Token, 400, "access_denied", poll.but("device_code", text(mustSend(t, s, Device, begin), "device_code")))
}

func TestGitHub(t *testing.T) {
	s := start(t, Options{Dialect: "github", Approval: AskUser})
	id := "178c6fc778ccc68e1d6a"
	begin := inForm("client_id", id, "scope", "repo read:org").with("Accept", "application/json")
	wrong(t, s, Device, 200, "invalid_request", begin.but("", "application/json"), begin.but("client_id", ""), begin.but("response_type", "device_code"))
	wrong(t, s, Device, 200, "incorrect_client_credentials", begin.but("client_id", "x"), begin.but("client_secret", "x"))
	device := mustSend(t, s, Device, begin)
	has(t, device, "device_code", "user_code", "verification_uri", "expires_in", "interval")
	if len(text(device, "device_code")) != 40 || device["expires_in"] != 900.0 || device["interval"] != 5.0 || device["verification_uri"] != s.URL()+"/login/device" {
		t.Errorf("%v", device)
	}
	poll := inForm("client_id", id, "device_code", text(device, "device_code"), "grant_type", GrantDevice).with("Accept", "application/json")
	wrong(t, s, Token, 200, "authorization_pending", poll)
	status, answer := sendBody(t, s, Token, poll)
	if status != 200 || answer["error"] != "slow_down" || answer["interval"] != 10.0 {
		t.Errorf("slow_down: %d %v", status, answer)
	}
	wrong(t, s, Token, 200, "incorrect_device_code", poll.but("device_code", "x"))
	wrong(t, s, Token, 200, "unsupported_grant_type", poll.but("grant_type", "password"))
	s.Decide(text(device, "user_code"), true)
	token := mustSend(t, s, Token, poll)
	has(t, token, "access_token", "token_type", "scope")
	if token["token_type"] != "bearer" || token["scope"] != "repo,read:org" || !strings.HasPrefix(text(token, "access_token"), "gho_") {
		t.Errorf("%v %v", token["token_type"], token["scope"])
	}
	works(t, s, token)
	s.SetApproval(DenyAll)
	wrong(t, s, Token, 200, "access_denied", poll.but("device_code", text(mustSend(t, s, Device, begin), "device_code")))

	// Who does not ask for JSON gets a form.
	rep, err := s.Client().PostForm(s.EndpointURL(Device), begin.members)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Body.Close()
	raw, _ := io.ReadAll(rep.Body)
	if v, err := url.ParseQuery(string(raw)); err != nil || v.Get("expires_in") != "900" || !strings.HasPrefix(rep.Header.Get("Content-Type"), formType) {
		t.Errorf("a form: %s", raw)
	}
}

func TestGitHubApp(t *testing.T) {
	s := start(t, Options{Dialect: "github", Clients: []Client{{ID: "test-app", Grants: []string{GrantDevice, GrantRefresh}}}})
	device := mustSend(t, s, Device, inForm("client_id", "test-app").with("Accept", "application/json"))
	token := mustSend(t, s, Token, inForm("client_id", "test-app", "device_code", text(device, "device_code"), "grant_type", GrantDevice).with("Accept", "application/json"))
	has(t, token, "access_token", "token_type", "scope", "expires_in", "refresh_token", "refresh_token_expires_in")
	refresh := inForm("client_id", "test-app", "refresh_token", text(token, "refresh_token"), "grant_type", GrantRefresh).with("Accept", "application/json")
	if next := mustSend(t, s, Token, refresh); !strings.HasPrefix(text(next, "access_token"), "ghu_") {
		t.Error("the prefix of an app's token")
	}
	wrong(t, s, Token, 200, "bad_refresh_token", refresh)
}
