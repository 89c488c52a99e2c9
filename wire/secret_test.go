package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

// Nothing that crosses, or that a frame is decoded into, has a field for a secret that outlives the sandbox. The code
// that a user pastes (oauth_exchange) is spent by its one use.
func TestNoFieldForLongLivedSecrets(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(path, typ.Elem())
		case reflect.Struct:
			for f := range typ.Fields() {
				if f.Type.Kind() == reflect.Int64 {
					continue // the time of a refresh is no secret, and a number can hold none
				}
				name := strings.ToLower(f.Name + f.Tag.Get("json"))
				for _, word := range []string{"refresh", "secret", "verifier", "device"} {
					if strings.Contains(name, word) {
						t.Errorf("%s.%s looks like a long-lived secret", path, f.Name)
					}
				}
				walk(path+"."+f.Name, f.Type)
			}
		}
	}
	for _, v := range []any{
		Handshake{}, Request{}, Response{}, Error{}, Token{}, Field{}, Empty{}, Providers{}, Buckets{}, APIKeys{},
		APIKey(""), Exists(false), BucketStats{}, LoginStatus{}, Session{}, Poll{},
	} {
		walk(reflect.TypeOf(v).Name(), reflect.TypeOf(v))
	}
	for _, name := range append(append(append([]string{}, frameNames...), payloadNames...), tokenNames...) {
		if LongLived(name) {
			t.Errorf("the protocol has a member %s", name)
		}
	}
}

func TestSetRefuses(t *testing.T) {
	var token Token
	for _, c := range []struct {
		name, value string
		want        error
	}{
		{"refresh_token", `1`, ErrLongLivedSecret},
		{"refreshToken", `1`, ErrLongLivedSecret},
		{"Client-Secret", `1`, ErrLongLivedSecret},
		{"code_verifier", `1`, ErrLongLivedSecret},
		{"deviceCode", `1`, ErrLongLivedSecret},
		{"device_auth_id", `1`, ErrLongLivedSecret},
		{"access_token", `1`, ErrReservedField},
		{"expiry", `1`, ErrReservedField},
		{"token_type", `1`, ErrReservedField},
		{"scope", `1`, ErrReservedField},
	} {
		if err := token.Set(c.name, []byte(c.value)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, value := range []string{``, `{`, `1 1`, `{"a":1,"a":1}`, "\"\xff\""} {
		if err := token.Set("x", []byte(value)); err == nil {
			t.Errorf("%q was accepted", value)
		}
	}
	if len(token.Extra()) > 0 {
		t.Error("a refused field was kept")
	}
	if err := errors.Join(token.Set("x", []byte(`1`)), token.Set("y", []byte(`2`)), token.Set("x", []byte(`{"refresh_token":1}`))); err != nil {
		t.Fatal(err)
	}
	if got := string(token.Field("x")); got != `{}` || token.Extra()[0].Name != "x" || token.Field("z") != nil {
		t.Errorf("x is %s", got)
	}
}

// A name that the encoding could not carry back must not get into a token.
func TestSetChecksNames(t *testing.T) {
	for _, name := range []string{"é", "\xff", "a\nb", "a\x00", "Expiry", "ACCESS_TOKEN"} {
		if err := new(Token).Set(name, []byte(`1`)); err == nil {
			t.Errorf("field %q was accepted", name)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	const secret = "test-access-token-1"
	token := Token{AccessToken: secret, Scope: secret, extra: []Field{{"id_token", []byte(`"` + secret + `"`)}}}
	key := APIKey(secret)
	session := Session{ID: secret, AuthURL: "https://a.example/?state=" + secret, UserCode: secret, VerificationURLComplete: secret}
	request := Request{Op: OpOAuthExchange, SessionID: secret, Code: secret, Token: &token}
	poll := Poll{Status: PollComplete, Token: &token}
	var out bytes.Buffer
	for _, v := range []any{token, &token, key, &key, session, &session, request, &request, poll, &poll, []any{token, &token, key, session, &request}, map[string]any{"a": key}, struct {
		T *Token
		K APIKey
		X Token
		S *Session
		R Request
	}{&token, key, token, &session, request}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			switch v.(type) {
			case Token, *Token, APIKey, *APIKey, Session, *Session, Request, *Request:
				slog.New(h).Info("m", "v", v)
			}
		}
	}
	if _, err := json.Marshal(key); err == nil {
		t.Error("an API key marshals")
	}
	if _, err := json.Marshal(struct{ K APIKey }{key}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("an API key in a struct marshals: %v", err)
	}
	text := out.String()
	if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
		t.Errorf("a secret was printed:\n%s", text)
	}
	if string(key) != secret {
		t.Error("string(key) is not the key")
	}
}

// No error of the decoder repeats what the peer sent.
func TestErrorsRepeatNothing(t *testing.T) {
	const canary = "CANARY"
	for _, in := range []string{
		canary,
		`{"` + canary + `":1,"` + canary + `":2}`,
		`{"v":"` + canary + `","id":"a","op":"list_providers"}`,
		`{"v":1,"id":"a","op":"` + canary + `"}`,
		`{"v":1,"id":"a","op":"get_token","payload":{"provider":"` + canary + `/"}}`,
		`{"v":1,"id":"a","op":"save_token","payload":{"provider":"p","token":{"access_token":7,"x":"` + canary + `"}}}`,
		`{"v":1,"id":"a","op":"oauth_exchange","payload":{"session_id":"s","code":"` + canary + `\u0000"}}`,
		`{"v":1,"id":"a","op":"oauth_poll","payload":{"session_id":"` + canary + `\n"}}`,
		`{"v":1,"id":"a","op":"oauth_initiate","payload":{"provider":"p","flow":"` + canary + `"}}`,
	} {
		_, err := DecodeRequest([]byte(in), 1)
		if err == nil || strings.Contains(strings.ToUpper(err.Error()), canary) {
			t.Errorf("%s: %v", in, err)
		}
	}
	for into, in := range map[json.Unmarshaler]string{
		new(Session): `{"session_id":"s","flow_type":"f","auth_url":"https://a.example/?state=` + canary + `\n"}`,
		new(Poll):    `{"status":"complete","access_token":"` + canary + `"}`,
	} {
		if err := into.UnmarshalJSON([]byte(in)); err == nil || strings.Contains(strings.ToUpper(err.Error()), canary) {
			t.Errorf("%s: %v", in, err)
		}
	}
}
