package wire

import (
	"bytes"
	"math"
	"slices"
)

// What a client decodes. It is as strict as what a server decodes, so that neither can be made to see something else
// than the other.

var (
	replyNames    = []string{"v", "id", "op", "ok", "data", "code", "error", "retryAfter"}
	acceptedNames = []string{"version"}
)

// The places of the members in replyNames.
const (
	replyV = iota
	replyID
	replyOp
	replyOK
	replyData
	replyCode
	replyError
	replyRetryAfter
	replyMembers
)

// DecodeHandshakeReply decodes a server's first frame. When the server refused, the error is an [*Error]; when the
// frame is no answer to a handshake, a [*SyntaxError] or a [*RuleError].
func DecodeHandshakeReply(payload []byte) (version int, err error) {
	var m [replyMembers][]byte
	if err := decodeObject(payload, replyNames, m[:]); err != nil {
		return 0, err
	}
	switch string(m[replyOK]) {
	case "false":
		return 0, decodeFailure(m[:])
	case "true":
	default:
		return 0, &RuleError{"ok must be true or false"}
	}
	if op, ok := text(m[replyOp]); !ok || string(op) != string(OpHandshake) {
		return 0, &RuleError{"op must be handshake"}
	}
	var data [1][]byte
	if err := decodeObject(m[replyData], acceptedNames, data[:]); err != nil {
		return 0, err
	}
	v, ok := integer(m[replyV])
	version, ok2 := integer(data[0])
	if !ok || !ok2 || v != version || version < MinVersion || version > MaxVersion {
		return 0, &RuleError{"the version is not one of those offered"}
	}
	return version, nil
}

// DecodeResponse decodes an answer on a connection that speaks version. Nothing of the result refers to payload. The
// error is a [*SyntaxError] or a [*RuleError].
func DecodeResponse(payload []byte, version int) (Response, error) {
	var m [replyMembers][]byte
	if err := decodeObject(payload, replyNames, m[:]); err != nil {
		return Response{}, err
	}
	if v, ok := integer(m[replyV]); !ok || v != version {
		return Response{}, &RuleError{"v must be the negotiated version"}
	}
	id, ok := text(m[replyID])
	if !ok {
		return Response{}, &RuleError{"id must be a string"}
	}
	r := Response{ID: string(id)}
	switch string(m[replyOK]) {
	case "true":
		if data := m[replyData]; len(data) == 0 || data[0] != '{' {
			return r, &RuleError{"data must be an object"}
		}
		r.OK, r.Data = true, bytes.Clone(m[replyData])
	case "false":
		r.Err = decodeFailure(m[:])
	default:
		return r, &RuleError{"ok must be true or false"}
	}
	return r, nil
}

var codes = []Code{
	CodeNotFound, CodeInvalidRequest, CodeRateLimited, CodeUnauthorized, CodeInternal, CodeUnknownVersion,
	CodeSessionNotFound, CodeSessionExpired, CodeSessionAlreadyUsed, CodeExchangeFailed, CodeProviderNotFound,
	CodeCancelled, CodeResponseTooLarge,
}

// decodeFailure takes code, error and retryAfter. The set of codes is closed: another one becomes CodeInternal.
func decodeFailure(m [][]byte) *Error {
	code, _ := text(m[replyCode])
	message, _ := text(m[replyError])
	e := E(Code(code), string(message))
	if !slices.Contains(codes, e.Code) {
		e.Code = CodeInternal
	}
	if s, ok := number(m[replyRetryAfter]); ok && e.Code == CodeRateLimited && s > 0 {
		e.RetryAfter = int(math.Ceil(min(s, math.MaxInt32)))
	}
	return e
}

// decodeStrings reads {"name": [string, …]}.
func decodeStrings(raw []byte, name string) ([]string, error) {
	var member [1][]byte
	if err := decodeObject(raw, []string{name}, member[:]); err != nil {
		return nil, err
	}
	wrong := &RuleError{name + " must be an array of strings"}
	if len(member[0]) == 0 || member[0][0] != '[' {
		return nil, wrong
	}
	s := scanner{in: member[0]}
	s.begin()
	list := []string{}
	for s.more() {
		item, ok := text(s.value())
		if !ok {
			return nil, wrong
		}
		list = append(list, string(item))
	}
	return list, nil
}

// UnmarshalJSON decodes the data of list_providers.
func (p *Providers) UnmarshalJSON(raw []byte) error {
	list, err := decodeStrings(raw, "providers")
	if err == nil {
		*p = list
	}
	return err
}

// UnmarshalJSON decodes the data of list_buckets.
func (b *Buckets) UnmarshalJSON(raw []byte) error {
	list, err := decodeStrings(raw, "buckets")
	if err == nil {
		*b = list
	}
	return err
}

// UnmarshalJSON decodes the data of list_api_keys.
func (k *APIKeys) UnmarshalJSON(raw []byte) error {
	list, err := decodeStrings(raw, "keys")
	if err == nil {
		*k = list
	}
	return err
}

// UnmarshalJSON decodes the data of get_api_key.
func (k *APIKey) UnmarshalJSON(raw []byte) error {
	var m [1][]byte
	if err := decodeObject(raw, []string{"key"}, m[:]); err != nil {
		return err
	}
	key, ok := text(m[0])
	if !ok {
		return &RuleError{"key must be a string"}
	}
	*k = APIKey(key)
	return nil
}

// UnmarshalJSON decodes the data of has_api_key.
func (e *Exists) UnmarshalJSON(raw []byte) error {
	var m [1][]byte
	if err := decodeObject(raw, []string{"exists"}, m[:]); err != nil {
		return err
	}
	*e = string(m[0]) == "true"
	if !*e && string(m[0]) != "false" {
		return &RuleError{"exists must be true or false"}
	}
	return nil
}

// UnmarshalJSON decodes the data of get_bucket_stats.
func (b *BucketStats) UnmarshalJSON(raw []byte) error {
	var m [4][]byte
	if err := decodeObject(raw, []string{"bucket", "requestCount", "percentage", "login"}, m[:]); err != nil {
		return err
	}
	bucket, ok := text(m[0])
	count, ok2 := integer(m[1])
	percentage, ok3 := number(m[2])
	if !ok || !ok2 || !ok3 {
		return &RuleError{"bucket must be a string, requestCount and percentage numbers"}
	}
	d := BucketStats{Bucket: string(bucket), RequestCount: count, Percentage: percentage}
	if login := m[3]; login != nil && login[0] != 'n' {
		d.Login = new(LoginStatus)
		if err := d.Login.UnmarshalJSON(login); err != nil {
			return err
		}
	}
	*b = d
	return nil
}

// optionalText returns the content of raw when it is a string, and "" when the member is absent or null.
func optionalText(raw []byte) (s string, ok bool) {
	if raw == nil || raw[0] == 'n' {
		return "", true
	}
	b, ok := text(raw)
	return string(b), ok
}
