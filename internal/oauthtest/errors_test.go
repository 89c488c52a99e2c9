package oauthtest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
)

// send posts a body and checks what every answer of these endpoints must have.
func send(t *testing.T, s *Server, e Endpoint, contentType, body string, header http.Header) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.EndpointURL(e), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Content-Type", contentType)
	rep, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Body.Close()
	raw, err := io.ReadAll(rep.Body)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %d: Cache-Control %q", e, rep.StatusCode, rep.Header.Get("Cache-Control"))
	}
	var answer map[string]any
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &answer); err != nil {
			t.Fatalf("%s %d: %v", e, rep.StatusCode, err)
		}
	}
	return rep, answer
}

func post(t *testing.T, s *Server, e Endpoint, form url.Values) (int, map[string]any) {
	t.Helper()
	rep, answer := send(t, s, e, "application/x-www-form-urlencoded", form.Encode(), nil)
	return rep.StatusCode, answer
}

func testClients() []Client {
	return []Client{
		{ID: "test-client", RedirectURIs: []string{testRedirect}},
		{ID: "secret client", Secret: "test:secret+1", RedirectURIs: []string{testRedirect}},
		{ID: "device-only", Grants: []string{GrantDevice}, RedirectURIs: []string{testRedirect}},
		{ID: "two-uris", RedirectURIs: []string{"https://a.example/x?keep=1", "https://b.example/"}},
	}
}

func TestAuthorizeErrors(t *testing.T) {
	s := start(t, Options{Clients: testClients(), Scopes: []string{"read", "write"}})
	challenge := oauth2.S256ChallengeFromVerifier(oauth2.GenerateVerifier())
	base := func() url.Values {
		return url.Values{
			"client_id": {"test-client"}, "redirect_uri": {testRedirect}, "response_type": {"code"}, "state": {"a&b=c"},
			"code_challenge": {challenge}, "code_challenge_method": {"S256"},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(url.Values)
		want   string // error code, "page" for an error that must not be redirected, or "" for a code
	}{
		{"good", func(url.Values) {}, ""},
		{"no redirect_uri, one registered", func(v url.Values) { v.Del("redirect_uri") }, ""},
		{"unknown parameter", func(v url.Values) { v.Set("prompt", "login") }, ""},
		{"resource twice", func(v url.Values) { v["resource"] = []string{"https://a", "https://b"} }, ""},
		{"unknown client", func(v url.Values) { v.Set("client_id", "x") }, "page"},
		{"no client", func(v url.Values) { v.Del("client_id") }, "page"},
		{"client twice", func(v url.Values) { v.Add("client_id", "test-client") }, "page"},
		{"unregistered redirect", func(v url.Values) { v.Set("redirect_uri", "https://evil.example/callback") }, "page"},
		{"redirect with user info", func(v url.Values) { v.Set("redirect_uri", "http://127.0.0.1:1@evil.example/callback") }, "page"},
		{"redirect twice", func(v url.Values) { v.Add("redirect_uri", testRedirect) }, "page"},
		{"no redirect_uri, two registered", func(v url.Values) { v.Set("client_id", "two-uris"); v.Del("redirect_uri") }, "page"},
		{"no response_type", func(v url.Values) { v.Del("response_type") }, "invalid_request"},
		{"empty response_type", func(v url.Values) { v.Set("response_type", "") }, "invalid_request"},
		{"token response", func(v url.Values) { v.Set("response_type", "token") }, "unsupported_response_type"},
		{"grant not allowed", func(v url.Values) { v.Set("client_id", "device-only") }, "unauthorized_client"},
		{"unknown scope", func(v url.Values) { v.Set("scope", "read admin") }, "invalid_scope"},
		{"malformed scope", func(v url.Values) { v.Set("scope", "read  write") }, "invalid_scope"},
		{"scope twice", func(v url.Values) { v["scope"] = []string{"read", "write"} }, "invalid_request"},
		{"no challenge", func(v url.Values) { v.Del("code_challenge"); v.Del("code_challenge_method") }, "invalid_request"},
		{"plain by default", func(v url.Values) { v.Del("code_challenge_method") }, "invalid_request"},
		{"plain", func(v url.Values) { v.Set("code_challenge_method", "plain") }, "invalid_request"},
		{"short challenge", func(v url.Values) { v.Set("code_challenge", "abc") }, "invalid_request"},
		{"padded challenge", func(v url.Values) { v.Set("code_challenge", challenge[:42]+"=") }, "invalid_request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := base()
			tt.change(v)
			rep := get(t, s, s.EndpointURL(Authorize)+"?"+v.Encode())
			if tt.want == "page" {
				if rep.Body.Close(); rep.StatusCode != 400 || rep.Header.Get("Location") != "" {
					t.Fatalf("status %d, Location %q", rep.StatusCode, rep.Header.Get("Location"))
				}
				return
			}
			q := location(t, rep)
			if q.Get("error") != tt.want || (q.Get("code") != "") != (tt.want == "") || q.Get("state") != "a&b=c" || q.Has("iss") {
				t.Fatalf("error %q, state %q", q.Get("error"), q.Get("state"))
			}
		})
	}
	t.Run("denied", func(t *testing.T) {
		s.SetApproval(DenyAll)
		if q := location(t, get(t, s, s.EndpointURL(Authorize)+"?"+base().Encode())); q.Get("error") != "access_denied" {
			t.Fatalf("error %q", q.Get("error"))
		}
	})
}

func TestRedirectRegistration(t *testing.T) {
	c := Client{RedirectURIs: []string{"http://127.0.0.1/cb", "http://[::1]:9/cb", "http://localhost:1455/auth/callback", "https://app.example/cb", "http://127.0.0.1/q?a=1"}}
	for uri, want := range map[string]bool{
		"http://127.0.0.1/cb": true, "http://127.0.0.1:5000/cb": true, "http://[::1]:5000/cb": true,
		"http://localhost:1/auth/callback": true, "https://app.example/cb": true, "http://127.0.0.1:7/q?a=1": true,
		"": false, "http://127.0.0.1:5000/cb/": false, "http://127.0.0.1:5000/cb?x=1": false, "http://127.0.0.1:5000/cb#f": false,
		"http://127.0.0.1:5000/cb#": false, "https://127.0.0.1:5000/cb": false, "http://127.0.0.2/cb": false,
		"http://localhost:5000/cb": false, "https://app.example:8443/cb": false, "http://u@127.0.0.1/cb": false,
		"http://127.0.0.1.evil.example/cb": false, "http://127.0.0.1:5000/q": false, "http://127.0.0.1:5000/c%62": false,
	} {
		if got := c.registered(uri); got != want {
			t.Errorf("%q: %v", uri, got)
		}
	}
}

func TestRedirectKeepsItsQuery(t *testing.T) {
	s := start(t, Options{Clients: testClients(), PKCEOptional: true})
	rep := get(t, s, s.EndpointURL(Authorize)+"?client_id=two-uris&response_type=code&redirect_uri=https%3A%2F%2Fa.example%2Fx%3Fkeep%3D1")
	rep.Body.Close()
	if got := rep.Header.Get("Location"); !strings.HasPrefix(got, "https://a.example/x?keep=1&code=ac-") {
		t.Errorf("Location begins %.32q", got)
	}
}

// authorise gets a code for test-client.
func authorise(t *testing.T, s *Server, client, challenge string) string {
	t.Helper()
	v := url.Values{"client_id": {client}, "redirect_uri": {testRedirect}, "response_type": {"code"}}
	if challenge != "" {
		v.Set("code_challenge", challenge)
		v.Set("code_challenge_method", "S256")
	}
	code := location(t, get(t, s, s.EndpointURL(Authorize)+"?"+v.Encode())).Get("code")
	if code == "" {
		t.Fatal("no code")
	}
	return code
}

func TestTokenErrors(t *testing.T) {
	verifier := oauth2.GenerateVerifier()
	for _, tt := range []struct {
		name   string
		change func(url.Values)
		status int
		want   string
	}{
		{"good", func(url.Values) {}, 200, ""},
		{"unknown parameter", func(v url.Values) { v.Set("state", "x") }, 200, ""},
		{"no grant_type", func(v url.Values) { v.Del("grant_type") }, 400, "invalid_request"},
		{"unknown grant", func(v url.Values) { v.Set("grant_type", "password") }, 400, "unsupported_grant_type"},
		{"repeated", func(v url.Values) { v.Add("code", "x") }, 400, "invalid_request"},
		{"no client", func(v url.Values) { v.Del("client_id") }, 400, "invalid_request"},
		{"unknown client", func(v url.Values) { v.Set("client_id", "x") }, 401, "invalid_client"},
		{"other client", func(v url.Values) { v.Set("client_id", "two-uris") }, 400, "invalid_grant"},
		{"client without the grant", func(v url.Values) { v.Set("client_id", "device-only") }, 400, "unauthorized_client"},
		{"secret of a public client", func(v url.Values) { v.Set("client_secret", "x") }, 401, "invalid_client"},
		{"no code", func(v url.Values) { v.Del("code") }, 400, "invalid_request"},
		{"unknown code", func(v url.Values) { v.Set("code", "ac-x") }, 400, "invalid_grant"},
		{"no redirect", func(v url.Values) { v.Del("redirect_uri") }, 400, "invalid_request"},
		{"other redirect", func(v url.Values) { v.Set("redirect_uri", testRedirect+"2") }, 400, "invalid_grant"},
		{"other loopback port", func(v url.Values) { v.Set("redirect_uri", "http://127.0.0.1:1/callback") }, 400, "invalid_grant"},
		{"no verifier", func(v url.Values) { v.Del("code_verifier") }, 400, "invalid_request"},
		{"other verifier", func(v url.Values) { v.Set("code_verifier", oauth2.GenerateVerifier()) }, 400, "invalid_grant"},
		{"challenge as verifier", func(v url.Values) { v.Set("code_verifier", oauth2.S256ChallengeFromVerifier(verifier)) }, 400, "invalid_grant"},
		{"refresh without token", func(v url.Values) { v.Set("grant_type", GrantRefresh) }, 400, "invalid_request"},
		{"unknown refresh token", func(v url.Values) { v.Set("grant_type", GrantRefresh); v.Set("refresh_token", "x") }, 400, "invalid_grant"},
		{"poll without code", func(v url.Values) { v.Set("grant_type", GrantDevice) }, 400, "invalid_request"},
		{"unknown device code", func(v url.Values) { v.Set("grant_type", GrantDevice); v.Set("device_code", "x") }, 400, "invalid_grant"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{Clients: testClients()})
			v := url.Values{
				"client_id": {"test-client"}, "grant_type": {GrantCode}, "redirect_uri": {testRedirect}, "code_verifier": {verifier},
				"code": {authorise(t, s, "test-client", oauth2.S256ChallengeFromVerifier(verifier))},
			}
			tt.change(v)
			status, answer := post(t, s, Token, v)
			got, _ := answer["error"].(string)
			if status != tt.status || got != tt.want {
				t.Fatalf("%d %q, want %d %q", status, got, tt.status, tt.want)
			}
			if issued := len(s.Families()); (issued == 1) != (tt.want == "") {
				t.Fatalf("%d families", issued)
			}
		})
	}
}

func TestCodeIsSingleUseAndShortLived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startPipe(t, Options{Clients: testClients(), PKCEOptional: true})
		defer closeServer(t, s)
		form := func(code string) url.Values {
			return url.Values{"client_id": {"test-client"}, "grant_type": {GrantCode}, "redirect_uri": {testRedirect}, "code": {code}}
		}
		code := authorise(t, s, "test-client", "")
		_, answer := post(t, s, Token, form(code))
		access, _ := answer["access_token"].(string)
		if !s.Valid(access) {
			t.Fatal("no token")
		}
		if status, answer := post(t, s, Token, form(code)); status != 400 || answer["error"] != "invalid_grant" {
			t.Errorf("second use: %d %v", status, answer["error"])
		}
		if s.Valid(access) {
			t.Error("the second use did not revoke what the first gave")
		}

		late := authorise(t, s, "test-client", "")
		time.Sleep(time.Minute)
		if status, answer := post(t, s, Token, form(late)); status != 400 || answer["error"] != "invalid_grant" {
			t.Errorf("late: %d %v", status, answer["error"])
		}

		downgraded := form(authorise(t, s, "test-client", ""))
		downgraded.Set("code_verifier", oauth2.GenerateVerifier())
		if status, answer := post(t, s, Token, downgraded); status != 400 || answer["error"] != "invalid_grant" {
			t.Errorf("verifier without challenge: %d %v", status, answer["error"])
		}
	})
}

func TestScopeOfRefresh(t *testing.T) {
	s := start(t, Options{Scopes: []string{"read", "write"}})
	tok := login(t, s)
	refresh := func(token, scope string) (int, map[string]any) {
		return post(t, s, Token, url.Values{"client_id": {"test-client"}, "grant_type": {GrantRefresh}, "refresh_token": {token}, "scope": {scope}})
	}
	if status, answer := refresh(tok.RefreshToken, "read admin"); status != 400 || answer["error"] != "invalid_scope" {
		t.Errorf("wider: %d %v", status, answer["error"])
	}
	status, answer := refresh(tok.RefreshToken, "read")
	if status != 200 || answer["scope"] != "read" {
		t.Fatalf("narrower: %d %v", status, answer["scope"])
	}
	next, _ := answer["refresh_token"].(string)
	if status, answer = refresh(next, ""); status != 200 || answer["scope"] != "read write" {
		t.Errorf("the refresh token lost scope: %d %v", status, answer["scope"])
	}
}

func TestClientAuthentication(t *testing.T) {
	s := start(t, Options{Clients: testClients(), Approval: AskUser})
	basic := func(id, secret string) http.Header {
		return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))}}
	}
	for _, tt := range []struct {
		name   string
		form   url.Values
		header http.Header
		status int
		want   string
	}{
		{"basic", nil, basic("secret client", "test:secret+1"), 200, ""},
		{"basic and client_id", url.Values{"client_id": {"secret client"}}, basic("secret client", "test:secret+1"), 200, ""},
		{"form", url.Values{"client_id": {"secret client"}, "client_secret": {"test:secret+1"}}, nil, 200, ""},
		{"public", url.Values{"client_id": {"test-client"}}, nil, 200, ""},
		{"public by basic", nil, basic("test-client", ""), 200, ""},
		{"wrong secret", nil, basic("secret client", "x"), 401, "invalid_client"},
		{"no secret", url.Values{"client_id": {"secret client"}}, nil, 401, "invalid_client"},
		{"unknown", nil, basic("x", ""), 401, "invalid_client"},
		{"bearer", url.Values{"client_id": {"test-client"}}, http.Header{"Authorization": {"Bearer x"}}, 401, "invalid_client"},
		{"broken escape", nil, http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("%zz:x"))}}, 401, "invalid_client"},
		{"both ways", url.Values{"client_id": {"secret client"}, "client_secret": {"test:secret+1"}}, basic("secret client", "test:secret+1"), 400, "invalid_request"},
		{"two ids", url.Values{"client_id": {"test-client"}}, basic("secret client", "test:secret+1"), 400, "invalid_request"},
		{"none", nil, nil, 400, "invalid_request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rep, answer := send(t, s, Device, "application/x-www-form-urlencoded", tt.form.Encode(), tt.header)
			got, _ := answer["error"].(string)
			if rep.StatusCode != tt.status || got != tt.want {
				t.Fatalf("%d %q", rep.StatusCode, got)
			}
			if (rep.StatusCode == 401) != (rep.Header.Get("WWW-Authenticate") != "") {
				t.Error("WWW-Authenticate belongs to 401")
			}
		})
	}
}

func TestBodies(t *testing.T) {
	const form, js = "application/x-www-form-urlencoded", "application/json"
	for _, tt := range []struct {
		name        string
		encoding    Encoding
		contentType string
		body        string
		status      int
	}{
		{"form", FormBody, form, "client_id=test-client", 200},
		{"form with charset", FormBody, form + "; charset=utf-8", "client_id=test-client", 200},
		{"form to a JSON server", JSONBody, form, "client_id=test-client", 400},
		{"form to a server of both", FormOrJSONBody, form, "client_id=test-client", 200},
		{"JSON to a form server", FormBody, js, `{"client_id":"test-client"}`, 400},
		{"JSON", JSONBody, js, `{"client_id":"test-client","n":1,"b":true,"z":null}`, 200},
		{"JSON to a server of both", FormOrJSONBody, js + "; charset=utf-8", `{"client_id":"test-client"}`, 200},
		{"JSON name twice", JSONBody, js, `{"client_id":"test-client","client_id":"test-client"}`, 400},
		{"JSON nested", JSONBody, js, `{"client_id":{"a":"b"}}`, 400},
		{"JSON array", JSONBody, js, `["client_id"]`, 400},
		{"JSON cut", JSONBody, js, `{"client_id":"test-client"`, 400},
		{"JSON trailing", JSONBody, js, `{"client_id":"test-client"}{}`, 400},
		{"JSON broken", JSONBody, js, `{"client_id":}`, 400},
		{"broken escape", FormBody, form, "client_id=%zz", 400},
		{"no type", FormBody, "", "client_id=test-client", 400},
		{"too large", FormBody, form, "client_id=" + strings.Repeat("x", maxBody), 413},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{Encoding: tt.encoding})
			rep, answer := send(t, s, Device, tt.contentType, tt.body, nil)
			if rep.StatusCode != tt.status || (tt.status != 200) != (answer["error"] == "invalid_request") {
				t.Fatalf("%d %v", rep.StatusCode, answer["error"])
			}
		})
	}
}

func TestSecretsInTheAddressAreRefused(t *testing.T) {
	s := start(t, Options{})
	rep, err := s.Client().Post(s.EndpointURL(Token)+"?code=x", "application/x-www-form-urlencoded", strings.NewReader("client_id=test-client"))
	if err != nil {
		t.Fatal(err)
	}
	if rep.Body.Close(); rep.StatusCode != 400 {
		t.Errorf("status %d", rep.StatusCode)
	}
	rep = get(t, s, s.EndpointURL(Token))
	if rep.Body.Close(); rep.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", rep.StatusCode)
	}
}

func TestDeviceErrors(t *testing.T) {
	s := start(t, Options{Scopes: []string{"read"}, Clients: []Client{
		{ID: "test-client"}, {ID: "code-only", Grants: []string{GrantCode}}, {ID: "no-refresh", Grants: []string{GrantDevice}},
	}})
	for _, tt := range []struct {
		form string
		want string
	}{
		{"client_id=code-only", "unauthorized_client"},
		{"client_id=test-client&scope=admin", "invalid_scope"},
		{"client_id=test-client&code_challenge=abc&code_challenge_method=plain", "invalid_request"},
	} {
		rep, answer := send(t, s, Device, "application/x-www-form-urlencoded", tt.form, nil)
		if rep.StatusCode != 400 || answer["error"] != tt.want {
			t.Errorf("%s: %d %v", tt.form, rep.StatusCode, answer["error"])
		}
	}
	_, answer := post(t, s, Device, url.Values{"client_id": {"no-refresh"}})
	device, _ := answer["device_code"].(string)
	if status, answer := post(t, s, Token, url.Values{"client_id": {"test-client"}, "grant_type": {GrantDevice}, "device_code": {device}}); status != 400 || answer["error"] != "invalid_grant" {
		t.Errorf("another client's device code: %d %v", status, answer["error"])
	}
	status, answer := post(t, s, Token, url.Values{"client_id": {"no-refresh"}, "grant_type": {GrantDevice}, "device_code": {device}})
	if _, has := answer["refresh_token"]; status != 200 || has {
		t.Errorf("a client without the refresh grant: %d, refresh token %v", status, has)
	}
}

func TestOptionErrors(t *testing.T) {
	for name, o := range map[string]Options{
		"client twice":      {Clients: []Client{{ID: "a"}, {ID: "a"}}},
		"client without id": {Clients: []Client{{}}},
		"relative redirect": {Clients: []Client{{ID: "a", RedirectURIs: []string{"/cb"}}}},
		"fragment":          {Clients: []Client{{ID: "a", RedirectURIs: []string{"http://a.example/#x"}}}},
		"half seconds":      {AccessLifetime: 1500 * time.Millisecond},
		"negative":          {CodeLifetime: -1},
		"extra":             {Extra: map[string]any{"access_token": "x"}},
	} {
		if s, err := Start(o); err == nil {
			closeServer(t, s)
			t.Errorf("%s: accepted", name)
		}
	}
}
