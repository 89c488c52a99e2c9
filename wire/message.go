package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// Handshake is the first frame of a connection, from client to server.
type Handshake struct {
	Min, Max        int    // the versions the client speaks; from the frame's own v where the payload names none
	CapabilityToken string // "" when there is none
}

// Negotiate returns the highest version that both sides speak.
func (h Handshake) Negotiate() (version int, ok bool) {
	lo, hi := max(h.Min, MinVersion), min(h.Max, MaxVersion)
	return hi, h.Min <= h.Max && lo <= hi
}

// Request is one decoded and validated request: the members that its operation knows are present, of the right type
// and, for names, within [ValidName]. Members that an operation does not know are ignored. Bucket is [DefaultBucket]
// when the request had none.
type Request struct {
	ID        string
	Op        Op
	Provider  string
	Bucket    string
	Name      string
	Token     *Token
	Flow      FlowType // "" when the request had none
	SessionID string
	Code      string
	TargetID  string
	Detail    bool // of get_bucket_stats and oauth_initiate: what is an extension is wanted too ([LoginStatus], [Session])
}

// String, GoString, Format and LogValue print what is asked for, without its arguments: one may be the code of a login.
func (r Request) String() string             { return "wire.Request(" + string(r.Op) + ")" }
func (r Request) GoString() string           { return r.String() }
func (r Request) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(r.String())) }
func (r Request) LogValue() slog.Value       { return slog.StringValue(r.String()) }

// SyntaxError means that the bytes are not one JSON object in UTF-8. The stream cannot be trusted any more: a server
// may send an error frame, then closes.
type SyntaxError struct{ Reason string }

func (e *SyntaxError) Error() string { return "not a JSON object: " + e.Reason }

// RuleError means that the bytes are a JSON object which breaks a rule of the protocol: a duplicate name, a name in
// the wrong case, a wrong type, a missing member, a name out of range. A server answers it with
// [CodeInvalidRequest] and goes on. Its text holds names from the protocol only, never what the peer sent.
type RuleError struct{ Reason string }

func (e *RuleError) Error() string { return e.Reason }

// Data is the data of a successful response. Only this package can implement it: what has no type here cannot be
// answered over a socket.
type Data interface{ appendData(dst []byte) []byte }

// Empty is the data {} of save_token, remove_token, oauth_cancel and cancel.
type Empty struct{}

// Providers is the data of list_providers.
type Providers []string

// Buckets is the data of list_buckets.
type Buckets []string

// APIKeys is the data of list_api_keys.
type APIKeys []string

// APIKey is the data of get_api_key: the key itself. It prints, formats and logs as a placeholder and does not marshal;
// string(k) is the key.
type APIKey string

const redactedKey = "wire.APIKey(redacted)"

// String, GoString, Format and LogValue keep a key out of whatever prints an APIKey.
func (APIKey) String() string             { return redactedKey }
func (APIKey) GoString() string           { return redactedKey }
func (APIKey) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redactedKey)) }
func (APIKey) LogValue() slog.Value       { return slog.StringValue(redactedKey) }

// MarshalText fails: a key goes out through [AppendResponse] or string(k), never by being a part of something else.
func (APIKey) MarshalText() ([]byte, error) { return nil, errors.New("an API key does not marshal") }

// Exists is the data of has_api_key.
type Exists bool

// BucketStats is the data of get_bucket_stats. The proxy counts nothing: RequestCount and Percentage are 0. Login is nil
// unless the request had [Request.Detail] and the server knows that.
type BucketStats struct {
	Bucket       string       `json:"bucket"`
	RequestCount int          `json:"requestCount"`
	Percentage   float64      `json:"percentage"`
	Login        *LoginStatus `json:"login,omitempty"`
}

// Response is one decoded answer.
type Response struct {
	ID   string
	OK   bool
	Data json.RawMessage // with OK: compact or not, checked; DecodeToken and the data types' UnmarshalJSON read it
	Err  *Error          // without OK
}
