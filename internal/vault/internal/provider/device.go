package provider

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Device is one login by device code (RFC 8628). It prints as a placeholder; what a person has to see are its members.
// One goroutine at a time polls with it.
type Device struct {
	UserCode                string        // to be typed at VerificationURL
	VerificationURL         string        // https, or http on loopback
	VerificationURLComplete string        // has the user code in it; "" when there is none
	Interval                time.Duration // between polls at first, and before the first one; at least 1 s
	Lifetime                time.Duration // of the codes, from now on

	provider *Provider // resolved
	code     secret.String
	verifier secret.String // zero when the dialect has no PKCE here
	approved string        // with DeviceAuth: the authorization code, once it has come
}

const redactedDevice = "device(redacted)"

func (Device) String() string               { return redactedDevice }
func (Device) GoString() string             { return redactedDevice }
func (Device) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redactedDevice)) }
func (Device) LogValue() slog.Value         { return slog.StringValue(redactedDevice) }
func (Device) MarshalJSON() ([]byte, error) { return nil, secret.ErrMarshal }

const (
	defaultInterval = 5 * time.Second  // RFC 8628 section 3.5
	defaultLifetime = 15 * time.Minute // RFC 8628 has none
	maxInterval     = time.Hour
	maxDeviceLife   = 24 * time.Hour
	maxUserCode     = 256  // bytes
	maxPage         = 2048 // bytes of a verification URL
)

// StartDevice asks for a device code. Errors are *Error; an answer that a person could not use is Malformed.
func (c *Client) StartDevice(ctx context.Context, p *Provider, clientSecret secret.String) (*Device, error) {
	p, err := c.resolve(ctx, p, p.DeviceURL == "")
	if err != nil {
		return nil, err
	}
	switch {
	case p.DeviceURL == "":
		return nil, &Error{Kind: Refused, Provider: p.Name, reason: "it has no login by device code (device_url)"}
	case p.ClientSecretKey != "" && clientSecret.IsZero():
		return nil, p.MissingSecret()
	}
	d := p.dialect().Device
	login := &Device{provider: p}
	params := url.Values{}
	header := http.Header{}
	if d.Auth == nil && len(p.Scopes) > 0 {
		params.Set("scope", strings.Join(p.Scopes, " "))
	}
	if d.PKCE {
		login.verifier = secret.New(oauth2.GenerateVerifier())
		params.Set("code_challenge", oauth2.S256ChallengeFromVerifier(login.verifier.Reveal()))
		params.Set("code_challenge_method", "S256")
	}
	if d.RequestID != "" {
		header.Set(d.RequestID, NewUUID())
	}
	r, err := c.post(ctx, p, request{endpoint: p.DeviceURL, params: params, json: d.Auth != nil, header: header, secret: clientSecret})
	if err != nil {
		return nil, err
	}
	members := decodeObject(r.body)
	if r.status/100 != 2 || r.code() != "" && members["device_code"] == nil { // GitHub's errors have status 200
		e := p.refused(r, false)
		if d.Auth != nil && r.status == http.StatusNotFound {
			e.Kind, e.reason = Refused, "it does not offer the login by device code to this client"
		}
		return nil, e
	}
	if !login.read(members) {
		return nil, &Error{Kind: Malformed, Provider: p.Name, reason: "its answer is not that of a login by device code"}
	}
	return login, nil
}

// read takes the members of a device authorization response (RFC 8628 section 3.2), or of the dialect's own. It reports
// whether a person can log in with them, and whether the device code is not among what they will see.
func (l *Device) read(members map[string]json.RawMessage) bool {
	code := text(members["device_code"])
	l.UserCode = text(members["user_code"])
	l.VerificationURL = cmp.Or(text(members["verification_uri"]), text(members["verification_url"]))
	l.VerificationURLComplete = cmp.Or(text(members["verification_uri_complete"]), text(members["verification_url_complete"]))
	if auth := l.provider.dialect().Device.Auth; auth != nil {
		code = text(members["device_auth_id"])
		l.UserCode = cmp.Or(l.UserCode, text(members["usercode"]))
		l.VerificationURL, l.VerificationURLComplete = origin(l.provider.DeviceURL)+auth.Page, ""
	}
	l.code = secret.New(code)
	l.Interval = seconds(members["interval"], time.Second, maxInterval)
	if l.Interval == 0 {
		l.Interval = defaultInterval
	}
	if l.Lifetime = seconds(members["expires_in"], time.Second, maxDeviceLife); l.Lifetime == 0 {
		l.Lifetime = defaultLifetime
	}
	shows := func(s string) bool { return code != "" && strings.Contains(s, code) }
	if !openable(l.VerificationURLComplete) || shows(l.VerificationURLComplete) {
		l.VerificationURLComplete = "" // the other one does as well
	}
	return printable(code) && code != "" &&
		l.UserCode != "" && len(l.UserCode) <= maxUserCode && printable(l.UserCode) && !shows(l.UserCode) &&
		openable(l.VerificationURL) && !shows(l.VerificationURL)
}

// openable reports whether a person can be sent to address: an https URL, or http on loopback, of visible ASCII. Unlike an
// endpoint it may have a fragment, in which some pages have their routes.
func openable(address string) bool {
	page, _, _ := strings.Cut(address, "#")
	return visible(address, maxPage) && secureURL(page)
}

// seconds reads a number of seconds, or one in a string. 0 for what is no positive number; otherwise it is at least
// least and at most most.
func seconds(raw json.RawMessage, least, most time.Duration) time.Duration {
	n, ok := number(raw)
	if !ok || n <= 0 {
		return 0
	}
	return max(least, time.Duration(min(n*float64(time.Second), float64(most))))
}

// PollDevice asks once whether the person is done, and returns the grant if so. Errors are *Error; of Kind Pending or
// SlowDown, or Transient, another poll may succeed, and everything else is the end of the login.
func (c *Client) PollDevice(ctx context.Context, l *Device, clientSecret secret.String) (*grant.Grant, error) {
	p := l.provider
	if p.dialect().Device.Auth != nil {
		return c.pollDeviceAuth(ctx, l, clientSecret)
	}
	params := url.Values{
		"grant_type":  {"urn:ietf:params:oauth:grant-type:device_code"},
		"device_code": {l.code.Reveal()},
	}
	if !l.verifier.IsZero() {
		params.Set("code_verifier", l.verifier.Reveal())
	}
	r, err := c.post(ctx, p, request{endpoint: p.TokenURL, params: params, json: p.Encoding == "json", secret: clientSecret})
	if err != nil {
		return nil, err
	}
	if r.status/100 != 2 || text(decode(r.body)["access_token"]) == "" {
		return nil, p.notYet(r)
	}
	g, err := p.parse(Answer{r.body, r.sent}, nil, false)
	if err != nil {
		return nil, err
	}
	return g.WithoutFieldsOf(l.code, l.verifier), nil
}

// pollDeviceAuth is PollDevice with dialect.DeviceAuth.
func (c *Client) pollDeviceAuth(ctx context.Context, l *Device, clientSecret secret.String) (*grant.Grant, error) {
	p, auth := l.provider, l.provider.dialect().Device.Auth
	if l.approved == "" {
		at, err := url.Parse(p.DeviceURL)
		if err != nil {
			return nil, &Error{Kind: Refused, Provider: p.Name, reason: "device_url is not a URL"}
		}
		params := url.Values{"device_auth_id": {l.code.Reveal()}, "user_code": {l.UserCode}}
		r, err := c.post(ctx, p, request{endpoint: at.ResolveReference(&url.URL{Path: auth.Poll}).String(), params: params, json: true, anonymous: true})
		if err != nil {
			return nil, err
		}
		members := decodeObject(r.body)
		code, verifier := text(members["authorization_code"]), text(members["code_verifier"])
		switch {
		case r.status/100 != 2 || code == "" && r.code() != "":
			return nil, p.notYet(r)
		case code == "" || verifier == "" || len(code) > maxCode || !printable(code) || !printable(verifier):
			return nil, &Error{Kind: Malformed, Provider: p.Name, reason: "its answer holds no authorization code"}
		}
		l.approved, l.verifier = code, secret.New(verifier)
	}
	return c.exchange(ctx, p, l.approved, origin(p.DeviceURL)+auth.Callback, l.verifier, secret.String{}, clientSecret)
}

// notYet is the error of a poll's answer that brings no token (RFC 8628 section 3.5), with whatever status below 500.
func (p *Provider) notYet(r *reply) *Error {
	e := p.refused(r, false)
	d := p.dialect().Device
	pendingStatus := d.Auth != nil && slices.Contains(d.Auth.PendingStatuses, r.status)
	switch code := r.code(); {
	case r.status >= 500 || r.status/100 == 3:
	case code == "authorization_pending", d.Auth != nil && code == d.Auth.PendingCode:
		e.Kind, e.reason = Pending, "the person has not logged in yet"
	case code == "slow_down":
		e.Kind, e.reason = SlowDown, "it wants to be asked less often"
		e.Interval = seconds(decode(r.body)["interval"], time.Second, maxInterval)
	case slices.Contains(deniedCodes, code):
		e.Kind, e.reason = Denied, "the login was denied"
	case code == "expired_token", slices.Contains(d.Expired, r.status):
		e.Kind, e.reason = Expired, "the code of the login has expired"
	case pendingStatus:
		e.Kind, e.reason = Pending, "the person has not logged in yet"
	}
	return e
}
