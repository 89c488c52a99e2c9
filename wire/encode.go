package wire

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// The Append functions append the payload of one frame to dst, compact and with the members in the order of
// docs/protocol.md. Framing is the caller's.

// AppendHandshakeRequest appends a client's first frame. v is the frame's own version; capability may be "".
func AppendHandshakeRequest(dst []byte, v, minVersion, maxVersion int, capability string) []byte {
	dst = appendVersion(dst, v)
	dst = append(dst, `,"op":"handshake","payload":{"minVersion":`...)
	dst = strconv.AppendInt(dst, int64(minVersion), 10)
	dst = append(dst, `,"maxVersion":`...)
	dst = strconv.AppendInt(dst, int64(maxVersion), 10)
	if capability != "" {
		dst = appendMember(dst, `,"capabilityToken":`, capability)
	}
	return append(dst, `}}`...)
}

// AppendHandshake appends a server's acceptance with the negotiated version.
func AppendHandshake(dst []byte, version int) []byte {
	dst = appendVersion(dst, version)
	dst = append(dst, `,"op":"handshake","ok":true,"data":{"version":`...)
	dst = strconv.AppendInt(dst, int64(version), 10)
	return append(dst, `}}`...)
}

// AppendHandshakeError appends a server's refusal, after which it closes the connection.
func AppendHandshakeError(dst []byte, v int, e *Error) []byte {
	dst = appendVersion(dst, v)
	dst = append(dst, `,"op":"handshake","ok":false`...)
	return appendFailure(dst, v, e)
}

// AppendRequest appends a request, with the members that its operation knows; the default bucket is left out.
func AppendRequest(dst []byte, v int, r *Request) []byte {
	dst = appendVersion(dst, v)
	dst = appendMember(dst, `,"id":`, r.ID)
	dst = appendMember(dst, `,"op":`, string(r.Op))
	dst = append(dst, `,"payload":{`...)
	sh := shapes[string(r.Op)]
	start := len(dst)
	for i, name := range payloadNames {
		if (sh.required|sh.optional)>>i&1 == 0 {
			continue
		}
		value := r.get(i)
		if sh.optional>>i&1 != 0 && (value == "" || i == fieldBucket && value == DefaultBucket) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, `":`...)
		switch {
		case i == fieldDetail:
			dst = append(dst, value...)
		case i != fieldToken:
			dst = appendString(dst, value)
		case r.Token == nil:
			dst = append(dst, "null"...) // the server will refuse it
		default:
			dst = r.Token.appendData(dst)
		}
	}
	return append(dst, `}}`...)
}

func (r *Request) get(field int) string {
	switch field {
	case fieldProvider:
		return r.Provider
	case fieldBucket:
		return r.Bucket
	case fieldName:
		return r.Name
	case fieldFlow:
		return string(r.Flow)
	case fieldSessionID:
		return r.SessionID
	case fieldCode:
		return r.Code
	case fieldTargetID:
		return r.TargetID
	case fieldDetail:
		if r.Detail {
			return "true"
		}
	}
	return ""
}

// AppendResponse appends the answer to the request id.
func AppendResponse(dst []byte, v int, id string, data Data) []byte {
	dst = appendVersion(dst, v)
	dst = appendMember(dst, `,"id":`, id)
	dst = append(dst, `,"ok":true,"data":`...)
	dst = data.appendData(dst)
	return append(dst, '}')
}

// AppendError appends the failure of the request id. A code that version v does not have becomes [CodeInternal].
func AppendError(dst []byte, v int, id string, e *Error) []byte {
	dst = appendVersion(dst, v)
	dst = appendMember(dst, `,"id":`, id)
	dst = append(dst, `,"ok":false`...)
	return appendFailure(dst, v, e)
}

func appendFailure(dst []byte, v int, e *Error) []byte {
	e = e.ForVersion(v)
	dst = appendMember(dst, `,"code":`, string(e.Code))
	dst = appendMember(dst, `,"error":`, e.message())
	if e.Code == CodeRateLimited {
		dst = append(dst, `,"retryAfter":`...)
		dst = strconv.AppendInt(dst, int64(e.RetryAfter), 10)
	}
	return append(dst, '}')
}

func appendVersion(dst []byte, v int) []byte {
	return strconv.AppendInt(append(dst, `{"v":`...), int64(v), 10)
}

// appendMember appends prefix, which ends with the member's name and a colon, and the string s.
func appendMember(dst []byte, prefix, s string) []byte {
	return appendString(append(dst, prefix...), s)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; ; {
		i += plainLen(s[i:])
		if i == len(s) {
			break
		}
		c := s[i]
		if c < utf8.RuneSelf {
			if c == 0x7f { // is no plain byte, but stands for itself
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, `\n`...)
			case '\r':
				dst = append(dst, `\r`...)
			case '\t':
				dst = append(dst, `\t`...)
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\ufffd"...)
			start = i + n
		}
		i += n
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendStrings(dst []byte, name string, list []string) []byte {
	dst = append(dst, `{"`...)
	dst = append(dst, name...)
	dst = append(dst, `":[`...)
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return append(dst, `]}`...)
}

func (Empty) appendData(dst []byte) []byte       { return append(dst, `{}`...) }
func (p Providers) appendData(dst []byte) []byte { return appendStrings(dst, "providers", p) }
func (b Buckets) appendData(dst []byte) []byte   { return appendStrings(dst, "buckets", b) }
func (k APIKeys) appendData(dst []byte) []byte   { return appendStrings(dst, "keys", k) }

func (k APIKey) appendData(dst []byte) []byte {
	return append(appendMember(dst, `{"key":`, string(k)), '}')
}

func (e Exists) appendData(dst []byte) []byte {
	return append(strconv.AppendBool(append(dst, `{"exists":`...), bool(e)), '}')
}

func (b BucketStats) appendData(dst []byte) []byte {
	dst = appendMember(dst, `{"bucket":`, b.Bucket)
	dst = append(dst, `,"requestCount":`...)
	dst = strconv.AppendInt(dst, int64(b.RequestCount), 10)
	dst = append(dst, `,"percentage":`...)
	p := b.Percentage
	if math.IsNaN(p) || math.IsInf(p, 0) {
		p = 0
	}
	dst = strconv.AppendFloat(dst, p, 'f', -1, 64)
	if b.Login != nil {
		dst = b.Login.append(append(dst, `,"login":`...))
	}
	return append(dst, '}')
}

func (t Token) appendData(dst []byte) []byte {
	return append(t.appendMembers(append(dst, '{')), '}')
}

func (t *Token) appendMembers(dst []byte) []byte {
	dst = appendMember(dst, `"access_token":`, t.AccessToken)
	dst = append(dst, `,"expiry":`...)
	dst = strconv.AppendInt(dst, t.Expiry, 10)
	dst = appendMember(dst, `,"token_type":`, t.TokenType)
	if t.Scope != "" {
		dst = appendMember(dst, `,"scope":`, t.Scope)
	}
	for _, f := range t.extra {
		dst = append(dst, ',')
		dst = appendString(dst, f.Name)
		dst = append(dst, ':')
		dst = append(dst, f.Value...)
	}
	return dst
}
