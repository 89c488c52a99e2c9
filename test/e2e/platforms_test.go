//go:build e2e && linux

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// otherServers are docker servers beside the usual one, reached by DOCKER_HOST: one that maps the users of containers to
// others, and one that an ordinary user runs.
var otherServers = []engineCase{
	{"docker remapped", "docker", true, "", "CREDPROXY_TEST_DOCKER_REMAPPED"},
	{"docker rootless", "docker", false, "", "CREDPROXY_TEST_DOCKER_ROOTLESS"},
	{"docker rootless over tls", "docker", false, "tls", "CREDPROXY_TEST_DOCKER_ROOTLESS"},
}

func TestOtherDockerServers(t *testing.T) {
	inEngines(t, otherServers, func(t *testing.T, s *sandboxed) {
		over := "tls" // what auto has to come to
		if strings.Contains(t.Name(), "rootless") && s.transport == "" {
			over = "unix"
		}
		r := s.run(s.args([]string{"-v"}, "credproxy", "token", "acme")...)
		if r.code != 0 || r.stdout != s.oauth.Issued().AccessTokens[0]+"\n" || !transportInLog(over).MatchString(r.stderr) {
			t.Fatalf("over %s: %v", over, r)
		}
		for want, command := range map[int][]string{
			42: append(s.shell, "exit 42"), 143: append(s.shell, "kill -TERM $$"), 126: {"/tmp"}, 127: {"no-such-command"},
			5: {"credproxy", "key", "get", "hidden"}, 3: {"credproxy", "key", "get", "nothing"},
		} {
			if r := s.in(command...); r.code != want {
				t.Errorf("want status %d: %v", want, r)
			}
		}
		r = s.runWith("through stdin", s.args(nil, append(s.shell, `cat; echo inside >made-inside; ls -n made-inside | cut -c 1-10 >&2`)...)...)
		if r.code != 0 || r.stdout != "through stdin" {
			t.Errorf("%v", r)
		}
		info, err := os.Stat(s.work + "/made-inside")
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); (uid == s.uid) == strings.Contains(t.Name(), "remapped") {
			t.Errorf("what was made inside belongs to %d, who runs it is %d", uid, s.uid)
		}
		events := auditEvents(t, s.host)
		if last := events[len(events)-1]; last["container"] == nil {
			t.Errorf("the audit log does not name the container: %v", last)
		}
		// SIGTERM, and kill -9.
		b := s.start(s.command(s.args(nil, append(s.shell, `trap 'exit 33' TERM; echo ready; while :; do sleep 0.05; done`)...)...))
		eventually(t, time.Minute, "the command runs", func() bool { return strings.Contains(b.stdout.String(), "ready") })
		b.signal(syscall.SIGTERM)
		if code := b.wait(patience); code != 33 {
			t.Errorf("after SIGTERM: status %d; stderr: %s", code, b.stderr)
		}
		s.nothingLeft(t, "SIGTERM")
	})
}

// What an engine maps users to decides the transport; none of it needs more than what is there.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		engineCase
		userns string
		over   string
		uid    string // inside, as id -u has it; empty: the user's own
	}{
		{everyEngine[0], "host", "unix", ""},
		{otherServers[0], "host", "unix", ""},
		{everyEngine[2], "keep-id", "unix", ""},
		{everyEngine[2], "keep-id:uid=1234,gid=1234", "unix", "1234"},
		{everyEngine[2], "host", "unix", "0"},
		{everyEngine[2], "nomap", "tls", ""},
	} {
		t.Run(c.name+" "+c.userns, func(t *testing.T) {
			t.Parallel()
			s := newSandboxed(t, c.engineCase)
			if err := os.Chmod(s.work, 0o777); err != nil {
				t.Fatal(err)
			}
			if c.uid == "" {
				c.uid = fmt.Sprint(s.uid)
			}
			r := s.run(s.args([]string{"-v", "--engine-arg=--userns=" + c.userns}, append(s.shell, "id -u; credproxy token acme")...)...)
			if r.code != 0 || r.stdout != c.uid+"\n"+s.oauth.Issued().AccessTokens[0]+"\n" || !transportInLog(c.over).MatchString(r.stderr) {
				t.Errorf("want the UID %s over %s: %v", c.uid, c.over, r)
			}
			s.nothingLeft(t, "another user namespace")
		})
	}
	for _, c := range []struct {
		engineCase
		userns string
	}{
		{everyEngine[0], "container:other"}, {everyEngine[0], "private"}, {everyEngine[1], "keep-id"}, {everyEngine[1], "ns:/proc/1/ns/user"}, {everyEngine[2], "container:other"},
	} {
		t.Run(c.name+" "+c.userns, func(t *testing.T) {
			t.Parallel()
			s := newSandboxed(t, c.engineCase)
			if r := s.run(s.args([]string{"--engine-arg=--userns=" + c.userns}, "true")...); r.code != 2 || !strings.Contains(r.stderr, "credproxy: ") {
				t.Errorf("%v", r)
			}
		})
	}
}

// Places, images and networks as people have them.
func TestSurroundingsOfARun(t *testing.T) {
	inEngines(t, []engineCase{everyEngine[0], everyEngine[2], everyEngineOverTLS[0], everyEngineOverTLS[2]}, func(t *testing.T, s *sandboxed) {
		access := s.oauth.Issued().AccessTokens[0] + "\n"
		gets := func(what string, h host, want string, args ...string) {
			t.Helper()
			if r := h.run(args...); r.code != 0 || r.stdout != want {
				t.Errorf("%s: want %q: %v", what, want, r)
			}
		}
		token := []string{"credproxy", "token", "acme"}

		// A work directory that needs quoting everywhere, and a TMPDIR elsewhere, behind a symbolic link.
		odd := *s.host
		odd.work = s.work + `/with spaces, "quotes" and 'more'=`
		elsewhere, err := os.MkdirTemp("/var/tmp", "cpe2e ")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(elsewhere) })
		for _, dir := range []string{odd.work, elsewhere + "/real"} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			s.own(dir)
		}
		s.own(elsewhere)
		if err := os.Symlink(elsewhere+"/real", elsewhere+"/link"); err != nil {
			t.Fatal(err)
		}
		odd.vars = append(odd.vars, "TMPDIR="+elsewhere+"/link")
		gets("an odd work directory and TMPDIR", odd, odd.work+"\n"+access, s.args(nil, append(s.shell, "/bin/pwd; credproxy token acme")...)...)
		gets("a read-only root, and no network", *s.host, access,
			s.args([]string{"--engine-arg=--read-only", "--engine-arg=--network=none", "--no-workdir"}, token...)...)

		// Images.
		bare := s.importImage(t, "bare")
		gets("an image with nothing in it, and a read-only root", *s.host, access, append(s.runImage(bare, "--engine-arg=--read-only"), token...)...)
		if r := s.run(append(s.runImage(bare), "sh", "-c", "true")...); r.code != 127 {
			t.Errorf("an image without a shell: %v", r)
		}
		user := s.commitImage(t, "user", "USER 1234:1234", `ENTRYPOINT ["/nowhere"]`, "WORKDIR /tmp", "ENV PATH=/usr/local/bin:/bin")
		gets("an image whose user is not root", *s.host, fmt.Sprintln(s.uid)+access,
			append(append(s.runImage(user), s.shell...), "/bin/id -u; credproxy token acme")...)
		s.nothingLeft(t, "all these")
	})
}

// A health check is a program of the image's that the engine runs beside ours, and before the command.
func TestHealthCheckDoesNotRunOverTLS(t *testing.T) {
	t.Parallel()
	s := newSandboxed(t, everyEngineOverTLS[0])
	image := s.commitImage(t, "health", `HEALTHCHECK --interval=1ms --timeout=1s CMD ["/bin/touch", "`+s.work+`/checked"]`)
	s.image = image
	in := s.enter(t)
	out, err := s.program("docker", "inspect", "--format", "{{json .State.Health}} {{json .Config.Healthcheck}}", s.container(t)).Output()
	if err != nil || !strings.Contains(string(out), `"NONE"`) && !strings.HasPrefix(string(out), "null ") {
		t.Errorf("the engine checks the health: %s, %v", out, err)
	}
	if a, err := in.ask("get_token", m{"provider": "acme"}); err != nil || !a.OK {
		t.Errorf("%v, %v", a, err)
	}
	in.leave(t)
	if _, err := os.Lstat(s.work + "/checked"); err == nil {
		t.Error("the health check has run")
	}
}

// Where an engine lets a container reach the host's loopback, process 1 goes there itself, and nothing is left of the carrier.
func TestBridgeGoesDirectlyWhereItCan(t *testing.T) {
	t.Parallel()
	s := newSandboxed(t, everyEngineOverTLS[2])
	in := s.enter(t, "--engine-arg=--network=slirp4netns:allow_host_loopback=true")
	if a, err := in.ask("get_token", m{"provider": "acme"}); err != nil || !a.OK {
		t.Errorf("%v, %v", a, err)
	}
	eventually(t, patience, "the carrier has gone", func() bool {
		for pid := range processesWith("sandbox-carry") {
			if parentOf(pid) == in.b.Process.Pid {
				return false
			}
		}
		return true
	})
	if a, err := in.ask("get_token", m{"provider": "acme"}); err != nil || !a.OK {
		t.Errorf("without the carrier: %v, %v", a, err)
	}
	in.leave(t)
	s.nothingLeft(t, "a direct bridge")
}

// runImage is `credproxy run` with another image than the usual, up to the command.
func (s *sandboxed) runImage(image string, flags ...string) []string {
	c := *s
	c.image = image
	return c.args(flags)
}

func (s *sandboxed) tag(what string) string {
	return "credproxy-test:" + what + "-" + strings.ToLower(filepath.Base(filepath.Dir(s.home)))
}

// engineRuns runs the engine's own client.
func (h *host) engineRuns(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", cmd.Args, err, out)
	}
}

func (s *sandboxed) removeLater(t *testing.T, image string) {
	t.Cleanup(func() { s.engineRuns(t, s.program(s.engine, "rmi", "--force", image)) })
}

// importImage makes an image of no files but an empty directory; it lives as long as the test.
func (s *sandboxed) importImage(t *testing.T, what string) string {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "empty/", Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := s.program(s.engine, "import", "-", s.tag(what))
	cmd.Stdin = &archive
	s.engineRuns(t, cmd)
	s.removeLater(t, s.tag(what))
	return s.tag(what)
}

// commitImage makes an image of the usual one, changed.
func (s *sandboxed) commitImage(t *testing.T, what string, changes ...string) string {
	t.Helper()
	name := strings.ReplaceAll(s.tag(what), ":", "-")
	s.engineRuns(t, s.program(s.engine, "create", "--name", name, s.image, "true"))
	args := []string{"commit"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	s.engineRuns(t, s.program(s.engine, append(args, name, s.tag(what))...))
	s.engineRuns(t, s.program(s.engine, "rm", name))
	s.removeLater(t, s.tag(what))
	return s.tag(what)
}
