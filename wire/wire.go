// Package wire is the protocol between a sandbox and the credential proxy: operations, error codes, the token as it
// crosses the socket, and their strict encoding. It does no I/O; docs/protocol.md is the normative text.
//
// A server calls [DecodeHandshake] and [DecodeRequest] on the payload of each frame and answers with
// [AppendHandshake], [AppendHandshakeError], [AppendResponse] or [AppendError]. A client does the reverse with
// [AppendHandshakeRequest], [AppendRequest], [DecodeHandshakeReply] and [DecodeResponse].
//
// Nothing in this package has a field for a refresh token, a PKCE verifier, a device code or a client secret, and
// [Token.Set] removes members with such names at any depth: what the wire cannot name cannot cross it.
package wire

import (
	"strconv"
	"strings"
)

// Protocol versions. Version 2 has larger frames, [OpCancel], [CodeCancelled] and [CodeResponseTooLarge].
const (
	Version1   = 1
	Version2   = 2
	MinVersion = Version1
	MaxVersion = Version2
)

// MaxPayload returns the largest payload of a frame, in bytes, that the given version allows. Handshake frames
// precede a version: they obey version 1.
func MaxPayload(version int) int {
	if version >= Version2 {
		return 4 << 20
	}
	return 64 << 10
}

// Limits of strict decoding.
const (
	MaxDepth   = 32   // levels of nested objects and arrays
	MaxMembers = 1024 // members of one object
	MaxNameLen = 64   // bytes of a provider, bucket or key name
	MaxIDLen   = 1024 // bytes of a request id
	MaxCodeLen = 4096 // bytes of what a user pasted, in oauth_exchange
)

// MaxInFlight is the number of requests of one connection that may be unanswered; a server leaves further ones
// unread.
const MaxInFlight = 64

// DefaultBucket is the bucket meant by a request that names none.
const DefaultBucket = "default"

// Op is an operation's name.
type Op string

// The operations of the protocol. Anything else is [CodeInvalidRequest].
const (
	OpHandshake      Op = "handshake"
	OpGetToken       Op = "get_token"
	OpSaveToken      Op = "save_token"
	OpRemoveToken    Op = "remove_token"
	OpListProviders  Op = "list_providers"
	OpListBuckets    Op = "list_buckets"
	OpGetBucketStats Op = "get_bucket_stats"
	OpRefreshToken   Op = "refresh_token"
	OpGetAPIKey      Op = "get_api_key"
	OpHasAPIKey      Op = "has_api_key"
	OpListAPIKeys    Op = "list_api_keys"
	OpOAuthInitiate  Op = "oauth_initiate"
	OpOAuthExchange  Op = "oauth_exchange"
	OpOAuthPoll      Op = "oauth_poll"
	OpOAuthCancel    Op = "oauth_cancel"
	OpCancel         Op = "cancel" // version 2
)

// FlowType names a login flow in oauth_initiate.
type FlowType string

// The login flows.
const (
	FlowPKCERedirect    FlowType = "pkce_redirect"    // the user pastes a code
	FlowDeviceCode      FlowType = "device_code"      // RFC 8628
	FlowBrowserRedirect FlowType = "browser_redirect" // RFC 8252 loopback redirect on the host
)

// Code is one of the closed set of error codes.
type Code string

// The error codes. CodeCancelled and CodeResponseTooLarge exist from version 2.
const (
	CodeNotFound           Code = "NOT_FOUND"
	CodeInvalidRequest     Code = "INVALID_REQUEST"
	CodeRateLimited        Code = "RATE_LIMITED"
	CodeUnauthorized       Code = "UNAUTHORIZED"
	CodeInternal           Code = "INTERNAL_ERROR"
	CodeUnknownVersion     Code = "UNKNOWN_VERSION"
	CodeSessionNotFound    Code = "SESSION_NOT_FOUND"
	CodeSessionExpired     Code = "SESSION_EXPIRED"
	CodeSessionAlreadyUsed Code = "SESSION_ALREADY_USED"
	CodeExchangeFailed     Code = "EXCHANGE_FAILED"
	CodeProviderNotFound   Code = "PROVIDER_NOT_FOUND"
	CodeCancelled          Code = "CANCELLED"
	CodeResponseTooLarge   Code = "RESPONSE_TOO_LARGE"
)

// Error is a failure as it crosses the socket. Its message is made from known-safe parts only: never from a
// provider's answer, a store's content or another error's text.
type Error struct {
	Code       Code
	Message    string
	RetryAfter int // seconds; only with CodeRateLimited
}

// E returns an Error. It takes no format, so that a message stays made of known-safe parts.
func E(code Code, message string) *Error { return &Error{Code: code, Message: message} }

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	if e.Code == CodeRateLimited && e.RetryAfter > 0 {
		return e.Message + " (retry after " + strconv.Itoa(e.RetryAfter) + " s)"
	}
	return e.Message
}

// message is the text that crosses: never empty.
func (e *Error) message() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return e.Message
}

// ForVersion returns e as it may cross to a peer of version v: a code that came later becomes [CodeInternal].
func (e *Error) ForVersion(v int) *Error {
	if v < Version2 && (e.Code == CodeCancelled || e.Code == CodeResponseTooLarge) {
		return E(CodeInternal, e.message())
	}
	return e
}

// Is reports whether target is an *Error with the same code, so that callers compare by code:
// errors.Is(err, wire.ErrNotFound).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// LoginNeededPrefix begins the text of a [CodeInternal] that only a new login on the host can mend: there is no refresh
// token, or the provider has revoked it. The protocol has no code for it.
const LoginNeededPrefix = "login needed: "

// LoginNeeded reports whether trying again is useless until somebody has logged in on the host.
func (e *Error) LoginNeeded() bool {
	return e.Code == CodeInternal && strings.HasPrefix(e.Message, LoginNeededPrefix)
}

// Errors to compare with in errors.Is.
var (
	ErrNotFound           = &Error{Code: CodeNotFound}
	ErrInvalidRequest     = &Error{Code: CodeInvalidRequest}
	ErrRateLimited        = &Error{Code: CodeRateLimited}
	ErrUnauthorized       = &Error{Code: CodeUnauthorized}
	ErrInternal           = &Error{Code: CodeInternal}
	ErrUnknownVersion     = &Error{Code: CodeUnknownVersion}
	ErrSessionNotFound    = &Error{Code: CodeSessionNotFound}
	ErrSessionExpired     = &Error{Code: CodeSessionExpired}
	ErrSessionAlreadyUsed = &Error{Code: CodeSessionAlreadyUsed}
	ErrExchangeFailed     = &Error{Code: CodeExchangeFailed}
	ErrProviderNotFound   = &Error{Code: CodeProviderNotFound}
	ErrCancelled          = &Error{Code: CodeCancelled}
	ErrResponseTooLarge   = &Error{Code: CodeResponseTooLarge}
)

// ValidName reports whether s may name a provider, a bucket or an API key: 1 to 64 characters of
// A–Z a–z 0–9 . _ -
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxNameLen {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
