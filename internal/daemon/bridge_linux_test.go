package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/server"
	"github.com/credproxy/credproxy/wire"
)

// listening returns the TCP addresses, as the kernel writes them, on which this process listens.
func listening(t *testing.T) []string {
	t.Helper()
	own := map[string]bool{} // inodes of our sockets
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(link, "socket:[") {
			own[strings.Trim(link, "socket:[]")] = true
		}
	}
	var list []string
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(table)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			// "sl local_address rem_address st … uid timeout inode"; 0A is LISTEN.
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && own[f[9]] {
				list = append(list, f[1])
			}
		}
	}
	slices.Sort(list)
	return list
}

// Nothing of the proxy listens on the network until somebody asks for it; then it is one port on loopback, as long as the proxy.
func TestBridgeOnlyWhenAsked(t *testing.T) {
	nothing := listening(t)
	r := start(t, `login = "allow"`, nil)
	before := listening(t) // the authorisation server's
	if len(before) != len(nothing)+1 {
		t.Errorf("a proxy that was not asked listens on %q, and before it was started on %q", before, nothing)
	}
	one, err := r.Bridge()
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.Bridge()
	if err != nil || one != two {
		t.Errorf("the second call: another listener, or %v", err)
	}
	after := slices.DeleteFunc(listening(t), func(a string) bool { return slices.Contains(before, a) })
	if len(after) != 1 || !strings.HasPrefix(after[0], "0100007F:") { // 127.0.0.1
		t.Errorf("the bridge listens on %q, want one port of 127.0.0.1", after)
	}
	p := r.Proxy
	r.end(t)
	if left := listening(t); !slices.Equal(left, slices.DeleteFunc(before, func(a string) bool { return !slices.Contains(left, a) })) {
		t.Errorf("after Close it listens on %q", left)
	}
	if _, err := p.Bridge(); !errors.Is(err, server.ErrClosed) {
		t.Errorf("Bridge after Close: %v", err)
	}
}

// inside is a sandbox in this process: what Attach and Serve do there.
type inside struct {
	*client.Client
	path   string
	secret [32]byte
	raw    net.Conn
}

func (r *running) attach(t *testing.T) *inside {
	t.Helper()
	l, err := r.Bridge()
	if err != nil {
		t.Fatal(err)
	}
	l.SetContainer("c0ffee012345")
	h := l.Handover()
	in := &inside{path: filepath.Join(filepath.Dir(r.path), "inside.sock"), secret: h.Secret}
	if in.raw, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	s, err := bridge.Attach(t.Context(), in.raw, h)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: in.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { _ = s.Serve(ln); close(served) }()
	in.Client = client.New(client.Options{Socket: in.path})
	t.Cleanup(func() { _ = in.Client.Close(); _ = s.Close(); <-served })
	return in
}

func (r *running) record(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(AuditPath(r.dirs))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A sandbox over the bridge does what one does over the socket, in the same scope, and is in the same record.
func TestBridgeServes(t *testing.T) {
	r := start(t, `login = "allow"`, nil)
	in := r.attach(t)
	ctx := t.Context()
	session, err := in.OAuthInitiate(ctx, "acme", "work", "")
	if err != nil {
		t.Fatal(err)
	}
	pasted, err := r.oauth.Copy(ctx, session.AuthURL)
	if err != nil {
		t.Fatal(err)
	}
	token, err := in.OAuthExchange(ctx, session.ID, pasted) // bound to the UID that began it
	if err != nil || !r.oauth.Valid(token.AccessToken) {
		t.Fatalf("a login from inside: %v", err)
	}
	for where, c := range map[string]*client.Client{"inside": in.Client, "on the host": r.Client} {
		if got, err := c.Tokens().Token(ctx, "acme", "work"); err != nil || got == nil || got.AccessToken != token.AccessToken {
			t.Errorf("the token, %s: %v", where, err)
		}
	}
	r.configure(t, `operations = ["list"]`)
	wait(t, "the edit reaches the connection", func() bool {
		_, err := in.Tokens().Token(ctx, "acme", "work")
		return errors.Is(err, wire.ErrUnauthorized)
	})
	r.end(t)
	lines := 0
	for line := range strings.Lines(r.record(t)) {
		if strings.Contains(line, `"container":"c0ffee012345"`) {
			lines++
		}
	}
	if lines < 4 {
		t.Errorf("%d lines of the record name the container:\n%s", lines, r.record(t))
	}
	r.nothingOf(t, in.secret)
}

// nothingOf checks that a bridge's secret is in neither log.
func (r *running) nothingOf(t *testing.T, secret [32]byte) {
	t.Helper()
	r.mu.Lock()
	said := append(r.log.Bytes(), r.record(t)...)
	r.mu.Unlock()
	for _, form := range [][]byte{secret[:], []byte(hex.EncodeToString(secret[:])), []byte(base64.StdEncoding.EncodeToString(secret[:])),
		[]byte(base64.RawURLEncoding.EncodeToString(secret[:]))} {
		if bytes.Contains(said, form) {
			t.Error("the secret is in the log or in the record")
		}
	}
}

// Who is refused at the bridge's door is in the log and in the record: neighbours on loopback who know nothing, and whoever
// comes second with what the first has used.
func TestBridgeRefusals(t *testing.T) {
	r := start(t, `login = "allow"`, nil)
	l, err := r.Bridge()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(n int) {
		t.Helper()
		wait(t, "the refusal is recorded", func() bool { return strings.Count(r.record(t), `"op":"connect"`) == n })
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A neighbour who speaks TLS and knows nothing.
	guess := l.Handover()
	guess.Secret = [32]byte{1}
	if _, err := bridge.Attach(t.Context(), c, guess); !errors.Is(err, bridge.ErrRefused) {
		t.Errorf("a guess: %v", err)
	}
	refused(1)

	in := r.attach(t)
	for _, h := range []*bridge.Handover{l.Handover(), guess} { // the right secret, a second time; and a wrong one
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			continue // it need not even listen
		}
		defer c.Close()
		if s, err := bridge.Attach(t.Context(), c, h); err == nil {
			_ = s.Close()
			t.Error("a second session was let in")
		}
	}
	wait(t, "they are recorded", func() bool { return strings.Count(r.record(t), `"op":"connect"`) >= 2 })
	if _, err := in.Tokens().Providers(t.Context()); err != nil {
		t.Errorf("the first session: %v", err)
	}
	r.end(t)
	for line := range strings.Lines(r.record(t)) {
		if strings.Contains(line, `"op":"connect"`) &&
			(!strings.Contains(line, `"outcome":"denied","code":"UNAUTHORIZED"`) || strings.Contains(line, `"uid"`) || strings.Contains(line, `"pid"`)) {
			t.Errorf("the record says %s", line)
		}
	}
	r.nothingOf(t, in.secret)
}

// Another user of the sandbox gets to the socket there, which somebody has opened wide, and is refused here.
func TestBridgeForeignPeer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user: run it as root")
	}
	r := start(t, `login = "allow"`, nil)
	in := r.attach(t)
	for path, mode := range map[string]os.FileMode{filepath.Dir(in.path): 0o711, in.path: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which is somebody else, ends with this goroutine
		none := ^uintptr(0)
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, none, 4711, none); e != 0 {
			answered <- e
			return
		}
		c, err := net.Dial("unix", in.path)
		if err != nil {
			answered <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		if len(b) > 0 {
			err = errors.New("it was answered")
		}
		answered <- err
	}()
	if err := <-answered; err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("another user: %v", err)
	}
	wait(t, "the refusal is recorded", func() bool { return strings.Contains(r.record(t), `"op":"connect"`) })
	if _, err := in.Tokens().Providers(t.Context()); err != nil {
		t.Errorf("our own user: %v", err)
	}
	r.end(t)
	for line := range strings.Lines(r.record(t)) {
		if strings.Contains(line, `"op":"connect"`) && (!strings.Contains(line, `"code":"UNAUTHORIZED"`) || strings.Contains(line, `"uid"`)) {
			t.Errorf("the record says %s", line)
		}
	}
}

// When the proxy goes, a client hears the same words however its socket got to it: in the middle of a request, with a
// connection that is open, and with a new one.
func TestLossSoundsTheSame(t *testing.T) {
	r := start(t, `login = "allow"`, nil)
	in := r.attach(t)
	ctx := t.Context()
	clients := map[string]*client.Client{"socket": r.Client, "bridge": in.Client}
	for name, c := range clients {
		if _, err := c.Tokens().Providers(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	closing, cancel := context.WithCancel(ctx)
	cancel()
	_ = r.Proxy.Close(closing)
	r.Proxy = nil
	for name, c := range clients {
		if _, err := c.Tokens().Providers(ctx); !errors.Is(err, client.ErrConnectionLost) || err.Error() != client.ErrConnectionLost.Error() {
			t.Errorf("%s: a connection that was open: %v", name, err)
		}
	}
	for name, path := range map[string]string{"bridge": in.path, "socket": filepath.Join(filepath.Dir(in.path), "gone.sock")} {
		c := client.New(client.Options{Socket: path})
		if _, err := c.Tokens().Providers(ctx); !errors.Is(err, client.ErrUnreachable) {
			t.Errorf("%s: a new connection: %v", name, err)
		}
		_ = c.Close()
	}
}

// A proxy that is told to end answers what it was asked over the bridge before it closes that.
func TestCloseAnswersOverTheBridge(t *testing.T) {
	asking, answer := make(chan struct{}), make(chan struct{})
	r := start(t, `login = "ask"`, func(o *Options) {
		o.Ask = func(context.Context, Question) (bool, error) { close(asking); <-answer; return false, nil }
	})
	in := r.attach(t)
	failed := make(chan error, 1)
	go func() {
		_, err := in.OAuthInitiate(context.Background(), "acme", "", "")
		failed <- err
	}()
	<-asking
	closed := make(chan error, 1)
	p := r.Proxy
	r.Proxy = nil
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		closed <- p.Close(ctx)
	}()
	wait(t, "new connections are turned away", func() bool {
		c := client.New(client.Options{Socket: in.path})
		defer c.Close()
		_, err := c.Tokens().Providers(t.Context())
		return err != nil
	})
	close(answer)
	if err := <-failed; !errors.Is(err, wire.ErrUnauthorized) {
		t.Errorf("the request in flight: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
