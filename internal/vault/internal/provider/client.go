package provider

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Limits of one request to a provider.
const (
	requestTimeout = 15 * time.Second
	connectTimeout = 10 * time.Second
	headerTimeout  = 15 * time.Second
	maxBody        = 1 << 20 // bytes of an answer that are read
)

// Client sends requests to providers. One client serves all providers and is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient makes a client with TLS 1.2 or newer, the proxy of the environment (HTTPS_PROXY, NO_PROXY) and its own
// time limits. It follows no redirects: a redirected token request would carry its credential to another place.
func NewClient() *Client {
	return &Client{http: &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    connectTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout:        30 * time.Second,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Exchange turns an authorization code into a grant (RFC 6749 section 4.1.3, RFC 7636 section 4.5). Errors are
// *Error.
func (c *Client) Exchange(ctx context.Context, p *Provider, code, redirect string, verifier, clientSecret secret.String) (*grant.Grant, error) {
	return c.token(ctx, p, clientSecret, url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {redirect},
		"code_verifier": {verifier.Reveal()},
	})
}

// Revoke asks the provider to revoke a token (RFC 7009). hint is "refresh_token" or "access_token". A provider that
// does not know the token answers success, as the RFC wants.
func (c *Client) Revoke(ctx context.Context, p *Provider, token secret.String, hint string, clientSecret secret.String) error {
	if p.RevokeURL == "" {
		return &Error{Kind: Refused, Provider: p.Name, reason: "it has no revocation endpoint (revoke_url)"}
	}
	_, status, err := c.post(ctx, p, p.RevokeURL, clientSecret, url.Values{"token": {token.Reveal()}, "token_type_hint": {hint}})
	if err != nil {
		return err
	}
	if status != http.StatusOK && status != http.StatusNoContent {
		return &Error{Kind: Refused, Provider: p.Name, Status: status, reason: "it did not revoke the token"}
	}
	return nil
}

// token sends a token request and reads its answer.
func (c *Client) token(ctx context.Context, p *Provider, clientSecret secret.String, params url.Values) (*grant.Grant, error) {
	sent := time.Now() // the lifetime counts from before the answer was made, to be on the safe side
	body, status, err := c.post(ctx, p, p.TokenURL, clientSecret, params)
	if err != nil {
		return nil, err
	}
	if status/100 != 2 {
		return nil, failure(p, status, body)
	}
	g, failed := p.parseAnswer(body, sent)
	if failed != nil {
		failed.Provider = p.Name
		return nil, failed
	}
	return g, nil
}

// failure classifies an answer that is no success.
func failure(p *Provider, status int, body []byte) *Error {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(body, &members)
	code := oauthCode(members)
	var e *Error
	switch {
	case status == http.StatusTooManyRequests || status >= 500:
		e = &Error{Kind: Transient, Code: code, Status: status, reason: "it cannot answer now"}
	case status/100 == 3:
		e = &Error{Kind: Malformed, Status: status, reason: "it answered with a redirect, which is not followed"}
	case code != "":
		e = refusal(code, status)
	default:
		e = &Error{Kind: Refused, Status: status, reason: "it refused the request"}
	}
	e.Provider = p.Name
	return e
}

// post sends params as a form or as a JSON object and returns at most maxBody bytes of the answer. A confidential
// client authenticates with HTTP Basic, which every server must support, and in the body if that is not accepted
// (RFC 6749 section 2.3.1); a refused client does not use up a code.
func (c *Client) post(ctx context.Context, p *Provider, endpoint string, clientSecret secret.String, params url.Values) ([]byte, int, error) {
	params.Set("client_id", p.ClientID)
	if clientSecret.IsZero() {
		return c.send(ctx, p, endpoint, params, nil)
	}
	basic := func(r *http.Request) {
		r.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(clientSecret.Reveal()))
	}
	body, status, err := c.send(ctx, p, endpoint, params, basic)
	if err != nil || (status != http.StatusUnauthorized && !bytes.Contains(body, []byte("invalid_client"))) || status/100 == 2 {
		return body, status, err
	}
	params.Set("client_secret", clientSecret.Reveal())
	return c.send(ctx, p, endpoint, params, nil)
}

func (c *Client) send(ctx context.Context, p *Provider, endpoint string, params url.Values, authenticate func(*http.Request)) ([]byte, int, error) {
	payload, contentType := encode(p, params)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(payload))
	if err != nil {
		return nil, 0, &Error{Kind: Malformed, Provider: p.Name, reason: "its endpoint is not a URL"}
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	if authenticate != nil {
		authenticate(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, &Error{Kind: Transient, Provider: p.Name, reason: "it cannot be reached", err: networkError(err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, 0, &Error{Kind: Transient, Provider: p.Name, reason: "its answer broke off", err: networkError(err)}
	}
	if len(body) > maxBody {
		return nil, 0, &Error{Kind: Malformed, Provider: p.Name, Status: resp.StatusCode, reason: "its answer is longer than 1 MiB"}
	}
	return body, resp.StatusCode, nil
}

func encode(p *Provider, params url.Values) (payload, contentType string) {
	if !p.JSONBody {
		return params.Encode(), "application/x-www-form-urlencoded"
	}
	object := make(map[string]string, len(params))
	for name, values := range params {
		object[name] = values[0]
	}
	b, _ := json.Marshal(object) // a map of strings always marshals
	return string(b), "application/json"
}

// networkError says in words that are not the peer's why a request failed. The text of a *url.Error has the whole URL in
// it, and net/http quotes an answer that it cannot read: when that is not HTTP, what it quotes may be the tokens.
func networkError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && !op.Timeout() {
		return op // the system's words, or TLS's for an alert
	}
	timed, isNet := errors.AsType[net.Error](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case isNet && timed.Timeout():
		return errTimeout
	case otherName:
		return errors.New("its certificate is for another name")
	case unknown:
		return errors.New("its certificate is signed by an authority that this machine does not know")
	case invalid:
		return errors.New("its certificate is not valid, or not at the time that this machine's clock shows")
	case certificate:
		return errors.New("its certificate cannot be verified")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed too early")
	}
	return errors.New("what came back is not HTTP as it should be")
}

var errTimeout = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
