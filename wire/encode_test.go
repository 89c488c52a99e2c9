package wire

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

// testToken has a scope and two further fields.
func testToken(t testing.TB) *Token {
	token := &Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer", Scope: "a b"}
	for _, f := range []Field{{"account_id", []byte(`"acct"`)}, {"x", []byte(`{"y": [1]}`)}} {
		if err := token.Set(f.Name, f.Value); err != nil {
			t.Fatal(err)
		}
	}
	return token
}

const testTokenMembers = `"access_token":"test-access-token-1","expiry":1900000000,"token_type":"Bearer","scope":"a b","account_id":"acct","x":{"y":[1]}`

func TestAppendResponse(t *testing.T) {
	const stats = `{"bucket":"b","requestCount":0,"percentage":0,`
	token := testToken(t)
	for _, c := range []struct {
		data Data
		want string
		into any // what decodes it, or nil
	}{
		{Empty{}, `{}`, nil},
		{token, `{` + testTokenMembers + `}`, new(Token)},
		{&Token{AccessToken: "a", TokenType: "t"}, `{"access_token":"a","expiry":0,"token_type":"t"}`, new(Token)},
		{Providers{"anthropic", "qwen"}, `{"providers":["anthropic","qwen"]}`, new(Providers)},
		{Providers{}, `{"providers":[]}`, new(Providers)},
		{Providers(nil), `{"providers":[]}`, nil},
		{Buckets{"default"}, `{"buckets":["default"]}`, new(Buckets)},
		{APIKeys{"OPENAI"}, `{"keys":["OPENAI"]}`, new(APIKeys)},
		{APIKey("test-key-1"), `{"key":"test-key-1"}`, new(APIKey)},
		{Exists(true), `{"exists":true}`, new(Exists)},
		{Exists(false), `{"exists":false}`, new(Exists)},
		{BucketStats{Bucket: "default"}, `{"bucket":"default","requestCount":0,"percentage":0}`, new(BucketStats)},
		{BucketStats{Bucket: "b", RequestCount: 3, Percentage: 12.5}, `{"bucket":"b","requestCount":3,"percentage":12.5}`, new(BucketStats)},
		{BucketStats{Bucket: "b", Percentage: math.NaN()}, `{"bucket":"b","requestCount":0,"percentage":0}`, nil},
		{BucketStats{Bucket: "b", Login: &LoginStatus{State: "ok"}}, stats + `"login":{"state":"ok"}}`, new(BucketStats)},
		{BucketStats{Bucket: "b", Login: &LoginStatus{"unsaved", 1900000000, 1899999000, 1800000000, "ok", "the store is full", "file"}},
			stats + `"login":{"state":"unsaved","expiry":1900000000,"renewsAt":1899999000,"lastRefresh":1800000000,"lastOutcome":"ok","detail":"the store is full","store":"file"}}`, new(BucketStats)},
		{BucketStats{Bucket: "b", Login: &LoginStatus{Expiry: -1, RenewsAt: 1 << 62}}, stats + `"login":{"state":"","renewsAt":253402300799}}`, nil},
		{Session{ID: "s", Flow: FlowPKCERedirect, AuthURL: "https://a.example/?a=1&b=2"}, `{"session_id":"s","flow_type":"pkce_redirect","auth_url":"https://a.example/?a=1&b=2"}`, new(Session)},
		{Session{ID: "s", Flow: FlowDeviceCode, VerificationURL: "https://a.example/device", UserCode: "AB-CD", PollIntervalMS: 5000}, `{"session_id":"s","flow_type":"device_code","verification_url":"https://a.example/device","user_code":"AB-CD","pollIntervalMs":5000}`, new(Session)},
		{Session{ID: "s", Flow: FlowDeviceCode, VerificationURL: "https://a.example/d", UserCode: "AB", PollIntervalMS: 5000, ExpiresInMS: 600000, VerificationURLComplete: "https://a.example/d?c=AB"},
			`{"session_id":"s","flow_type":"device_code","verification_url":"https://a.example/d","user_code":"AB","pollIntervalMs":5000,"expiresInMs":600000,"verification_url_complete":"https://a.example/d?c=AB"}`, new(Session)},
		{Session{ID: "s", Flow: FlowBrowserRedirect, AuthURL: "https://a.example/", ExpiresInMS: -1, PollIntervalMS: -1}, `{"session_id":"s","flow_type":"browser_redirect","auth_url":"https://a.example/"}`, nil},
		{Poll{Status: PollPending, PollIntervalMS: 5000}, `{"status":"pending","pollIntervalMs":5000}`, new(Poll)},
		{Poll{Status: PollPending}, `{"status":"pending"}`, new(Poll)},
		{Poll{Status: PollError}, `{"status":"error","code":"INTERNAL_ERROR","error":"INTERNAL_ERROR"}`, nil},
		{Poll{Status: PollError, Err: E(CodeSessionExpired, "")}, `{"status":"error","code":"SESSION_EXPIRED","error":"SESSION_EXPIRED"}`, nil},
		{Poll{Status: PollComplete, Token: token}, `{"status":"complete",` + testTokenMembers + `}`, new(Poll)},
		{Poll{Status: PollError, Err: E(CodeExchangeFailed, "denied")}, `{"status":"error","code":"EXCHANGE_FAILED","error":"denied"}`, new(Poll)},
	} {
		frame := string(AppendResponse([]byte("x"), 2, "i", c.data))
		if want := `x{"v":2,"id":"i","ok":true,"data":` + c.want + `}`; frame != want {
			t.Errorf("got  %s\nwant %s", frame, want)
		}
		r, err := DecodeResponse([]byte(frame[1:]), 2)
		if err != nil || !r.OK || r.ID != "i" || string(r.Data) != c.want {
			t.Errorf("%s decodes as %+v, %v", frame, r, err)
		}
		if c.into == nil {
			continue
		}
		if err := json.Unmarshal(r.Data, c.into); err != nil {
			t.Errorf("%s: %v", r.Data, err)
			continue
		}
		want := reflect.ValueOf(c.data)
		if want.Kind() == reflect.Pointer {
			want = want.Elem()
		}
		if got := reflect.ValueOf(c.into).Elem().Interface(); !reflect.DeepEqual(got, want.Interface()) {
			t.Errorf("%s does not come back as it was", c.want)
		}
	}
}

func TestAppendError(t *testing.T) {
	for _, c := range []struct {
		v    int
		err  *Error
		want string
	}{
		{1, E(CodeNotFound, "no login"), `"code":"NOT_FOUND","error":"no login"`},
		{1, E(CodeNotFound, ""), `"code":"NOT_FOUND","error":"NOT_FOUND"`},
		{1, &Error{CodeRateLimited, "too many requests", 1}, `"code":"RATE_LIMITED","error":"too many requests","retryAfter":1`},
		{1, &Error{CodeNotFound, "x", 1}, `"code":"NOT_FOUND","error":"x"`},
		{1, E(CodeCancelled, "cancelled"), `"code":"INTERNAL_ERROR","error":"cancelled"`},
		{1, E(CodeResponseTooLarge, ""), `"code":"INTERNAL_ERROR","error":"RESPONSE_TOO_LARGE"`},
		{2, E(CodeCancelled, "cancelled"), `"code":"CANCELLED","error":"cancelled"`},
		{2, E(CodeResponseTooLarge, "big"), `"code":"RESPONSE_TOO_LARGE","error":"big"`},
	} {
		frame := string(AppendError(nil, c.v, "unknown", c.err))
		v := string(rune('0' + c.v))
		if want := `{"v":` + v + `,"id":"unknown","ok":false,` + c.want + `}`; frame != want {
			t.Errorf("got  %s\nwant %s", frame, want)
		}
		r, err := DecodeResponse([]byte(frame), c.v)
		if err != nil || r.OK || !errors.Is(r.Err, c.err.ForVersion(c.v)) {
			t.Errorf("%s decodes as %+v, %v", frame, r, err)
		}
		if c.err.Code == CodeRateLimited && r.Err.RetryAfter != c.err.RetryAfter {
			t.Errorf("%s: retryAfter %d", frame, r.Err.RetryAfter)
		}
	}
}

func TestAppendRequest(t *testing.T) {
	token := testToken(t)
	for _, c := range []struct{ r, payload any }{
		{Request{Op: OpGetToken, Provider: "p", Bucket: DefaultBucket, Name: "not its own"}, `{"provider":"p"}`},
		{Request{Op: OpGetToken, Provider: "p"}, `{"provider":"p"}`},
		{Request{Op: OpGetToken, Provider: "p", Bucket: "work"}, `{"provider":"p","bucket":"work"}`},
		{Request{Op: OpSaveToken, Provider: "p", Bucket: "b", Token: token}, `{"provider":"p","bucket":"b","token":{` + testTokenMembers + `}}`},
		{Request{Op: OpRemoveToken, Provider: "p"}, `{"provider":"p"}`},
		{Request{Op: OpListProviders, Bucket: "b"}, `{}`},
		{Request{Op: OpListBuckets, Provider: "p", Bucket: "b"}, `{"provider":"p"}`},
		{Request{Op: OpGetBucketStats, Provider: "p", Bucket: "b"}, `{"provider":"p","bucket":"b"}`},
		{Request{Op: OpGetBucketStats, Provider: "p", Detail: true}, `{"provider":"p","detail":true}`},
		{Request{Op: OpRefreshToken, Provider: "p", Detail: true}, `{"provider":"p"}`},
		{Request{Op: OpGetAPIKey, Name: "k"}, `{"name":"k"}`},
		{Request{Op: OpHasAPIKey, Name: "k"}, `{"name":"k"}`},
		{Request{Op: OpListAPIKeys}, `{}`},
		{Request{Op: OpOAuthInitiate, Provider: "p", Bucket: "b", Flow: FlowDeviceCode}, `{"provider":"p","bucket":"b","flow":"device_code"}`},
		{Request{Op: OpOAuthInitiate, Provider: "p", Code: "not its own"}, `{"provider":"p"}`},
		{Request{Op: OpOAuthInitiate, Provider: "p", Detail: true}, `{"provider":"p","detail":true}`},
		{Request{Op: OpOAuthExchange, SessionID: "s", Code: `c"d`}, `{"session_id":"s","code":"c\"d"}`},
		{Request{Op: OpOAuthPoll, SessionID: "s", Detail: true}, `{"session_id":"s"}`},
		{Request{Op: OpOAuthCancel, SessionID: "s"}, `{"session_id":"s"}`},
		{Request{Op: OpCancel, TargetID: "b"}, `{"targetId":"b"}`},
	} {
		r := c.r.(Request)
		r.ID = "7"
		frame := string(AppendRequest(nil, 2, &r))
		want := `{"v":2,"id":"7","op":"` + string(r.Op) + `","payload":` + c.payload.(string) + `}`
		if frame != want {
			t.Errorf("got  %s\nwant %s", frame, want)
		}
		d, err := DecodeRequest([]byte(frame), 2)
		if err != nil {
			t.Errorf("%s: %v", frame, err)
		}
		if again := string(AppendRequest(nil, 2, &d)); again != want {
			t.Errorf("decoded and encoded: got %s\nwant %s", again, want)
		}
	}
}

func TestHandshakeFrames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{string(AppendHandshakeRequest(nil, 1, 1, 1, "")), `{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`},
		{string(AppendHandshakeRequest(nil, 1, 1, 2, "test-cap")), `{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":2,"capabilityToken":"test-cap"}}`},
		{string(AppendHandshake(nil, 1)), `{"v":1,"op":"handshake","ok":true,"data":{"version":1}}`},
		{string(AppendHandshake(nil, 2)), `{"v":2,"op":"handshake","ok":true,"data":{"version":2}}`},
		{string(AppendHandshakeError(nil, 1, E(CodeUnauthorized, "no"))), `{"v":1,"op":"handshake","ok":false,"code":"UNAUTHORIZED","error":"no"}`},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
	h, err := DecodeHandshake(AppendHandshakeRequest(nil, 1, 1, 2, `te"st`))
	if want := (Handshake{1, 2, `te"st`}); err != nil || h != want {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestDecodeHandshakeReply(t *testing.T) {
	for _, c := range []struct {
		in      string
		version int
		kind    string
	}{
		{string(AppendHandshake(nil, 1)), 1, ""},
		{string(AppendHandshake(nil, 2)), 2, ""},
		{string(AppendHandshakeError(nil, 1, E(CodeUnknownVersion, "no"))), 0, "error"},
		{`{"v":1,"id":"unknown","ok":false,"code":"INVALID_REQUEST","error":"x"}`, 0, "error"},
		{`{"v":1,"op":"handshake","ok":false,"code":"NO_SUCH_CODE"}`, 0, "error"},
		{`{"v":3,"op":"handshake","ok":true,"data":{"version":3}}`, 0, "rule"},
		{`{"v":1,"op":"handshake","ok":true,"data":{"version":2}}`, 0, "rule"},
		{`{"v":1,"op":"handshake","ok":true,"data":{}}`, 0, "rule"},
		{`{"v":1,"op":"handshake","ok":true}`, 0, "syntax"},
		{`{"v":1,"op":"handshake","data":{"version":1}}`, 0, "rule"},
		{`{"v":1,"op":"get_token","ok":true,"data":{"version":1}}`, 0, "rule"},
		{`{"v":1,"op":"handshake","ok":"true","data":{"version":1}}`, 0, "rule"},
		{`null`, 0, "syntax"},
		{`HTTP/1.1 400 Bad Request`, 0, "syntax"},
	} {
		v, err := DecodeHandshakeReply([]byte(c.in))
		if v != c.version || kind(err) != c.kind {
			t.Errorf("%s: %d, %v, want %d and kind %q", c.in, v, err, c.version, c.kind)
		}
	}
}

func TestDecodeResponseErrors(t *testing.T) {
	for _, c := range []struct{ in, kind string }{
		{`{"v":2,"id":"a","ok":true,"data":{}}`, "rule"},
		{`{"id":"a","ok":true,"data":{}}`, "rule"},
		{`{"v":1,"ok":true,"data":{}}`, "rule"},
		{`{"v":1,"id":1,"ok":true,"data":{}}`, "rule"},
		{`{"v":1,"id":"a","ok":true}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"data":null}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"data":[]}`, "rule"},
		{`{"v":1,"id":"a","data":{}}`, "rule"},
		{`{"v":1,"id":"a","ok":1,"data":{}}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"ok":true,"data":{}}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"data":{"x":1,"x":1}}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"Data":{},"data":{}}`, "rule"},
		{`{"v":1,"id":"a","ok":true,"data":{}}}`, "syntax"},
		{`{"v":1,"id":"a","ok":TRUE,"data":{}}`, "syntax"},
	} {
		if r, err := DecodeResponse([]byte(c.in), 1); kind(err) != c.kind {
			t.Errorf("%s: %+v, %v, want kind %q", c.in, r, err, c.kind)
		}
	}
	r, err := DecodeResponse([]byte(`{"v":1,"id":"a","ok":false,"code":"RATE_LIMITED","error":"x","retryAfter":0.2}`), 1)
	if err != nil || r.Err.RetryAfter != 1 {
		t.Errorf("retryAfter 0.2: %+v, %v", r.Err, err)
	}
	r, err = DecodeResponse([]byte(`{"v":1,"id":"a","ok":false,"code":"SOMETHING_NEW","error":"x"}`), 1)
	if err != nil || !errors.Is(r.Err, ErrInternal) || r.Err.Message != "x" {
		t.Errorf("unknown code: %+v, %v", r.Err, err)
	}
}

// What a newer proxy adds is ignored, and what it leaves out is nothing.
func TestUnmarshalLoginStatus(t *testing.T) {
	for in, want := range map[string]*LoginStatus{
		`{"bucket":"b","requestCount":0,"percentage":0}`:                                                                     nil,
		`{"bucket":"b","requestCount":0,"percentage":0,"login":null}`:                                                        nil,
		`{"login":{"new":[{}],"expiry":1.9e9,"detail":null,"state":"strange"},"bucket":"b","requestCount":0,"percentage":0}`: {State: "strange", Expiry: 1900000000},
	} {
		got := BucketStats{Login: &LoginStatus{Detail: "of before"}}
		if err := got.UnmarshalJSON([]byte(in)); err != nil || !reflect.DeepEqual(got, BucketStats{Bucket: "b", Login: want}) {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	s := LoginStatus{State: "login_needed", Expiry: 1, RenewsAt: 2, LastRefresh: 3, LastOutcome: "refused", Detail: "\"d\"", Store: "keyring"}
	std, err := json.Marshal(s)
	if own := string(s.append(nil)); err != nil || string(std) != own {
		t.Errorf("encoding/json: %s, %v; on the wire: %s", std, err, own)
	}
}

func TestUnmarshalDataErrors(t *testing.T) {
	const stats = `{"bucket":"b","requestCount":0,"percentage":0,`
	for _, c := range []struct {
		into json.Unmarshaler
		in   string
	}{
		{new(Providers), `{}`},
		{new(Providers), `{"providers":null}`},
		{new(Providers), `{"providers":{"0":"p"}}`},
		{new(Providers), `{"providers":["p",1]}`},
		{new(Buckets), `{"Buckets":["p"]}`},
		{new(Buckets), `[]`},
		{new(APIKeys), `{"keys":"k"}`},
		{new(APIKey), `{}`},
		{new(APIKey), `{"key":null}`},
		{new(APIKey), `"k"`},
		{new(Exists), `{}`},
		{new(Exists), `{"exists":1}`},
		{new(Exists), `null`},
		{new(BucketStats), `{"bucket":"b"}`},
		{new(BucketStats), `{"bucket":"b","requestCount":0.5,"percentage":0}`},
		{new(BucketStats), ``},
		{new(BucketStats), stats + `"login":"ok"}`},
		{new(BucketStats), stats + `"login":{}}`},
		{new(BucketStats), stats + `"login":{"state":""}}`},
		{new(BucketStats), stats + `"login":{"state":1}}`},
		{new(BucketStats), stats + `"login":{"State":"ok"}}`},
		{new(BucketStats), stats + `"login":{"state":"ok","detail":{}}}`},
		{new(BucketStats), stats + `"login":{"state":"ok","expiry":"1"}}`},
		{new(BucketStats), stats + `"login":{"state":"ok","renewsAt":-1}}`},
		{new(BucketStats), stats + `"login":{"state":"ok","lastRefresh":null}}`},
		{new(BucketStats), stats + `"login":{"state":"ok","lastRefresh":1e12}}`},
		{new(Session), `{"session_id":"s"}`},
		{new(Session), `{"session_id":"s","flow_type":"f","auth_url":1}`},
		{new(Session), `{"session_id":"s","flow_type":"f","pollIntervalMs":-1}`},
		{new(Session), `{`},
		{new(Session), `{"session_id":"","flow_type":"f"}`},
		{new(Session), `{"session_id":"s","flow_type":null}`},
		{new(Session), `{"session_id":"s\u0000","flow_type":"f"}`},
		{new(Session), `{"session_id":"s","flow_type":"f","auth_url":"https://a.example/\u001b[2J"}`},
		{new(Session), `{"session_id":"s","flow_type":"f","user_code":"A\u009bB"}`},
		{new(Session), `{"session_id":"s","flow_type":"f","verification_url_complete":{}}`},
		{new(Session), `{"session_id":"s","flow_type":"f","expiresInMs":"1"}`},
		{new(Session), `{"session_id":"s","flow_type":"f","expiresInMs":-1}`},
		{new(Session), `{"session_id":"s","flow_type":"f","expiresInMs":0.5}`},
		{new(Session), `{"session_id":"s","flow_type":"f","ExpiresInMs":1}`},
		{new(Session), `{"session_id":"s","flow_type":"f","auth_url":"a","auth_url":"b"}`},
		{new(Poll), `{}`},
		{new(Poll), `{"status":"pending","pollIntervalMs":-1}`},
		{new(Poll), `{"status":"pending","status":"complete"}`},
		{new(Poll), `{"status":"done"}`},
		{new(Poll), `{"status":"complete"}`},
		{new(Poll), `{"status":"pending","pollIntervalMs":"5"}`},
		{new(Poll), `{"status":"error","Code":"x"}`},
		{new(Poll), `null`},
		{new(Token), `null`},
	} {
		if err := c.into.UnmarshalJSON([]byte(c.in)); err == nil {
			t.Errorf("%T takes %s", c.into, c.in)
		}
	}
}

func TestAppendString(t *testing.T) {
	for in, want := range map[string]string{
		"":                 `""`,
		"a<b>&c/d":         `"a<b>&c/d"`,
		"\"\\":             `"\"\\"`,
		"\n\r\t\b\f\x00":   `"\n\r\t\u0008\u000c\u0000"`,
		"\x1f\x7f":         "\"\\u001f\x7f\"",
		"é😀\u2028":         "\"é😀\u2028\"",
		"a\xffb\xc3":       "\"a\ufffdb\ufffd\"",
		"\xed\xa0\x80":     "\"\ufffd\ufffd\ufffd\"",
		"\ufffd stays one": "\"\ufffd stays one\"",
	} {
		if got := string(appendString(nil, in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
		var back string
		if err := json.Unmarshal([]byte(want), &back); err != nil || back != strings.ToValidUTF8(in, "\ufffd") && !strings.Contains(in, "\xed") {
			t.Errorf("%s: %q, %v", want, back, err)
		}
	}
}

func TestErrors(t *testing.T) {
	err := error(&Error{CodeRateLimited, "slow down", 3})
	if !errors.Is(err, ErrRateLimited) || errors.Is(err, ErrNotFound) || errors.Is(err, errors.New("x")) {
		t.Error("errors are not compared by code")
	}
	for _, c := range []struct{ err, want string }{
		{err.Error(), "slow down (retry after 3 s)"},
		{ErrNotFound.Error(), "NOT_FOUND"},
		{E(CodeNotFound, "no login").Error(), "no login"},
	} {
		if c.err != c.want {
			t.Errorf("got %q, want %q", c.err, c.want)
		}
	}
	for _, c := range []struct {
		err  *Error
		want bool
	}{
		{E(CodeInternal, "login needed: the provider has revoked it"), true},
		{E(CodeInternal, LoginNeededPrefix), true},
		{E(CodeInternal, "a login needed: x"), false},
		{E(CodeInternal, "login needed"), false},
		{E(CodeNotFound, "login needed: x"), false},
		{&Error{CodeRateLimited, "login needed: x", 1}, false},
		{ErrInternal, false},
	} {
		if got := c.err.LoginNeeded(); got != c.want {
			t.Errorf("%s %q: login needed %v", c.err.Code, c.err.Message, got)
		}
		// It does not get lost on the way.
		r, err := DecodeResponse(AppendError(nil, 1, "i", c.err), 1)
		if err != nil || r.Err.LoginNeeded() != c.want {
			t.Errorf("%s %q: decoded %+v, %v", c.err.Code, c.err.Message, r.Err, err)
		}
	}
	if MaxPayload(1) != 65536 || MaxPayload(2) != 4194304 {
		t.Error("frame limits")
	}
}
