package wire

import (
	"reflect"
	"strings"
	"testing"
)

// A field that a client saved must not stand in for the state of a login, nor make its outcome unreadable.
func TestPollCompleteKeepsStatus(t *testing.T) {
	token := &Token{AccessToken: "a", TokenType: "t"}
	for _, name := range []string{"status", "x", "Status", "pollIntervalMs", "POLLINTERVALMS"} {
		if err := token.Set(name, []byte(`"pending"`)); err != nil {
			t.Fatal(err)
		}
	}
	const want = `{"status":"complete","access_token":"a","expiry":0,"token_type":"t","x":"pending"}`
	got := string(Poll{Status: PollComplete, Token: token}.appendData(nil))
	if got != want {
		t.Errorf("got %s", got)
	}
	var p Poll
	if err := p.UnmarshalJSON([]byte(got)); err != nil || len(p.Token.Extra()) != 1 {
		t.Errorf("%s: %v", got, err)
	}
	if len(token.Extra()) != 5 {
		t.Error("the token was changed")
	}
}

// What a newer proxy or another one adds is ignored, and what it leaves out is nothing.
func TestUnmarshalLogin(t *testing.T) {
	for in, want := range map[string]Session{
		`{"session_id":"s","flow_type":"strange"}`: {ID: "s", Flow: "strange"},
		`{"mode":"pkce","flow_type":"pkce_redirect","auth_url":"https://a.example/","session_id":"s","sessionId":"s","redirectUri":7,"user_code":null,"pollIntervalMs":null,"expiresInMs":null}`: {
			ID: "s", Flow: FlowPKCERedirect, AuthURL: "https://a.example/"},
		`{"expiresInMs":9e5,"verification_url_complete":null,"pollIntervalMs":5000.0,"flow_type":"device_code","session_id":"s","expires":{"in":[900]}}`: {
			ID: "s", Flow: FlowDeviceCode, PollIntervalMS: 5000, ExpiresInMS: 900000},
	} {
		got := Session{AuthURL: "of before"}
		if err := got.UnmarshalJSON([]byte(in)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", in, err)
		}
	}
	for in, want := range map[string]Poll{
		`{"status":"pending"}`:                                    {Status: PollPending},
		`{"status":"pending","pollIntervalMs":null,"since":1}`:    {Status: PollPending},
		`{"status":"pending","pollIntervalMs":1e12,"code":"x"}`:   {Status: PollPending, PollIntervalMS: 1<<31 - 1},
		`{"status":"error"}`:                                      {Status: PollError, Err: ErrInternal},
		`{"status":"error","code":"NEW","error":"e","data":[]}`:   {Status: PollError, Err: E(CodeInternal, "e")},
		`{"status":"error","code":"SESSION_EXPIRED","error":"e"}`: {Status: PollError, Err: E(CodeSessionExpired, "e")},
		`{"access_token":"a","token_type":"t","expiry":1,"status":"complete","pollIntervalMs":5,"refresh_token":"r"}`: {
			Status: PollComplete, Token: &Token{AccessToken: "a", TokenType: "t", Expiry: 1}},
	} {
		got := Poll{PollIntervalMS: 1}
		if err := got.UnmarshalJSON([]byte(in)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
}

// What a client makes of a login's answers is what encoding/json does, and it survives being sent on.
func FuzzDecodeLogin(f *testing.F) {
	for _, seed := range []string{
		`{"session_id":"s","flow_type":"device_code","verification_url":"https://a.example","user_code":"AB-CD","pollIntervalMs":5000,"expiresInMs":6e5,"verification_url_complete":"https://a.example/?c=AB-CD"}`,
		`{"session_id":"s","flow_type":"pkce_redirect","auth_url":"https://a.example/?a=\u0026","user_code":null,"sessionId":1}`,
		`{"status":"pending","pollIntervalMs":1.5e3}`,
		`{"status":"complete","access_token":"a","expiry":1,"token_type":"t","Status":1,"x":{"device_code":1}}`,
		`{"status":"error","code":"EXCHANGE_FAILED","error":"e","retryAfter":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var s Session
		err := s.UnmarshalJSON(in)
		checkAgainstJSON(t, in, err)
		if err == nil {
			v, err := parse(in)
			if err != nil {
				t.Fatal(err)
			}
			m := v.(map[string]any)
			for name, got := range map[string]string{
				"session_id": s.ID, "flow_type": string(s.Flow), "auth_url": s.AuthURL, "verification_url": s.VerificationURL,
				"user_code": s.UserCode, "verification_url_complete": s.VerificationURLComplete,
			} {
				if want, _ := m[name].(string); got != want || strings.ContainsAny(got, "\x00\x1b\n\u009b") {
					t.Fatalf("%q: %s is %q", in, name, got)
				}
			}
			var again Session
			out := s.appendData(nil)
			if err := again.UnmarshalJSON(out); err != nil || again != s || s.PollIntervalMS < 0 || s.ExpiresInMS < 0 {
				t.Fatalf("%q, encoded %q: %v", in, out, err)
			}
		}

		var p Poll
		err = p.UnmarshalJSON(in)
		checkAgainstJSON(t, in, err)
		if err != nil {
			return
		}
		v, err := parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if status := v.(map[string]any)["status"]; status != string(p.Status) || (p.Token != nil) != (p.Status == PollComplete) || (p.Err != nil) != (p.Status == PollError) {
			t.Fatalf("%q: status %v is %s", in, status, p.Status)
		}
		if p.Err != nil {
			p.Err.Message, p.Err.RetryAfter = p.Err.message(), 0 // which a poll has no place for
		}
		var again Poll
		out := p.appendData(nil)
		if err := again.UnmarshalJSON(out); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%q, encoded %q: %v", in, out, err)
		}
	})
}
