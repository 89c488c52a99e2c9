package client

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proxy is the server's side of the protocol, without stores: a test says what is answered.
type proxy struct {
	maxVersion int                            // 0: the latest
	capability string                         // demanded when not empty
	answer     func(p *peer, r *wire.Request) // called in a goroutine for each request; nil: everything is {}

	conns    atomic.Int32 // connections that were accepted
	requests atomic.Int32
	wg       sync.WaitGroup
	done     chan struct{} // closed at the end of the test
}

// peer is one connection as the proxy sees it.
type peer struct {
	net.Conn
	proxy   *proxy
	version int
	mu      sync.Mutex // guards writing
}

func (p *peer) write(payload []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.Conn.Write(frame.Append(nil, payload))
}

func (p *peer) reply(id string, data wire.Data) {
	p.write(wire.AppendResponse(nil, p.version, id, data))
}

func (p *peer) fail(id string, code wire.Code) {
	p.write(wire.AppendError(nil, p.version, id, wire.E(code, "no")))
}

// serve is one connection, to its end.
func (px *proxy) serve(nc net.Conn) {
	px.conns.Add(1)
	defer nc.Close()
	p := &peer{Conn: nc, proxy: px}
	r := frame.NewReader(nc, wire.MaxPayload(wire.MaxVersion), nil)
	payload, err := r.Next()
	if err != nil {
		return
	}
	h, err := wire.DecodeHandshake(payload)
	if px.maxVersion > 0 {
		h.Max = min(h.Max, px.maxVersion)
	}
	version, ok := h.Negotiate()
	switch {
	case err != nil || !ok:
		p.write(wire.AppendHandshakeError(nil, 1, wire.E(wire.CodeUnknownVersion, "no common version")))
		return
	case h.CapabilityToken != px.capability:
		p.write(wire.AppendHandshakeError(nil, 1, wire.E(wire.CodeUnauthorized, "capability token")))
		return
	}
	p.version = version
	p.write(wire.AppendHandshake(nil, version))
	for {
		payload, err := r.Next()
		if err != nil {
			return
		}
		px.requests.Add(1)
		req, err := wire.DecodeRequest(payload, version)
		switch {
		case err != nil:
			p.fail(req.ID, wire.CodeInvalidRequest)
		case px.answer == nil:
			p.reply(req.ID, wire.Empty{})
		default:
			px.wg.Go(func() { px.answer(p, &req) })
		}
	}
}

// listen serves a real socket and returns a Client of it. Both end with the test.
func (px *proxy) listen(t *testing.T, o Options) *Client {
	t.Helper()
	px.done = make(chan struct{})
	o.Socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	px.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			px.wg.Go(func() { px.serve(nc) })
		}
	})
	c := New(o)
	t.Cleanup(func() {
		close(px.done)
		_ = c.Close()
		_ = ln.Close()
		px.wg.Wait()
	})
	return c
}

// pipe is listen over net.Pipe, for use in a synctest bubble. The caller closes the Client, then calls wg.Wait.
func (px *proxy) pipe(o Options) *Client {
	px.done = make(chan struct{})
	o.Socket = "/pipe"
	o.dial = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		px.wg.Go(func() { px.serve(theirs) })
		return ours, nil
	}
	return New(o)
}

// vault is a proxy that knows one token and one key.
func vault(p *peer, r *wire.Request) {
	token := &wire.Token{AccessToken: "test-access-token-1", Expiry: 1900000000, TokenType: "Bearer"}
	found := r.Provider == "p" && (r.Bucket == wire.DefaultBucket || r.Bucket == "work")
	switch r.Op {
	case wire.OpGetToken, wire.OpRefreshToken:
		if !found {
			p.fail(r.ID, wire.CodeNotFound)
			return
		}
		p.reply(r.ID, token)
	case wire.OpGetBucketStats:
		if !found {
			p.fail(r.ID, wire.CodeNotFound)
			return
		}
		stats := wire.BucketStats{Bucket: r.Bucket}
		if r.Detail && r.Bucket == "work" { // and for the other it is an older proxy
			stats.Login = &wire.LoginStatus{State: "ok", Expiry: 1900000000, Store: "file"}
		}
		p.reply(r.ID, stats)
	case wire.OpSaveToken:
		p.reply(r.ID, wire.Empty{})
	case wire.OpRemoveToken:
		if !found {
			p.fail(r.ID, wire.CodeNotFound)
			return
		}
		p.reply(r.ID, wire.Empty{})
	case wire.OpListProviders:
		p.reply(r.ID, wire.Providers{"p"})
	case wire.OpListBuckets:
		p.reply(r.ID, wire.Buckets{"default", "work"})
	case wire.OpGetAPIKey:
		if r.Name != "k" {
			p.fail(r.ID, wire.CodeNotFound)
			return
		}
		p.reply(r.ID, wire.APIKey("test-key-1"))
	case wire.OpHasAPIKey:
		p.reply(r.ID, wire.Exists(r.Name == "k"))
	case wire.OpListAPIKeys:
		p.reply(r.ID, wire.APIKeys{"k"})
	case wire.OpOAuthInitiate:
		p.reply(r.ID, wire.Session{ID: "s", Flow: wire.FlowDeviceCode, VerificationURL: "https://a.example", UserCode: "AB", PollIntervalMS: 1000})
	case wire.OpOAuthPoll:
		p.reply(r.ID, wire.Poll{Status: wire.PollComplete, Token: token})
	case wire.OpOAuthExchange:
		p.reply(r.ID, token)
	case wire.OpOAuthCancel:
		p.reply(r.ID, wire.Empty{})
	default:
		p.fail(r.ID, wire.CodeInternal)
	}
}

func isLost(err error) bool {
	return errors.Is(err, ErrConnectionLost) && err.Error() == "Credential proxy connection lost. Restart the session."
}
