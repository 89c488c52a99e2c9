package provider

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

const (
	metadataLife = time.Hour // how long an issuer's metadata are taken for true
	maxMetadata  = 256 << 10 // bytes of an issuer's metadata
)

// metadata are what an issuer says about itself (RFC 8414 section 2).
type metadata struct {
	authorize, token, device, revoke string
	issInAnswers                     bool
	until                            time.Time
}

// Resolve fills the endpoints that p's description does not have from its issuer's metadata: RFC 8414, or else OpenID
// Connect Discovery. The metadata must name the very issuer and have endpoints that are https, or http on loopback if
// the issuer is there too; they are kept for an hour. It returns p itself when nothing is missing or nobody could tell.
// Errors are *Error: Transient, or Unclear when the metadata are not to be used; never is anything secret sent.
//
// The requests of a client resolve what they need by themselves.
func (c *Client) Resolve(ctx context.Context, p *Provider) (*Provider, error) {
	missing := p.TokenURL == "" || p.AuthorizeURL == "" && p.DeviceURL == ""
	for _, flow := range p.Flows {
		missing = missing || flow == FlowDevice && p.DeviceURL == "" || flow != FlowDevice && p.AuthorizeURL == ""
	}
	return c.resolve(ctx, p, missing)
}

// resolve is Resolve when something is missing.
func (c *Client) resolve(ctx context.Context, p *Provider, missing bool) (*Provider, error) {
	if !missing && p.TokenURL != "" || p.Issuer == "" {
		return p, nil
	}
	m, err := c.metadata(ctx, p)
	if err != nil {
		return nil, err
	}
	resolved := *p
	resolved.AuthorizeURL = cmp.Or(p.AuthorizeURL, m.authorize)
	resolved.TokenURL = cmp.Or(p.TokenURL, m.token)
	resolved.DeviceURL = cmp.Or(p.DeviceURL, m.device)
	resolved.RevokeURL = cmp.Or(p.RevokeURL, m.revoke)
	resolved.issInAnswers = m.issInAnswers
	if p.Flows == nil {
		resolved.Flows = resolved.possibleFlows()
	}
	return &resolved, nil
}

// metadata are those of p's issuer, from the last hour or by asking.
func (c *Client) metadata(ctx context.Context, p *Provider) (metadata, error) {
	c.mu.Lock()
	m, ok := c.issuers[p.Issuer]
	c.mu.Unlock()
	if ok && time.Now().Before(m.until) {
		return m, nil
	}
	issuer, err := url.Parse(p.Issuer)
	if err != nil || !secureURL(p.Issuer) || issuer.RawQuery != "" || issuer.ForceQuery {
		return metadata{}, &Error{Kind: Unclear, Provider: p.Name, reason: "its issuer is not an https URL (or http on loopback) without a query"}
	}
	limit, cancel := WithRunningTimeout(ctx, c.limit)
	defer cancel()
	var failed *Error
	for _, at := range wellKnown(issuer) {
		m, e := c.fetchMetadata(limit, p, at)
		if e == nil {
			m.until = time.Now().Add(metadataLife)
			c.mu.Lock()
			c.issuers[p.Issuer] = m
			c.mu.Unlock()
			return m, nil
		}
		// The first place tells most, but that nothing is there tells least.
		if failed == nil || failed.Status == http.StatusNotFound {
			failed = e
		}
	}
	return metadata{}, failed
}

// wellKnown are the places of an issuer's metadata: with the well-known part in front of the issuer's path (RFC 8414
// section 3.1), and behind it (OpenID Connect Discovery section 4); last in front with OpenID Connect's name, as some have
// it who moved (RFC 8414 section 5).
func wellKnown(issuer *url.URL) []string {
	at, path := issuer.Scheme+"://"+issuer.Host, strings.TrimSuffix(issuer.EscapedPath(), "/")
	places := []string{
		at + "/.well-known/oauth-authorization-server" + path,
		at + path + "/.well-known/openid-configuration",
	}
	if path != "" {
		places = append(places, at+"/.well-known/openid-configuration"+path)
	}
	return places
}

// fetchMetadata asks one place.
func (c *Client) fetchMetadata(ctx context.Context, p *Provider, at string) (metadata, *Error) {
	failed := func(kind Kind, reason string) *Error { return &Error{Kind: kind, Provider: p.Name, reason: reason} }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return metadata{}, failed(Unclear, "its issuer is not a URL")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		e := failed(Transient, "its issuer cannot be reached")
		e.err = networkError(ended(ctx, err))
		return metadata{}, e
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMetadata+1))
	switch status := resp.StatusCode; {
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		e := failed(Transient, "its issuer cannot answer now")
		e.Status, e.RetryAfter = status, retryAfter(resp.Header)
		return metadata{}, e
	case status != http.StatusOK:
		e := failed(Unclear, "its issuer has no metadata")
		if status/100 == 3 {
			e.reason = "its issuer's metadata are a redirect, which is not followed"
		}
		e.Status = status
		return metadata{}, e
	case err != nil:
		e := failed(Transient, "its issuer's metadata broke off")
		e.err = networkError(ended(ctx, err))
		return metadata{}, e
	case len(body) > maxMetadata:
		return metadata{}, failed(Unclear, "its issuer's metadata are longer than 256 KiB")
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(unmarked(body), &members) != nil || members == nil {
		return metadata{}, failed(Unclear, "its issuer's metadata are not a JSON object")
	}
	if text(members["issuer"]) != p.Issuer { // RFC 8414 section 3.3
		return metadata{}, failed(Unclear, "its issuer's metadata are another issuer's; issuer must be written exactly as they have it")
	}
	m := metadata{
		authorize:    text(members["authorization_endpoint"]),
		token:        text(members["token_endpoint"]),
		device:       text(members["device_authorization_endpoint"]),
		revoke:       text(members["revocation_endpoint"]),
		issInAnswers: string(members["authorization_response_iss_parameter_supported"]) == "true",
	}
	if m.token == "" {
		return metadata{}, failed(Unclear, "its issuer's metadata have no token endpoint")
	}
	for _, endpoint := range []string{m.authorize, m.token, m.device, m.revoke} {
		if endpoint != "" && (!secureURL(endpoint) || loopbackHTTP(endpoint) && !onLoopback(p.Issuer)) {
			return metadata{}, failed(Unclear, "its issuer's metadata have an endpoint that is not https (or http on loopback, where the issuer is)")
		}
	}
	return m, nil
}

// secureURL reports whether a URL is https, or http on loopback, with a host, and without a user or a fragment.
func secureURL(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Opaque != "" || u.User != nil || strings.Contains(address, "#") {
		return false
	}
	return u.Scheme == "https" || loopbackHTTP(address)
}

// loopbackHTTP reports whether a URL is http on this machine.
func loopbackHTTP(address string) bool {
	return strings.HasPrefix(strings.ToLower(address), "http://") && onLoopback(address)
}

// onLoopback reports whether a URL's host can only be this machine: 127.0.0.0/8, ::1 or localhost (RFC 6761 section
// 6.3).
func onLoopback(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	if strings.EqualFold(u.Hostname(), "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.Zone() == "" && ip.IsLoopback()
}
