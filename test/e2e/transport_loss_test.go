//go:build e2e && linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/oauthtest"
)

const connectionLost = "Credential proxy connection lost. Restart the session."

// carrier is the engine's client, on the host, that runs the carrier of this run.
func carrier(t *testing.T, run *background) int {
	t.Helper()
	pid := 0
	eventually(t, patience, "the run has a carrier", func() bool {
		for p := range processesWith("sandbox-carry") {
			if parentOf(p) == run.Process.Pid {
				pid = p
				return true
			}
		}
		return false
	})
	return pid
}

func parentOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have blanks
	var state string
	var parent int
	_, _ = fmt.Sscan(rest, &state, &parent)
	return parent
}

// waitsForALogin makes the host one where a client inside waits: a login of which nobody enters the code.
func (s *sandboxed) waitsForALogin(t *testing.T) []string {
	t.Helper()
	server := start(t, oauthtest.Options{Approval: oauthtest.AskUser, DeviceInterval: time.Second})
	s.configure(loginConfig(server, `acme = ["*"]`, `login = "allow"`))
	return []string{"auth", "login", "acme/slow", "--flow", "device"}
}

// When what carries the bridge dies, the sandbox has lost its proxy, for good, and goes on without.
func TestCarrierDies(t *testing.T) {
	inEngines(t, everyEngineOverTLS, func(t *testing.T, s *sandboxed) {
		login := s.waitsForALogin(t)
		dir := s.recorded(t)
		in := s.enter(t, "-v")
		waits, err := in.begin(login...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := waits.shows(waits.stderr, shownCode); err != nil {
			t.Fatal(err)
		}
		h, port := handover(t, dir), tcpPort(t, in.b)
		if s.engine == "podman" && s.uid == 0 {
			// By a program inside, which may do that to itself.
			killed, err := in.execute("/bin/sh", "-c", `for p in /proc/[0-9]*; do
				if [ ${p#/proc/} != $$ ] && grep -q sandbox-carry $p/cmdline; then kill -9 ${p#/proc/}; fi; done`)
			if err != nil {
				t.Fatal(err)
			}
			if code, err := killed.wait(); code != 0 || err != nil {
				t.Fatalf("status %d, %v: %v", code, err, killed)
			}
		} else if err := syscall.Kill(carrier(t, in.b), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code, err := waits.wait(); err != nil || code != 7 || !strings.Contains(waits.stderr.String(), connectionLost) {
			t.Errorf("who was waiting: status %d, want 7 and %q: %v, %v", code, connectionLost, err, waits)
		}
		after, err := in.execute("/bin/sh", "-c", `until ! [ -e "$LLXPRT_CREDENTIAL_SOCKET" ]; do :; done; credproxy token acme/slow; echo "status $?"`)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := after.wait(); err != nil || code != 0 || !strings.HasSuffix(after.stdout.String(), "status 7\n") {
			t.Errorf("who comes later: %d, %v: %v", code, err, after)
		}
		// Nobody is let in instead.
		if raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			if session, err := bridge.Attach(t.Context(), raw, copyOf(h)); err == nil {
				session.Close()
				t.Error("the secret works a second time")
			}
			raw.Close()
		}
		in.leave(t) // with the command's own status
		s.nothingLeft(t, "the death of the carrier")
	})
}

// When credproxy itself is killed, clients inside see the same over both transports.
func TestKilledRunIsALossInside(t *testing.T) {
	inEngines(t, append(everyEngineOverTLS[:3:3], everyEngine[0]), func(t *testing.T, s *sandboxed) {
		login := s.waitsForALogin(t)
		b := s.start(s.command(s.args(nil, append(append(s.shell, `trap "" TERM; exec >>out 2>&1
			setsid credproxy "$@"; echo "waited $?"
			setsid credproxy token acme/slow; echo "later $?"
			[ -e "$LLXPRT_CREDENTIAL_SOCKET" ] || echo gone
			echo over; while :; do sleep 1000; done`, "sh"), login...)...)...))
		says := func(text string) {
			t.Helper()
			eventually(t, patience, fmt.Sprintf("the sandbox says %q; %s", text, b.stderr), func() bool {
				said, _ := os.ReadFile(s.work + "/out")
				return strings.Contains(string(said), text)
			})
		}
		says("enter this code there")
		b.signal(syscall.SIGKILL)
		<-b.ended
		says("over\n")
		said, err := os.ReadFile(s.work + "/out")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{connectionLost, "waited 7\n", "later 7\n"} {
			if !strings.Contains(string(said), want) {
				t.Errorf("no %q inside: %s", want, said)
			}
		}
		if s.transport == "tls" && !strings.Contains(string(said), "gone\n") {
			t.Errorf("the socket is still there: %s", said)
		}
		if r := s.in(append(s.shell, "exit 0")...); r.code != 0 {
			t.Fatalf("the next start: %v", r)
		}
		s.nothingLeft(t, "the start after kill -9")
	})
}

// Process 1 inside is ours: it hands signals on, reaps what nobody else does, and leaves the terminal to the command.
func TestProcessOneOverTLS(t *testing.T) {
	inEngines(t, everyEngineOverTLS, func(t *testing.T, s *sandboxed) {
		b := s.start(s.command(s.args(nil, append(s.shell,
			`trap 'echo got HUP' HUP; trap 'echo got INT' INT; trap 'echo got QUIT' QUIT; trap 'echo got TERM; exit 44' TERM
			i=0; while [ $i -lt 20 ]; do (/bin/true & ) ; i=$((i+1)); done
			while grep -q "^State:.Z" /proc/[0-9]*/status; do :; done
			echo ready; while :; do sleep 0.05; done`)...)...))
		says := func(text string) {
			t.Helper()
			if b.stdout.find(regexp.MustCompile(`(?m)^`+text+`\n`), b.ended, time.Minute) == nil {
				t.Fatalf("no %q; stdout: %s stderr: %s", text, b.stdout, b.stderr)
			}
		}
		says("ready")
		// From the engine, for a run that is told to end by one of these has only seconds left.
		for _, sig := range []string{"QUIT", "HUP", "INT"} {
			s.engineRuns(t, s.program(s.engine, "kill", "--signal="+sig, s.container(t)))
			says("got " + sig)
		}
		b.signal(syscall.SIGTERM)
		says("got TERM")
		if code := b.wait(patience); code != 44 {
			t.Errorf("status %d, want the command's 44; stderr: %s", code, b.stderr)
		}

		// A terminal.
		screen := s.onTerminal(t, s.command(s.args(nil, append(s.shell,
			`test -t 0 && test -t 1 && test -t 2 && echo "tty $(stty size) $(ps -o pid,tty | wc -l)"; trap 'echo got INT' INT; echo ready; cat; echo "cat $?"
			trap - INT; echo again; sleep 1000; echo "not interrupted"`)...)...))
		screen.shows(regexp.MustCompile(`tty 24 100 `))
		screen.shows(regexp.MustCompile(`ready\r\n`))
		screen.types("echo\r")
		screen.shows(regexp.MustCompile(`echo\r\necho\r\n`))
		screen.types("\x1a") // Ctrl-Z: there is nobody inside who could put it in the foreground again
		screen.types("still here\r")
		screen.shows(regexp.MustCompile(`still here\r\nstill here\r\n`))
		screen.types("\x03")
		screen.shows(regexp.MustCompile(`got INT\r\n`))
		screen.shows(regexp.MustCompile(`again\r\n`))
		screen.types("\x03")
		if code := screen.wait(patience); code != 130 || strings.Contains(screen.stdout.String(), "not interrupted") {
			t.Errorf("after Ctrl-C: status %d", code)
		}
		s.nothingLeft(t, "Ctrl-C")
	})
}

// Whatever is open in the bridge stays there: the command has its three descriptors and no more, and its own group.
func TestCommandOverTLSInheritsNothing(t *testing.T) {
	inEngines(t, everyEngineOverTLS, func(t *testing.T, s *sandboxed) {
		r := s.in("./guest", "open-files")
		if r.code != 0 {
			t.Fatalf("%v", r)
		}
		for line := range strings.Lines(r.stdout) {
			word, _, _ := strings.Cut(line, " ")
			if fd, err := strconv.Atoi(word); err != nil || fd > 2 && !strings.Contains(line, "/sys/fs/cgroup/") { // Go's own
				t.Errorf("a descriptor came inside: %s", line)
			}
		}
		// The same environment over both transports, but for where the sockets and the host names are.
		seen := map[string]string{}
		for _, transport := range []string{"unix", "tls"} {
			s.transport = transport
			r := s.in(append(s.shell, `env | grep -v -e ^HOSTNAME= -e ^LLXPRT_CREDENTIAL_SOCKET= | sort; umask; ulimit -c; ulimit -n; id; pwd`)...)
			if r.code != 0 || len(r.stdout) < 20 {
				t.Errorf("%v", r)
			}
			seen[transport] = r.stdout
		}
		if seen["unix"] != seen["tls"] {
			t.Errorf("over unix a command finds\n%s\nover tls\n%s", seen["unix"], seen["tls"])
		}
	})
}
