package daemon

import (
	"fmt"
	"net"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/internal/socket"
	"github.com/credproxy/credproxy/wire"
)

// Bridge returns the listener on loopback through which one sandbox gets to this proxy that cannot use its socket. The first
// call opens and serves it, with the limits, the scope and the audit log of the socket; without a call nothing of the proxy
// listens on the network. Close closes it.
func (p *Proxy) Bridge() (*bridge.Listener, error) {
	p.bridging.Lock()
	defer p.bridging.Unlock()
	if p.closing {
		return nil, fmt.Errorf("carrying the socket: %w", server.ErrClosed)
	}
	if p.bridge != nil {
		return p.bridge, nil
	}
	l, err := bridge.Listen(bridge.Options{Logger: p.log, Refused: p.refused})
	if err != nil {
		return nil, fmt.Errorf("carrying the socket: %w", err)
	}
	p.bridge = l
	p.workers.Go(func() { _ = p.server.ServeBridge(l) }) // until l is closed, whose only error that is
	return l, nil
}

// refused records a connection that the bridge has turned away; what it does with many, it has done.
func (p *Proxy) refused(string, error) {
	p.audit.Record(&audit.Event{
		Time: time.Now(), Profile: p.profile, Op: "connect", Outcome: audit.Denied, Code: string(wire.CodeUnauthorized), UID: -1,
	})
}

// closeBridge ends what is carried, if something is. Nothing begins any more when it is called.
func (p *Proxy) closeBridge() {
	p.bridging.Lock()
	l := p.bridge
	p.bridging.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

var errForeignInside = fmt.Errorf("%w: it belongs to another user of the sandbox", socket.ErrForeignPeer)

// identify says who is at the other end of a connection, whichever way it has come.
func identify(c net.Conn) (socket.Peer, error) {
	peer, carried := bridge.Identify(c)
	switch {
	case !carried:
		return socket.Identify(c)
	case peer.UID < 0:
		return peer, errForeignInside
	}
	return peer, nil
}
