package oauthtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const formType = "application/x-www-form-urlencoded"

// body is what is sent to a vendor: by its content type and members.
type body struct {
	contentType string
	members     url.Values
	header      http.Header
}

func inForm(pairs ...string) body { return body{contentType: formType, members: members(pairs)} }
func inJSON(pairs ...string) body {
	return body{contentType: "application/json", members: members(pairs)}
}

func members(pairs []string) url.Values {
	v := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		v.Set(pair[0], pair[1])
	}
	return v
}

// but changes one member, or removes it with an empty value, or with an empty name the content type.
func (b body) but(name, value string) body {
	changed := body{b.contentType, url.Values{}, b.header.Clone()}
	maps.Copy(changed.members, b.members)
	switch {
	case name == "":
		changed.contentType = value
	case value == "":
		changed.members.Del(name)
	default:
		changed.members.Set(name, value)
	}
	return changed
}

func (b body) with(header, value string) body {
	b = b.but("none", "")
	if b.header == nil {
		b.header = http.Header{}
	}
	b.header.Set(header, value)
	return b
}

// sendBody sends a body and returns the answer.
func sendBody(t *testing.T, s *Server, e Endpoint, b body) (int, map[string]any) {
	t.Helper()
	text := b.members.Encode()
	if b.contentType == "application/json" {
		flat := map[string]string{}
		for name := range b.members {
			flat[name] = b.members.Get(name)
		}
		raw, err := json.Marshal(flat)
		if err != nil {
			t.Fatal(err)
		}
		text = string(raw)
	}
	rep, answer := send(t, s, e, b.contentType, text, b.header)
	return rep.StatusCode, answer
}

func mustSend(t *testing.T, s *Server, e Endpoint, b body) map[string]any {
	t.Helper()
	status, answer := sendBody(t, s, e, b)
	if status != 200 || answer["error"] != nil {
		t.Fatalf("%s: %d %v", e, status, answer)
	}
	return answer
}

// errorCode finds the code of an error in the shapes that are in use.
func errorCode(answer map[string]any) string {
	switch e := answer["error"].(type) {
	case string:
		return e
	case map[string]any:
		for _, name := range []string{"code", "type"} {
			if e[name] != nil {
				return fmt.Sprint(e[name])
			}
		}
	}
	return ""
}

// wrong are requests that a vendor must refuse.
func wrong(t *testing.T, s *Server, e Endpoint, status int, code string, bodies ...body) {
	t.Helper()
	for _, b := range bodies {
		got, answer := sendBody(t, s, e, b)
		if got != status || errorCode(answer) != code {
			t.Errorf("%s with %v: %d %q, want %d %q", e, slices.Sorted(maps.Keys(b.members)), got, errorCode(answer), status, code)
		}
	}
}

// approveURL opens an authorisation request and returns what came back.
func approveURL(t *testing.T, s *Server, query url.Values) (string, url.Values) {
	t.Helper()
	redirect, err := s.Approve(t.Context(), s.EndpointURL(Authorize)+"?"+strings.ReplaceAll(query.Encode(), "+", "%20"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(redirect)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	u.RawQuery = ""
	return u.String(), q
}

// refusedQueries are authorisation requests that end on a page with 400 and never in a redirect.
func refusedQueries(t *testing.T, s *Server, good url.Values, changes ...[2]string) {
	t.Helper()
	for _, c := range changes {
		q := inForm().but("", "").members
		maps.Copy(q, good)
		if q.Set(c[0], c[1]); c[1] == "" {
			q.Del(c[0])
		}
		rep := get(t, s, s.EndpointURL(Authorize)+"?"+strings.ReplaceAll(q.Encode(), "+", "%20"))
		text, _ := io.ReadAll(rep.Body)
		if rep.Body.Close(); rep.StatusCode != 400 || rep.Header.Get("Location") != "" {
			t.Errorf("authorise with %s=%q: %d %s", c[0], c[1], rep.StatusCode, text)
		}
	}
}

func claimsOf(t *testing.T, token any) map[string]any {
	t.Helper()
	parts := strings.Split(token.(string), ".")
	if len(parts) != 3 {
		t.Fatalf("a JWT of %d parts", len(parts))
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func text(answer map[string]any, name string) string { s, _ := answer[name].(string); return s }

func works(t *testing.T, s *Server, answer map[string]any) {
	t.Helper()
	access := text(answer, "access_token")
	if status, _ := use(t, s, access); status != 200 || !slices.Contains(s.Issued().All(), access) {
		t.Errorf("the access token: %d", status)
	}
}

func has(t *testing.T, answer map[string]any, names ...string) {
	t.Helper()
	var got []string
	for name := range answer {
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("the answer has %v, want %v", got, names)
	}
}
