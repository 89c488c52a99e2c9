// Package bridge carries one Unix socket of a sandbox over one TLS session, where the host's own socket cannot be mounted.
//
// The host calls [Listen], hands the sandbox's first process what [Listener.Handover] returns, and gives the [Listener] to the
// server, as it does with a Unix socket. Where the sandbox speaks through a pipe, [Listener.Dial] returns what to join that to.
// Inside, the first process reads the handover with [ReadHandover], calls [Attach] with a
// connection that leads to the listener, and [Session.Serve] with the socket that it has opened. Every connection that a program
// makes to that socket comes out of [Listener.Accept] as a [Conn], and ends, by halves or altogether, as a Unix socket's would.
//
// # What the two say to each other
//
// All numbers are big-endian.
//
// The handover goes from the host to the first process, through a pipe that nobody else reads. It ends with its last byte: what
// follows on the same pipe may be the TLS session. What the host writes to a pipe is quoted, see [QuoteTo].
//
//	0   4  "CPHO"
//	4   1  version, 1
//	5  32  pin: the SHA-256 of the listener's SubjectPublicKeyInfo
//	37 32  secret
//	69  1  how many addresses follow, 0 to 8
//	then for each: 1 byte length, 1 to 255, and so many bytes "host:port"
//
// The TLS session is version 1.3 with the application protocol "credproxy" (RFC 7301), without tickets and without names. The
// key is made for this one listener. The inside accepts no other and looks at nothing else in the certificate.
//
// The inside speaks first: one byte of version, 1, and 32 bytes of proof, the HMAC-SHA256 under the secret of 32 bytes that this
// TLS session exports (RFC 5705, RFC 8446 section 7.5) for the label "EXPORTER-credproxy-bridge" with an empty context. Whoever
// has listened to another session, or sits between the two, has no use for it. The host answers with one byte: 1 the session
// is let in, 2 the proof is wrong, 3 a session has been let in before. After anything but 1 it hangs up. A listener
// lets in one session, ever; a wrong proof does not count.
//
// What follows is yamux, version 0 (https://github.com/hashicorp/yamux/blob/v0.1.2/spec.md), with the inside as its client. The
// inside opens a stream for every connection to its socket; the host opens none, and neither sends pings. There is no keepalive
// because a sandbox that is paused must find its session again.
//
// A stream begins with 9 bytes from the inside, who has connected, as the kernel there tells:
//
//	0  1  0: a process of the inside's own user; 1: one of another user
//	1  4  UID, as seen inside; 4294967295 where unknown
//	5  4  PID, as seen inside; 0 where unknown
//
// After it, in both directions, come records: 2 bytes length and so many bytes. Length 0 means that this side will send no more
// and still reads, which is shutdown(SHUT_WR) of a Unix socket. The end of the stream (yamux's FIN) means that this side has
// closed its end altogether. Both travel in the stream itself, behind everything that was sent before, so that whoever sees the
// end of the input knows which of the two it is.
package bridge

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	protocol   = "credproxy" // RFC 7301
	label      = "EXPORTER-credproxy-bridge"
	version    = 1
	secretLen  = 32
	helloLen   = 1 + sha256.Size
	streamHead = 9
)

// The host's answers to a proof.
const (
	answerWelcome = 1
	answerWrong   = 2
	answerUsed    = 3
)

// Errors of [Attach] and [Session.Serve], and what Options.Refused gets.
var (
	ErrPin     = errors.New("the listener is not the one that was handed over: its key is another")
	ErrRefused = errors.New("the listener has refused the session")
	ErrLost    = errors.New("the session with the host has ended")

	ErrWrongProof    = errors.New("the proof of this run's secret is wrong")
	ErrSecondSession = errors.New("this run's secret was used for a second session")
	ErrUnfinished    = errors.New("the connection had not proved itself when its time was up or it ended")
	ErrCrowded       = errors.New("the connection had not proved itself when too many others waited")
	ErrNotOurs       = errors.New("the connection does not speak this protocol")
	ErrLate          = errors.New("the connection came with too many others after the sandbox had attached")
)

// prove returns what shows to the other end of this TLS session, and of no other, that this end knows the secret.
func prove(state tls.ConnectionState, secret []byte) ([]byte, error) {
	bound, err := state.ExportKeyingMaterial(label, nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("export from the TLS session: %w", err)
	}
	defer clear(bound)
	return authenticate(secret, bound), nil
}

// authenticate is HMAC-SHA256 (RFC 2104) under a key of at most 64 bytes. crypto/hmac would leave the key in memory, in its pads.
func authenticate(key, message []byte) []byte {
	inner, outer := make([]byte, sha256.BlockSize), make([]byte, sha256.BlockSize)
	defer clear(inner)
	defer clear(outer)
	copy(inner, key)
	copy(outer, key)
	for i := range inner {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	h := sha256.New() // takes whole blocks from where they are
	h.Write(inner)
	h.Write(message)
	sum := h.Sum(nil)
	h.Reset()
	h.Write(outer)
	h.Write(sum)
	return h.Sum(nil)
}

// times are the limits of a Listener that are times.
type times struct {
	proof   time.Duration // from accept to the last byte of the proof
	carried time.Duration // the same, from Dial: an engine is on the way, on a machine that may be busy
	silent  time.Duration // from accept until a connection may be evicted for a newer one
	begun   time.Duration // the same, when it has begun as ours do
	first   time.Duration // from Accept to the last of a stream's first bytes
	late    time.Duration // for one more handshake, once the session was let in; see lateHandshakes
	// From when this side has closed a stream until it is forgotten although the other side has not closed it. A sandbox may be
	// paused for so long and still find the end of an answer.
	linger time.Duration
}

var usualTimes = times{
	proof: 5 * time.Second, carried: 30 * time.Second, silent: 100 * time.Millisecond, begun: time.Second,
	first: 5 * time.Second, late: 100 * time.Millisecond, linger: 5 * time.Minute,
}

// never is longer than any session. yamux's own time limit on writes must not be what decides: a line takes every frame at once,
// and a process that was stopped and goes on finds all its timers run out at once.
const never = 10_000 * time.Hour

func muxConfig(linger time.Duration) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          backlog,
		KeepAliveInterval:      never, // demanded even while keepalive is off
		ConnectionWriteTimeout: never,
		MaxStreamWindowSize:    256 << 10, // yamux takes no less
		StreamCloseTimeout:     linger,
		LogOutput:              io.Discard,
	}
}
