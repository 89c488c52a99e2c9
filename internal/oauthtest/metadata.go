package oauthtest

import (
	"net/http"
	"net/url"
)

// metadata: RFC 8414 section 2.
func (s *Server) metadata(*http.Request, url.Values) reply {
	return jsonReply(http.StatusOK, s.describe())
}

func (s *Server) describe() map[string]any {
	auth := []string{"none", "client_secret_basic", "client_secret_post"}
	m := map[string]any{
		"issuer":                                         s.opt.Issuer,
		"authorization_endpoint":                         s.EndpointURL(Authorize),
		"token_endpoint":                                 s.EndpointURL(Token),
		"device_authorization_endpoint":                  s.EndpointURL(Device),
		"revocation_endpoint":                            s.EndpointURL(Revoke),
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query"},
		"grant_types_supported":                          []string{GrantCode, GrantRefresh, GrantDevice},
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          auth,
		"revocation_endpoint_auth_methods_supported":     auth,
		"authorization_response_iss_parameter_supported": s.opt.SendIssuer,
	}
	if len(s.opt.Scopes) > 0 {
		m["scopes_supported"] = s.opt.Scopes
	}
	return m
}

// discovery: OpenID Connect Discovery section 3 demands three members more. The ID tokens are for show and not signed.
func (s *Server) discovery(*http.Request, url.Values) reply {
	m := s.describe()
	m["jwks_uri"] = s.EndpointURL(Keys)
	m["subject_types_supported"] = []string{"public"}
	m["id_token_signing_alg_values_supported"] = []string{"RS256"}
	return jsonReply(http.StatusOK, m)
}

func (s *Server) keys(*http.Request, url.Values) reply {
	return jsonReply(http.StatusOK, map[string]any{"keys": []any{}})
}
