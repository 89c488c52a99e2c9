package provider

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// deviceWorld is a vendor's double with a provider that has only a login by device code.
func deviceWorld(t *testing.T, dialect string) (*vendors, *Client, *Provider) {
	v, c := startVendors(t)
	p := acme(dialect)
	p.ClientID, p.TokenURL, p.DeviceURL = "acme-client", "https://acme.example/token", "https://acme.example/oauth/usercode"
	return v, c, p
}

// What an answer of the device endpoint has to hold, and what becomes of the rest.
func TestDeviceAnswers(t *testing.T) {
	const (
		code = `"device_code":"test-device-code-1"`
		user = `"user_code":"TEST-CODE"`
		page = `"verification_uri":"https://acme.example/device"`
		good = code + "," + user + "," + page
	)
	type device struct {
		page, complete     string
		interval, lifetime time.Duration
	}
	usual := device{page: "https://acme.example/device", interval: 5 * time.Second, lifetime: 15 * time.Minute}
	with := func(change func(*device)) *device {
		d := usual
		change(&d)
		return &d
	}
	interval := func(d time.Duration) *device { return with(func(u *device) { u.interval = d }) }
	lifetime := func(d time.Duration) *device { return with(func(u *device) { u.lifetime = d }) }
	for body, want := range map[string]*device{ // nil is Malformed
		good: &usual,
		code + "," + user + `,"verification_url":"https://www.google.com/device"`:       with(func(u *device) { u.page = "https://www.google.com/device" }),
		good + `,"verification_url":"https://elsewhere.example"`:                        &usual,
		code + "," + user + `,"verification_uri":"http://127.0.0.1:8080/d"`:             with(func(u *device) { u.page = "http://127.0.0.1:8080/d" }),
		code + "," + user + `,"verification_uri":"http://[::1]/d"`:                      with(func(u *device) { u.page = "http://[::1]/d" }),
		code + "," + user + `,"verification_uri":"http://localhost:8080/d"`:             with(func(u *device) { u.page = "http://localhost:8080/d" }),
		code + "," + user + `,"verification_uri":"https://a.example/#/device"`:          with(func(u *device) { u.page = "https://a.example/#/device" }),
		good + `,"verification_uri_complete":"https://acme.example/device?c=1"`:         with(func(u *device) { u.complete = "https://acme.example/device?c=1" }),
		good + `,"verification_uri_complete":"http://acme.example/device?c=1"`:          &usual,
		good + `,"verification_uri_complete":"https://a.example/\u001b[2J"`:             &usual,
		good + `,"verification_uri_complete":7`:                                         &usual,
		good + `,"verification_uri_complete":"https://a.example/?c=test-device-code-1"`: &usual,
		good + `,"error":"access_denied"`:                                               &usual, // beside a code it has no meaning
		"\ufeff" + good:                                                                 &usual,
		good + `,"interval":9`:                                                          interval(9 * time.Second),
		good + `,"interval":"9"`:                                                        interval(9 * time.Second),
		good + `,"interval":2.5`:                                                        interval(2500 * time.Millisecond),
		good + `,"interval":0.01`:                                                       interval(time.Second),
		good + `,"interval":0`:                                                          &usual,
		good + `,"interval":-5`:                                                         &usual,
		good + `,"interval":null`:                                                       &usual,
		good + `,"interval":{"a":1}`:                                                    &usual,
		good + `,"interval":"soon"`:                                                     &usual,
		good + `,"interval":1e400`:                                                      interval(time.Hour),
		good + `,"expires_in":1800`:                                                     lifetime(30 * time.Minute),
		good + `,"expires_in":"60"`:                                                     lifetime(time.Minute),
		good + `,"expires_in":0`:                                                        &usual,
		good + `,"expires_in":-1`:                                                       &usual,
		good + `,"expires_in":99999999999`:                                              lifetime(24 * time.Hour),

		user + "," + page:                           nil,
		code + "," + page:                           nil,
		code + "," + user:                           nil,
		`"device_code":7,` + user + "," + page:      nil,
		`"device_code":"a\nb",` + user + "," + page: nil,
		code + `,"user_code":"","verification_uri":"https://acme.example"`:                                 nil,
		code + `,"user_code":["A"],"verification_uri":"https://acme.example"`:                              nil,
		code + `,"user_code":"A\u001b[2J","verification_uri":"https://acme.example"`:                       nil,
		code + `,"user_code":"A\u202eB","verification_uri":"https://acme.example"`:                         nil,
		code + `,"user_code":"` + strings.Repeat("A", 257) + `","verification_uri":"https://acme.example"`: nil,
		code + `,"user_code":"test-device-code-1","verification_uri":"https://acme.example"`:               nil,
		code + "," + user + `,"verification_uri":"http://acme.example/device"`:                             nil,
		code + "," + user + `,"verification_uri":"javascript:alert(1)"`:                                    nil,
		code + "," + user + `,"verification_uri":"file:///etc/passwd"`:                                     nil,
		code + "," + user + `,"verification_uri":"https://"`:                                               nil,
		code + "," + user + `,"verification_uri":"acme.example/device"`:                                    nil,
		code + "," + user + `,"verification_uri":"https://a.example@b.example/"`:                           nil,
		code + "," + user + `,"verification_uri":"#https://a.example/"`:                                    nil,
		code + "," + user + `,"verification_uri":"https://a.example/ b"`:                                   nil,
		code + "," + user + `,"verification_uri":"https://a.example/\nb"`:                                  nil,
		code + "," + user + `,"verification_uri":"https://а.example/"`:                                     nil, // not an a
		code + "," + user + `,"verification_uri":"http://localhost.example/"`:                              nil,
		code + "," + user + `,"verification_uri":"https://a.example/` + strings.Repeat("a", 2040) + `"`:    nil,
		code + "," + user + `,"verification_uri":"https://a.example/?c=test-device-code-1"`:                nil,
	} {
		v, c, p := deviceWorld(t, "oauth2")
		if body, marked := strings.CutPrefix(body, "\ufeff"); marked {
			v.answer("200 \ufeff{" + body + "}")
		} else {
			v.answer("{" + body + "}")
		}
		l, err := c.StartDevice(t.Context(), p, secret.String{})
		if want == nil {
			e := asError(t, err)
			if e.Kind != Malformed || strings.Contains(texts(err), "test-device") || strings.Contains(texts(err), "TEST-CODE") {
				t.Errorf("%s: %v", body, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got := (device{l.VerificationURL, l.VerificationURLComplete, l.Interval, l.Lifetime}); got != *want || l.UserCode != "TEST-CODE" || l.code.Reveal() != "test-device-code-1" {
			t.Errorf("%s:\ngot  %+v\nwant %+v", body, got, *want)
		}
	}
}

// What comes in place of a device code.
func TestDeviceRefusals(t *testing.T) {
	for _, c := range []struct {
		dialect, answer string
		kind            Kind
		text            string
	}{
		{"oauth2", `400 {"error":"invalid_client"}`, Refused, "(invalid_client, HTTP 400)"},
		{"oauth2", `400 {"error":"invalid_scope","error_description":"test-canary"}`, Refused, "(invalid_scope, HTTP 400)"},
		{"github", `{"error":"device_flow_disabled","error_description":"test-canary"}`, Refused, "(device_flow_disabled)"},
		{"oauth2", `404 test-canary`, Unclear, "HTTP 404"},
		{"oauth2", `302 {}`, Malformed, "redirect"},
		{"oauth2", `503 test-canary`, Transient, "HTTP 503"},
		{"oauth2", `429 {"error":"slow_down"}`, Transient, "slow_down"},
		{"oauth2", `200 <p>test-canary</p>`, Malformed, "not that of a login by device code"},
		{"oauth2", `200 []`, Malformed, "not that of a login by device code"},
		{"oauth2", `200 null`, Malformed, "not that of a login by device code"},
		{"oauth2", `{}`, Malformed, "not that of a login by device code"},
		{"codex", `404 {}`, Refused, "does not offer the login by device code to this client (HTTP 404)"},
		{"codex", `{"device_code":"a","user_code":"b","verification_uri":"https://a.example"}`, Malformed, "not that of a login by device code"},
		{"codex", `{"device_auth_id":"a"}`, Malformed, "not that of a login by device code"},
		{"codex", `403 test-canary`, Unclear, "HTTP 403"},
		{"oauth2", `{"device_code":"` + strings.Repeat("x", 2<<20) + `"}`, Malformed, "1 MiB"},
	} {
		v, client, p := deviceWorld(t, c.dialect)
		v.answer(c.answer)
		_, err := client.StartDevice(t.Context(), p, secret.String{})
		if e := asError(t, err); e.Kind != c.kind || !strings.Contains(err.Error(), c.text) || strings.Contains(texts(err), "canary") {
			t.Errorf("%s %.60s: %v", c.dialect, c.answer, err)
		}
	}
	_, c, p := deviceWorld(t, "oauth2")
	p.DeviceURL = ""
	if _, err := c.StartDevice(t.Context(), p, secret.String{}); asError(t, err).Kind != Refused || !strings.Contains(err.Error(), "device_url") {
		t.Error(err)
	}
	p.ClientSecretKey = "acme-secret"
	p.DeviceURL = "https://acme.example/device"
	if _, err := c.StartDevice(t.Context(), p, secret.String{}); !strings.Contains(err.Error(), "credproxy key set acme-secret") {
		t.Error(err)
	}
}

// What a poll can be answered, and what it means.
func TestPollAnswers(t *testing.T) {
	for _, c := range []struct {
		dialect, answer string
		kind            Kind
		interval        time.Duration
	}{
		{"oauth2", `400 {"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `401 {"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `403 {"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `428 {"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `429 {"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `{"error":"authorization_pending"}`, Pending, 0},
		{"oauth2", `400 {"error":"AUTHORIZATION_PENDING"}`, Pending, 0},
		{"oauth2", `400 {"error":{"code":"authorization_pending"}}`, Pending, 0},
		{"oauth2", `200 error=authorization_pending&error_description=x`, Pending, 0},
		{"oauth2", `400 {"error":"slow_down"}`, SlowDown, 0},
		{"oauth2", `403 {"error":"slow_down","interval":0}`, SlowDown, 0},
		{"oauth2", `429 {"error":"slow_down","interval":10}`, SlowDown, 10 * time.Second},
		{"oauth2", `{"error":"slow_down","interval":"12"}`, SlowDown, 12 * time.Second},
		{"oauth2", `{"error":"slow_down","interval":0.2}`, SlowDown, time.Second},
		{"oauth2", `{"error":"slow_down","interval":1e99}`, SlowDown, time.Hour},
		{"oauth2", `{"error":"slow_down","interval":"test-canary"}`, SlowDown, 0},
		{"oauth2", `400 {"error":"access_denied"}`, Denied, 0},
		{"oauth2", `{"error":"access_denied"}`, Denied, 0},
		{"oauth2", `403 {"error":"access_denied"}`, Denied, 0},
		{"oauth2", `400 {"error":"expired_token"}`, Expired, 0},
		{"oauth2", `{"error":"expired_token"}`, Expired, 0},
		{"oauth2", `400 {"error":"invalid_grant"}`, Refused, 0},
		{"oauth2", `401 {"error":"invalid_client"}`, Refused, 0},
		{"oauth2", `400 {"error":"unsupported_grant_type"}`, Refused, 0},
		{"oauth2", `400 {"error":"test-canary"}`, Unclear, 0},
		{"oauth2", `400 test-canary`, Unclear, 0},
		{"oauth2", `403 test-canary`, Unclear, 0},
		{"oauth2", `404 {}`, Unclear, 0},
		{"oauth2", `429 {}`, Transient, 0},
		{"oauth2", `408 {}`, Transient, 0},
		{"oauth2", `500 {"error":"authorization_pending"}`, Transient, 0},
		{"oauth2", `503 test-canary`, Transient, 0},
		{"oauth2", `400 {"error":"temporarily_unavailable"}`, Transient, 0},
		{"oauth2", `307 {}`, Malformed, 0},
		{"oauth2", `{}`, Malformed, 0},
		{"oauth2", `200 <p>test-canary</p>`, Malformed, 0},
		{"oauth2", `{"access_token":7}`, Malformed, 0},
		{"oauth2", `{"access_token":"a\nb"}`, Malformed, 0},
		{"oauth2", `{"access_token":null,"error":"authorization_pending"}`, Pending, 0},

		{"github", `{"error":"slow_down","error_description":"Too many requests","interval":10}`, SlowDown, 10 * time.Second},
		{"github", `{"error":"incorrect_device_code"}`, Refused, 0},
		{"github", `{"error":"device_flow_disabled"}`, Refused, 0},

		{"qwen", `401 {"error":"invalid_client"}`, Expired, 0},
		{"qwen", `401 test-canary`, Expired, 0},
		{"qwen", `401 {"error":"access_denied"}`, Denied, 0},
		{"qwen", `429 {"error":"slow_down"}`, SlowDown, 0},
		{"qwen", `400 {"error":"authorization_pending"}`, Pending, 0},
		{"qwen", `400 {}`, Refused, 0},

		{"xai", `400 {"error":"authorization_denied"}`, Denied, 0},
		{"kimi", `403 {}`, Refused, 0},
		{"kimi", `400 {"error":"expired_token"}`, Expired, 0},

		{"codex", `403 {}`, Pending, 0},
		{"codex", `404 test-canary`, Pending, 0},
		{"codex", `400 {"error":{"code":"deviceauth_authorization_pending"}}`, Pending, 0},
		{"codex", `{"error":"deviceauth_authorization_pending"}`, Pending, 0},
		{"codex", `403 {"error":{"code":"slow_down","message":"test-canary"},"interval":8}`, SlowDown, 8 * time.Second},
		{"codex", `403 {"error":"access_denied"}`, Denied, 0},
		{"codex", `404 {"error":"expired_token"}`, Expired, 0},
		{"codex", `400 {"error":{"code":"deviceauth_expired"}}`, Unclear, 0},
		{"codex", `401 {}`, Refused, 0},
		{"codex", `502 {}`, Transient, 0},
		{"codex", `{"authorization_code":"a"}`, Malformed, 0},
		{"codex", `{"authorization_code":"a\n","code_verifier":"b"}`, Malformed, 0},
		{"codex", `{"authorization_code":7,"code_verifier":"b"}`, Malformed, 0},
		{"codex", `{"access_token":"a"}`, Malformed, 0},
		{"oauth2", `400 {"error":{"code":"deviceauth_authorization_pending"}}`, Unclear, 0}, // not this dialect's
	} {
		v, client, p := deviceWorld(t, c.dialect)
		l := &Device{UserCode: "TEST-CODE", provider: p, code: secret.New("test-device-code-1")}
		v.answer(c.answer)
		_, err := client.PollDevice(t.Context(), l, secret.String{})
		e := asError(t, err)
		if e.Kind != c.kind || e.Interval != c.interval || e.Revoked || strings.Contains(texts(err), "canary") || strings.Contains(texts(err), "test-") {
			t.Errorf("%s %s: kind %d, interval %v: %v", c.dialect, c.answer, e.Kind, e.Interval, err)
		}
		if (e.Kind == Pending) != strings.Contains(e.Reason(), "has not logged in yet") {
			t.Errorf("%s %s: %s", c.dialect, c.answer, e.Reason())
		}
	}
}

// A code that the person has approved is exchanged again when the exchange did not get through: the endpoint that gave
// it would not give it again.
func TestDeviceAuthExchangeIsTriedAgain(t *testing.T) {
	v, c, p := deviceWorld(t, "codex")
	v.answer(`{"device_auth_id":"test-device-code-1","user_code":"TEST-CODE"}`, `{"authorization_code":"test-code","code_verifier":"test-verifier"}`, `503 {}`, tokens)
	l, err := c.StartDevice(t.Context(), p, secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	if l.VerificationURL != "https://acme.example/codex/device" {
		t.Errorf("the page is %s", l.VerificationURL)
	}
	_, err = c.PollDevice(t.Context(), l, secret.String{})
	if e := asError(t, err); e.Kind != Transient || e.Status != 503 {
		t.Errorf("%v", err)
	}
	if _, err := c.PollDevice(t.Context(), l, secret.String{}); err != nil {
		t.Error(err)
	}
	exchange := "POST https://acme.example/token x-www-form-urlencoded client_id=acme-client&code=test-code&code_verifier=test-verifier&grant_type=authorization_code&redirect_uri=https%3A%2F%2Facme.example%2Fdeviceauth%2Fcallback"
	v.sent(t,
		`POST https://acme.example/oauth/usercode json {"client_id":"acme-client"}`,
		`POST https://acme.example/oauth/token json {"device_auth_id":"test-device-code-1","user_code":"TEST-CODE"}`,
		exchange, exchange)
}

// Retry-After is passed on with what may pass, and a request that reaches nobody may pass as well.
func TestPollTransient(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "17")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer s.Close()
	c, l := NewClient(), &Device{provider: &Provider{Name: "acme", TokenURL: s.URL}, code: secret.New("test-device-code-1")}
	_, err := c.PollDevice(t.Context(), l, secret.String{})
	if e := asError(t, err); e.Kind != Transient || e.RetryAfter != 17*time.Second {
		t.Errorf("%+v", e)
	}
	l.provider = &Provider{Name: "acme", TokenURL: "http://127.0.0.1:1/token"}
	_, err = c.PollDevice(t.Context(), l, secret.String{})
	if e := asError(t, err); e.Kind != Transient || !strings.Contains(err.Error(), "cannot be reached") || strings.Contains(texts(err), "device-code") {
		t.Errorf("%v", err)
	}
}

// A confidential client authenticates at the device endpoint too (RFC 8628 section 3.1).
func TestDeviceOfAConfidentialClient(t *testing.T) {
	w := start(t, false, "oauth2", oauthtest.Options{Clients: []oauthtest.Client{{ID: "acme-client", Secret: testSecret}}})
	w.p.DeviceURL = w.s.EndpointURL(oauthtest.Device)
	l, err := w.c.StartDevice(t.Context(), w.p, secret.New(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	if g, err := w.c.PollDevice(t.Context(), l, secret.New(testSecret)); err != nil || !w.s.Valid(g.AccessToken.Reveal()) {
		t.Error(err)
	}
	_, err = w.c.PollDevice(t.Context(), l, secret.New(testSecret)) // the code is spent
	if e := asError(t, err); e.Kind != Refused && e.Kind != Expired {
		t.Errorf("%v", err)
	}
}
