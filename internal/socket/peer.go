package socket

import (
	"errors"
	"fmt"
	"slices"
)

// Peer is the process that opened a connection, as the kernel remembers it from the moment of connect. Only UID is
// fit for a decision; the rest is for the audit record.
type Peer struct {
	UID int
	PID int // 0 when the peer is in a PID namespace that this process cannot see, or where the system tells none

	// Container is the 12-character short id of the peer's container, or "pidns:" and the inode of its PID namespace
	// where that differs from ours and no engine's id is known (bwrap), or "".
	Container string
}

// ErrNoPeerIdentity is what [Identify] returns on systems that do not tell who a peer is. There the socket's
// permissions and its nonce are the defence.
var ErrNoPeerIdentity = errors.New("this system does not tell who is at the other end of a socket")

// ErrForeignPeer is the error of [Authorize].
var ErrForeignPeer = errors.New("peer refused")

// Authorize refuses a peer whose UID is neither ownUID nor in extra. Root is no exception: a sandbox that runs as
// root by accident should be noticed, and whoever is root on the host has no need of the socket.
func Authorize(p Peer, ownUID int, extra []int) error {
	if p.UID == ownUID || slices.Contains(extra, p.UID) {
		return nil
	}
	return fmt.Errorf("%w: UID %d is not ours (%d) and not allowed by --allow-uid", ErrForeignPeer, p.UID, ownUID)
}
