package wire

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"unicode"
)

// maxSessionIDLen is the limit of a login's id in bytes. A server's own are shorter; what is longer is none of its ids.
const maxSessionIDLen = 128

// wrongToken is a capability token that no server has: JSON strings are UTF-8, and this is not.
const wrongToken = "\xff"

// lookup finds the member that the scanner stands at among known. It reports the index, or -1; exact is false when
// only the case differs.
func (s *scanner) lookup(known []string) (i int, exact bool) {
	for i, k := range known {
		if string(s.name) == k {
			return i, true
		}
	}
	for i, k := range known {
		if len(k) == len(s.name) && equalFold(s.name, k) {
			return i, false
		}
	}
	return -1, false
}

// equalFold compares ASCII letters without regard to case; other names have been refused already.
func equalFold(a []byte, b string) bool {
	for i, c := range a {
		d := b[i]
		if c != d && (c|0x20 != d|0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

const wrongCase = "a member's name is in the wrong case"

// members reads the object that must stand here. The values of the known members go to raw, at the same index; with
// other, the rest goes there, else it is checked and ignored.
func (s *scanner) members(known []string, raw [][]byte, other func()) {
	s.object()
	for s.more() {
		i, exact := s.lookup(known)
		switch {
		case exact:
			raw[i] = s.value()
			continue
		case i >= 0:
			s.rule(wrongCase)
		case other != nil:
			other()
			continue
		}
		s.value()
	}
}

// decodeObject reads payload, which must be one object.
func decodeObject(payload []byte, known []string, raw [][]byte) error {
	s := scanner{in: payload}
	s.members(known, raw, nil)
	s.end()
	return s.err()
}

// text returns the content of raw when it is a string.
func text(raw []byte) (content []byte, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return nil, false
	}
	return unquote(raw), true
}

// number returns the value of raw when it is a number; huge ones are ±Inf.
func number(raw []byte) (f float64, ok bool) {
	if len(raw) == 0 || raw[0] != '-' && !isDigit(raw[0]) {
		return 0, false
	}
	f, _ = strconv.ParseFloat(string(raw), 64)
	return f, true
}

// integer returns the value of raw when it is a number without a fraction, however it is written (1, 1.0, 1e0).
// Numbers beyond 32 bits become the nearest one within.
func integer(raw []byte) (n int, ok bool) {
	if len(raw) == 1 && isDigit(raw[0]) {
		return int(raw[0] - '0'), true
	}
	f, ok := number(raw)
	if !ok || f != math.Trunc(f) {
		return 0, false
	}
	return int(max(math.MinInt32, min(math.MaxInt32, f))), true
}

// hasControl finds the C1 controls (U+0080 to U+009F) too: a terminal obeys U+009B as it does ESC [.
func hasControl(s []byte) bool { return bytes.ContainsFunc(s, unicode.IsControl) }

var (
	frameNames     = []string{"v", "id", "op", "payload"}
	handshakeNames = []string{"minVersion", "maxVersion", "capabilityToken"}
	payloadNames   = []string{"provider", "bucket", "name", "token", "flow", "session_id", "code", "targetId", "detail"}
)

// The places of the members in frameNames.
const (
	frameV = iota
	frameID
	frameOp
	framePayload
	frameMembers
)

// The places of the members in payloadNames.
const (
	fieldProvider = iota
	fieldBucket
	fieldName
	fieldToken
	fieldFlow
	fieldSessionID
	fieldCode
	fieldTargetID
	fieldDetail
	fields
)

// fieldSet has a bit for each place in payloadNames.
type fieldSet uint

// shape is what an operation's payload looks like.
type shape struct {
	op                 Op
	required, optional fieldSet
	since              int // the first version that has the operation
}

var shapes = func() map[string]shape {
	const (
		provider = fieldSet(1 << fieldProvider)
		bucket   = fieldSet(1 << fieldBucket)
		name     = fieldSet(1 << fieldName)
		token    = fieldSet(1 << fieldToken)
		flow     = fieldSet(1 << fieldFlow)
		session  = fieldSet(1 << fieldSessionID)
		code     = fieldSet(1 << fieldCode)
		target   = fieldSet(1 << fieldTargetID)
		detail   = fieldSet(1 << fieldDetail)
	)
	m := make(map[string]shape)
	for _, s := range []shape{
		{OpGetToken, provider, bucket, Version1},
		{OpSaveToken, provider | token, bucket, Version1},
		{OpRemoveToken, provider, bucket, Version1},
		{OpListProviders, 0, 0, Version1},
		{OpListBuckets, provider, 0, Version1},
		{OpGetBucketStats, provider, bucket | detail, Version1},
		{OpRefreshToken, provider, bucket, Version1},
		{OpGetAPIKey, name, 0, Version1},
		{OpHasAPIKey, name, 0, Version1},
		{OpListAPIKeys, 0, 0, Version1},
		{OpOAuthInitiate, provider, bucket | flow | detail, Version1},
		{OpOAuthExchange, session | code, 0, Version1},
		{OpOAuthPoll, session, 0, Version1},
		{OpOAuthCancel, session, 0, Version1},
		{OpCancel, target, 0, Version2},
	} {
		m[string(s.op)] = s
	}
	return m
}()

// DecodeRequest decodes and validates one request of a connection that speaks version. Nothing of the result refers
// to payload.
//
// The error is a [*SyntaxError] when payload is not one JSON object, and a [*RuleError] when it breaks a rule of the
// protocol; with a RuleError, ID is set when the request had a valid one, so that it can be answered.
func DecodeRequest(payload []byte, version int) (Request, error) {
	var (
		frame     [frameMembers][]byte
		field     [fields][]byte
		miscased  fieldSet // members of the payload that have the name of a field but for its case
		ids       int
		isPayload bool
	)
	s := scanner{in: payload}
	s.object()
	for s.more() {
		i, exact := s.lookup(frameNames)
		switch {
		case !exact:
			if i >= 0 {
				s.rule(wrongCase)
			}
			s.value()
		case i == framePayload && s.peek() == '{':
			isPayload = true
			s.begin()
			for s.more() {
				switch j, exact := s.lookup(payloadNames); {
				case exact:
					field[j] = s.value()
				default:
					if j >= 0 {
						miscased |= 1 << j
					}
					s.value()
				}
			}
		default:
			if i == frameID {
				ids++
			}
			frame[i] = s.value()
		}
	}
	s.end()

	var r Request
	if s.syntax != "" {
		return r, s.err()
	}
	// Of two ids, neither is known to be the one that the peer waits for.
	if id, ok := text(frame[frameID]); ok && ids == 1 && len(id) > 0 && len(id) <= MaxIDLen {
		r.ID = string(id)
	}
	if s.broken != "" {
		return r, s.err()
	}
	if r.ID == "" {
		return r, &RuleError{"id must be a string of 1 to 1024 bytes"}
	}
	if v, ok := integer(frame[frameV]); !ok || v != version {
		return r, &RuleError{"v must be the negotiated version"}
	}
	op, _ := text(frame[frameOp])
	sh, ok := shapes[string(op)]
	if !ok || version < sh.since {
		if string(op) == string(OpHandshake) {
			return r, &RuleError{"the handshake is done already"}
		}
		return r, &RuleError{"op is not an operation of this version"}
	}
	if !isPayload && frame[framePayload] != nil {
		return r, &RuleError{"payload must be an object"}
	}
	if miscased&(sh.required|sh.optional) != 0 {
		return r, &RuleError{wrongCase}
	}
	r.Op = sh.op
	return r, r.fill(sh, &field)
}

// fill takes the fields that the shape knows.
func (r *Request) fill(sh shape, field *[fields][]byte) error {
	r.Bucket = DefaultBucket
	for i, raw := range field {
		known := sh.required | sh.optional
		if known>>i&1 == 0 {
			continue
		}
		if raw == nil {
			if sh.required>>i&1 != 0 {
				return &RuleError{"payload." + payloadNames[i] + " is missing"}
			}
			continue
		}
		switch i {
		case fieldToken:
			if raw[0] != '{' {
				return &RuleError{"payload.token must be an object"}
			}
			t, err := DecodeToken(raw)
			if err != nil {
				return &RuleError{"payload.token: " + err.Error()}
			}
			r.Token = t
			continue
		case fieldDetail:
			r.Detail = string(raw) == "true"
			if !r.Detail && string(raw) != "false" {
				return &RuleError{"payload.detail must be true or false"}
			}
			continue
		}
		s, ok := text(raw)
		if ok {
			ok = r.set(i, s)
		}
		if !ok {
			return &RuleError{"payload." + payloadNames[i] + fieldRules[i]}
		}
	}
	return nil
}

const nameRule = " must be 1 to 64 characters of A-Z a-z 0-9 . _ -"

var fieldRules = [fields]string{
	fieldProvider:  nameRule,
	fieldBucket:    nameRule,
	fieldName:      nameRule,
	fieldFlow:      " must be pkce_redirect, device_code or browser_redirect",
	fieldSessionID: " must be a string of 1 to 128 bytes without control characters",
	fieldCode:      " must be a string of 1 to 4096 bytes without control characters",
	fieldTargetID:  " must be a string of 1 to 1024 bytes",
}

// set stores the string s as the given field, if it is a valid one.
func (r *Request) set(field int, s []byte) bool {
	switch field {
	case fieldProvider:
		r.Provider = string(s)
		return ValidName(r.Provider)
	case fieldBucket:
		if string(s) != DefaultBucket {
			r.Bucket = string(s)
		}
		return ValidName(r.Bucket)
	case fieldName:
		r.Name = string(s)
		return ValidName(r.Name)
	case fieldFlow:
		r.Flow = FlowType(s)
		return r.Flow == FlowPKCERedirect || r.Flow == FlowDeviceCode || r.Flow == FlowBrowserRedirect
	case fieldSessionID:
		r.SessionID = string(s)
		return len(s) > 0 && len(s) <= maxSessionIDLen && !hasControl(s)
	case fieldCode:
		s = bytes.Trim(s, " \t\r\n") // a line end comes along with what was pasted
		r.Code = string(s)
		return len(s) > 0 && len(s) <= MaxCodeLen && !hasControl(s)
	case fieldTargetID:
		r.TargetID = string(s)
		return len(s) > 0 && len(s) <= MaxIDLen
	}
	return false
}

// DecodeHandshake decodes the first frame of a connection. Besides a [*SyntaxError] and a [*RuleError] it returns an
// [*Error] with [CodeUnknownVersion] when the versions are not integers. All three end the connection.
func DecodeHandshake(payload []byte) (Handshake, error) {
	var frame [frameMembers][]byte
	if err := decodeObject(payload, frameNames, frame[:]); err != nil {
		return Handshake{}, err
	}
	if op, ok := text(frame[frameOp]); !ok || string(op) != string(OpHandshake) {
		return Handshake{}, &RuleError{"the first frame must be a handshake"}
	}
	var member [3][]byte
	if raw := frame[framePayload]; raw != nil {
		if raw[0] != '{' {
			return Handshake{}, &RuleError{"payload must be an object"}
		}
		if err := decodeObject(raw, handshakeNames, member[:]); err != nil {
			return Handshake{}, err
		}
	}
	var h Handshake
	if raw := member[2]; raw != nil {
		token, ok := text(raw)
		h.CapabilityToken = string(token)
		if !ok {
			h.CapabilityToken = wrongToken
		}
	}
	for i, bound := range []*int{&h.Min, &h.Max} {
		raw := member[i]
		if raw == nil {
			raw = frame[frameV]
		}
		n, ok := integer(raw)
		if !ok {
			return h, E(CodeUnknownVersion, "the versions must be integers")
		}
		*bound = n
	}
	return h, nil
}

// Prune checks one JSON value as strictly as everything else here and returns it compact, without the members that
// name a long-lived secret ([LongLived]), at any depth. The error is a [*SyntaxError] or a [*RuleError].
func Prune(value json.RawMessage) (json.RawMessage, error) { return prune(value, 0) }

// prune is Prune for a value that has further levels around it.
func prune(value json.RawMessage, levels int) (json.RawMessage, error) {
	s := scanner{in: value, depth: levels}
	out := s.prune(make([]byte, 0, len(value)))
	s.end()
	if err := s.err(); err != nil {
		return nil, err
	}
	return out, nil
}

var tokenNames = []string{"access_token", "expiry", "token_type", "scope"}

// maxExpiry is the end of the year 9999: RFC 3339 has no later times, and milliseconds given as seconds exceed it.
const maxExpiry = 253402300799

const timeRule = " must be a number of seconds since 1970, up to the year 9999"

// unixTime returns the value of raw when it is a time; a fraction of a second is cut off.
func unixTime(raw []byte) (seconds int64, ok bool) {
	f, ok := number(raw)
	if !ok || !(f >= 0 && f < maxExpiry+1) {
		return 0, false
	}
	return int64(f), true
}

// DecodeToken decodes a token as save_token takes it and get_token answers it: access_token and token_type are
// strings, expiry is a number of Unix seconds, scope is a string or null, if there. Other members are kept in their
// order; those that name a long-lived secret are dropped at any depth. The error is a [*SyntaxError] or a
// [*RuleError].
func DecodeToken(raw []byte) (*Token, error) { return decodeToken(raw, false) }

// decodeToken is DecodeToken; with polled, raw is the data of oauth_poll, whose own members are none of the token's.
func decodeToken(raw []byte, polled bool) (*Token, error) {
	var (
		member [4][]byte
		t      Token
	)
	s := scanner{in: raw}
	s.members(tokenNames, member[:], func() {
		name := string(s.name)
		value := s.value()
		if LongLived(name) || polled && isPollName(name) || s.syntax != "" {
			return
		}
		// What could be wrong with the value has been found already.
		pruned, _ := prune(value, 0)
		t.extra = append(t.extra, Field{name, pruned})
	})
	s.end()
	if err := s.err(); err != nil {
		return nil, err
	}
	access, ok := text(member[0])
	if !ok || len(access) == 0 || hasControl(access) {
		return nil, &RuleError{"access_token must be a string that is not empty and has no control characters"}
	}
	expiry, ok := unixTime(member[1])
	if !ok {
		return nil, &RuleError{"expiry" + timeRule}
	}
	kind, ok := text(member[2])
	if !ok || len(kind) == 0 || hasControl(kind) {
		return nil, &RuleError{"token_type must be a string that is not empty and has no control characters"}
	}
	if raw := member[3]; raw != nil && raw[0] != 'n' {
		scope, ok := text(raw)
		if !ok {
			return nil, &RuleError{"scope must be a string"}
		}
		t.Scope = string(scope)
	}
	t.AccessToken, t.Expiry, t.TokenType = string(access), expiry, string(kind)
	return &t, nil
}
