package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/protect"
)

// errForeign: whoever is at the other end runs as another user.
var errForeign = errors.New("it belongs to another user")

// carry is CarryWord: a pipe between in (quoted, see bridge.QuoteTo), process 1, and out. It ends when any of them does; process 1 hangs up at once when it has
// found a way of its own. Nothing of what passes stays in memory.
func carry(in io.Reader, out io.Writer) int {
	if err := protect.Conceal(); err != nil {
		return fail(err)
	}
	path, err := socketPath()
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	if err := checkPlace(dir); err != nil {
		return fail(&failure{what: "the first process of the sandbox is not visited", err: fmt.Errorf("%s: %w", dir, err), hint: directoryHint})
	}
	ctx, cancel := context.WithTimeout(context.Background(), visitTime)
	defer cancel()
	c, err := visit(ctx, filepath.Join(dir, handoverName))
	if err != nil {
		return fail(&failure{
			what: "the first process of the sandbox does not listen",
			err:  err,
			hint: "it may have ended, or it runs as another user than the engine's exec",
		})
	}
	// A read of in cannot be interrupted; the goroutine that is left ends with this program.
	ended := make(chan struct{}, 2)
	go func() { pipe(c, bridge.UnquoteFrom(in)); ended <- struct{}{} }()
	go func() { pipe(out, c); ended <- struct{}{} }()
	<-ended
	_ = c.Close()
	return 0
}

// visit connects to process 1 as soon as it listens.
func visit(ctx context.Context, path string) (*net.UnixConn, error) {
	for {
		c, err := new(net.Dialer).DialUnix(ctx, "unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			if err := ownPeer(c); err != nil {
				_ = c.Close()
				return nil, err
			}
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, bare(err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no socket within %v", visitTime)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ownPeer refuses a connection with a process of another user.
func ownPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return errForeign
	}
	return nil
}

// pipe copies until either end fails. io.Copy would leave what it copied in its buffer.
func pipe(w io.Writer, r io.Reader) {
	buf := make([]byte, 32<<10)
	defer clear(buf)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			clear(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
