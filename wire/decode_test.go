package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// kind names the class of an error: "" for none.
func kind(err error) string {
	switch err.(type) {
	case nil:
		return ""
	case *SyntaxError:
		return "syntax"
	case *RuleError:
		return "rule"
	case *Error:
		return "error"
	}
	return fmt.Sprintf("%T", err)
}

// get makes a get_token request of a payload.
func get(payload string) string {
	return `{"v":1,"id":"a","op":"get_token","payload":` + payload + `}`
}

func nested(levels int) string {
	return strings.Repeat(`[`, levels) + strings.Repeat(`]`, levels)
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"m%d":0,`, i)
	}
	return b.String()
}

func TestDecodeRequestStrictness(t *testing.T) {
	const p = `"provider":"p"`
	for _, c := range []struct {
		name, in string
		kind     string
		id       string
	}{
		// One JSON object in UTF-8, and nothing else.
		{"good", get(`{` + p + `}`), "", "a"},
		{"white space", " \t\r\n" + strings.ReplaceAll(get(`{`+p+`}`), ":", " :\n") + " \n", "", "a"},
		{"payload first", `{"payload":{` + p + `},"op":"get_token","id":"a","v":1}`, "", "a"},
		{"escaped names and values", `{"\u0076":1,"i\u0064":"\u0061","op":"get\u005ftoken","payload":{"provider":"\u0070"}}`, "", "a"},
		{"empty", ``, "syntax", ""},
		{"white space only", `  `, "syntax", ""},
		{"null", `null`, "syntax", ""},
		{"array", `[` + get(`{`+p+`}`) + `]`, "syntax", ""},
		{"number", `1`, "syntax", ""},
		{"string", `"a"`, "syntax", ""},
		{"byte order mark", "\ufeff" + get(`{`+p+`}`), "syntax", ""},
		{"trailing object", get(`{`+p+`}`) + `{}`, "syntax", ""},
		{"trailing NUL", get(`{`+p+`}`) + "\x00", "syntax", ""},
		{"trailing comma", get(`{` + p + `,}`), "syntax", ""},
		{"leading comma", get(`{,` + p + `}`), "syntax", ""},
		{"two commas", get(`{` + p + `,,"x":1}`), "syntax", ""},
		{"no comma", get(`{` + p + ` "x":1}`), "syntax", ""},
		{"no colon", get(`{` + p + `,"x" 1}`), "syntax", ""},
		{"no value", get(`{` + p + `,"x":}`), "syntax", ""},
		{"name without quotes", get(`{provider:"p"}`), "syntax", ""},
		{"single quotes", get(`{'provider':'p'}`), "syntax", ""},
		{"comment", get(`{` + p + `/* */}`), "syntax", ""},
		{"not closed", get(`{`), "syntax", ""},
		{"cut", get(`{` + p + `}`)[:30], "syntax", ""},
		{"wrong bracket", get(`{"x":[1}`), "syntax", ""},
		{"leading zero", get(`{` + p + `,"x":01}`), "syntax", ""},
		{"plus sign", get(`{` + p + `,"x":+1}`), "syntax", ""},
		{"no digit after point", get(`{` + p + `,"x":1.}`), "syntax", ""},
		{"no digit before point", get(`{` + p + `,"x":.5}`), "syntax", ""},
		{"no exponent", get(`{` + p + `,"x":1e}`), "syntax", ""},
		{"minus alone", get(`{` + p + `,"x":-}`), "syntax", ""},
		{"NaN", get(`{` + p + `,"x":NaN}`), "syntax", ""},
		{"Infinity", get(`{` + p + `,"x":Infinity}`), "syntax", ""},
		{"hexadecimal", get(`{` + p + `,"x":0x10}`), "syntax", ""},
		{"True", get(`{` + p + `,"x":True}`), "syntax", ""},
		{"literal run on", get(`{` + p + `,"x":nullx}`), "syntax", ""},
		{"every number", get(`{` + p + `,"x":[0,-0,1.5,1e9,1E+9,-1.5e-9,123456789012345678901234567890]}`), "", "a"},
		{"raw newline", get("{\"provider\":\"p\n\"}"), "syntax", ""},
		{"raw NUL", get("{\"provider\":\"p\x00\"}"), "syntax", ""},
		{"bad UTF-8 in a value", get("{" + p + ",\"x\":\"\xff\"}"), "syntax", ""},
		{"bad UTF-8 in a name", get("{" + p + ",\"\xc3\":1}"), "syntax", ""},
		{"overlong UTF-8", get("{" + p + ",\"x\":\"\xc0\xaf\"}"), "syntax", ""},
		{"UTF-8 surrogate", get("{" + p + ",\"x\":\"\xed\xa0\x80\"}"), "syntax", ""},
		{"high surrogate alone", get(`{` + p + `,"x":"\ud83d"}`), "syntax", ""},
		{"high surrogate, then text", get(`{` + p + `,"x":"\ud83dabcdef"}`), "syntax", ""},
		{"low surrogate alone", get(`{` + p + `,"x":"\ude00"}`), "syntax", ""},
		{"surrogates reversed", get(`{` + p + `,"x":"\ude00\ud83d"}`), "syntax", ""},
		{"surrogate pair", get(`{` + p + `,"x":"\ud83d\ude00"}`), "", "a"},
		{"unknown escape", get(`{` + p + `,"x":"\x41"}`), "syntax", ""},
		{"short escape", get(`{` + p + `,"x":"\u12"}`), "syntax", ""},
		{"every escape", get(`{` + p + `,"x":"\"\\\/\b\f\n\r\t\u00e9"}`), "", "a"},
		{"syntax after a broken rule", `{"id":"a","id":"a",}`, "syntax", ""},

		// Members.
		{"unknown members", `{"v":1,"id":"a","op":"get_token","extra":{"Provider":[1,{}]},"payload":{` + p + `,"y":null}}`, "", "a"},
		{"duplicate v", `{"v":1,"v":1,"id":"a","op":"list_providers"}`, "rule", "a"},
		{"duplicate op", `{"v":1,"id":"a","op":"list_providers","op":"list_providers"}`, "rule", "a"},
		{"duplicate id", `{"v":1,"id":"a","id":"b","op":"list_providers"}`, "rule", ""},
		{"duplicate payload", `{"v":1,"id":"a","op":"list_providers","payload":{},"payload":{}}`, "rule", "a"},
		{"duplicate field", get(`{` + p + `,` + p + `}`), "rule", "a"},
		{"duplicate by escape", get(`{` + p + `,"pro\u0076ider":"p"}`), "rule", "a"},
		{"duplicate unknown", `{"v":1,"x":1,"x":2,"id":"a","op":"list_providers"}`, "rule", "a"},
		{"duplicate deep", get(`{` + p + `,"x":[[{"y":{"z":1,"z":1}}]]}`), "rule", "a"},
		{"duplicate among many", get(`{` + manyMembers(1000) + p + `,"m7":1}`), "rule", "a"},
		{"same name in two objects", get(`{` + p + `,"x":[{"y":1},{"y":1}],"y":{"x":1,"y":1}}`), "", "a"},
		{"V", `{"V":1,"v":1,"id":"a","op":"list_providers"}`, "rule", "a"},
		{"ID", `{"v":1,"id":"a","ID":"b","op":"list_providers"}`, "rule", "a"},
		{"ID alone", `{"v":1,"ID":"b","op":"list_providers"}`, "rule", ""},
		{"Op", `{"v":1,"id":"a","Op":"list_providers"}`, "rule", "a"},
		{"Payload", `{"v":1,"id":"a","op":"list_providers","Payload":{}}`, "rule", "a"},
		{"Provider", get(`{"Provider":"p"}`), "rule", "a"},
		{"provider and PROVIDER", get(`{` + p + `,"PROVIDER":"p"}`), "rule", "a"},
		{"Bucket", get(`{` + p + `,"Bucket":"p"}`), "rule", "a"},
		{"Name is unknown to get_token", get(`{` + p + `,"Name":"p"}`), "", "a"},
		{"session-id is not session_id", get(`{` + p + `,"provideR_":"p"}`), "", "a"},
		{"control character in a name", get(`{` + p + `,"a\u0000":1}`), "rule", "a"},
		{"newline in a name", get(`{` + p + `,"a\n":1}`), "rule", "a"},
		{"DEL in a name", get(`{` + p + ",\"a\x7f\":1}"), "rule", "a"},
		{"non-ASCII name", get(`{` + p + `,"é":1}`), "rule", "a"},
		{"non-ASCII name by escape", get(`{` + p + `,"\u0440rovider":1}`), "rule", "a"},
		{"non-ASCII name deep", get(`{` + p + `,"x":{"y":{"é":1}}}`), "rule", "a"},
		{"1024 members", get(`{` + manyMembers(1023) + p + `}`), "", "a"},
		{"1025 members", get(`{` + manyMembers(1024) + p + `}`), "rule", "a"},

		// Depth: the request is one level, the payload another.
		{"32 levels", get(`{` + p + `,"x":` + nested(30) + `}`), "", "a"},
		{"33 levels", get(`{` + p + `,"x":` + nested(31) + `}`), "rule", "a"},
		{"33 levels before the id", `{"v":1,"x":` + nested(32) + `,"op":"list_providers","id":"a"}`, "rule", "a"},
		{"10,000 levels", get(`{` + p + `,"x":` + nested(10_000) + `}`), "rule", "a"},
		{"10,000 levels before the id", `{"v":1,"x":` + nested(10_000) + `,"op":"list_providers","id":"a"}`, "rule", "a"},
		{"10,000 objects", get(`{` + p + `,"x":` + strings.Repeat(`{"a":`, 10_000) + `1` + strings.Repeat(`}`, 10_000) + `}`), "rule", "a"},
		{"10,000 levels not closed", get(`{` + p + `,"x":` + strings.Repeat(`[`, 10_000)), "syntax", ""},
		{"10,000 levels, wrong bracket", get(`{` + p + `,"x":` + strings.Repeat(`[`, 10_000) + strings.Repeat(`]`, 9_999) + `}` + `}`), "syntax", ""},

		// The frame.
		{"id missing", `{"v":1,"op":"list_providers"}`, "rule", ""},
		{"id empty", `{"v":1,"id":"","op":"list_providers"}`, "rule", ""},
		{"id a number", `{"v":1,"id":7,"op":"list_providers"}`, "rule", ""},
		{"id null", `{"v":1,"id":null,"op":"list_providers"}`, "rule", ""},
		{"id unicode", `{"v":1,"id":"\u00e9 é","op":"list_providers"}`, "", "é é"},
		{"id of 1024 bytes", `{"v":1,"id":"` + strings.Repeat("i", 1024) + `","op":"list_providers"}`, "", strings.Repeat("i", 1024)},
		{"id of 1025 bytes", `{"v":1,"id":"` + strings.Repeat("i", 1025) + `","op":"list_providers"}`, "rule", ""},
		{"v missing", `{"id":"a","op":"list_providers"}`, "rule", "a"},
		{"v of another version", `{"v":2,"id":"a","op":"list_providers"}`, "rule", "a"},
		{"v a string", `{"v":"1","id":"a","op":"list_providers"}`, "rule", "a"},
		{"v a fraction", `{"v":1.5,"id":"a","op":"list_providers"}`, "rule", "a"},
		{"v 1.0", `{"v":1.0,"id":"a","op":"list_providers"}`, "", "a"},
		{"v 10e-1", `{"v":10e-1,"id":"a","op":"list_providers"}`, "", "a"},
		{"op missing", `{"v":1,"id":"a"}`, "rule", "a"},
		{"op unknown", `{"v":1,"id":"a","op":"get_refresh_token"}`, "rule", "a"},
		{"op in another case", `{"v":1,"id":"a","op":"List_Providers"}`, "rule", "a"},
		{"op of an object", `{"v":1,"id":"a","op":"__proto__"}`, "rule", "a"},
		{"op constructor", `{"v":1,"id":"a","op":"constructor"}`, "rule", "a"},
		{"op empty", `{"v":1,"id":"a","op":""}`, "rule", "a"},
		{"op a number", `{"v":1,"id":"a","op":1}`, "rule", "a"},
		{"second handshake", `{"v":1,"id":"a","op":"handshake","payload":{}}`, "rule", "a"},
		{"cancel in version 1", `{"v":1,"id":"a","op":"cancel","payload":{"targetId":"b"}}`, "rule", "a"},
		{"payload absent", `{"v":1,"id":"a","op":"list_providers"}`, "", "a"},
		{"payload null", `{"v":1,"id":"a","op":"list_providers","payload":null}`, "rule", "a"},
		{"payload an array", `{"v":1,"id":"a","op":"list_providers","payload":[]}`, "rule", "a"},
		{"payload a string", `{"v":1,"id":"a","op":"list_providers","payload":"{}"}`, "rule", "a"},
		{"payload absent where a field is needed", `{"v":1,"id":"a","op":"get_token"}`, "rule", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := DecodeRequest([]byte(c.in), 1)
			if kind(err) != c.kind {
				t.Fatalf("error %v, want kind %q", err, c.kind)
			}
			if r.ID != c.id {
				t.Errorf("id %q, want %q", r.ID, c.id)
			}
		})
	}
}

func TestDecodeRequestFields(t *testing.T) {
	token := &Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer"}
	const tokenJSON = `{"access_token":"test-access-token-1","expiry":1900000000,"token_type":"Bearer"}`
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		op, payload string
		want        *Request // nil: a broken rule; ID, Op and the default bucket are filled in
	}{
		{"get_token", `{"provider":"anthropic"}`, &Request{Provider: "anthropic"}},
		{"get_token", `{"provider":"anthropic","bucket":"work"}`, &Request{Provider: "anthropic", Bucket: "work"}},
		{"get_token", `{"provider":"anthropic","bucket":"default"}`, &Request{Provider: "anthropic"}},
		{"get_token", `{"provider":"AZaz09._-"}`, &Request{Provider: "AZaz09._-"}},
		{"get_token", `{"provider":"` + long(64) + `"}`, &Request{Provider: long(64)}},
		{"get_token", `{"provider":"` + long(65) + `"}`, nil},
		{"get_token", `{}`, nil},
		{"get_token", `{"provider":""}`, nil},
		{"get_token", `{"provider":null}`, nil},
		{"get_token", `{"provider":1}`, nil},
		{"get_token", `{"provider":["p"]}`, nil},
		{"get_token", `{"provider":{"0":"p"}}`, nil},
		{"get_token", `{"provider":"a/b"}`, nil},
		{"get_token", `{"provider":"a:b"}`, nil},
		{"get_token", `{"provider":"a b"}`, nil},
		{"get_token", `{"provider":"a\n"}`, nil},
		{"get_token", `{"provider":"a\u0000"}`, nil},
		{"get_token", `{"provider":"é"}`, nil},
		{"get_token", `{"provider":"p","bucket":""}`, nil},
		{"get_token", `{"provider":"p","bucket":null}`, nil},
		{"get_token", `{"provider":"p","bucket":"../x"}`, nil},
		{"get_token", `{"provider":"..","bucket":"."}`, &Request{Provider: "..", Bucket: "."}},
		{"save_token", `{"provider":"p","token":` + tokenJSON + `}`, &Request{Provider: "p", Token: token}},
		{"save_token", `{"token":` + tokenJSON + `,"bucket":"b","provider":"p"}`, &Request{Provider: "p", Bucket: "b", Token: token}},
		{"save_token", `{"provider":"p"}`, nil},
		{"save_token", `{"provider":"p","token":null}`, nil},
		{"save_token", `{"provider":"p","token":"test"}`, nil},
		{"save_token", `{"provider":"p","token":{"0":"n"}}`, nil},
		{"save_token", `{"provider":"p","token":[]}`, nil},
		{"remove_token", `{"provider":"p"}`, &Request{Provider: "p"}},
		{"remove_token", `{}`, nil},
		{"list_providers", `{}`, &Request{}},
		{"list_providers", `{"provider":7}`, &Request{}},
		{"list_buckets", `{"provider":"p"}`, &Request{Provider: "p"}},
		{"list_buckets", `{}`, nil},
		{"get_bucket_stats", `{"provider":"p","bucket":"b"}`, &Request{Provider: "p", Bucket: "b"}},
		{"get_bucket_stats", `{"bucket":"b"}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":true}`, &Request{Provider: "p", Detail: true}},
		{"get_bucket_stats", `{"detail": true , "provider":"p"}`, &Request{Provider: "p", Detail: true}},
		{"get_bucket_stats", `{"provider":"p","detail":false}`, &Request{Provider: "p"}},
		{"get_bucket_stats", `{"provider":"p","detail":null}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":"true"}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":1}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":0}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":{}}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":[true]}`, nil},
		{"get_bucket_stats", `{"provider":"p","detail":true,"detail":true}`, nil},
		{"get_bucket_stats", `{"provider":"p","Detail":true}`, nil},
		{"get_token", `{"provider":"p","detail":7,"Detail":8}`, &Request{Provider: "p"}},
		{"refresh_token", `{"provider":"p","bucket":"b"}`, &Request{Provider: "p", Bucket: "b"}},
		{"refresh_token", `{}`, nil},
		{"get_api_key", `{"name":"OPENAI_API_KEY"}`, &Request{Name: "OPENAI_API_KEY"}},
		{"get_api_key", `{"name":"a b"}`, nil},
		{"get_api_key", `{}`, nil},
		{"has_api_key", `{"name":"k"}`, &Request{Name: "k"}},
		{"has_api_key", `{"name":false}`, nil},
		{"list_api_keys", `{}`, &Request{}},
		{"oauth_initiate", `{"provider":"p"}`, &Request{Provider: "p"}},
		{"oauth_initiate", `{"provider":"p","bucket":"b","flow":"device_code"}`, &Request{Provider: "p", Bucket: "b", Flow: FlowDeviceCode}},
		{"oauth_initiate", `{"provider":"p","flow":"pkce_redirect"}`, &Request{Provider: "p", Flow: FlowPKCERedirect}},
		{"oauth_initiate", `{"provider":"p","flow":"browser_redirect"}`, &Request{Provider: "p", Flow: FlowBrowserRedirect}},
		{"oauth_initiate", `{"provider":"p","detail":true}`, &Request{Provider: "p", Detail: true}},
		{"oauth_initiate", `{"provider":"p","detail":false}`, &Request{Provider: "p"}},
		{"oauth_initiate", `{"provider":"p","detail":1}`, nil},
		{"oauth_initiate", `{"provider":"p","Detail":true}`, nil},
		{"oauth_initiate", `{"provider":"p","flow":""}`, nil},
		{"oauth_initiate", `{"provider":"p","flow":"implicit"}`, nil},
		{"oauth_initiate", `{"provider":"p","flow":null}`, nil},
		{"oauth_initiate", `{}`, nil},
		{"oauth_exchange", `{"session_id":"s","code":"c#state"}`, &Request{SessionID: "s", Code: "c#state"}},
		{"oauth_exchange", `{"session_id":"` + long(128) + `","code":"` + long(4096) + `"}`, &Request{SessionID: long(128), Code: long(4096)}},
		{"oauth_exchange", `{"session_id":"` + long(129) + `","code":"c"}`, nil},
		{"oauth_exchange", `{"session_id":"s","code":"` + long(4097) + `"}`, nil},
		{"oauth_exchange", `{"session_id":"s","code":""}`, nil},
		{"oauth_exchange", `{"session_id":"s","code":"a\nb"}`, nil},
		{"oauth_exchange", `{"session_id":"s","code":" c#state\r\n"}`, &Request{SessionID: "s", Code: "c#state"}},
		{"oauth_exchange", `{"session_id":"s","code":"\n"}`, nil},
		{"oauth_exchange", `{"session_id":"s"}`, nil},
		{"oauth_exchange", `{"code":"c"}`, nil},
		{"oauth_poll", `{"session_id":"s"}`, &Request{SessionID: "s"}},
		{"oauth_poll", `{"session_id":"../é","detail":7}`, &Request{SessionID: "../é"}},
		{"oauth_poll", `{"session_id":"a\u009b"}`, nil},
		{"oauth_poll", `{"session_id":""}`, nil},
		{"oauth_poll", `{}`, nil},
		{"oauth_cancel", `{"session_id":"s"}`, &Request{SessionID: "s"}},
		{"oauth_cancel", `{"session_id":1}`, nil},
		{"oauth_cancel", `{"Session_Id":"s","session_id":"s"}`, nil},
		{"cancel", `{"targetId":"b"}`, &Request{TargetID: "b"}},
		{"cancel", `{"targetId":""}`, nil},
		{"cancel", `{"targetid":"b"}`, nil},
		{"cancel", `{}`, nil},
	} {
		t.Run(c.op+c.payload[:min(40, len(c.payload))], func(t *testing.T) {
			in := `{"v":2,"id":"a","op":"` + c.op + `","payload":` + c.payload + `}`
			r, err := DecodeRequest([]byte(in), 2)
			if c.want == nil {
				if kind(err) != "rule" || r.ID != "a" {
					t.Errorf("error %v, id %q, want a broken rule under its id", err, r.ID)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := *c.want
			want.ID, want.Op = "a", Op(c.op)
			if want.Bucket == "" {
				want.Bucket = DefaultBucket
			}
			if !reflect.DeepEqual(r, want) {
				t.Errorf("got %+v, want %+v", plainRequest(r), plainRequest(want))
			}
		})
	}
}

// plainRequest prints what is in it.
type plainRequest Request

// The decoder's result must not change when the frame's buffer is used again.
func TestDecodeRequestCopies(t *testing.T) {
	in := []byte(`{"v":2,"id":"a","op":"save_token","payload":{"provider":"p","bucket":"b","token":{"access_token":"x","expiry":1,"token_type":"t","scope":"s","n":{"a":1}}}}`)
	r, err := DecodeRequest(in, 2)
	if err != nil {
		t.Fatal(err)
	}
	before := string(AppendRequest(nil, 2, &r))
	for i := range in {
		in[i] = '!'
	}
	if after := string(AppendRequest(nil, 2, &r)); after != before {
		t.Errorf("%s became %s", before, after)
	}
}

func TestDecodeHandshake(t *testing.T) {
	hs := func(v, payload string) string { return `{"v":` + v + `,"op":"handshake","payload":` + payload + `}` }
	for _, c := range []struct {
		name, in string
		kind     string
		want     Handshake
		version  int // 0: no overlap
	}{
		{"version 1", hs("1", `{"minVersion":1,"maxVersion":1}`), "", Handshake{1, 1, ""}, 1},
		{"both", hs("1", `{"minVersion":1,"maxVersion":2}`), "", Handshake{1, 2, ""}, 2},
		{"later ones too", hs("1", `{"minVersion":1,"maxVersion":99}`), "", Handshake{1, 99, ""}, 2},
		{"2 only", hs("2", `{"minVersion":2,"maxVersion":2}`), "", Handshake{2, 2, ""}, 2},
		{"later ones only", hs("3", `{"minVersion":3,"maxVersion":4}`), "", Handshake{3, 4, ""}, 0},
		{"from 0", hs("1", `{"minVersion":0,"maxVersion":1}`), "", Handshake{0, 1, ""}, 1},
		{"below 1", hs("1", `{"minVersion":-3,"maxVersion":0}`), "", Handshake{-3, 0, ""}, 0},
		{"reversed", hs("1", `{"minVersion":2,"maxVersion":1}`), "", Handshake{2, 1, ""}, 0},
		{"written otherwise", hs("1.0", `{"minVersion":1.0,"maxVersion":0.2e1}`), "", Handshake{1, 2, ""}, 2},
		{"huge", hs("1", `{"minVersion":-1e400,"maxVersion":1e400}`), "", Handshake{-1 << 31, 1<<31 - 1, ""}, 2},
		{"no bounds", hs("1", `{}`), "", Handshake{1, 1, ""}, 1},
		{"no bounds, v 2", hs("2", `{}`), "", Handshake{2, 2, ""}, 2},
		{"no bounds, v 9", hs("9", `{}`), "", Handshake{9, 9, ""}, 0},
		{"no payload", `{"v":2,"op":"handshake"}`, "", Handshake{2, 2, ""}, 2},
		{"no minVersion", hs("1", `{"maxVersion":2}`), "", Handshake{1, 2, ""}, 2},
		{"no maxVersion", hs("2", `{"minVersion":1}`), "", Handshake{1, 2, ""}, 2},
		{"no v", `{"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`, "", Handshake{1, 1, ""}, 1},
		{"an id", `{"v":1,"id":"a","op":"handshake"}`, "", Handshake{1, 1, ""}, 1},
		{"capability token", hs("1", `{"capabilityToken":"test-cap"}`), "", Handshake{1, 1, "test-cap"}, 1},
		{"capability token of a wrong type", hs("1", `{"capabilityToken":7}`), "", Handshake{1, 1, "\xff"}, 1},
		{"capability token null", hs("1", `{"capabilityToken":null}`), "", Handshake{1, 1, "\xff"}, 1},
		{"no v and no bounds", `{"op":"handshake"}`, "error", Handshake{}, 0},
		{"bounds are strings", hs("1", `{"minVersion":"1","maxVersion":"1"}`), "error", Handshake{}, 0},
		{"bound is null", hs("1", `{"minVersion":null,"maxVersion":1}`), "error", Handshake{}, 0},
		{"bound is a fraction", hs("1", `{"minVersion":1,"maxVersion":1.5}`), "error", Handshake{}, 0},
		{"bound is an array", hs("1", `{"minVersion":[1],"maxVersion":1}`), "error", Handshake{}, 0},
		{"v is a string", hs(`"1"`, `{}`), "error", Handshake{}, 0},
		{"another operation", `{"v":1,"id":"a","op":"list_providers"}`, "rule", Handshake{}, 0},
		{"no operation", `{"v":1}`, "rule", Handshake{}, 0},
		{"empty object", `{}`, "rule", Handshake{}, 0},
		{"payload null", hs("1", `null`), "rule", Handshake{}, 0},
		{"payload an array", hs("1", `[]`), "rule", Handshake{}, 0},
		{"duplicate bound", hs("1", `{"minVersion":1,"minVersion":1}`), "rule", Handshake{}, 0},
		{"MinVersion", hs("1", `{"MinVersion":1}`), "rule", Handshake{}, 0},
		{"OP", `{"v":1,"OP":"handshake"}`, "rule", Handshake{}, 0},
		{"too deep", hs("1", `{"x":`+nested(31)+`}`), "rule", Handshake{}, 0},
		{"null", `null`, "syntax", Handshake{}, 0},
		{"array", `[]`, "syntax", Handshake{}, 0},
		{"trailing data", hs("1", `{}`) + `x`, "syntax", Handshake{}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := DecodeHandshake([]byte(c.in))
			if kind(err) != c.kind {
				t.Fatalf("error %v, want kind %q", err, c.kind)
			}
			if c.kind == "error" && !errors.Is(err, ErrUnknownVersion) {
				t.Errorf("error %v, want %s", err, CodeUnknownVersion)
			}
			if err != nil {
				return
			}
			if h != c.want {
				t.Errorf("got %+v, want %+v", h, c.want)
			}
			if v, ok := h.Negotiate(); ok != (c.version != 0) || ok && v != c.version {
				t.Errorf("negotiated %d, %v, want %d", v, ok, c.version)
			}
		})
	}
}

func TestDecodeToken(t *testing.T) {
	tok := func(rest string) string {
		return `{"access_token":"test-access-token-1","expiry":1900000000,"token_type":"Bearer"` + rest + `}`
	}
	for _, c := range []struct{ name, in, want string }{ // want: encoded again, or the kind of error
		{"plain", tok(``), tok(``)},
		{"scope", tok(`,"scope":"a b"`), tok(`,"scope":"a b"`)},
		{"scope null", tok(`,"scope":null`), tok(``)},
		{"scope empty", tok(`,"scope":""`), tok(``)},
		{"scope a number", tok(`,"scope":1`), "rule"},
		{"other order", `{"token_type":"Bearer","x":1,"expiry":1900000000,"access_token":"test-access-token-1"}`, tok(`,"x":1`)},
		{"expiry 0", `{"access_token":"a","expiry":0,"token_type":"t"}`, `{"access_token":"a","expiry":0,"token_type":"t"}`},
		{"expiry with a fraction", `{"access_token":"a","expiry":1700000000.9,"token_type":"t"}`, `{"access_token":"a","expiry":1700000000,"token_type":"t"}`},
		{"expiry 1.9e9", `{"access_token":"a","expiry":1.9e9,"token_type":"t"}`, `{"access_token":"a","expiry":1900000000,"token_type":"t"}`},
		{"expiry in the year 9999", `{"access_token":"a","expiry":253402300799,"token_type":"t"}`, `{"access_token":"a","expiry":253402300799,"token_type":"t"}`},
		{"expiry in the year 10000", `{"access_token":"a","expiry":253402300800,"token_type":"t"}`, "rule"},
		{"expiry in milliseconds", `{"access_token":"a","expiry":1900000000000,"token_type":"t"}`, "rule"},
		{"expiry beyond float", `{"access_token":"a","expiry":1e999,"token_type":"t"}`, "rule"},
		{"expiry negative", `{"access_token":"a","expiry":-1,"token_type":"t"}`, "rule"},
		{"expiry a string", `{"access_token":"a","expiry":"1900000000","token_type":"t"}`, "rule"},
		{"expiry null", `{"access_token":"a","expiry":null,"token_type":"t"}`, "rule"},
		{"expiry missing", `{"access_token":"a","token_type":"t"}`, "rule"},
		{"access_token missing", `{"expiry":1,"token_type":"t"}`, "rule"},
		{"access_token empty", `{"access_token":"","expiry":1,"token_type":"t"}`, "rule"},
		{"access_token null", `{"access_token":null,"expiry":1,"token_type":"t"}`, "rule"},
		{"access_token with a newline", `{"access_token":"a\nb","expiry":1,"token_type":"t"}`, "rule"},
		{"access_token with a C1 control", `{"access_token":"a\u009b31m","expiry":1,"token_type":"t"}`, "rule"},
		{"token_type with a C1 control", "{\"access_token\":\"a\",\"expiry\":1,\"token_type\":\"t\u009b31m\"}", "rule"},
		{"access_token an object", `{"access_token":{},"expiry":1,"token_type":"t"}`, "rule"},
		{"token_type missing", `{"access_token":"a","expiry":1}`, "rule"},
		{"token_type empty", `{"access_token":"a","expiry":1,"token_type":""}`, "rule"},
		{"token_type with a newline", `{"access_token":"a","expiry":1,"token_type":"a\r"}`, "rule"},
		{"Access_Token", tok(`,"Access_Token":"b"`), "rule"},
		{"duplicate extra", tok(`,"x":1,"x":2`), "rule"},
		{"further members", tok(`, "id_token" : "i" , "z":null,"a":[1, {"b" : "\u00e9<>&"}]`), tok(`,"id_token":"i","z":null,"a":[1,{"b":"\u00e9<>&"}]`)},
		{"refresh_token", tok(`,"refresh_token":"test-refresh-token-1"`), tok(``)},
		{"refreshToken", tok(`,"x":1,"refreshToken":{"a":1},"y":2`), tok(`,"x":1,"y":2`)},
		{"REFRESH-TOKEN", tok(`,"REFRESH-TOKEN":"r"`), tok(``)},
		{"refresh_token by escape", tok(`,"refresh\u005ftoken":"r"`), tok(``)},
		{"refresh_token deep", tok(`,"x":{"refresh_token":"r","a":[{"b":1,"refresh_token":[1]},{"refresh_token":1},[{"device_code":1}]]}`), tok(`,"x":{"a":[{"b":1},{},[{}]]}`)},
		{"all the others", tok(`,"client_secret":1,"code_verifier":1,"device_code":1,"device_auth_id":1,"deviceAuthId":1,"k":1`), tok(`,"k":1`)},
		{"refresh_token_expires_in", tok(`,"refresh_token_expires_in":1`), tok(`,"refresh_token_expires_in":1`)},
		{"null", `null`, "syntax"},
		{"string", `"test"`, "syntax"},
		{"array", `[]`, "syntax"},
		{"empty", ``, "syntax"},
		{"trailing", tok(``) + `1`, "syntax"},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, err := DecodeToken([]byte(c.in))
			if err != nil {
				if kind(err) != c.want {
					t.Errorf("error %v, want %s", err, c.want)
				}
				return
			}
			out, err := json.Marshal(token)
			if err != nil {
				t.Fatal(err)
			}
			// json.Marshal escapes <, > and & on its own account.
			if got := string(token.appendData(nil)); got != c.want || !json.Valid(out) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`1`, `1`},
		{` "a b" `, `"a b"`},
		{`null`, `null`},
		{`[ ]`, `[]`},
		{`{ }`, `{}`},
		{`{"refresh_token":1}`, `{}`},
		{`{"refresh_token":1,"a":2}`, `{"a":2}`},
		{`{"a":1,"refresh_token":{"x":[1,2]}}`, `{"a":1}`},
		{`{"a":1,"refresh_token":1,"client_secret":2,"b":"{["}`, `{"a":1,"b":"{["}`},
		{`["refresh_token",{"a":{"Device-Code":1}}]`, `["refresh_token",{"a":{}}]`},
		{`{"a":[],"b":{},"c":[{}]}`, `{"a":[],"b":{},"c":[{}]}`},
		{nested(32), nested(32)},
		{nested(33), "rule"},
		{`{"refresh_token":` + nested(33) + `}`, "rule"},
		{`{"a":1,"a":1}`, "rule"},
		{``, "syntax"},
		{`[1,]`, "syntax"},
		{`{"refresh_token":[}`, "syntax"},
		{`1 2`, "syntax"},
	} {
		out, err := Prune([]byte(c.in))
		got := string(out)
		if err != nil {
			got = kind(err)
		}
		if got != c.want {
			t.Errorf("%.40s: got %.60s, want %.60s", c.in, got, c.want)
		}
	}
}
