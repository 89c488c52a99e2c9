package provider

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// Limits of one request to a provider.
const (
	connectTimeout = 10 * time.Second
	requestTimeout = 15 * time.Second // of running time, until the headers are there; the attempts at client authentication together
	bodyTimeout    = 10 * time.Second // of running time, for the body of a success at least: its tokens are issued
	maxBody        = 1 << 20          // bytes of an answer that are read
)

// Client sends requests to providers. One client serves all providers and is safe for concurrent use.
type Client struct {
	http  *http.Client
	limit time.Duration // of a request: requestTimeout

	install func() (string, error) // this installation's UUID

	mu      sync.Mutex          // guards what follows
	inBody  map[string]bool     // by endpoint and client: where its secret was accepted last, in the body or else by HTTP Basic
	issuers map[string]metadata // by issuer
}

// userAgent says who asks. It never names another client.
const userAgent = "credproxy"

// NewClient makes a client with TLS 1.2 or newer, the proxy of the environment (HTTPS_PROXY, NO_PROXY) and its own
// time limits. It follows no redirects: a redirected token request would carry its credential to another place.
func NewClient() *Client { return NewClientWith(newTransport()) }

// NewClientWith makes a client that reaches providers by rt, for tests over in-memory connections. TLS and the limits
// of a connection are rt's; that of a whole request and the rule on redirects stay.
func NewClientWith(rt http.RoundTripper) *Client {
	return &Client{
		http: &http.Client{
			Transport:     rt,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		limit:   requestTimeout,
		install: sync.OnceValues(func() (string, error) { return NewUUID(), nil }),
		inBody:  map[string]bool{},
		issuers: map[string]metadata{},
	}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Refresh makes one refresh request (RFC 6749 section 6), without retries; only a refused client authentication, which
// uses up no token, is tried in the other of its two places. received is called with every 2xx answer as soon as it was
// read, before anything looks at it, on this goroutine. The grant is as [Provider.Parse] makes it; errors are *Error.
//
// Of a 2xx answer that breaks off, or is longer than 1 MiB, received gets what is there if [Provider.Salvage] finds a
// refresh token in it, and the error is Malformed: the refresh token that was sent is used up. Without one, an answer
// that broke off is Transient. Those are the only 2xx answers that do not reach received whole.
func (c *Client) Refresh(ctx context.Context, p *Provider, old *grant.Grant, clientSecret secret.String, received func(Answer)) (*grant.Grant, error) {
	if old.RefreshToken.IsZero() {
		return nil, &Error{Kind: Refused, Provider: p.Name, reason: "it issued no refresh token with this login"}
	}
	if p.ClientSecretKey != "" && clientSecret.IsZero() {
		return nil, p.MissingSecret()
	}
	p, err := c.resolve(ctx, p.For(old), false)
	if err != nil {
		return nil, err
	}
	d := p.dialect().Token
	params := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.RefreshToken.Reveal()}}
	for name, value := range d.Params {
		params.Set(name, value)
	}
	r, err := c.post(ctx, p, request{
		endpoint: p.TokenURL, params: params, json: p.inJSON(d.RefreshJSON), secret: clientSecret, received: received,
	})
	if err != nil {
		return nil, err
	}
	if r.status/100 != 2 {
		return nil, p.refused(r, true)
	}
	g, err := p.parse(Answer{r.body, r.sent}, old, true)
	if e, ok := err.(*Error); ok {
		e.RetryAfter = retryAfter(r.header)
	}
	return g, err
}

// Revoke asks the provider to revoke a token (RFC 7009). hint is "refresh_token" or "access_token". A provider that
// does not know the token answers success, as the RFC wants. Errors are *Error.
func (c *Client) Revoke(ctx context.Context, p *Provider, token secret.String, hint string, clientSecret secret.String) error {
	p, err := c.resolve(ctx, p, false)
	if err != nil {
		return err
	}
	if p.RevokeURL == "" {
		return &Error{Kind: Refused, Provider: p.Name, reason: "it has no revocation endpoint (revoke_url)"}
	}
	d := p.dialect().Revoke
	req := request{
		endpoint:  p.RevokeURL,
		params:    url.Values{"token": {token.Reveal()}},
		json:      d.JSON, // RFC 7009 has forms; the description's encoding is that of token requests
		anonymous: d.TokenOnly || d.RefreshClient && hint != "refresh_token",
		secret:    clientSecret,
	}
	if !d.TokenOnly {
		req.params.Set("token_type_hint", hint)
	}
	r, err := c.post(ctx, p, req)
	if err != nil {
		return err
	}
	if r.status/100 == 2 && r.code() == "" {
		return nil
	}
	e := p.refused(r, false)
	if e.Kind == Refused || e.Kind == Unclear {
		e.reason = "it did not revoke the token"
	}
	return e
}

// request is one POST to a provider.
type request struct {
	endpoint  string
	params    url.Values // the client's id and secret are added
	json      bool       // a JSON object instead of a form
	anonymous bool       // nothing says which client asks
	header    http.Header
	secret    secret.String
	received  func(Answer) // may be nil; see Client.Refresh
}

// reply is an answer to one request, with a body of at most maxBody bytes.
type reply struct {
	status int
	header http.Header
	body   []byte
	sent   time.Time // when the request was
}

// code is the answer's error code, "" when it has none.
func (r *reply) code() string { return errorCode(decode(r.body)) }

// issued reports whether a success brings a token, be it one that cannot be used.
func (r *reply) issued() bool {
	if r.status/100 != 2 {
		return false
	}
	members := decode(r.body)
	return text(members["access_token"]) != "" || text(members["refresh_token"]) != ""
}

func (p *Provider) refused(r *reply, refreshing bool) *Error {
	e := p.failure(r.status, r.body, refreshing)
	e.RetryAfter = retryAfter(r.header)
	return e
}

// send makes one request and reads its answer. The error is an *Error.
func (c *Client) send(ctx, limit context.Context, p *Provider, r request, basic secret.String) (*reply, error) {
	params, received := r.params, r.received
	payload, contentType := encode(r)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(limit, func() { cancel(limit.Err()) })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.endpoint, strings.NewReader(payload))
	if err != nil {
		return nil, &Error{Kind: Malformed, Provider: p.Name, reason: "its endpoint is not a URL"}
	}
	maps.Copy(req.Header, r.header)
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	if !basic.IsZero() {
		// "encoded using the application/x-www-form-urlencoded encoding algorithm" (RFC 6749 section 2.3.1).
		req.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(basic.Reveal()))
	}
	sent := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &Error{Kind: Transient, Provider: p.Name, reason: "it cannot be reached", err: networkError(ended(ctx, err))}
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 && stop() {
		body, cancelBody := WithRunningTimeout(context.WithoutCancel(ctx), bodyTimeout)
		defer cancelBody()
		defer context.AfterFunc(body, func() {
			<-limit.Done() // the later of the two
			cancel(context.DeadlineExceeded)
		})()
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	success := resp.StatusCode/100 == 2
	if received == nil || !success {
		received = func(Answer) {}
	}
	var failed *Error
	switch {
	case len(body) > maxBody && success:
		body = body[:maxBody]
		failed = &Error{Kind: Malformed, reason: "its answer is longer than 1 MiB"}
	case err != nil:
		failed = &Error{Kind: Transient, reason: "its answer broke off", err: networkError(ended(ctx, err))}
	}
	if failed != nil && decodeObject(body) == nil { // else only what stands behind the answer is missing
		failed.Provider, failed.RetryAfter = p.Name, retryAfter(resp.Header)
		if !success {
			failed.Status = resp.StatusCode
		} else if used := params.Get("refresh_token"); used != "" && salvage(body, used) != "" {
			failed.Kind = Malformed // the refresh token is used up
			received(Answer{wholeMembers(body), sent})
		}
		return nil, failed
	}
	received(Answer{body, sent})
	return &reply{resp.StatusCode, resp.Header, body, sent}, nil
}

// ended is why a request ended: by a limit, where err says only that it was cancelled.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

func encode(r request) (payload, contentType string) {
	if !r.json {
		return r.params.Encode(), "application/x-www-form-urlencoded"
	}
	object := make(map[string]string, len(r.params))
	for name, values := range r.params {
		object[name] = values[0]
	}
	b, _ := json.Marshal(object) // a map of strings always marshals
	return string(b), "application/json"
}
