package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// The examples of the protocol's page are what this package encodes, byte for byte.
func TestProtocolPage(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	requests, answers, logins := map[Op]bool{}, 0, 0
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSuffix(line, "\n")
		version := Version1
		if strings.Contains(line, `{"v":2`) {
			version = Version2
		}
		if in, ok := strings.CutPrefix(line, "→ "); ok {
			var out []byte
			if strings.Contains(in, `"op":"handshake"`) {
				h, err := DecodeHandshake([]byte(in))
				if err != nil {
					t.Errorf("%s: %v", in, err)
				}
				out = AppendHandshakeRequest(nil, 1, h.Min, h.Max, h.CapabilityToken)
			} else {
				r, err := DecodeRequest([]byte(in), version)
				if err != nil {
					t.Errorf("%s: %v", in, err)
				}
				requests[r.Op] = true
				out = AppendRequest(nil, version, &r)
			}
			if string(out) != in {
				t.Errorf("page %s\ncode %s", in, out)
			}
		}
		if in, ok := strings.CutPrefix(line, "← "); ok {
			answers++
			if strings.Contains(in, `"op":"handshake"`) {
				if _, err := DecodeHandshakeReply([]byte(in)); kind(err) != "" && kind(err) != "error" {
					t.Errorf("%s: %v", in, err)
				}
				continue
			}
			r, err := DecodeResponse([]byte(in), version)
			if err != nil {
				t.Errorf("%s: %v", in, err)
			}
			if bytes.Contains(r.Data, []byte(`"login":`)) {
				var stats BucketStats
				if err := stats.UnmarshalJSON(r.Data); err != nil {
					t.Errorf("%s: %v", in, err)
				}
				if out := string(AppendResponse(nil, version, r.ID, stats)); out != in || stats.Login == nil {
					t.Errorf("page %s\ncode %s", in, out)
				}
			}
			for member, data := range map[string]interface {
				Data
				json.Unmarshaler
			}{`"session_id":`: new(Session), `"status":`: new(Poll)} {
				if !bytes.HasPrefix(r.Data, []byte("{"+member)) {
					continue
				}
				logins++
				if err := data.UnmarshalJSON(r.Data); err != nil {
					t.Errorf("%s: %v", in, err)
				}
				if out := string(AppendResponse(nil, version, r.ID, data)); out != in {
					t.Errorf("page %s\ncode %s", in, out)
				}
			}
			if !r.OK {
				if out := string(AppendError(nil, version, r.ID, r.Err)); out != in {
					t.Errorf("page %s\ncode %s", in, out)
				}
			}
		}
		if strings.HasPrefix(line, "00 00 00 ") {
			frame, err := hex.DecodeString(strings.ReplaceAll(line, " ", ""))
			if err != nil || !bytes.Equal(frame[4:], []byte(`{"v":1,"op":"handshake"}`)) || int(frame[3]) != len(frame)-4 {
				t.Errorf("%s: %q, %v", line, frame, err)
			}
		}
	}
	for _, s := range shapes {
		if !requests[s.op] {
			t.Errorf("no example of %s", s.op)
		}
		if !bytes.Contains(page, []byte("| `"+string(s.op)+"`")) {
			t.Errorf("no line for %s in the table of operations", s.op)
		}
	}
	for _, code := range codes {
		if !bytes.Contains(page, []byte("| `"+string(code)+"` |")) {
			t.Errorf("no line for %s in the table of codes", code)
		}
	}
	if logins < 6 {
		t.Errorf("%d answers about logins", logins)
	}
	for _, name := range sessionNames {
		if !bytes.Contains(page, []byte("`"+name+"`")) {
			t.Errorf("no line for %s in the table of oauth_initiate's members", name)
		}
	}
	for _, name := range statusNames {
		if !bytes.Contains(page, []byte("| `"+name+"` |")) {
			t.Errorf("no line for %s in the table of a login's members", name)
		}
	}
	if !bytes.Contains(page, []byte("begins with `"+LoginNeededPrefix+"`")) {
		t.Errorf("the page does not say %q", LoginNeededPrefix)
	}
	if answers < len(shapes) {
		t.Errorf("%d answers for %d operations", answers, len(shapes))
	}
}
