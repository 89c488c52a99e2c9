//go:build !linux && !darwin

package socket

import "net"

// Identify returns [ErrNoPeerIdentity].
func Identify(net.Conn) (Peer, error) { return Peer{}, ErrNoPeerIdentity }
