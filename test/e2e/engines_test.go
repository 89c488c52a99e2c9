//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSandboxGetsItsCredentials(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		access := s.oauth.Issued().AccessTokens[0]
		if r := s.in("credproxy", "token", "acme"); r.code != 0 || r.stdout != access+"\n" {
			t.Fatalf("%v", r)
		}
		if r := s.in("credproxy", "key", "get", "openai"); r.code != 0 || r.stdout != testKey+"\n" {
			t.Errorf("%v", r)
		}
		r := s.in("credproxy", "auth", "status", "--json")
		var status struct {
			Store  string
			Logins []struct{ Provider, Bucket, State string }
		}
		if err := json.Unmarshal([]byte(r.stdout), &status); err != nil || r.code != 0 || fmt.Sprint(status.Logins) != "[{acme default ok}]" {
			t.Errorf("%v: %v", err, r)
		}
		// Another client than ours, over the socket.
		r = s.in("./guest", "ask", `"op":"get_token","payload":{"provider":"acme"}`, `"op":"get_token","payload":{"provider":"other"}`,
			`"op":"list_api_keys"`, `"op":"get_api_key","payload":{"name":"hidden"}`)
		if lines := strings.Split(r.stdout, "\n"); r.code != 0 || len(lines) != 5 || !strings.Contains(lines[0], access) ||
			lines[1] != "UNAUTHORIZED" || lines[2] != `{"keys":["openai"]}` || lines[3] != "UNAUTHORIZED" {
			t.Errorf("%v", r)
		}
		events := auditEvents(t, s.host)
		if last := events[len(events)-1]; s.image != "" && last["container"] == nil {
			t.Errorf("the audit log does not name the container: %v", last)
		}
	})
}

func TestSandboxExitStatuses(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		if err := os.WriteFile(s.work+"/plain", []byte("not a program"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			want    int
			command []string
		}{
			{42, append(s.shell, "exit 42")},
			{143, append(s.shell, "kill -TERM $$")},
			{137, append(s.shell, "kill -KILL $$")},
			{126, []string{"./plain"}},
			{127, []string{"/nowhere/at/all"}},
			{127, []string{"no-such-command"}},
			{3, []string{"credproxy", "key", "get", "nothing"}},
		} {
			if r := s.in(c.command...); r.code != c.want {
				t.Errorf("want status %d: %v", c.want, r)
			}
		}
		// What our own command has inside is not the engine's doing: all in one sandbox.
		var script, want strings.Builder
		for _, c := range []struct {
			want int
			args string
		}{
			{3, "token acme/nowhere"}, {5, "token acme/work"}, {5, "key get hidden"}, {1, "key set openai"}, {2, "token 'a b'"},
		} {
			fmt.Fprintf(&script, "credproxy %s; echo $? %s\n", c.args, c.args)
			fmt.Fprintln(&want, c.want, strings.ReplaceAll(c.args, "'", ""))
		}
		if r := s.in(append(s.shell, script.String())...); r.code != 0 || r.stdout != want.String() {
			t.Errorf("want\n%s%v", want.String(), r)
		}
		if s.image != "" {
			r := s.run("run", "--engine", s.engine, "--image", "localhost/credproxy-no-such-image:none", "--", "true")
			if r.code != 125 || !strings.Contains(r.stderr, "credproxy: ") {
				t.Errorf("an image that is not there: %v", r)
			}
		}
		if r := s.run("run", "--engine", s.engine, "--profile", "nowhere", "--", "true"); r.code == 0 || !strings.Contains(r.stderr, "nowhere") {
			t.Errorf("a profile that is not there: %v", r)
		}
		s.nothingLeft(t, "failing")
	})
}

func TestSandboxPassesDataThrough(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		data := make([]byte, 300_000)
		for i := range data {
			data[i] = byte(i * 7 / 3)
		}
		if r := s.runWith(string(data), s.args(nil, "/bin/cat")...); r.code != 0 || r.stdout != string(data) {
			t.Errorf("300,000 bytes through cat: status %d, %d bytes came back; stderr: %s", r.code, len(r.stdout), r.stderr)
		}
		r := s.in(append(s.shell, `echo out; echo err >&2; echo "$1|$2" > made-inside`, "name", "two words", `quote " and $HOME`)...)
		if r.code != 0 || r.stdout != "out\n" || strings.TrimSpace(r.stderr) != "err" {
			t.Errorf("%v", r)
		}
		made := s.work + "/made-inside"
		text, err := os.ReadFile(made)
		if err != nil || string(text) != "two words|quote \" and $HOME\n" {
			t.Errorf("arguments and the work directory: %q, %v", text, err)
		}
		if info, err := os.Stat(made); err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != s.uid {
			t.Errorf("a file that was made inside belongs to %d, want %d", info.Sys().(*syscall.Stat_t).Uid, s.uid)
		}
		s.nothingLeft(t, "a normal end")
	})
}

// A hostile program in the sandbox looks for everything that must not be there.
func TestSandboxSeesNothingElse(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		other := s.serve() // another sandbox's proxy
		const inherited, passed = "test-secret-of-the-parent", "test-passed-on-by-name"
		s.vars = append(s.vars, "OPENAI_API_KEY="+inherited, "AWS_SECRET_ACCESS_KEY="+inherited, "PASSED_ON="+passed)
		private, err := os.CreateTemp(s.user, ".cpe2e-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(private.Name()) })
		if _, err := private.WriteString("test-file-in-the-home-directory"); err != nil {
			t.Fatal(err)
		}
		private.Close()
		s.own(private.Name())

		b := s.start(s.command(s.args([]string{"--env", "PASSED_ON", "--env", "GIVEN=test-given-value"},
			append(s.shell, `./guest look-around "$@" && ./guest linger "$PWD/lingers"`, "guest",
				s.work, s.home, s.tmp, private.Name(), filepath.Dir(other.socket), other.socket, "/usr/local/bin/credproxy", "/run/credproxy/bin/credproxy", "/")...)...))
		eventually(t, time.Minute, "the guest has looked around: "+b.stderr.String(), func() bool {
			select {
			case <-b.ended:
				t.Fatalf("the sandbox ended; stdout %d bytes, stderr: %s", len(b.stdout.String()), b.stderr)
			default:
			}
			return strings.HasSuffix(b.stdout.String(), "here\n")
		})
		// While it runs: what can be seen of it on the host.
		var host []byte
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if pid, _ := strconv.Atoi(filepath.Base(dir)); pid == os.Getpid() {
				continue
			}
			cmdline, _ := os.ReadFile(dir + "/cmdline")
			host = append(host, cmdline...)
		}
		var engineSays []byte
		if s.image != "" {
			id := s.container(t)
			engineSays, err = s.program(s.engine, "inspect", id).Output()
			if id == "" || err != nil || len(engineSays) < 100 {
				t.Fatalf("inspect %s: %v", id, err)
			}
		}
		running := s.sockets()
		b.signal(syscall.SIGTERM)
		b.wait(patience)

		var saw surroundings
		if err := json.Unmarshal([]byte(strings.TrimSuffix(b.stdout.String(), "here\n")), &saw); err != nil {
			t.Fatal(err)
		}
		sees := func(path string) bool { return slices.Contains(saw.Names, path) }

		// The one socket.
		if len(running) != 2 {
			t.Fatalf("sockets on the host: %v", running)
		}
		var own string
		for _, path := range running {
			if path != other.socket {
				own = path
			}
		}
		if fmt.Sprint(saw.Sockets) != fmt.Sprint([]string{own}) {
			t.Errorf("sockets inside: %v, want only %s", saw.Sockets, own)
		}
		if !slices.Contains(saw.Env, "LLXPRT_CREDENTIAL_SOCKET="+own) {
			t.Errorf("LLXPRT_CREDENTIAL_SOCKET is not %s in %v", own, saw.Env)
		}
		// Only what it was given.
		for _, path := range []string{s.home, s.home + "/config.toml", private.Name(), other.socket} {
			if sees(path) || saw.Readable[path] || saw.Writable[path] {
				t.Errorf("%s: seen %v, readable %v, writable %v", path, sees(path), saw.Readable[path], saw.Writable[path])
			}
		}
		if !saw.Writable[s.work] || saw.Dir != s.work {
			t.Errorf("the work directory %s: writable %v; the current directory is %s", s.work, saw.Writable[s.work], saw.Dir)
		}
		for _, path := range []string{"/usr/local/bin/credproxy", "/run/credproxy/bin/credproxy"} {
			if saw.Writable[path] {
				t.Errorf("%s is writable", path)
			}
		}
		// Who it is.
		if saw.UID != s.uid {
			t.Errorf("UID inside is %d, want %d", saw.UID, s.uid)
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if strings.Trim(saw.Status[set], "0") != "" {
				t.Errorf("%s inside is %s", set, saw.Status[set])
			}
		}
		if saw.Status["NoNewPrivs"] != "1" {
			t.Errorf("NoNewPrivs inside is %s", saw.Status["NoNewPrivs"])
		}
		for pid, process := range saw.Processes {
			if strings.Contains(process, "--json") || regexp.MustCompile(`credproxy\S* (serve|run)`).MatchString(process) {
				t.Errorf("process %s of the host is visible inside: %s", pid, process)
			}
		}
		// No secret anywhere: all files, all processes, the whole environment, the arguments on the host, the engine's records.
		secret := canaries{}
		issued := s.oauth.Issued()
		secret.add(t, "refresh token", issued.RefreshTokens...)
		secret.add(t, "access token", issued.AccessTokens...)
		secret.add(t, "code", issued.Codes...)
		secret.add(t, "API key", testKey, "test-api-key-hidden", "test-client-secret-value")
		secret.add(t, "variable of the parent", inherited)
		secret.add(t, "file in the home directory", "test-file-in-the-home-directory")
		for path, data := range filesBelow(t, s.home) {
			if len(data) >= 32 && len(data) <= 128 {
				secret.add(t, "the content of "+path, strings.TrimSpace(string(data)))
			}
		}
		for path, data := range saw.Files {
			secret.search(t, path+" inside", data)
		}
		secret.search(t, "the environment inside", []byte(strings.Join(saw.Env, "\n")))
		secret.search(t, "the processes inside", fmt.Append(nil, saw.Processes))
		secret.search(t, "the arguments of processes on the host", host)
		secret.search(t, "the engine's own record", engineSays)
		if !slices.Contains(saw.Env, "PASSED_ON="+passed) || !slices.Contains(saw.Env, "GIVEN=test-given-value") {
			t.Errorf("what --env passed on is not in %v", saw.Env)
		}
		if bytes.Contains(host, []byte(passed)) {
			t.Error("a variable that was passed on by name is in the arguments of a process on the host")
		}
		other.stop()
		s.nothingLeft(t, "SIGTERM")
	})
}

func TestSandboxIsToldToEnd(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		// A program that handles the signal decides itself how it ends.
		b := s.start(s.command(s.args(nil, append(s.shell, `trap 'echo told; exit 33' TERM; trap 'echo first' USR1; trap 'echo second' USR2; trap 'echo size' WINCH; echo ready; while :; do sleep 0.05; done`)...)...))
		eventually(t, time.Minute, "the command runs", func() bool { return strings.Contains(b.stdout.String(), "ready") })
		for sig, says := range map[syscall.Signal]string{syscall.SIGUSR1: "first", syscall.SIGUSR2: "second", syscall.SIGWINCH: "size"} {
			b.signal(sig)
			eventually(t, patience, "the command hears of "+sig.String(), func() bool { return strings.Contains(b.stdout.String(), says) })
		}
		b.signal(syscall.SIGTERM)
		if code := b.wait(patience); code != 33 || !strings.Contains(b.stdout.String(), "told") {
			t.Errorf("status %d, want the command's own 33; stdout: %s stderr: %s", code, b.stdout, b.stderr)
		}
		s.nothingLeft(t, "SIGTERM")

		// One that ignores it is killed.
		b = s.start(s.command(s.args(nil, "./guest", "linger", s.work+"/lingers", "stubborn")...))
		eventually(t, time.Minute, "the command runs", func() bool { return strings.Contains(b.stdout.String(), "here") })
		b.signal(syscall.SIGTERM)
		if code := b.wait(patience); code != 137 {
			t.Errorf("a command that ignores SIGTERM ended with %d", code)
		}
		s.nothingLeft(t, "SIGTERM to a stubborn command")
	})
}

func TestSandboxOfAKilledRunIsRemoved(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		b := s.start(s.command(s.args(nil, "./guest", "linger", s.work+"/lingers", "stubborn")...))
		eventually(t, time.Minute, "the command runs", func() bool { return strings.Contains(b.stdout.String(), "here") })
		socket := s.sockets()[0]
		if s.image != "" && s.container(t) == "" {
			t.Fatal("the container of a command that runs is not found: what is checked below means nothing")
		}
		b.signal(syscall.SIGKILL)
		<-b.ended
		if r := s.in(append(s.shell, "exit 0")...); r.code != 0 {
			t.Fatalf("the next start: %v", r)
		}
		s.nothingLeft(t, "the start after kill -9")
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("%s: %v", socket, err)
		}
	})
}

// What would open the sandbox is refused before anything starts.
func TestSandboxRefusesToBeOpened(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		other := s.serve()
		own := []string{"--engine-arg=--security-opt=seccomp=unconfined"}
		if s.image == "" {
			own = []string{"--engine-arg=--bind", "--engine-arg=/", "--engine-arg=/stolen"}
		}
		for _, flags := range [][]string{
			own,
			{"--volume", s.home + ":/stolen"},
			{"--volume", filepath.Dir(s.home) + ":/stolen"},
			{"--volume", s.tmp + ":/stolen"},
			{"--volume", "/:/stolen"},
			{"--engine-arg=--privileged"},
			{"--engine-arg=--cap-add=ALL"},
			{"--engine-arg=--pid=host"},
			{"--env", "LLXPRT_CREDENTIAL_SOCKET=/elsewhere"},
		} {
			// Refused, or what must not be seen is covered.
			r := s.run(s.args(flags, append(s.shell, "find /stolen 2>/dev/null; cat /proc/1/status; echo opened $LLXPRT_CREDENTIAL_SOCKET")...)...)
			if r.code == 0 && (strings.Contains(r.stdout, "config.toml") || strings.Contains(r.stdout, "/data/") || strings.Contains(r.stdout, "/stolen"+other.socket) ||
				strings.Contains(r.stdout, filepath.Base(other.socket)) || strings.Contains(r.stdout, "/elsewhere") || flags[0] != "--volume") {
				t.Errorf("%v: %v", flags, r)
			}
			if r.code != 0 && !strings.Contains(r.stderr, "credproxy: ") {
				t.Errorf("%v: refused by something else: %v", flags, r)
			}
		}
	})
}

// `credproxy demo` shows all this by itself, on any machine, and leaves nothing.
func TestDemo(t *testing.T) {
	for _, uid := range []int{0, stranger} {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			t.Parallel()
			h := newUserHost(t, uid)
			if uid != 0 { // podman would keep storage and a process of its own for a user that has never used it
				bwrap, err := exec.LookPath("bwrap")
				if err != nil {
					t.Fatalf("%v: apt-get install bubblewrap", err)
				}
				bin, err := os.MkdirTemp("/var/tmp", "cpe2e-") // not /tmp, which a sandbox does not see
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(bin) })
				if err := os.Chmod(bin, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(bwrap, filepath.Join(bin, "bwrap")); err != nil {
					t.Fatal(err)
				}
				h.vars = append(h.vars, "PATH="+bin)
			}
			before := tree(t, filepath.Dir(h.tmp))
			r := h.finish(h.command("demo"), 5*patience)
			if r.code != 0 || strings.Contains(r.stdout, "FAIL") || strings.Count(r.stdout, "\nok ") < 10 {
				t.Fatalf("%v", r)
			}
			if secret := regexp.MustCompile(`\b(at|rt|ac|dc)-[A-Za-z0-9_-]{12,}`).FindString(r.stdout + r.stderr); secret != "" {
				t.Errorf("a token is in what demo prints, after %q", secret[:3])
			}
			if after := tree(t, filepath.Dir(h.tmp)); strings.ReplaceAll(after, fmt.Sprintf("/tmp/llxprt-cred-%d drwx------ %d:%d 0 \n", uid, uid, uid), "") != before {
				t.Errorf("demo leaves something behind:\nbefore %s\nafter %s", before, after)
			}
			if stored := h.must("auth", "status", "--json"); !strings.Contains(stored, `"logins":[]`) {
				t.Errorf("demo touches the user's own store: %s", stored)
			}
		})
	}
}
