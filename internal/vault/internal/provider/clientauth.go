package provider

import (
	"context"
	"net/http"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// post sends params with the client's id. A confidential client shows its secret by HTTP Basic, which every server must
// support, or in the body (RFC 6749 section 2.3.1): first where it was accepted last, then, if the client is refused, in
// the other place. A server authenticates the client before it looks at a code or a token, so the refused request used
// up neither.
func (c *Client) post(ctx context.Context, p *Provider, req request) (*reply, error) {
	limit, cancel := WithRunningTimeout(ctx, c.limit)
	defer cancel()
	if !req.anonymous {
		req.params.Set("client_id", p.ClientID)
	}
	if req.anonymous || req.secret.IsZero() {
		return c.send(ctx, limit, p, req, secret.String{})
	}
	authenticated := func(inBody bool) (*reply, error) {
		if !inBody {
			req.params.Del("client_secret")
			return c.send(ctx, limit, p, req, req.secret)
		}
		req.params.Set("client_secret", req.secret.Reveal())
		return c.send(ctx, limit, p, req, secret.String{})
	}
	who := req.endpoint + " " + p.ClientID
	c.mu.Lock()
	inBody, known := c.inBody[who]
	c.mu.Unlock()
	if !known {
		inBody = p.dialect().Token.SecretInBody
	}
	r, err := authenticated(inBody)
	if err == nil && clientRefused(r, known) {
		inBody = !inBody
		r, err = authenticated(inBody)
	}
	if err == nil && r.status/100 == 2 && (r.issued() || r.code() == "") {
		c.mu.Lock()
		c.inBody[who] = inBody
		c.mu.Unlock()
	}
	return r, err
}

// clientRefused reports whether an answer says that the client did not authenticate. A server that overlooked the
// secret takes a confidential client for a public one and complains about that; once a place is known to work, such a
// complaint is about something else. An answer that brings a token is never a refusal, whatever else it says: the
// request has used up its refresh token, and its repetition would count as theft.
func clientRefused(r *reply, known bool) bool {
	if r.status == http.StatusTooManyRequests || r.status >= 500 || r.issued() {
		return false
	}
	switch r.code() {
	case "invalid_client", "incorrect_client_credentials":
		return true
	case "unauthorized_client", "invalid_request":
		return !known
	case "":
		return r.status == http.StatusUnauthorized
	}
	return false
}
