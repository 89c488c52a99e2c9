package keyring

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// sessionBus is the address of the session's bus: the environment's, or the one where systemd puts it. Unlike the D-Bus
// libraries this never starts a bus (dbus-launch): a keyring on a new bus would be another one.
func sessionBus() (string, error) {
	if address := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address != "" && address != "autolaunch:" {
		return address, nil
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = fmt.Sprintf("/run/user/%d", os.Getuid())
	}
	path := filepath.Join(dir, "bus")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: there is no D-Bus session: DBUS_SESSION_BUS_ADDRESS is not set and there is no %s", store.ErrUnavailable, path)
	}
	return "unix:path=" + path, nil
}

// socketPaths returns the Unix sockets that a D-Bus address names ("unix:path=/a,guid=…;unix:abstract=b"), in the form of
// package net: "@b" for an abstract one.
func socketPaths(address string) ([]string, error) {
	var paths []string
	for one := range strings.SplitSeq(address, ";") {
		transport, rest, _ := strings.Cut(one, ":")
		if transport != "unix" {
			continue
		}
		for pair := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(pair, "=")
			value, err := url.PathUnescape(value)
			if err != nil {
				continue
			}
			switch key {
			case "path":
				paths = append(paths, value)
			case "abstract":
				paths = append(paths, "@"+value)
			}
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%w: the D-Bus address names no Unix socket", store.ErrUnavailable)
	}
	return paths, nil
}

// connect connects to the bus, within limit, which every write to it has as well.
func connect(ctx context.Context, address string, limit time.Duration) (*dbus.Conn, error) {
	if address == "" {
		var err error
		if address, err = sessionBus(); err != nil {
			return nil, err
		}
	}
	paths, err := socketPaths(address)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, path := range paths {
		conn, err := connectTo(ctx, path, limit)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = first(failed, err)
	}
	return nil, fmt.Errorf("%w: connecting to the D-Bus session: %w", store.ErrUnavailable, failed)
}

func connectTo(ctx context.Context, path string, limit time.Duration) (*dbus.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// The library takes no context for what it reads here.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error) (*dbus.Conn, error) {
		_ = raw.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("the bus did not answer within %d s", limit/time.Second)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := checkBus(raw.(*net.UnixConn)); err != nil {
		return fail(err)
	}
	conn, err := dbus.NewConn(patientConn{raw, limit})
	if err != nil {
		return fail(err)
	}
	if err := conn.Auth(nil); err != nil {
		_ = conn.Close()
		return fail(err)
	}
	if err := conn.Hello(); err != nil {
		_ = conn.Close()
		return fail(err)
	}
	if !stop() {
		_ = conn.Close()
		return fail(os.ErrDeadlineExceeded)
	}
	return conn, nil
}

// checkBus refuses a bus that another user runs: it would read every secret that passes.
func checkBus(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) {
		peer, peerErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if peerErr != nil {
		return peerErr
	}
	if uid := int(peer.Uid); uid != 0 && uid != os.Getuid() {
		return fmt.Errorf("the bus belongs to the user %d, not to us (%d)", uid, os.Getuid())
	}
	return nil
}

// patientConn gives every write a limit. The library writes in the goroutine of the caller, without its context: a bus
// that does not read would hold it for ever. A write that fails so closes the connection.
type patientConn struct {
	net.Conn
	limit time.Duration
}

func (c patientConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
