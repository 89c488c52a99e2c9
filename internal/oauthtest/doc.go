// Package oauthtest is a working OAuth 2.0 authorisation server on loopback, with a protected resource beside it, for
// tests and for `credproxy demo`. Call [Start] for one on 127.0.0.1, [StartPipe] for one over in-memory pipes (inside a
// testing/synctest bubble), or [New] and [Server.Handler] to serve it yourself; reach it with [Server.Client] or any
// other HTTP client at [Server.EndpointURL], and end it with [Server.Close].
//
//	s, err := oauthtest.Start(oauthtest.Options{
//		Clients: []oauthtest.Client{{ID: "app", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
//	})
//	defer s.Close(ctx)
//	s.Fault(oauthtest.Token, oauthtest.DroppedReply(), 1) // the tokens are issued, the answer is lost
//	s.RefreshUses()                                       // which refresh tokens came in, and what became of each
//
// With [Options].Dialect it plays one vendor: that one's paths, members, encodings, answers and errors, strictly.
// [Server.Approve], [Server.Follow], [Server.Copy] and [Server.Decide] play the person with the browser, and
// [Server.Settings] describes the server to credproxy.
//
// It speaks RFC 6749 (authorisation code, refresh), RFC 7636 (S256 only), RFC 8628, RFC 7009, RFC 8414, RFC 6750, and
// RFC 9207 on demand; refresh tokens rotate and their reuse ends the family (RFC 9700 section 4.14). Users are not
// authenticated: whoever opens a page is the user.
//
// It stands on net/http alone because the Go libraries for this role (fosite, zitadel/oidc, go-oauth2) bring either a
// large dependency tree into the shipped binary or neither the device grant nor reuse detection. None of them can fail
// on demand after a token was issued or tell a test which refresh tokens it was sent, which is most of what is needed here.
package oauthtest
