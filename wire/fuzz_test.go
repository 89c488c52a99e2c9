package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// parse is how encoding/json sees one value.
func parse(b []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

// strip is what Prune must do, the slow way.
func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if LongLived(name) {
				delete(v, name)
			} else {
				strip(member)
			}
		}
	case []any:
		for _, item := range v {
			strip(item)
		}
	}
	return v
}

// checkAgainstJSON checks what must hold between encoding/json and an error of ours: a syntax error aside, it takes
// what we do.
func checkAgainstJSON(t *testing.T, in []byte, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), "deeper") {
		return // encoding/json has a limit of its own
	}
	if kind(err) != "syntax" && !json.Valid(in) {
		t.Errorf("%q is not JSON, but the error is %v", in, err)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, seed := range []string{
		`{"v":1,"id":"a","op":"get_token","payload":{"provider":"p","bucket":"b"}}`,
		`{"payload":{"token":{"access_token":"a","expiry":1.5e3,"token_type":"t","x":{"refresh_token":[1,{}]}},"provider":"p"},"op":"save_token","id":"\ud83d\ude00","v":1}`,
		`{"v":1,"id":"a","op":"oauth_exchange","payload":{"session_id":"s","code":"c\u0000"}}`,
		`{"v":2,"id":"a","op":"cancel","payload":{"targetId":"b"},"ID":1}`,
		`{"v":1,"id":"a","op":"get_bucket_stats","payload":{"provider":"p","detail":true}}`,
		`{"v":1,"id":"a","op":"list_providers","payload":null,"x":[[[1e-9]]]} `,
		`{"id":"a","id":"a","é":1}`,
		`null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for version := MinVersion; version <= MaxVersion; version++ {
			r, err := DecodeRequest(in, version)
			checkAgainstJSON(t, in, err)
			if k := kind(err); k != "" && k != "syntax" && k != "rule" {
				t.Fatalf("an error of kind %s: %v", k, err)
			}
			if r.ID != "" {
				if v, _ := parse(in); v.(map[string]any)["id"] != r.ID && !strings.Contains(err.Error(), "deeper") {
					t.Fatalf("%q: id %q", in, r.ID)
				}
			}
			if err != nil {
				continue
			}
			v, err := parse(in)
			if err != nil {
				t.Fatal(err)
			}
			m := v.(map[string]any)
			if m["op"] != string(r.Op) {
				t.Fatalf("%q: op %q", in, r.Op)
			}
			payload, _ := m["payload"].(map[string]any)
			for name, got := range map[string]string{
				"provider": r.Provider, "name": r.Name, "flow": string(r.Flow), "session_id": r.SessionID,
				"code": r.Code, "targetId": r.TargetID,
			} {
				if got != "" && payload[name] != got {
					t.Fatalf("%q: %s is %q", in, name, got)
				}
			}
			if detail, _ := payload["detail"].(bool); r.Detail && !detail {
				t.Fatalf("%q: detail is %v", in, payload["detail"])
			}
			out := AppendRequest(nil, version, &r)
			again, err := DecodeRequest(out, version)
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Fatalf("%q, encoded %q: %v", in, out, err)
			}
		}
	})
}

func FuzzDecodeHandshake(f *testing.F) {
	for _, seed := range []string{
		`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":2,"capabilityToken":"test-cap"}}`,
		`{"v":1.0,"op":"handshake","payload":{"minVersion":1e0,"maxVersion":-2,"capabilityToken":{}}}`,
		`{"v":1e400,"op":"hand\u0073hake"}`,
		`[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := DecodeHandshake(in)
		checkAgainstJSON(t, in, err)
		if err != nil {
			if kind(err) == "error" && !errors.Is(err, ErrUnknownVersion) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if v, ok := h.Negotiate(); ok && (v < MinVersion || v > MaxVersion || v < h.Min || v > h.Max) {
			t.Fatalf("%+v negotiates %d", h, v)
		}
		if h.CapabilityToken == wrongToken {
			return // has no encoding, by design
		}
		if again, err := DecodeHandshake(AppendHandshakeRequest(nil, 1, h.Min, h.Max, h.CapabilityToken)); err != nil || again != h {
			t.Fatalf("%+v comes back as %+v, %v", h, again, err)
		}
	})
}

func FuzzDecodeToken(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"a","expiry":1900000000,"token_type":"Bearer","scope":null}`,
		`{"access_token":"a","expiry":1.9e9,"token_type":"Bearer","scope":"s","x":{"y":[{"refreshToken":1}]},"client_secret":1}`,
		`{"access_token":"a","expiry":0,"token_type":"t","refresh\u005ftoken":"r","":"empty"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		token, err := DecodeToken(in)
		checkAgainstJSON(t, in, err)
		if err != nil {
			return
		}
		out, err := token.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		want, err := parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(out)
		if err != nil {
			t.Fatalf("%q is not JSON: %v", out, err)
		}
		// Of the members of its own, expiry is written anew, and an empty scope is left out.
		w, g := strip(want).(map[string]any), got.(map[string]any)
		delete(w, "expiry")
		delete(g, "expiry")
		if w["scope"] == nil || w["scope"] == "" {
			delete(w, "scope")
		}
		if !reflect.DeepEqual(g, w) {
			t.Fatalf("%q became %q", in, out)
		}
		again, err := DecodeToken(out)
		if err != nil || !reflect.DeepEqual(again, token) {
			t.Fatalf("%q does not come back as it was: %v", out, err)
		}
	})
}

func FuzzPrune(f *testing.F) {
	for _, seed := range []string{
		`{"refresh_token":1,"a":[{"deviceCode":{}},2],"b":"\ud83d\ude00"}`,
		` [ { } , [ ] , -1.5e+3 , true , null ] `,
		`{"a":{"refresh\u005Ftoken":"r","x":1}}`,
		`"a`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := Prune(in)
		checkAgainstJSON(t, in, err)
		if err != nil {
			return
		}
		if len(out) > len(in) {
			t.Fatalf("%q became longer: %q", in, out)
		}
		want, err := parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(out)
		if err != nil {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		if !reflect.DeepEqual(got, strip(want)) {
			t.Fatalf("%q became %q", in, out)
		}
		if again, err := Prune(out); err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%q, pruned again: %q, %v", out, again, err)
		}
	})
}

// What decoding allocates is bounded by a small multiple of the input, however it is made.
func TestMemoryIsBounded(t *testing.T) {
	const size = 4 << 20
	fill := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	for name, in := range map[string]string{
		"arrays":                `{"x":` + fill(`[`),
		"objects":               `{"x":` + fill(`{"a":`),
		"members":               `{"x":{` + strings.TrimSuffix(fill(`"a":0,`), ",") + `}}`,
		"escaped names":         `{"x":[` + strings.TrimSuffix(fill(`{"\u0061":0},`), ",") + `]}`,
		"one long name":         `{"` + fill(`a`) + `":0}`,
		"one long escaped name": `{"` + fill(`\u0061`) + `":0}`,
		"one long id":           `{"id":"` + fill(`\n`) + `"}`,
		"one long number":       `{"v":` + fill(`1`) + `}`,
		"a token's members":     `{"v":1,"id":"a","op":"save_token","payload":{"provider":"p","token":{"access_token":"` + fill(`a`) + `","expiry":1,"token_type":"t"}}}`,
		"a token's field":       `{"v":1,"id":"a","op":"save_token","payload":{"provider":"p","token":{"access_token":"a","expiry":1,"token_type":"t","x":[` + strings.TrimSuffix(fill(`1,`), ",") + `]}}}`,
	} {
		b := []byte(in)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = DecodeRequest(b, 1)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 3*size {
			t.Errorf("%s: %d KiB allocated for %d KiB", name, n>>10, size>>10)
		}
	}
}

func TestAllocations(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeRequest(benchRequest, 2) }); n > 2 {
		t.Errorf("DecodeRequest: %v allocations, want the id's and the provider's", n)
	}
	token := testToken(t)
	buf := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { buf = AppendResponse(buf[:0], 2, "4711", token) }); n > 0 {
		t.Errorf("AppendResponse: %v allocations", n)
	}
}
