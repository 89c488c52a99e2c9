package provider

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
)

const tenYears = 10 * 365 * 24 * 60 * 60

var sent = time.Unix(1_800_000_000, 900_000_000)

// jwt is an unsigned token with these claims.
func jwt(claims string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func acme(dialect string) *Provider {
	return &Provider{Name: "acme", Dialect: dialect, Fields: grant.DefaultFields}
}

func parse(t *testing.T, p *Provider, body string, old *grant.Grant) *grant.Grant {
	t.Helper()
	g, err := p.Parse(Answer{Body: []byte(body), Sent: sent}, old)
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return g
}

func field(g *grant.Grant, name string) string {
	for _, f := range g.Fields {
		if f.Name == name {
			return string(f.Value)
		}
	}
	return ""
}

func TestExpiry(t *testing.T) {
	const now = 1_800_000_000
	for expiresIn, want := range map[string]int64{
		`3600`: 3600, `"3600"`: 3600, `" 3600 "`: 3600, `3600.7`: 3600, `"3600.7"`: 3600, `3.6e3`: 3600, `1`: 1,
		`315360000`: tenYears, `315360001`: tenYears, `99999999999999999999`: tenYears, `1e300`: tenYears, `1e400`: tenYears, `"1e400"`: tenYears,
		`0`: 0, `-1`: 0, `"-3600"`: 0, `-1e400`: 0, `"soon"`: 0, `""`: 0, `null`: 0, `true`: 0, `{}`: 0, `[3600]`: 0,
		`"Infinity"`: 0, `"NaN"`: 0, `"0x10"`: 0, `"1_000"`: 0, `"3600s"`: 0,
	} {
		body := `{"access_token":"test-access-token-2","expires_in":` + expiresIn + `}`
		got := parse(t, acme("oauth2"), body, nil).Expiry
		if want != 0 {
			want += now
		}
		if got != want {
			t.Errorf("expires_in %s: expiry %d, want %d", expiresIn, got, want)
		}
	}
	for _, c := range []struct {
		claims, expiresIn string
		want              int64
	}{
		{`{"exp":1800007200}`, ``, 1_800_007_200},
		{`{"exp":1800007200.5}`, ``, 1_800_007_200},
		{`{"exp":"1800007200"}`, ``, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":null,`, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":0,`, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":-5,`, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":1e400,`, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":"soon",`, 1_800_007_200},
		{`{"exp":1800007200}`, `"expires_in":60,`, now + 60},
		{`{"exp":9e99}`, ``, now + tenYears},
		{`{"exp":1e400}`, ``, now + tenYears},
		{`{"exp":1700000000}`, ``, 0}, // over before it was issued: no lifetime
		{`{"exp":-1}`, ``, 0},
		{`{"exp":null}`, ``, 0},
		{`{"exp":{}}`, ``, 0},
		{`{}`, ``, 0},
		{`[]`, ``, 0},
		{`not JSON`, ``, 0},
	} {
		body := fmt.Sprintf(`{%s"access_token":%q}`, c.expiresIn, jwt(c.claims))
		if got := parse(t, acme("oauth2"), body, nil).Expiry; got != c.want {
			t.Errorf("claims %s, %s expiry %d, want %d", c.claims, c.expiresIn, got, c.want)
		}
	}
	for _, token := range []string{"a.b", "a.b.c.d.e", "..", "a.!!.c", "plain"} {
		if got := parse(t, acme("oauth2"), fmt.Sprintf(`{"access_token":%q}`, token), nil).Expiry; got != 0 {
			t.Errorf("token %q: expiry %d", token, got)
		}
	}
	for _, when := range []time.Time{{}, time.Unix(-5, 0), time.Unix(math.MaxInt64/2, 0)} {
		g, err := acme("oauth2").Parse(Answer{Body: []byte(`{"access_token":"a","expires_in":3600}`), Sent: when}, nil)
		if err != nil || g.Expiry < 0 || g.Expiry > 253402300799 {
			t.Errorf("sent %v: expiry %d, %v", when, g.Expiry, err)
		}
	}
}

func TestParse(t *testing.T) {
	old := stored()
	old.Scope, old.TokenType = "read write", "DPoP"
	for _, c := range []struct {
		body                 string
		refresh, kind, scope string // "" is omitted, for Merge to keep what is stored
	}{
		{`{"access_token":"a"}`, "", "DPoP", ""},
		{`{"access_token":"a","token_type":null,"scope":null,"refresh_token":null}`, "", "DPoP", ""},
		{`{"access_token":"a","token_type":"bearer","scope":"","refresh_token":""}`, "", "Bearer", ""},
		{`{"access_token":"a","token_type":"BEARER","scope":"read","refresh_token":"r"}`, "r", "Bearer", "read"},
		{`{"access_token":"a","token_type":"mac","scope":["read","write"],"refresh_token":7}`, "", "mac", "read write"},
		{`{"access_token":"a","token_type":"x\u001b[2J","scope":"read\u0007"}`, "", "DPoP", ""},
		{`{"access_token":"a","error":"","refresh_token":"r"}`, "r", "DPoP", ""},
		{`{"access_token":"a","error":null,"code":0,"refresh_token":"r"}`, "r", "DPoP", ""},
		{`{"access_token":"a","error":"invalid_grant","refresh_token":"r"}`, "r", "DPoP", ""}, // RFC 6749 section 5.1
		{" \n" + `{"access_token":"a","refresh_token":"r"}` + "\n", "r", "DPoP", ""},
	} {
		g := parse(t, acme("oauth2"), c.body, old)
		if g.AccessToken.Reveal() != "a" || g.RefreshToken.Reveal() != c.refresh || g.TokenType != c.kind || g.Scope != c.scope {
			t.Errorf("%s: %q %q %q", c.body, g.RefreshToken.Reveal(), g.TokenType, g.Scope)
		}
	}
	if g := parse(t, acme("oauth2"), `{"access_token":"a"}`, nil); g.TokenType != "Bearer" {
		t.Errorf("without a stored login the type is %q", g.TokenType)
	}
	for _, token := range []string{`a\n`, `a\u0000`, `\u001b[2J`, `a\u009b`, `a\u202eb`, `a\u2028b`, "a\xff", `a\ud800`} {
		for _, name := range []string{"access_token", "refresh_token"} {
			body := `{"access_token":"a","` + name + `":"` + token + `"}`
			_, err := acme("oauth2").Parse(Answer{Body: []byte(body), Sent: sent}, nil)
			if e := asError(t, err); e.Kind != Malformed || strings.ContainsFunc(e.Error(), unicode.IsControl) {
				t.Errorf("%q: %v", body, e)
			}
		}
	}
}

// Answers that are complete but not as RFC 6749 section 5.1 wants them.
func TestUnusualAnswers(t *testing.T) {
	const object = `{"access_token":"a","refresh_token":"r","expires_in":3600,"scope":"s"}`
	const form = "access_token=a&refresh_token=r&expires_in=3600&scope=s"
	for _, body := range []string{
		"\ufeff" + object, "\ufeff\r\n " + object, object + "\r\n\r\n", object + "\x00", object + "<!-- 12 ms -->", object + object[1:], object + "\n" + object,
		object + `{"access_token":"b"}`, object + "\xff",
		form, form + "\n", "\ufeff" + form, form + "&", form + "&id_token=&x", "scope=s&expires_in=3600&refresh_token=%72&access_token=%61",
		form + "&error=invalid_grant", "token_type=bearer&" + form,
	} {
		g, err := acme("github").Parse(Answer{Body: []byte(body), Sent: sent}, nil)
		if err != nil || g.AccessToken.Reveal() != "a" || g.RefreshToken.Reveal() != "r" || g.Expiry != sent.Unix()+3600 || g.Scope != "s" || g.TokenType != "Bearer" {
			t.Errorf("%q: %v", body, err)
		}
	}
	g := parse(t, acme("github"), "access_token=ghu_a%2Fb%3D&scope=repo+gist&resource_url=https%3A%2F%2Fx", nil)
	if g.AccessToken.Reveal() != "ghu_a/b=" || !g.RefreshToken.IsZero() || g.Scope != "repo gist" || field(g, "resource_url") != `"https://x"` {
		t.Errorf("a form is not decoded: %q %q", g.Scope, field(g, "resource_url"))
	}
	for body, code := range map[string]string{
		"error=bad_refresh_token&error_description=The+refresh+token+passed+is+incorrect": "bad_refresh_token",
		"\ufeff" + `{"error":"bad_refresh_token"}` + "\n.":                                "bad_refresh_token",
		// Neither an object nor a form, or without a sound access token.
		`[` + object + `]`: "", `"` + form + `"`: "", `[],` + object: "", `x` + object: "", object[:len(object)-1]: "",
		"access_token=a b": "", "access_token=a\nb": "", "access_token=a%0Ab": "", "access_token=%ff": "", "access_token=": "", "access_token": "",
		"refresh_token=r": "", "access_token=a;b=c": "", "access_token=%zz": "", "<a href=?access_token=a&b>": "", "access_token=\xff": "", "hello": "",
		`{"access_token":["a"]}x`: "", `{"access_token":{"a":1}}x`: "", "\ufeff[]": "", "\ufeff": "", "x=1&y=2": "",
	} {
		_, err := acme("github").Parse(Answer{Body: []byte(body), Sent: sent}, nil)
		if e := asError(t, err); e.Code != code || (e.Kind == Malformed) != (code == "") {
			t.Errorf("%q: %v", body, err)
		}
	}
	if e := acme("oauth2").failure(400, []byte(`<a href="/?x&error=invalid_grant&y">`), true); e.Revoked || e.Code != "" {
		t.Errorf("a page was read as a form: %v", e)
	}
}

func TestFields(t *testing.T) {
	body := `{"access_token":"a","id_token":null,"account_id":"","resource_url":"portal.qwen.ai","project_id":{"id":1},
		"other":"x","refreshToken":"test-refresh-token-2","expiry":5,"refresh_token":"test-refresh-token-2"}`
	p := acme("qwen")
	p.Fields = append(slices.Clone(p.Fields), "refreshToken", "refresh_token", "expiry")
	g := parse(t, p, body, nil)
	var names []string
	for _, f := range g.Fields {
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{"project_id", "resource_url"}) || field(g, "resource_url") != `"portal.qwen.ai"` {
		t.Errorf("fields: %q", names)
	}
	old := parse(t, p, `{"access_token":"b","id_token":"test-id-token-1","resource_url":"old"}`, nil)
	merged := grant.Merge(old, g)
	if field(merged, "id_token") != `"test-id-token-1"` || field(merged, "resource_url") != `"portal.qwen.ai"` {
		t.Error("the answer's null took what was stored, or the answer's value did not win")
	}
}

func TestOpenAIAccount(t *testing.T) {
	claim := func(id string) string {
		return jwt(`{"exp":1800007200,"https://api.openai.com/auth":{"chatgpt_account_id":` + id + `,"chatgpt_plan_type":"plus"}}`)
	}
	p := acme("codex")
	for name, c := range map[string]struct{ body, want string }{
		"id token":        {fmt.Sprintf(`{"id_token":%q,"access_token":%q}`, claim(`"acc-id"`), claim(`"acc-access"`)), `"acc-id"`},
		"access token":    {fmt.Sprintf(`{"access_token":%q}`, claim(`"acc-access"`)), `"acc-access"`},
		"id token odd":    {fmt.Sprintf(`{"id_token":%q,"access_token":%q}`, claim(`7`), claim(`"acc-access"`)), `"acc-access"`},
		"in neither":      {`{"access_token":"plain","id_token":"plain"}`, ``},
		"the answer's":    {`{"access_token":"plain","account_id":"acc-plain"}`, `"acc-plain"`},
		"over the answer": {fmt.Sprintf(`{"access_token":%q,"account_id":"acc-plain"}`, claim(`"acc-access"`)), `"acc-access"`},
		"control":         {fmt.Sprintf(`{"access_token":%q}`, claim(`"acc\u001b"`)), ``},
		"needs escapes":   {fmt.Sprintf(`{"access_token":%q}`, claim(`"acc\"1"`)), `"acc\"1"`},
	} {
		if got := field(parse(t, p, c.body, nil), "account_id"); got != c.want {
			t.Errorf("%s: account_id %s, want %s", name, got, c.want)
		}
	}
	old := grant.Merge(nil, parse(t, p, fmt.Sprintf(`{"id_token":%q,"access_token":"plain","refresh_token":"r1"}`, claim(`"acc-id"`)), nil))
	merged := grant.Merge(old, parse(t, p, `{"access_token":"plain-2","refresh_token":"r2"}`, old))
	if field(merged, "account_id") != `"acc-id"` || field(merged, "id_token") == "" || merged.RefreshToken.Reveal() != "r2" {
		t.Error("a refresh without an id token lost the account")
	}
	if field(parse(t, acme("oauth2"), fmt.Sprintf(`{"access_token":%q}`, claim(`"acc-access"`)), nil), "account_id") != "" {
		t.Error("another dialect has OpenAI's claim")
	}
}

func TestPlainCode(t *testing.T) {
	for _, code := range []string{
		"invalid_grant", "invalid_client", "invalid_request", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"access_denied", "unsupported_response_type", "server_error", "temporarily_unavailable", // RFC 6749
		"authorization_pending", "slow_down", "expired_token", // RFC 8628
		"invalid_token", "insufficient_scope", "unsupported_token_type", "invalid_target", "invalid_dpop_proof", "use_dpop_nonce",
		"interaction_required", "login_required", "account_selection_required", "consent_required", "invalid_request_uri",
		"bad_refresh_token", "incorrect_client_credentials", "device_flow_disabled", "refresh_token_reused", "refresh_token_expired",
		"refresh_token_invalidated", "rate_limit_error", "authentication_error", "deviceauth_authorization_pending", "authorization_denied",
	} {
		if PlainCode(code) != code {
			t.Errorf("%s is not shown", code)
		}
	}
	for _, code := range []string{
		"", "_", "Invalid_Grant", "invalid grant", "invalid_grant_2", "test-secret-canary", "rt-abcdefgh", "sk-ant-ort", "invalid_grant\n",
		"aadsts50078", "eyjhbgci", "user@example.com", strings.Repeat("token_", 20), "ваш", "invalid__\x00grant", "123",
	} {
		if got := PlainCode(code); got != "unknown_error" {
			t.Errorf("%q is shown as %q", code, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	date := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "0": 0, "3600": time.Hour, "3601": time.Hour, "99999999999999999999": time.Hour,
		"-7": 0, "+7": 0, "1.5": 0, "1e3": 0, "soon": 0, "7s": 0,
		date.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		date.Add(-time.Second).Format(http.TimeFormat):     0,
		date.AddDate(500, 0, 0).Format(http.TimeFormat):    time.Hour,
		date.Add(time.Minute).Format(time.RFC850):          time.Minute,
	} {
		h := http.Header{"Retry-After": {value}, "Date": {date.Format(http.TimeFormat)}}
		if got := retryAfter(h); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
	h := http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}
	if got := retryAfter(h); got < 30*time.Second || got > time.Minute {
		t.Errorf("without Date: %v", got)
	}
}

// Whatever an answer is: no panic, the same refresh token from Salvage as from Parse, a token that can go into a header, an expiry that is a date, a grant that can be stored.
func FuzzParse(f *testing.F) {
	for _, body := range []string{
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"scope":"s","token_type":"bearer"}`,
		`{"access_token":"` + jwt(`{"exp":1e400,"https://api.openai.com/auth":{"chatgpt_account_id":"acc"}}`) + `","expires_in":"1e400"}`,
		`{"access_token":"a","scope":["x","y"],"id_token":{"a":[1,2]},"account_id":null}`,
		"\ufeff" + `{"a":{"refresh_token":"n"},"refresh_token":"r\u0041", "access_token":"a"}x`, `{"refresh_token":"r","access_tok`,
		"access_token=a&refresh_token=%72&scope=s+t&expires_in=3600", "refresh_token=r&acc", `{"refresh_token":"test-refresh-token-1","b":[{}]}`,
		`{"error":{"code":"refresh_token_reused"}}`, `{"error":"` + "\u009b" + `"}`, `{"access_token":"\u0000"}`, `[]`, ``, `{"access_token":"a.b.c","expires_in":-1}`,
	} {
		f.Add([]byte(body), int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, body []byte, when int64) {
		salvaged := acme("oauth2").Salvage(Answer{Body: body}, stored())
		if s := salvaged.Reveal(); !printable(s) || s == "test-refresh-token-1" {
			t.Errorf("salvaged %q", s)
		}
		if g, err := acme("oauth2").Parse(Answer{Body: body}, nil); err == nil && bytes.Contains(body, []byte("{")) {
			if !g.RefreshToken.IsZero() && !g.RefreshToken.Equal(stored().RefreshToken) && !salvaged.Equal(g.RefreshToken) {
				t.Errorf("salvaged %q, parsed %q", salvaged.Reveal(), g.RefreshToken.Reveal())
			}
		}
		for dialect := range dialects {
			g, err := acme(dialect).Parse(Answer{Body: body, Sent: time.Unix(when, 0)}, stored())
			if err != nil {
				e := asError(t, err)
				if e.Kind == 0 || strings.ContainsFunc(e.Error(), unicode.IsControl) || e.Code != "" && PlainCode(e.Code) != e.Code {
					t.Errorf("%s: error %q", dialect, e)
				}
				continue
			}
			for name, s := range map[string]string{
				"access": g.AccessToken.Reveal(), "refresh": g.RefreshToken.Reveal(), "type": g.TokenType, "scope": g.Scope,
			} {
				if strings.ContainsFunc(s, unicode.IsControl) {
					t.Errorf("%s: control characters in %s: %q", dialect, name, s)
				}
			}
			if g.AccessToken.IsZero() || g.TokenType == "" || g.Expiry < 0 || g.Expiry > 253402300799 {
				t.Errorf("%s: type %q, expiry %d", dialect, g.TokenType, g.Expiry)
			}
			merged := grant.Merge(stored(), g)
			back, err := grant.Parse(merged.Seal())
			if err != nil || !back.AccessToken.Equal(g.AccessToken) || back.RefreshToken.IsZero() || back.Expiry != g.Expiry {
				t.Errorf("%s: it does not come back from the store: %v", dialect, err)
			}
			_, _ = merged.Wire(grant.DefaultFields)
		}
	})
}

// Nothing of an answer gets into an error, wherever it stands, nor of the request.
func TestCanary(t *testing.T) {
	const canary = "test-canary-refresh-token-77"
	for _, body := range []string{
		canary,
		`{"error":"` + canary + `"}`,
		`{"error":"invalid_grant","error_description":"` + canary + `","error_uri":"https://x/` + canary + `"}`,
		`{"error":{"code":"` + canary + `","type":"` + canary + `","message":"` + canary + `"}}`,
		`{"code":"` + canary + `","detail":"` + canary + `"}`,
		`{"` + canary + `":"invalid_grant"}`,
		`{"error":"test-refresh-token-1"}`,
		`{"error":"` + strings.ToUpper(canary) + `"}`,
		`{"access_token":"` + canary + `\n","refresh_token":"` + canary + `"}`,
		`{"access_token":"","refresh_token":"` + canary + `"}`,
		`{"access_token":"` + canary,
	} {
		for _, status := range []int{200, 201, 302, 400, 401, 403, 429, 500, 503} {
			for dialect := range dialects {
				p := acme(dialect)
				var failures []error
				if status/100 == 2 {
					_, err := p.Parse(Answer{Body: []byte(body), Sent: sent}, stored())
					failures = append(failures, err)
				}
				failures = append(failures, p.failure(status, []byte(body), true))
				for _, err := range failures {
					reason := asError(t, err).Reason()
					if reason == "" || strings.Contains(reason, "/") || !strings.Contains(err.Error(), reason) {
						t.Errorf("%s %d %s: reason %q", dialect, status, body, reason)
					}
					shown := strings.ToLower(texts(err))
					for _, piece := range []string{"canary", "77", "test-"} {
						if strings.Contains(shown, piece) {
							t.Errorf("%s %d %s: %s", dialect, status, body, shown)
						}
					}
				}
			}
		}
	}
}
