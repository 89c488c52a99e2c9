package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/protect"
)

// Only tests change these, before they begin: a machine may stand still for longer.
var (
	connectTime = 30 * time.Second // from the start of process 1 to that of the command
	dialTime    = 3 * time.Second  // to reach the proxy without the pipe
	directTime  = 5 * time.Second  // and for it to prove what it is
	probeTime   = 10 * time.Second // for it to answer a handshake
	visitTime   = 10 * time.Second // for process 1, which has been started a moment ago, to open its door
)

const maxPath = 107 // sizeof(sockaddr_un.sun_path) less the terminating NUL

// runBridge is BridgeWord.
func runBridge(command []string) int {
	// Before there is anything to read in this process, and before anything of the image runs.
	if err := protect.Conceal(); err != nil {
		return fail(err)
	}
	closeOnExec()
	path, err := socketPath()
	if err != nil {
		return fail(err)
	}
	return lead(command, func(ctx context.Context) (end func(), err error) {
		l, err := connect(ctx, path)
		if err != nil {
			return nil, err
		}
		return l.close, nil
	})
}

// link is the way to the proxy, while there is one. When it is lost, the socket is gone and its connections are closed; the command
// goes on, and the proxy's clients say what that means.
type link struct {
	session *bridge.Session
	served  chan struct{} // closed when the goroutine that serves the socket has ended
	err     error         // why it has
}

// lastWords is how long what ended programs have sent may take to get on its way.
const lastWords = time.Second

// close ends the session, removes the socket and waits for both.
func (l *link) close() {
	l.session.Finish(lastWords)
	_ = l.session.Close()
	<-l.served
}

// connect waits for the handover, reaches the proxy, opens the socket at path and makes sure that the proxy answers through it.
func connect(ctx context.Context, path string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	session, err := meet(ctx, filepath.Join(filepath.Dir(path), handoverName))
	if err != nil {
		return nil, err
	}
	ln, err := listen(path)
	if err != nil {
		_ = session.Close()
		return nil, &failure{what: "the socket cannot be opened inside", err: fmt.Errorf("%s: %w", path, err), hint: directoryHint}
	}
	l := &link{session: session, served: make(chan struct{})}
	go func() {
		defer close(l.served)
		l.err = session.Serve(ln) // once there is a command there is nobody to tell: the screen is the command's
	}()
	if err := probe(ctx, path); err != nil {
		select {
		case <-l.served: // and the socket is gone
			err = l.err
		default:
		}
		l.close()
		return nil, &failure{
			what: "the proxy's socket cannot be reached from the sandbox", err: fmt.Errorf("%s: %w", path, err),
			hint: "the proxy may have ended: run it again, and see what it logs",
		}
	}
	return l, nil
}

const directoryHint = "its directory has to be empty, and writable for the user inside: no volume and no option of the engine may cover it, " +
	"and no link of the image lead elsewhere (another TMPDIR may help)"

// meet lets one visitor in at the socket rendezvous, takes the handover from it and attaches to the proxy. Nothing of the handover is
// left when it returns.
func meet(ctx context.Context, rendezvous string) (*bridge.Session, error) {
	const what = "the proxy cannot be reached from the sandbox"
	dir := filepath.Dir(rendezvous)
	err := checkPlace(dir)
	if err == nil {
		err = checkEmpty(dir)
	}
	if err != nil {
		return nil, &failure{what: "the sandbox cannot be prepared", err: fmt.Errorf("%s: %w", dir, err), hint: directoryHint}
	}
	ln, err := listen(rendezvous)
	if err != nil {
		return nil, &failure{what: "the sandbox cannot be prepared", err: fmt.Errorf("%s: %w", rendezvous, err), hint: directoryHint}
	}
	visitor, err := admit(ctx, ln)
	if err != nil {
		return nil, &failure{what: what, err: fmt.Errorf("nobody has told where it is within %v", connectTime),
			hint: "credproxy tells it with the engine's `exec`: something keeps that from the container"}
	}
	stop := context.AfterFunc(ctx, func() { _ = visitor.SetDeadline(time.Unix(1, 0)) })
	h, err := bridge.ReadHandover(visitor)
	if !stop() {
		if err == nil {
			h.Wipe()
		}
		err = ctx.Err()
	}
	if err != nil {
		_ = visitor.Close()
		return nil, &failure{what: what, err: fmt.Errorf("the handover: %w", bare(err)),
			hint: "the program inside has to be of the same version as credproxy on the host"}
	}
	session, err := attach(ctx, visitor, h, directTime)
	// What is left of the handshake is garbage by now, and goes back to the system.
	debug.FreeOSMemory()
	switch {
	case err == nil:
		return session, nil
	case errors.Is(err, bridge.ErrPin):
		return nil, &failure{what: what, err: err, hint: "something else answers in the proxy's place: do not trust this engine's machine"}
	case errors.Is(err, bridge.ErrRefused):
		return nil, &failure{what: what, err: err, hint: "one sandbox is let in with a run's secret, and one has been: see the audit log on the host"}
	}
	return nil, &failure{what: what, err: bare(err), hint: "the proxy may have ended: run it again, and see what it logs"}
}

// listen opens a socket that only this user can connect to. Nobody else is there yet to make files meanwhile.
func listen(path string) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("%d bytes are too long for the path of a socket, %d at most", len(path), maxPath)
	}
	defer unix.Umask(unix.Umask(0o177))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, bare(err)
	}
	return ln, nil
}

// admit returns the first connection of this user, and closes the door behind it.
func admit(ctx context.Context, ln *net.UnixListener) (*net.UnixConn, error) {
	defer ln.Close() // removes the socket
	defer context.AfterFunc(ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) })()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if ownPeer(c) == nil {
			return c, nil
		}
		_ = c.Close()
	}
}

// attach reaches the proxy, at best by a connection of our own, which has so much time to prove what it is, else through the visitor.
// It wipes h, and closes what it does not use.
func attach(ctx context.Context, visitor net.Conn, h *bridge.Handover, direct time.Duration) (*bridge.Session, error) {
	defer h.Wipe()
	if c := dial(ctx, h.Addresses); c != nil {
		// What answers there may be anything, and must not use up the secret.
		once := &bridge.Handover{Pin: h.Pin, Secret: h.Secret}
		soon, cancel := context.WithTimeout(ctx, direct)
		session, err := bridge.Attach(soon, c, once)
		cancel()
		once.Wipe()
		if err == nil {
			_ = visitor.Close()
			return session, nil
		}
		_ = c.Close()
	}
	session, err := bridge.Attach(ctx, visitor, h)
	if err != nil {
		_ = visitor.Close()
	}
	return session, err
}

// dial tries all addresses at the same time and returns the first connection, or nil.
func dial(ctx context.Context, addresses []string) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conns := make(chan net.Conn)
	for _, address := range addresses {
		go func() {
			c, _ := new(net.Dialer).DialContext(ctx, "tcp", address)
			conns <- c
		}()
	}
	var first net.Conn
	for range addresses {
		switch c := <-conns; {
		case c == nil:
		case first == nil:
			first = c
			cancel()
		default:
			_ = c.Close()
		}
	}
	return first
}
