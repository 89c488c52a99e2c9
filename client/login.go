package client

import (
	"context"

	"github.com/credproxy/credproxy/wire"
)

// OAuthInitiate begins a login on the host. flow may be "": the provider's own. What the user has to do is in the
// session; its ID is for the other OAuth calls.
func (c *Client) OAuthInitiate(ctx context.Context, provider, bucket string, flow wire.FlowType) (*wire.Session, error) {
	s := new(wire.Session)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthInitiate, Provider: provider, Bucket: bucket, Flow: flow}, s); err != nil {
		return nil, err
	}
	return s, nil
}

// OAuthExchange ends a login with the code that the user pasted ([wire.FlowPKCERedirect]).
func (c *Client) OAuthExchange(ctx context.Context, sessionID, code string) (*wire.Token, error) {
	t := new(wire.Token)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthExchange, SessionID: sessionID, Code: code}, t); err != nil {
		return nil, err
	}
	return t, nil
}

// OAuthPoll asks how a login stands ([wire.FlowDeviceCode], [wire.FlowBrowserRedirect]). A login that failed is an
// answer, not an error.
func (c *Client) OAuthPoll(ctx context.Context, sessionID string) (*wire.Poll, error) {
	p := new(wire.Poll)
	if err := c.ask(ctx, &wire.Request{Op: wire.OpOAuthPoll, SessionID: sessionID}, p); err != nil {
		return nil, err
	}
	return p, nil
}

// OAuthCancel gives a login up.
func (c *Client) OAuthCancel(ctx context.Context, sessionID string) error {
	return c.tell(ctx, &wire.Request{Op: wire.OpOAuthCancel, SessionID: sessionID})
}
