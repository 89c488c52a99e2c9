package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

var (
	errNoAnswer = errors.New("no answer in time")
	errSilence  = errors.New("the connection was closed without an answer")
	errNoProxy  = errors.New("what answers is not the proxy")
)

// probe asks the proxy at the socket for a handshake. A proxy that refuses it, since too many are connected or because it wants a
// capability token, has been reached: what to make of that is up to the command.
func probe(ctx context.Context, path string) error {
	deadline := time.Now().Add(probeTime)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return bare(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetWriteDeadline(deadline) // of a socket that is open
	request := wire.AppendHandshakeRequest(frame.Begin(nil), wire.MinVersion, wire.MinVersion, wire.MaxVersion, "")
	frame.End(request, 0)
	_, err = c.Write(request)
	var payload []byte
	if err == nil {
		frames := frame.NewReader(c, wire.MaxPayload(wire.MinVersion), nil)
		defer frames.Close()
		frames.SetDeadline(deadline)
		payload, err = frames.Next()
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return bare(ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errSilence
	case errors.Is(err, frame.ErrTooLong), errors.Is(err, frame.ErrEmpty):
		return errNoProxy
	default:
		return bare(err)
	}
	if _, err := wire.DecodeHandshakeReply(payload); err != nil {
		if _, refused := errors.AsType[*wire.Error](err); !refused {
			return errNoProxy
		}
	}
	return nil
}

// bare is a network error without the address, which is the same in all of them.
func bare(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return errNoAnswer
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// unreachable says what to do about a socket that failed its probe. Inside bwrap there is no other way to the proxy.
func unreachable(path string, err error, inContainer bool) error {
	f := &failure{what: "the proxy's socket cannot be reached from the sandbox", err: fmt.Errorf("%s: %w", path, err)}
	switch {
	case !inContainer && errors.Is(err, fs.ErrPermission):
		f.hint = "a security module of this machine (AppArmor, SELinux) may keep bwrap from it; `credproxy run --engine docker` or podman may work"
	case !inContainer:
		f.hint = "the proxy may have ended: run it again, and see what it logs"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, errSilence):
		f.hint = "the user inside is not yours on this machine, or SELinux keeps the container from it: try --transport tls"
	default:
		f.hint = "the engine does not run on this machine itself, or sees another file system: try --transport tls"
	}
	return f
}
