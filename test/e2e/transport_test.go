//go:build e2e && linux

package e2e

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/bridge"
)

// What is tested here and in the other files of this name is the second transport as it can be seen from outside: by the
// programs inside, by other programs and containers of the host, and by whoever stands between credproxy and the engine.

// between puts a shell script in front of the engine in PATH. In it, "$engine" is the real one and "$here" a directory of
// the script's own, which is returned.
func (s *sandboxed) between(t *testing.T, script string) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(s.home), "between")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.own(dir)
	file := filepath.Join(dir, s.engine)
	if err := os.WriteFile(file, fmt.Appendf(nil, "#!/bin/sh\nengine='%s' here='%s'\n%s\nexec \"$engine\" \"$@\"\n", realEngine(t, s.engine), dir, script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.vars = append(s.vars, "PATH="+dir+":"+os.Getenv("PATH"))
	return dir
}

func realEngine(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// whenCarried is a condition in such a script: this call runs the carrier inside. It is the engine's exec.
const whenCarried = `carried=; for word; do [ "$word" != sandbox-carry ] || carried=yes; done
if [ -n "$carried" ]; then
`

// recorded starts to record what credproxy says to the engine: "calls" has the arguments and environment of every call, and
// "handover" what our program inside gets on its standard input.
func (s *sandboxed) recorded(t *testing.T) (dir string) {
	t.Helper()
	return s.between(t, `{ for word; do echo "$word"; done; env; } >>"$here/calls"
`+whenCarried+`
	mkfifo "$here/pipe"
	exec 3<&0
	tee "$here/handover" <&3 >"$here/pipe" 3<&- &
	exec "$engine" "$@" <"$here/pipe" 3<&-
fi`)
}

// handover returns what was recorded of the handover, once all of it is there.
func handover(t *testing.T, dir string) *bridge.Handover {
	t.Helper()
	var h *bridge.Handover
	eventually(t, patience, "the handover is recorded", func() bool {
		recorded, err := os.ReadFile(filepath.Join(dir, "handover"))
		if err != nil {
			return false
		}
		b, err := io.ReadAll(bridge.UnquoteFrom(bytes.NewReader(recorded)))
		if err != nil {
			return false
		}
		h, err = bridge.ReadHandover(bytes.NewReader(b))
		// What was read as the secret is what stands there: the search for it would otherwise prove nothing.
		return err == nil && bytes.Contains(b, h.Secret[:]) && bytes.Contains(b, h.Pin[:])
	})
	if h.Secret == [32]byte{} || h.Pin == [32]byte{} || h.Secret == h.Pin {
		t.Fatal("the handover has no secret or no pin")
	}
	return h
}

// copyOf is the handover again: whoever attaches with one, wipes it.
func copyOf(h *bridge.Handover) *bridge.Handover {
	c := *h
	return &c
}

// tcpPort is where the run listens: the one listener that it has, on loopback.
func tcpPort(t *testing.T, b *background) int {
	t.Helper()
	at := listensAt(t, b.Process.Pid)
	if len(at) != 1 {
		t.Fatalf("the run listens at %v, want one address", at)
	}
	hex, ok := strings.CutPrefix(at[0], "0100007F:") // 127.0.0.1, as /proc writes it
	port, err := strconv.ParseUint(hex, 16, 16)
	if !ok || err != nil {
		t.Fatalf("the run listens at %s, which is not 127.0.0.1", at[0])
	}
	return int(port)
}

// privateKey finds the private key of the listener in the memory of its process, as only root can.
func privateKey(t *testing.T, b *background, h *bridge.Handover) []byte {
	t.Helper()
	var spki []byte
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", tcpPort(t, b)), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"credproxy"},
		VerifyConnection: func(state tls.ConnectionState) error {
			spki = state.PeerCertificates[0].RawSubjectPublicKeyInfo
			return nil
		},
	})
	if err == nil {
		c.Close()
	}
	if sha256.Sum256(spki) != h.Pin {
		t.Fatalf("the listener's key is not the one that the handover pins (%v)", err)
	}
	key, err := x509.ParsePKIXPublicKey(spki)
	public, ok := key.(ed25519.PublicKey)
	if err != nil || !ok {
		t.Fatalf("the listener's key is a %T (%v): this search knows Ed25519", key, err)
	}
	var seed []byte
	inMemory(b.Process.Pid, func(_ string, chunk []byte) {
		for from := 0; seed == nil; {
			i := bytes.Index(chunk[from:], public)
			if i < 0 {
				return
			}
			if from += i; from >= ed25519.SeedSize && bytes.Equal(ed25519.NewKeyFromSeed(chunk[from-ed25519.SeedSize : from])[ed25519.SeedSize:], public) {
				seed = bytes.Clone(chunk[from-ed25519.SeedSize : from])
			}
			from++
		}
	})
	if seed == nil {
		t.Fatal("the private key is not in the listener's own memory: what the search inside does not find means nothing")
	}
	return seed
}

// client is a TLS client of the listener's.
func client(port int, c *tls.Config) (*tls.Conn, error) {
	c.InsecureSkipVerify = true
	return tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", fmt.Sprintf("127.0.0.1:%d", port), c)
}

var refusedSession = regexp.MustCompile(`level=WARN.*refused`)

// transportInLog is how the log of a run says what was chosen.
func transportInLog(transport string) *regexp.Regexp {
	return regexp.MustCompile(`running a command.* transport=` + transport + `\b`)
}

// refusals counts the connections that were refused, in the audit log.
func refusals(t *testing.T, s *sandboxed) (n int) {
	t.Helper()
	for _, e := range auditEvents(t, s.host) {
		if e["op"] == "connect" && e["outcome"] == "denied" && e["code"] == "UNAUTHORIZED" {
			n++
		}
	}
	return n
}

// The listener is on loopback, speaks TLS 1.3 and lets in who proves to be the sandbox, once.
func TestListenerOfTheBridgeLetsNobodyElseIn(t *testing.T) {
	inEngines(t, everyEngineOverTLS, func(t *testing.T, s *sandboxed) {
		dir := s.recorded(t)
		in := s.enter(t, "-v")
		h := handover(t, dir)
		port := tcpPort(t, in.b)
		works := func(when string) {
			t.Helper()
			if a, err := in.ask("get_token", m{"provider": "acme"}); err != nil || !a.OK || a.Data["access_token"] != s.oauth.Issued().AccessTokens[0] {
				t.Errorf("%s, the sandbox gets %v, %v", when, a, err)
			}
		}
		works("at first")
		if n := refusals(t, s); n != 0 {
			t.Errorf("%d connections were refused before anybody tried", n)
		}

		// Older protocols.
		if c, err := client(port, &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("TLS 1.2: %v, %v", c, err)
		}
		// Nobody is served who proves nothing: they wait for a proof, which is a while; what they say instead ends it.
		for what, words := range map[string]string{
			"a request":            string(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`)),
			"half a secret":        string(h.Secret[:16]) + strings.Repeat("\x00", 100),
			"the secret as it is":  string(h.Secret[:]) + strings.Repeat("\x00", 100),
			"as many zeros as fit": strings.Repeat("\x00", 4096),
		} {
			before := refusals(t, s)
			c, err := client(port, &tls.Config{NextProtos: []string{"credproxy"}})
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = c.Write([]byte(words))
			const welcome = 1
			if answer, err := io.ReadAll(c); os.IsTimeout(err) || len(answer) > 1 || len(answer) == 1 && answer[0] == welcome {
				t.Errorf("who says %s is answered with %q (%v)", what, answer, err)
			}
			c.Close()
			eventually(t, patience, what+" is in the audit log", func() bool { return refusals(t, s) > before })
		}
		works("after these")

		attach := func(what string, with *bridge.Handover) {
			t.Helper()
			before := refusals(t, s)
			raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if session, err := bridge.Attach(t.Context(), raw, with); err == nil {
				session.Close()
				t.Errorf("a second session with %s is let in", what)
			}
			eventually(t, patience, "a second session with "+what+" is in the audit log", func() bool { return refusals(t, s) > before })
			works("after a second session with " + what)
		}
		wrong := copyOf(h)
		wrong.Secret[31] ^= 1
		attach("a wrong secret", wrong)
		attach("the right secret", copyOf(h))
		attach("the right secret, again", copyOf(h))
		if in.b.stderr.find(refusedSession, in.b.ended, patience) == nil {
			t.Errorf("the log of the run says nothing of who was refused: %s", in.b.stderr)
		}
		in.leave(t)
		s.nothingLeft(t, "a normal end")
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			t.Error("the listener outlives the run")
		}
	})
}

// Another container of the same engine reaches the host, but not the listener.
func TestOtherContainersDoNotReachTheListener(t *testing.T) {
	inEngines(t, everyEngineOverTLS[:2], func(t *testing.T, s *sandboxed) {
		in := s.enter(t)
		port := tcpPort(t, in.b)
		// The search can fail: on all addresses of the host there is somebody else, who answers.
		open, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		go func() {
			for {
				c, err := open.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		var hosts []string
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addresses {
			if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLinkLocalUnicast() {
				hosts = append(hosts, ip.IP.String())
			}
		}
		r := s.finish(s.program(s.engine, append([]string{"run", "--rm", "--volume", s.work + ":/w", s.image, "/w/guest", "knock",
			fmt.Sprint(port), fmt.Sprint(open.Addr().(*net.TCPAddr).Port), "gateway"}, hosts...)...), time.Minute)
		if r.code != 0 || !strings.Contains(r.stdout, "the open one answers at") {
			t.Fatalf("the other container cannot reach the host at all: %v", r)
		}
		if strings.Contains(r.stdout, "the closed one answers at") {
			t.Errorf("another container reaches the listener: %v", r)
		}
		// The same from the sandbox itself: the way is the pipe.
		knock, err := in.execute("./guest", append([]string{"knock", fmt.Sprint(port), fmt.Sprint(port), "gateway"}, hosts...)...)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := knock.wait(); err != nil || code != 0 || strings.Contains(knock.stdout.String(), "answers") {
			t.Errorf("from the sandbox itself: status %d, %v: %v", code, err, knock)
		}
		in.leave(t)
		s.nothingLeft(t, "a normal end")
	})
}

// Where the socket can be mounted, nothing listens.
func TestUnixTransportHasNoListener(t *testing.T) {
	var cases []engineCase
	for _, transport := range []string{"", "auto", "unix"} {
		for _, c := range everyEngine[:4] {
			if transport == "" && c.engine == "docker" || transport == "auto" && c.engine != "podman" || transport == "unix" {
				c.name, c.transport = c.name+" "+transport, transport
				cases = append(cases, c)
			}
		}
	}
	inEngines(t, cases, func(t *testing.T, s *sandboxed) {
		in := s.enter(t, "-v")
		if at := listensAt(t, in.b.Process.Pid); len(at) > 0 {
			t.Errorf("the run listens at %v", at)
		}
		if a, err := in.ask("get_token", m{"provider": "acme"}); err != nil || !a.OK {
			t.Errorf("%v, %v", a, err)
		}
		for pid, words := range processesWith(s.work) {
			if strings.Contains(words, "sandbox-carry") || strings.Contains(words, "sandbox-bridge") {
				t.Errorf("process %d is of the other transport: %s", pid, words)
			}
		}
		in.leave(t)
		s.nothingLeft(t, "a normal end")
		if !transportInLog("unix").MatchString(in.b.stderr.String()) {
			t.Errorf("the log does not name the transport: %s", in.b.stderr)
		}
	})
}
