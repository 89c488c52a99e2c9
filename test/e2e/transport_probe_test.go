//go:build e2e && linux

package e2e

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// Before the command runs, the socket inside has to be reached. Here something stands between credproxy and an engine that does
// what it is told, and does what engines have done: it leaves the mount out, or mounts something that leads nowhere.
func TestSocketThatCannotBeReachedInside(t *testing.T) {
	t.Parallel()
	const unreachable = "credproxy: the proxy's socket cannot be reached from the sandbox: "
	// replaced has the socket's place taken once the container is made and has been looked at.
	replaced := func(by string) string {
		return `if [ "$1" = start ]; then for path in "$TMPDIR"/llxprt-cred-*/*.sock; do ` + by + `; done; fi`
	}
	const byAnother = `mv "$here/another.sock" "$path"`
	for _, c := range []struct {
		name, transport string
		script          string
		another         func(t *testing.T, s *sandboxed, path string) // makes what is mounted instead
		says            []string
	}{
		{"no socket is mounted", "unix", replaced(`: >"$here/file" && mv "$here/file" "$path"`), nil, []string{unreachable, "hint: ", "--transport tls"}},
		{"a socket of another machine is mounted", "unix", replaced(byAnother), func(t *testing.T, s *sandboxed, path string) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(fd)
			if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			s.own(path)
		}, []string{unreachable, "refused", "hint: ", "--transport tls"}},
		{"the socket of another user is mounted", "unix", replaced(byAnother), func(t *testing.T, s *sandboxed, path string) {
			listenUnix(t, path, func(c net.Conn) { c.Close() })
			if err := os.Chown(path, stranger, stranger); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{unreachable, "permission denied", "hint: ", "--transport tls"}},
		{"the socket of another program is mounted", "unix", replaced(byAnother), func(t *testing.T, s *sandboxed, path string) {
			listenUnix(t, path, func(c net.Conn) {
				_, _ = c.Write([]byte("220 hello, this is something else\r\n"))
				c.Close()
			})
			s.own(path)
		}, []string{unreachable}},
		{"exec is not possible", "tls", whenCarried + `echo "test-exec-is-not-for-you" >&2; exit 1; fi`, nil, []string{"credproxy: ", "test-exec-is-not-for-you"}},
		{"exec ends at once", "tls", whenCarried + `exit 0; fi`, nil, []string{"credproxy: "}},
		{"somebody changes the handover", "tls", whenCarried + `{ dd bs=1 count=20 2>/dev/null; dd bs=1 count=1 2>/dev/null | tr '\000-\377' '\001-\377\000'; cat; } |
			exec "$engine" "$@"; fi`, nil, []string{"credproxy: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSandboxed(t, engineCase{engine: "docker", root: true, transport: c.transport})
			dir := s.between(t, c.script)
			if c.another != nil {
				c.another(t, s, dir+"/another.sock")
			}
			r := s.in(append(s.shell, "echo ran; touch ran")...)
			if r.code != 125 || r.stdout != "" {
				t.Errorf("want status 125: %v", r)
			}
			for _, text := range c.says {
				if !strings.Contains(r.stderr, text) {
					t.Errorf("no word of %q: %v", text, r)
				}
			}
			if _, err := os.Lstat(s.work + "/ran"); err == nil {
				t.Errorf("the command ran: %v", r)
			}
			if c.transport == "unix" { // what is not the proxy's it leaves alone
				for _, path := range s.sockets() {
					if err := os.Remove(path); err != nil {
						t.Error(err)
					}
				}
			}
			s.nothingLeft(t, c.name)
		})
	}
}

// listenUnix serves connections to path until the test ends.
func listenUnix(t *testing.T, path string, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// The same from the user's side: the transport that is asked for cannot be had.
func TestTransportThatCannotBeHad(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.vars = append(h.vars, "CONTAINERS_CONF="+setting(t, "CONTAINERS_CONF"))
	image := setting(t, "CREDPROXY_TEST_IMAGE")
	h.fails(2, "--transport is auto, unix or tls", "run", "--engine", "bwrap", "--transport", "test-secret-in-the-wrong-place", "--", "true")
	if strings.Contains(string(h.said.bytes()), "test-secret-in-the-wrong-place") {
		t.Error("what is no transport is repeated")
	}
	h.fails(2, "bwrap", "run", "--engine", "bwrap", "--transport", "tls", "--", "true")
	remapped := *h
	remapped.vars = append(h.vars[:len(h.vars):len(h.vars)], "DOCKER_HOST="+setting(t, "CREDPROXY_TEST_DOCKER_REMAPPED"))
	remapped.fails(2, "--transport tls", "run", "--engine", "docker", "--image", image, "--transport", "unix", "--", "true")

	// Engines on other machines are refused before anybody connects to them.
	h.engineRuns(t, h.program("docker", "context", "create", "far", "--docker", "host=ssh://nobody@192.0.2.1"))
	for _, c := range []struct{ engine, variable, address string }{
		{"docker", "DOCKER_HOST", "ssh://nobody@192.0.2.1"},
		{"docker", "DOCKER_HOST", "tcp://192.0.2.1:2375"},
		{"docker", "DOCKER_HOST", "tcp://192.0.2.1:2376"},
		{"docker", "DOCKER_HOST", "tcp://127.0.0.1:1"},
		{"docker", "DOCKER_CONTEXT", "far"},
		{"podman", "CONTAINER_HOST", "ssh://nobody@192.0.2.1/run/podman/podman.sock"},
		{"podman", "CONTAINER_HOST", "tcp://192.0.2.1:2375"},
	} {
		remote := *h
		remote.vars = append(h.vars[:len(h.vars):len(h.vars)], c.variable+"="+c.address)
		for _, transport := range []string{"auto", "tls"} {
			r := remote.fails(7, "another machine", "run", "--engine", c.engine, "--image", image, "--transport", transport, "--", "true")
			if !strings.Contains(r.stderr, "192.0.2.1") && !strings.Contains(r.stderr, "127.0.0.1") || !strings.Contains(r.stderr, "hint: ") {
				t.Errorf("%s=%s: %v", c.variable, c.address, r)
			}
		}
	}
}
