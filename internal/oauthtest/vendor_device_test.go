package oauthtest

import (
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
)

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
	s := start(t, Options{Dialect: "github", Clients: []Client{
		{ID: "test-app", Grants: []string{GrantDevice, GrantRefresh}}, {ID: "test-secret-app", Secret: ClientSecret, Grants: []string{GrantDevice}},
	}})
	secret := inForm("client_id", "test-secret-app").with("Accept", "application/json")
	wrong(t, s, Device, 200, "incorrect_client_credentials", secret, secret.but("client_secret", "x"))
	mustSend(t, s, Device, secret.but("client_secret", ClientSecret))
	device := mustSend(t, s, Device, inForm("client_id", "test-app").with("Accept", "application/json"))
	token := mustSend(t, s, Token, inForm("client_id", "test-app", "device_code", text(device, "device_code"), "grant_type", GrantDevice).with("Accept", "application/json"))
	has(t, token, "access_token", "token_type", "scope", "expires_in", "refresh_token", "refresh_token_expires_in")
	refresh := inForm("client_id", "test-app", "refresh_token", text(token, "refresh_token"), "grant_type", GrantRefresh).with("Accept", "application/json")
	if next := mustSend(t, s, Token, refresh); !strings.HasPrefix(text(next, "access_token"), "ghu_") {
		t.Error("the prefix of an app's token")
	}
	wrong(t, s, Token, 200, "bad_refresh_token", refresh)
}

func TestXAI(t *testing.T) {
	s := start(t, Options{Dialect: "xai", Approval: AskUser})
	id := "b1a00492-073a-47ea-816f-4c329264a828"
	begin := inForm("client_id", id, "scope", "openid profile email offline_access grok-cli:access api:access")
	wrong(t, s, Device, 400, "invalid_request", begin.but("scope", ""), begin.but("", "application/json"), begin.but("code_challenge", "x"))
	wrong(t, s, Device, 400, "invalid_scope", begin.but("scope", "openid admin"))
	device := mustSend(t, s, Device, begin.but("referrer", "test"))
	has(t, device, "device_code", "user_code", "verification_uri", "verification_uri_complete", "expires_in", "interval")
	poll := inForm("grant_type", GrantDevice, "client_id", id, "device_code", text(device, "device_code"))
	wrong(t, s, Token, 400, "authorization_pending", poll)
	wrong(t, s, Token, 400, "slow_down", poll)
	s.Decide(text(device, "user_code"), true)
	token := mustSend(t, s, Token, poll)
	has(t, token, "access_token", "refresh_token", "expires_in", "scope", "token_type")
	if token["expires_in"] != 3600.0 {
		t.Errorf("expires_in %v", token["expires_in"])
	}
	works(t, s, token)
	refresh := inForm("grant_type", GrantRefresh, "refresh_token", text(token, "refresh_token"), "client_id", id)
	for range 2 {
		has(t, mustSend(t, s, Token, refresh), "access_token", "expires_in", "scope", "token_type")
	}
	device = mustSend(t, s, Device, begin)
	s.Decide(text(device, "user_code"), false)
	wrong(t, s, Token, 400, "authorization_denied", poll.but("device_code", text(device, "device_code")))
}

func TestKimi(t *testing.T) {
	s := start(t, Options{Dialect: "kimi"})
	id := "17e5f671-d194-4dfb-9706-5516cb48c098"
	begin := inForm("client_id", id)
	wrong(t, s, Device, 400, "invalid_request", begin.but("scope", "openid"), begin.but("", "application/json"), begin.but("code_challenge", "x"))
	device := mustSend(t, s, Device, begin)
	poll := inForm("grant_type", GrantDevice, "client_id", id, "device_code", text(device, "device_code"))
	wrong(t, s, Token, 400, "invalid_request", poll.but("code_verifier", "x"))
	token := mustSend(t, s, Token, poll)
	has(t, token, "access_token", "refresh_token", "expires_in", "token_type")
	works(t, s, token)
	refresh := inForm("grant_type", GrantRefresh, "refresh_token", text(token, "refresh_token"), "client_id", id)
	wrong(t, s, Token, 401, "invalid_grant", refresh.but("refresh_token", "x"))
	next := mustSend(t, s, Token, refresh)
	wrong(t, s, Token, 401, "invalid_grant", refresh)
	wrong(t, s, Token, 403, "invalid_grant", refresh.but("refresh_token", text(next, "refresh_token")))
}

// What each vendor says of a code that has expired, and which pace it asks for.
func TestDeviceCodesExpire(t *testing.T) {
	for _, tt := range []struct {
		dialect string
		poll    Endpoint
		status  int
		pace    time.Duration // at which no slow_down comes
	}{{"codex", DevicePoll, 400, 5 * time.Second}, {"qwen", Token, 401, 2 * time.Second}, {"github", Token, 200, 5 * time.Second}, {"xai", Token, 400, 5 * time.Second}, {"kimi", Token, 400, 5 * time.Second}} {
		t.Run(tt.dialect, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startPipe(t, Options{Dialect: tt.dialect, Approval: AskUser, DeviceLifetime: time.Minute})
				defer closeServer(t, s)
				id, verifier := s.opt.Clients[0].ID, oauth2.GenerateVerifier()
				begin := inForm("client_id", id).with("Accept", "application/json")
				poll := inForm("grant_type", GrantDevice, "client_id", id).with("Accept", "application/json")
				switch tt.dialect {
				case "codex":
					begin, poll = inJSON("client_id", id), inJSON()
				case "qwen":
					begin = begin.with("x-request-id", "01234567-89ab-cdef-0123-456789abcdef").but("code_challenge_method", "S256").
						but("code_challenge", oauth2.S256ChallengeFromVerifier(verifier)).but("scope", "openid")
					poll = poll.but("code_verifier", verifier)
				case "xai":
					begin = begin.but("scope", "openid")
				}
				device := mustSend(t, s, Device, begin)
				poll = poll.but("device_code", text(device, "device_code"))
				if tt.dialect == "codex" {
					poll = inJSON("device_auth_id", text(device, "device_auth_id"), "user_code", text(device, "user_code"))
				}
				for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(tt.pace) {
					switch _, answer := sendBody(t, s, tt.poll, poll); errorCode(answer) {
					case "authorization_pending", "deviceauth_authorization_pending", "not_found":
					default:
						t.Fatalf("after %v: %v", time.Since(began), answer)
					}
				}
				wrong(t, s, tt.poll, tt.status, "expired_token", poll)
			})
		})
	}
}
