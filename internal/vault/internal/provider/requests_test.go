package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// vendors is a server in the place of every vendor: it notes what built-in providers send, to the byte, and answers as
// it was told.
type vendors struct {
	s *httptest.Server

	mu      sync.Mutex
	answers []string // bodies, each with its status in front if that is not 200: "403 {}"
	seen    []string // "POST https://host/path type body"
	headers []http.Header
}

func startVendors(t *testing.T) (*vendors, *Client) {
	t.Helper()
	v := &vendors{}
	v.s = httptest.NewServer(v)
	t.Cleanup(v.s.Close)
	c := NewClientWith(v)
	c.SetInstall(func() (string, error) { return "01234567-89ab-4def-8123-456789abcdef", nil })
	return v, c
}

// RoundTrip sends a request for any host to the server.
func (v *vendors) RoundTrip(r *http.Request) (*http.Response, error) {
	to := r.Clone(r.Context())
	to.Header.Set("X-Test-Address", r.URL.String())
	to.URL.Scheme, to.URL.Host = "http", strings.TrimPrefix(v.s.URL, "http://")
	return v.s.Client().Transport.RoundTrip(to)
}

func (v *vendors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen = append(v.seen, fmt.Sprintf("%s %s %s %s", r.Method, r.Header.Get("X-Test-Address"),
		strings.TrimPrefix(r.Header.Get("Content-Type"), "application/"), body))
	v.headers = append(v.headers, r.Header)
	if len(v.answers) == 0 {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	answer, status := v.answers[0], 200
	v.answers = v.answers[1:]
	if !strings.HasPrefix(answer, "{") {
		_, _ = fmt.Sscanf(answer, "%d", &status)
		_, answer, _ = strings.Cut(answer, " ")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, answer)
}

// answer queues answers.
func (v *vendors) answer(answers ...string) { v.answers = append(v.answers, answers...) }

// sent checks the requests since the last call.
func (v *vendors) sent(t *testing.T, want ...string) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if got, want := strings.Join(v.seen, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("sent:\n%s\nwant:\n%s", got, want)
	}
	for _, h := range v.headers {
		if h.Get("User-Agent") != "credproxy" || h.Get("Accept") != "application/json" || h.Get("Authorization") != "" || h.Get("Cookie") != "" {
			t.Errorf("headers: %v", h)
		}
		for name := range h {
			if strings.HasPrefix(name, "X-Msh") || name == "Originator" {
				t.Errorf("it passes for another client: %s", name)
			}
		}
	}
	v.seen, v.headers = nil, nil
}

const tokens = `{"access_token":"test-access-token-2","refresh_token":"test-refresh-token-2","token_type":"Bearer","expires_in":3600}`

// What every vendor's page is asked for, and what its endpoints are sent, to the byte.
func TestBrowserRequests(t *testing.T) {
	const verifier = "{verifier}"
	for _, c := range []struct {
		name, redirect string
		url            string
		back           string // the query that comes back, but code and state
		exchange       string
		refresh        string
		revoke         []string // of a refresh token and of an access token
	}{
		{
			name: "anthropic", redirect: "https://platform.claude.com/oauth/code/callback",
			url: "https://claude.ai/oauth/authorize?client_id=9d1c250a-e61b-44d9-88ed-5944d1962f5e&code=true&code_challenge={challenge}&code_challenge_method=S256" +
				"&redirect_uri=https%3A%2F%2Fplatform.claude.com%2Foauth%2Fcode%2Fcallback&response_type=code&scope=org%3Acreate_api_key%20user%3Aprofile%20user%3Ainference&state={state}",
			exchange: `POST https://platform.claude.com/v1/oauth/token json {"client_id":"9d1c250a-e61b-44d9-88ed-5944d1962f5e","code":"test-code","code_verifier":"{verifier}","grant_type":"authorization_code","redirect_uri":"https://platform.claude.com/oauth/code/callback","state":"{state}"}`,
			refresh:  `POST https://platform.claude.com/v1/oauth/token json {"client_id":"9d1c250a-e61b-44d9-88ed-5944d1962f5e","grant_type":"refresh_token","refresh_token":"test-refresh-token-2"}`,
		},
		{
			name: "codex", redirect: "http://localhost:1455/auth/callback",
			url: "https://auth.openai.com/oauth/authorize?client_id=app_EMoamEEZ73f0CkXaXp7hrann&code_challenge={challenge}&code_challenge_method=S256&codex_cli_simplified_flow=true" +
				"&id_token_add_organizations=true&originator=credproxy&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback&response_type=code&scope=openid%20profile%20email%20offline_access&state={state}",
			exchange: `POST https://auth.openai.com/oauth/token x-www-form-urlencoded client_id=app_EMoamEEZ73f0CkXaXp7hrann&code=test-code&code_verifier={verifier}&grant_type=authorization_code&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback`,
			refresh:  `POST https://auth.openai.com/oauth/token json {"client_id":"app_EMoamEEZ73f0CkXaXp7hrann","grant_type":"refresh_token","refresh_token":"test-refresh-token-2"}`,
			revoke: []string{
				`POST https://auth.openai.com/oauth/revoke json {"client_id":"app_EMoamEEZ73f0CkXaXp7hrann","token":"test-token","token_type_hint":"refresh_token"}`,
				`POST https://auth.openai.com/oauth/revoke json {"token":"test-token","token_type_hint":"access_token"}`,
			},
		},
		{
			name: "chatgpt", redirect: "http://127.0.0.1:1455/auth/callback",
			url: "https://auth.openai.com/api/accounts/authorize?agent_name_hint=credproxy&client_id=dynamic_agent_client&code_challenge={challenge}&code_challenge_method=S256" +
				"&ext_agent_host_id=urn%3Auuid%3A01234567-89ab-4def-8123-456789abcdef&nonce={nonce}&redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback&resource=https%3A%2F%2Fapi.openai.com%2Fv1" +
				"&response_type=code&scope=openid%20profile%20email%20offline_access%20resource.invoke%20chatgpt.tokens.use.direct&state={state}",
			back:     "client_id=agent-1",
			exchange: `POST https://auth.openai.com/api/accounts/oauth/token x-www-form-urlencoded client_id=agent-1&code=test-code&code_verifier={verifier}&grant_type=authorization_code&redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback&resource=https%3A%2F%2Fapi.openai.com%2Fv1`,
			refresh:  `POST https://auth.openai.com/api/accounts/oauth/token x-www-form-urlencoded client_id=agent-1&grant_type=refresh_token&refresh_token=test-refresh-token-2&resource=https%3A%2F%2Fapi.openai.com%2Fv1`,
		},
		{
			name: "gemini", redirect: "https://codeassist.google.com/authcode",
			url: "https://accounts.google.com/o/oauth2/v2/auth?access_type=offline&client_id={client}&code_challenge={challenge}&code_challenge_method=S256&prompt=consent" +
				"&redirect_uri=https%3A%2F%2Fcodeassist.google.com%2Fauthcode&response_type=code&scope=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fcloud-platform%20https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fuserinfo.email" +
				"%20https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fuserinfo.profile&state={state}",
			exchange: `POST https://oauth2.googleapis.com/token x-www-form-urlencoded client_id={client}&client_secret=test-client-secret-1&code=test-code&code_verifier={verifier}&grant_type=authorization_code&redirect_uri=https%3A%2F%2Fcodeassist.google.com%2Fauthcode`,
			refresh:  `POST https://oauth2.googleapis.com/token x-www-form-urlencoded client_id={client}&client_secret=test-client-secret-1&grant_type=refresh_token&refresh_token=test-refresh-token-2`,
			revoke: []string{
				`POST https://oauth2.googleapis.com/revoke x-www-form-urlencoded token=test-token`,
				`POST https://oauth2.googleapis.com/revoke x-www-form-urlencoded token=test-token`,
			},
		},
		{
			name: "openrouter", redirect: "http://localhost:3000/callback",
			url:      "https://openrouter.ai/auth?callback_url=http%3A%2F%2Flocalhost%3A3000%2Fcallback%2F{path}&code_challenge={challenge}&code_challenge_method=S256",
			exchange: `POST https://openrouter.ai/api/v1/auth/keys json {"code":"test-code","code_challenge_method":"S256","code_verifier":"{verifier}"}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, client := startVendors(t)
			p, _ := Builtin(c.name)
			clientSecret := secret.String{}
			if p.ClientSecretKey != "" {
				clientSecret = secret.New(testSecret)
			}
			a, err := client.Authorize(t.Context(), p, c.redirect)
			if err != nil {
				t.Fatal(err)
			}
			path := strings.TrimPrefix(a.Redirect, c.redirect+"/")
			fill := strings.NewReplacer("{challenge}", oauth2.S256ChallengeFromVerifier(a.verifier.Reveal()), "{state}", a.state.Reveal(),
				verifier, a.verifier.Reveal(), "{nonce}", a.nonce.Reveal(), "{path}", path, "{client}", p.ClientID)
			if want := fill.Replace(c.url); a.URL != want {
				t.Errorf("it goes to:\n%s\nwant:\n%s", a.URL, want)
			}
			own := a.state.Reveal() // what tells this login from another
			if p.Name == "openrouter" {
				own = path
			}
			if !regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`).MatchString(own) || strings.Contains(a.URL, a.verifier.Reveal()) || a.verifier.Reveal() == own {
				t.Errorf("its own is %q", own)
			}
			q, _ := url.ParseQuery(c.back)
			q.Set("code", "test-code")
			if p.Name != "openrouter" {
				q.Set("state", own)
			}
			answer := tokens
			if p.Name == "openrouter" {
				answer = `{"key":"test-access-token-2","user_id":"user-1"}`
			}
			v.answer(answer)
			g, err := client.Exchange(t.Context(), a, q, clientSecret)
			if err != nil {
				t.Fatal(err)
			}
			v.sent(t, fill.Replace(c.exchange))
			if g.AccessToken.Reveal() != "test-access-token-2" || g.ClientID != q.Get("client_id") {
				t.Errorf("the grant's client is %q", g.ClientID)
			}
			if c.refresh == "" {
				if !g.RefreshToken.IsZero() || g.Expiry != 0 || len(g.Fields) != 0 || g.TokenType != "Bearer" {
					t.Error("it is not a key alone")
				}
				return
			}
			v.answer(tokens)
			if _, err := client.Refresh(t.Context(), p, g, clientSecret, nil); err != nil {
				t.Fatal(err)
			}
			v.sent(t, fill.Replace(c.refresh))
			for i, hint := range []string{"refresh_token", "access_token"} {
				if c.revoke == nil {
					if err := client.Revoke(t.Context(), p, secret.New("test-token"), hint, clientSecret); err == nil {
						t.Error("revoked")
					}
					continue
				}
				v.answer(`{}`)
				if err := client.Revoke(t.Context(), p, secret.New("test-token"), hint, clientSecret); err != nil {
					t.Error(err)
				}
				v.sent(t, c.revoke[i])
			}
		})
	}
}

// The logins by device code.
func TestDeviceRequests(t *testing.T) {
	const device = `{"device_code":"test-device-code-1","user_code":"TEST-CODE","verification_uri":"https://vendor.example/device"}`
	for _, c := range []struct {
		name    string
		answers []string // the device endpoint's and two of the poll
		page    string
		sent    []string
	}{
		{
			name: "qwen", answers: []string{device, `400 {"error":"authorization_pending"}`, tokens},
			sent: []string{
				"POST https://chat.qwen.ai/api/v1/oauth2/device/code x-www-form-urlencoded client_id=f0304373b74a44d2b584a3fb70ca9e56&code_challenge={challenge}&code_challenge_method=S256&scope=openid+profile+email+model.completion",
				"POST https://chat.qwen.ai/api/v1/oauth2/token x-www-form-urlencoded client_id=f0304373b74a44d2b584a3fb70ca9e56&code_verifier={verifier}&device_code=test-device-code-1&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code",
			},
		},
		{
			name: "github", answers: []string{device, `{"error":"authorization_pending"}`, tokens},
			sent: []string{
				"POST https://github.com/login/device/code x-www-form-urlencoded client_id=178c6fc778ccc68e1d6a&scope=repo+read%3Aorg+gist",
				"POST https://github.com/login/oauth/access_token x-www-form-urlencoded client_id=178c6fc778ccc68e1d6a&device_code=test-device-code-1&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code",
			},
		},
		{
			name: "xai", answers: []string{device, `400 {"error":"authorization_pending"}`, tokens},
			sent: []string{
				"POST https://auth.x.ai/oauth2/device/code x-www-form-urlencoded client_id=b1a00492-073a-47ea-816f-4c329264a828&scope=openid+profile+email+offline_access+grok-cli%3Aaccess+api%3Aaccess",
				"POST https://auth.x.ai/oauth2/token x-www-form-urlencoded client_id=b1a00492-073a-47ea-816f-4c329264a828&device_code=test-device-code-1&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code",
			},
		},
		{
			name: "kimi", answers: []string{device, `400 {"error":"authorization_pending"}`, tokens},
			sent: []string{
				"POST https://auth.kimi.com/api/oauth/device_authorization x-www-form-urlencoded client_id=17e5f671-d194-4dfb-9706-5516cb48c098",
				"POST https://auth.kimi.com/api/oauth/token x-www-form-urlencoded client_id=17e5f671-d194-4dfb-9706-5516cb48c098&device_code=test-device-code-1&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code",
			},
		},
		{
			name: "codex", page: "https://auth.openai.com/codex/device",
			answers: []string{`{"device_auth_id":"test-device-code-1","usercode":"TEST-CODE","interval":"7"}`, `403 {"error":{"code":"deviceauth_authorization_pending"}}`,
				`{"authorization_code":"test-code","code_challenge":"x","code_verifier":"test-verifier"}`, tokens},
			sent: []string{
				`POST https://auth.openai.com/api/accounts/deviceauth/usercode json {"client_id":"app_EMoamEEZ73f0CkXaXp7hrann"}`,
				`POST https://auth.openai.com/api/accounts/deviceauth/token json {"device_auth_id":"test-device-code-1","user_code":"TEST-CODE"}`,
				"POST https://auth.openai.com/oauth/token x-www-form-urlencoded client_id=app_EMoamEEZ73f0CkXaXp7hrann&code=test-code&code_verifier=test-verifier&grant_type=authorization_code&redirect_uri=https%3A%2F%2Fauth.openai.com%2Fdeviceauth%2Fcallback",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, client := startVendors(t)
			p, _ := Builtin(c.name)
			v.answer(c.answers...)
			l, err := client.StartDevice(t.Context(), p, secret.String{})
			if err != nil {
				t.Fatal(err)
			}
			v.mu.Lock()
			if id := v.headers[0].Get("X-Request-Id"); regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) != (p.Name == "qwen") {
				t.Errorf("x-request-id: %q", id)
			}
			v.mu.Unlock()
			page, interval := "https://vendor.example/device", 5*time.Second
			if c.page != "" {
				page, interval = c.page, 7*time.Second
			}
			if l.UserCode != "TEST-CODE" || l.VerificationURL != page || l.Interval != interval || l.Lifetime != 15*time.Minute {
				t.Errorf("%q %q %v %v", l.UserCode, l.VerificationURL, l.Interval, l.Lifetime)
			}
			fill := strings.NewReplacer("{challenge}", oauth2.S256ChallengeFromVerifier(l.verifier.Reveal()), "{verifier}", l.verifier.Reveal())
			_, err = client.PollDevice(t.Context(), l, secret.String{})
			if e := asError(t, err); e.Kind != Pending {
				t.Errorf("%+v", e)
			}
			v.sent(t, fill.Replace(c.sent[0]), fill.Replace(c.sent[1]))
			g, err := client.PollDevice(t.Context(), l, secret.String{})
			if err != nil || g.RefreshToken.Reveal() != "test-refresh-token-2" {
				t.Fatal(err)
			}
			want := []string{}
			for _, s := range c.sent[1:] {
				want = append(want, fill.Replace(s))
			}
			v.sent(t, want...)
		})
	}
}

// xAI says nothing about a lifetime sometimes; others' tokens have none then.
func TestDefaultLifetime(t *testing.T) {
	for dialect, want := range map[string]int64{"xai": 3600, "oauth2": 0} {
		at := time.Unix(1_700_000_000, 0)
		g, err := acme(dialect).Parse(Answer{Body: []byte(`{"access_token":"a"}`), Sent: at}, nil)
		if err != nil || g.Expiry != 0 && g.Expiry-at.Unix() != want || (g.Expiry == 0) != (want == 0) {
			t.Errorf("%s: %v %v", dialect, g.Expiry, err)
		}
	}
}

// Nothing of a login in progress gets out by printing it.
func TestPlaceholders(t *testing.T) {
	_, client := startVendors(t)
	p, _ := Builtin("chatgpt")
	a, err := client.Authorize(t.Context(), p, p.Redirects()[0])
	if err != nil {
		t.Fatal(err)
	}
	l := &Device{UserCode: "TEST-CODE", code: secret.New("test-device-code-1"), approved: "test-code"}
	for _, v := range []any{a, *a, l, *l, struct{ A any }{a}, []*Device{l}} {
		shown := fmt.Sprintf("%v %+v %#v %s", v, v, v, v)
		if strings.Contains(shown, a.state.Reveal()) || strings.Contains(shown, a.verifier.Reveal()) || strings.Contains(shown, "test-") {
			t.Error("printed")
		}
		if b, err := json.Marshal(v); err == nil {
			t.Errorf("marshalled: %s", b)
		}
	}
}

func TestInstall(t *testing.T) {
	p, _ := Builtin("chatgpt")
	id := func(c *Client) (string, error) {
		a, err := c.Authorize(context.Background(), p, p.Redirects()[0])
		if err != nil {
			return "", err
		}
		u, _ := url.Parse(a.URL)
		return u.Query().Get("ext_agent_host_id"), nil
	}
	c := NewClient()
	first, err := id(c)
	again, _ := id(c)
	if other, _ := id(NewClient()); err != nil || !strings.HasPrefix(first, "urn:uuid:") || len(first) != 45 || again != first || other == first {
		t.Errorf("without an id: %s, %s, %s: %v", first, again, other, err)
	}
	for _, bad := range []string{"", "test-canary", strings.Repeat("-", 36), "01234567-89AB-4def-8123-456789abcdef", "0123456-789ab-4def-8123-456789abcdef"} {
		c.SetInstall(func() (string, error) { return bad, nil })
		if _, err := id(c); err == nil || strings.Contains(texts(err), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	c.SetInstall(func() (string, error) { return "", io.ErrUnexpectedEOF })
	_, err = id(c)
	if e := asError(t, err); e.Kind != Refused {
		t.Errorf("%v", e)
	}
}

func TestFor(t *testing.T) {
	p := acme("chatgpt")
	p.ClientID = "configured"
	if p.For(nil) != p || p.For(&grant.Grant{}) != p || p.For(&grant.Grant{ClientID: "configured"}) != p {
		t.Error("a copy for nothing")
	}
	if q := p.For(&grant.Grant{ClientID: "issued"}); q.ClientID != "issued" || p.ClientID != "configured" || q.Name != p.Name {
		t.Errorf("%+v", q)
	}
	g := stored()
	before := p.RequestFingerprint(g, secret.String{})
	g.ClientID = "issued"
	if p.RequestFingerprint(g, secret.String{}) == before {
		t.Error("the issued client id is not in the fingerprint")
	}
}
