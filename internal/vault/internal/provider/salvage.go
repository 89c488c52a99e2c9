package provider

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Salvage finds the new refresh token in a 2xx answer that [Provider.Parse] cannot read, or of which only the beginning
// arrived: the old one is used up then, and the new one all that is left of the login. It is a complete string at the
// top level of a JSON object, or a complete member of a form, printable, and not the refresh token of old, which may be
// nil. The zero secret when there is none.
func (p *Provider) Salvage(a Answer, old *grant.Grant) (refreshToken secret.String) {
	used := ""
	if old != nil {
		used = old.RefreshToken.Reveal()
	}
	return secret.New(salvage(a.Body, used))
}

// salvage is Salvage with the refresh token that was used.
func salvage(body []byte, used string) string {
	body = unmarked(body)
	token := ""
	if bytes.HasPrefix(body, []byte("{")) {
		token = stringMember(body, "refresh_token")
	} else if whole := bytes.LastIndexByte(body, '&'); whole >= 0 { // what is behind it may have been cut off
		token = text(formMembers(body[:whole])["refresh_token"])
	}
	if token == used || !printable(token) {
		return ""
	}
	return token
}

// wholeMembers is what arrived of an answer, without a form's last member, which may have been cut off: nothing in its
// text would tell.
func wholeMembers(body []byte) []byte {
	if bytes.HasPrefix(unmarked(body), []byte("{")) {
		return body
	}
	return body[:bytes.LastIndexByte(body, '&')+1]
}

// stringMember returns the last complete string that the JSON object has as its member name, not as a member of a
// member. What follows the object, and its own end, may be missing or anything.
func stringMember(object []byte, name string) (value string) {
	var (
		depth  int
		before byte // the last byte of the structure; '"' for a string, 0 for what is no JSON
		key    string
	)
	for i := 0; i < len(object); i++ {
		c := object[i]
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return value
			}
		case ':':
			if before != '"' {
				c = 0
			}
		case '"':
			length := quoted(object[i:])
			if length == 0 {
				return value
			}
			s := object[i : i+length]
			i += length - 1
			switch {
			case depth != 1:
			case before == '{', before == ',':
				key = text(s)
			case before == ':' && key == name && endsMember(object[i+1:]):
				value = text(s)
			}
		}
		before = c
	}
	return value
}

// quoted is the length of the JSON string that b begins with, 0 when its end is missing.
func quoted(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// endsMember reports whether a member's value can end before rest.
func endsMember(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return len(rest) == 0 || rest[0] == ',' || rest[0] == '}'
}

// decode reads the members of an answer: of a JSON object, whatever stands behind it, or of a form, which some
// providers send in spite of the Accept header. A byte order mark is no part of either (RFC 8259 section 8.1). It is
// nil when the answer is neither.
func decode(body []byte) map[string]json.RawMessage {
	body = unmarked(body)
	var members map[string]json.RawMessage
	if json.NewDecoder(bytes.NewReader(body)).Decode(&members) == nil {
		return members
	}
	return formMembers(body)
}

// decodeObject is decode for an answer that may be cut off: nil unless it is a complete JSON object. Of a form nobody
// can tell.
func decodeObject(body []byte) map[string]json.RawMessage {
	if body = unmarked(body); bytes.HasPrefix(body, []byte("{")) {
		return decode(body)
	}
	return nil
}

// formMembers reads a form with a token or an error in it. Nil for anything else: a page or a text with a = in it is no
// form.
func formMembers(body []byte) map[string]json.RawMessage {
	form := string(bytes.TrimRight(body, " \t\r\n"))
	if strings.ContainsFunc(form, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"<>{}\`, r) }) {
		return nil
	}
	values, err := url.ParseQuery(form)
	if err != nil || !values.Has("access_token") && !values.Has("refresh_token") && !values.Has("error") {
		return nil
	}
	members := make(map[string]json.RawMessage, len(values))
	for name := range values {
		members[name], _ = json.Marshal(values.Get(name)) // a string always marshals
	}
	return members
}

// unmarked is b without a byte order mark and the space in front.
func unmarked(b []byte) []byte {
	return bytes.TrimLeft(bytes.TrimPrefix(b, []byte("\ufeff")), " \t\r\n")
}
