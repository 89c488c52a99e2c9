//go:build e2e && linux

package sandbox

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// auto lets the fixture's engine choose the transport.
func (f *fixture) auto() *fixture {
	f.spec.Spec.Transport = TransportAuto
	return f
}

// open lets others look at the work directory.
func (f *fixture) open(t *testing.T) {
	t.Helper()
	if err := os.Chmod(f.spec.Spec.Workdir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// expectInside checks who the command is, whether the socket answers it, and whether what it wrote to the work directory is ours.
func (f *fixture) expectInside(t *testing.T, uid, gid int, writable bool) {
	t.Helper()
	file := filepath.Join(f.spec.Spec.Workdir, "new")
	r := f.report(t, "write="+file)
	if r.UID != uid || r.GID != gid {
		t.Errorf("runs as %d:%d, want %d:%d", r.UID, r.GID, uid, gid)
	}
	if want := fmt.Sprintf("%d hello", f.id.uid); r.Echo != want {
		t.Errorf("the socket answered %q, want %q", r.Echo, want)
	}
	if info, err := os.Stat(file); writable != (err == nil) || err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != f.id.uid {
		t.Errorf("the work directory: written inside %q, seen outside: %v", r.Written[file], err)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if r.Status[set] != "0000000000000000" {
			t.Errorf("%s is %s", set, r.Status[set])
		}
	}
}

// TestE2EUserNamespaces: every way in which podman can map users, with the transport that it needs.
func TestE2EUserNamespaces(t *testing.T) {
	for _, c := range []struct {
		engine, userns string
		uid, gid       int // -1: our own
		ours           bool
	}{
		{"podman-rootless", "keep-id", -1, -1, true},
		{"podman-rootless", "keep-id:uid=200,gid=210", 200, 210, true},
		{"podman-rootless", "host", 0, 0, true},
		{"podman-rootless", "auto", -1, -1, false},
		{"podman-rootless", "nomap", -1, -1, false},
		{"podman", "auto", -1, -1, false},
		{"podman", "host", -1, -1, true},
	} {
		t.Run(c.engine+" "+c.userns, func(t *testing.T) {
			// podman 4.3 with auto locks up with any other podman of the same user that starts at that moment: each holds the lock of
			// the storage that the other waits for. So this test runs before all that are parallel. And the ids are not enough for two
			// containers of a user who is not root.
			alone := c.userns == "auto"
			if !alone {
				t.Parallel()
			}
			f := newFixture(t, engineNamed(t, c.engine)).auto()
			f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs, "--userns="+c.userns)
			if !c.ours {
				f.open(t)
			}
			if alone && c.engine == "podman-rootless" {
				systest.Until(t, "no other container has all the user ids", func() bool {
					_, _, errs := f.run(t, "", "credproxy", "version")
					return !strings.Contains(errs, "not find enough available IDs")
				})
			}
			uid, gid := c.uid, c.gid
			if uid < 0 {
				uid, gid = f.id.uid, f.id.gid
			}
			f.expectInside(t, uid, gid, c.ours)
		})
	}
	f := newFixture(t, engineNamed(t, "podman")).auto()
	f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs, "--userns=keep-id")
	if status, _, errs := f.run(t, "", "credproxy", "version"); status != 99 || !strings.Contains(errs, "does not run as root") {
		t.Errorf("keep-id for root: status %d, %s", status, errs)
	}
}

// TestE2EDockerServers: a server that maps users to others, and one that is an ordinary user's.
func TestE2EDockerServers(t *testing.T) {
	t.Parallel()
	server := func(t *testing.T, variable, name string) *fixture {
		c := engineNamed(t, name)
		address := os.Getenv(variable)
		if address == "" {
			t.Fatalf("%s is not set: run test/engines.sh", variable)
		}
		c.id.env = append(slices.Clone(c.id.env), "DOCKER_HOST="+address)
		c.kind = Docker
		return newFixture(t, c).auto()
	}
	t.Run("remapped", func(t *testing.T) {
		t.Parallel()
		f := server(t, "CREDPROXY_TEST_DOCKER_REMAPPED", "docker")
		if status, _, errs := f.run(t, "", "credproxy", "version"); status != 99 || !strings.Contains(errs, "others may not enter") {
			t.Errorf("a work directory that is closed to others: status %d, %s", status, errs)
		}
		f.open(t)
		f.expectInside(t, f.id.uid, f.id.gid, false)
	})
	t.Run("remapped, host users", func(t *testing.T) {
		t.Parallel()
		f := server(t, "CREDPROXY_TEST_DOCKER_REMAPPED", "docker")
		f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs, "--userns=host")
		f.expectInside(t, f.id.uid, f.id.gid, true)
	})
	for _, transport := range []Transport{TransportAuto, TransportTLS} {
		t.Run("rootless "+string(transport), func(t *testing.T) {
			t.Parallel()
			f := server(t, "CREDPROXY_TEST_DOCKER_ROOTLESS", "podman-rootless")
			f.spec.Spec.Transport = transport
			f.expectInside(t, 0, 0, true)
		})
	}
}

// TestE2EPodmanService: podman's client alone, with its service, as it is for a machine of podman's.
func TestE2EPodmanService(t *testing.T) {
	t.Parallel()
	c := engineNamed(t, "podman")
	address := "unix://" + filepath.Join(t.TempDir(), "podman.sock")
	service := exec.Command("podman", "system", "service", "--time=0", address)
	service.Env = c.id.env
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait()
	})
	c.id.env = append(slices.Clone(c.id.env), "CONTAINER_HOST="+address)
	systest.Until(t, "podman's service answers", func() bool {
		e, err := (Host{Environ: c.id.env}).Select(t.Context(), Podman, "x")
		return err == nil && e.Service
	})
	for _, transport := range []Transport{TransportUnix, TransportTLS} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, c)
			f.spec.Spec.Transport = transport
			f.spec.Spec.Env = []EnvVar{{"HOME", "/tmp"}, {"MINE", "1"}}
			f.expectInside(t, f.id.uid, f.id.gid, true)
			if r := f.report(t); !slices.Contains(r.Env, "HOME=/tmp") || !slices.Contains(r.Env, "MINE=1") || slices.Contains(r.Env, "SECRET_OF_THE_HOST=x") {
				t.Errorf("environment %q", r.Env)
			}
			big := strings.Repeat("0123456789abcde\n", 1<<12)
			if status, out, errs := f.run(t, big, "credproxy", "cat"); status != 0 || out != big {
				t.Errorf("cat: status %d, %d bytes came back of %d: %s", status, len(out), len(big), errs)
			}
			if status, _, errs := f.run(t, "", "credproxy", "exit", "3"); status != 3 {
				t.Errorf("status %d: %s", status, errs)
			}
		})
	}
}

// TestE2EBareImage: an image with nothing in it but a directory, another user, an entrypoint that is not there, a volume above the
// socket and (docker) a check of its health, under a root that cannot be written.
func TestE2EBareImage(t *testing.T) {
	t.Parallel()
	for _, c := range engineCases(t) {
		if c.kind == Bwrap || strings.HasPrefix(c.name, "docker-user") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, c)
			f.spec.Spec.Image = f.bareImage(t)
			f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs, "--read-only")
			f.expectInside(t, f.id.uid, f.id.gid, true)
		})
	}
}

// bareImage makes an image of an empty /tmp in the fixture's engine.
func (f *fixture) bareImage(t *testing.T) string {
	t.Helper()
	name := "credproxy-test:" + strings.ToLower(filepath.Base(f.dir))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	args := []string{"import", "--change=USER 65534:65534", `--change=ENTRYPOINT ["/no/such/program"]`, "--change=VOLUME /tmp"}
	if f.kind == Docker {
		args = append(args, "--change=HEALTHCHECK --interval=1s CMD /no/such/check")
	}
	f.client(t, &archive, append(args, "-", name)...)
	t.Cleanup(func() { f.client(t, nil, "rmi", name) })
	return name
}

func (f *fixture) client(t *testing.T, stdin *bytes.Buffer, args ...string) {
	t.Helper()
	cmd := exec.Command(string(f.kind), args...)
	cmd.Env, cmd.Dir = f.id.env, "/"
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(f.id.uid), Gid: uint32(f.id.gid), Groups: f.id.groups}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", f.kind, args[0], err, out)
	}
}

// TestE2EOddPlaces: the socket lies elsewhere, as with another TMPDIR, and in a directory whose name has everything in it that
// an engine's options are divided by.
func TestE2EOddPlaces(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		odd := filepath.Join(f.dir, `t m:p,"x"=y`)
		if err := os.Mkdir(odd, 0o700); err != nil {
			t.Fatal(err)
		}
		f.spec.Spec.Socket = filepath.Join(odd, "s.sock")
		f.listen(t, f.spec.Spec.Socket)
		f.own(t)
		r := f.report(t, "see="+odd)
		if want := fmt.Sprintf("%d hello", f.id.uid); r.Echo != want || r.Seen[odd] != "s.sock" {
			t.Errorf("the socket answered %q, want %q; its directory shows %q", r.Echo, want, r.Seen[odd])
		}
	})
}

// TestE2ENotConnected: whichever step of the way to the proxy fails, the run ends, says why, and leaves nothing.
func TestE2ENotConnected(t *testing.T) {
	t.Parallel()
	expect := func(t *testing.T, f *fixture, want int, words ...string) {
		t.Helper()
		status, out, errs := f.run(t, "", "credproxy", "version")
		if status != want || out != "" {
			t.Errorf("status %d, want %d; it wrote %q", status, want, out)
		}
		for _, w := range words {
			if !strings.Contains(errs, w) {
				t.Errorf("%q is not in: %s", w, errs)
			}
		}
	}
	for _, name := range []string{"docker-tls", "podman-rootless-tls"} {
		t.Run(name+" the proxy does not listen", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			f.spec.Deaf = true
			expect(t, f, ExitEngine, "credproxy: the proxy cannot be reached from the sandbox", "hint: ")
		})
		t.Run(name+" the container does not start", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs, "--runtime=no-such-runtime")
			expect(t, f, ExitEngine, "no-such-runtime")
		})
		t.Run(name+" the engine does not see the socket", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, strings.TrimSuffix(name, "-tls")))
			// As with an engine that has a /tmp of its own.
			real, err := exec.LookPath(string(f.kind))
			if err != nil {
				t.Fatal(err)
			}
			bin := filepath.Join(shared, "elsewhere-"+filepath.Base(f.dir))
			script := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = create ]; then rm %q; fi\nexec %s \"$@\"\n", f.spec.Spec.Socket, real)
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bin, string(f.kind)), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			f.id.env = append(slices.Clone(f.id.env), "PATH="+bin+":"+os.Getenv("PATH"))
			expect(t, f, ExitEngine, "the container could not be made", "try --transport tls")
		})
		t.Run(name+" exec fails", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			// As a policy of the engine may have it.
			real, err := exec.LookPath(string(f.kind))
			if err != nil {
				t.Fatal(err)
			}
			bin := filepath.Join(shared, "policy-"+filepath.Base(f.dir))
			script := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = exec ]; then echo 'exec is not allowed here' >&2; exit 1; fi\nexec %s \"$@\"\n", real)
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bin, string(f.kind)), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			f.id.env = slices.Clone(f.id.env)
			path, _ := lookup(f.id.env, "PATH")
			f.id.env = append(f.id.env, "PATH="+bin+":"+path)
			expect(t, f, ExitEngine, "could not be connected to the proxy over TLS", "exec is not allowed here")
		})
	}
	t.Run("docker the mounted socket is of no use", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, engineNamed(t, "docker"))
		if err := os.Remove(f.spec.Spec.Socket); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.spec.Spec.Socket, nil, 0o600); err != nil { // nobody listens
			t.Fatal(err)
		}
		expect(t, f, ExitEngine, "credproxy: the proxy's socket cannot be reached from the sandbox", "hint: ")
	})
}

// TestE2ELost: the way to the proxy is cut while the command runs. The socket is gone, what was connected to it hears of it, and the
// command goes on.
func TestE2ELost(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"docker-tls", "podman-rootless-tls"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			f.spec.Spec.Grace = time.Second
			cmd := f.command(t, "credproxy", "hold", "whatever comes")
			conn := f.held(t, cmd)
			for _, pid := range carriersOf(t, cmd.Process.Pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if said := gone(t, conn); said != "" {
				t.Errorf("inside said %q", said)
			}
			if f.containers(t) == "" {
				t.Error("the command has ended with the session")
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 137 { // killed after the grace period
				t.Errorf("status %d", got)
			}
			f.nothingLeft(t)
		})
	}
}

// TestE2EAddresses: the sandbox dials the proxy by itself where it can, and speaks through the pipe where it cannot.
func TestE2EAddresses(t *testing.T) {
	t.Parallel()
	t.Run("loopback", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, engineNamed(t, "podman-rootless-tls"))
		f.spec.Spec.EngineArgs = append(f.spec.Spec.EngineArgs[:2], "--network=slirp4netns:allow_host_loopback=true")
		cmd := f.command(t, "credproxy", "hold")
		conn := f.held(t, cmd)
		systest.Until(t, "nothing carries", func() bool { return len(carriers(cmd.Process.Pid)) == 0 })
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		gone(t, conn)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 40+15 {
			t.Errorf("status %d", got)
		}
		f.nothingLeft(t)
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, engineNamed(t, "docker-tls")).auto()
		f.spec.AsVM, f.spec.Spec.Home = true, shared // where our program is seen
		f.expectInside(t, f.id.uid, f.id.gid, true)
	})
}

// carriersOf returns the engine's clients that carry for a runner, of which there has to be one.
func carriersOf(t *testing.T, runner int) []int {
	t.Helper()
	pids := carriers(runner)
	if len(pids) == 0 {
		t.Error("nothing carries")
	}
	return pids
}

func carriers(runner int) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		var pid int
		if n, _ := fmt.Sscanf(file, "/proc/%d/", &pid); n == 1 && strings.Contains(string(b), "\x00exec\x00") &&
			strings.Contains(string(b), fmt.Sprintf("\x00credproxy-%d-", runner)) {
			pids = append(pids, pid)
		}
	}
	return pids
}
