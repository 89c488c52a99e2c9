package oauthtest

import (
	"fmt"
	"net/url"
	"strings"
)

// Settings is the section [providers.NAME] of a credproxy configuration file for this server, with every endpoint that
// it has and its first client: TOML that ends in a newline. A confidential client's secret has to be stored as the key
// NAME-secret.
//
// The plain server's redirect_url is the first of the client's that is on loopback; for one that has registered
// "http://127.0.0.1/paste", it is the page of [Paste] and the flow to use it. A dialect gets no redirect_url: its loopback
// redirect URI is the dialect's own, and where it shows a code to be pasted, that page is at the origin of token_url. A
// redirect_url would leave only one of these flows.
func (s *Server) Settings(name string) string {
	var endpoints strings.Builder
	for _, key := range []struct {
		name     string
		endpoint Endpoint
	}{{"authorize_url", Authorize}, {"token_url", Token}, {"device_url", Device}, {"revoke_url", Revoke}} {
		if address := s.EndpointURL(key.endpoint); address != "" {
			fmt.Fprintf(&endpoints, "%s = %q\n", key.name, address)
		}
	}
	return s.section(name, endpoints.String())
}

// DiscoverySettings have the issuer in place of the endpoints, which are then found by [Metadata] or [Discovery]. Only
// the plain server serves these.
func (s *Server) DiscoverySettings(name string) string {
	return s.section(name, fmt.Sprintf("issuer = %q\n", s.opt.Issuer))
}

func (s *Server) section(name, endpoints string) string {
	c, dialect := s.opt.Clients[0], s.opt.Dialect
	if dialect == "" {
		dialect = "oauth2"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[providers.%s]\ndialect = %q\n", name, dialect)
	if dialect != "openrouter" { // which knows no clients
		fmt.Fprintf(&b, "client_id = %q\n", c.ID)
	}
	if c.Secret != "" {
		fmt.Fprintf(&b, "client_secret_key = %q\n", name+"-secret")
	}
	b.WriteString(endpoints)
	if s.opt.Dialect != "" {
		return b.String()
	}
	if s.redirectable(&c, s.EndpointURL(Paste)) {
		fmt.Fprintf(&b, "redirect_url = %q\nflows = [\"paste\"]\n", s.EndpointURL(Paste))
	} else if redirect := c.listener(); redirect != "" {
		fmt.Fprintf(&b, "redirect_url = %q\n", redirect)
	}
	return b.String()
}

// listener is the client's first redirect URI that a program on this machine can listen at.
func (c *Client) listener() string {
	for _, r := range c.RedirectURIs {
		if u, err := url.Parse(r); err == nil && u.Scheme == "http" && sameLoopback(r, r) {
			return r
		}
	}
	return ""
}
