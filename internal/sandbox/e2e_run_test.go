//go:build e2e && linux

package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

func TestE2EWhatIsSeen(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		// Outside: an abstract socket, as a session bus may have, and an open directory that the runner inherits.
		abstract := "@credproxy-e2e-" + filepath.Base(f.dir)
		l, err := net.Listen("unix", abstract)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f.write(t, "work/file", "of the project")
		f.spec.Spec.Env = []EnvVar{{"MINE", "a value, with\nlines"}, {"DOCKER_HOST", "tcp://inside:1"}, {"XDG_DATA_HOME", "/x y"}}
		f.spec.Spec.EngineArgs = f.spec.Spec.EngineArgs[:min(2, len(f.spec.Spec.EngineArgs))] // with the engine's default network
		work, sockets := f.spec.Spec.Workdir, filepath.Join(f.dir, "sockets")
		r := f.report(t, "see="+work, "see="+sockets, "see="+f.dir, "see="+filepath.Join(f.dir, "home"), "see="+f.id.home,
			"see=/run/user", "see=/run/docker.sock", "see=/var/lib", "see=/root", "see=/home",
			"connect="+abstract, "connect=/var/run/docker.sock", "connect=/run/docker.sock",
			"write="+filepath.Join(work, "new"), "write=/usr/local/bin/credproxy", "write="+bwrapBinary,
			"write=/proc/sys/kernel/domainname", "see=/etc/shadow")

		if r.UID != f.id.uid || r.GID != f.id.gid {
			t.Errorf("runs as %d:%d, want %d:%d", r.UID, r.GID, f.id.uid, f.id.gid)
		}
		if want := fmt.Sprintf("%d hello", f.id.uid); r.Echo != want {
			t.Errorf("the socket answered %q, want %q", r.Echo, want)
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if r.Status[set] != "0000000000000000" {
				t.Errorf("%s is %s", set, r.Status[set])
			}
		}
		if r.Status["NoNewPrivs"] != "1" {
			t.Errorf("NoNewPrivs is %q", r.Status["NoNewPrivs"])
		}
		if r.Dir != work || r.Seen[work] != "file" || r.Written[filepath.Join(work, "new")] != "" {
			t.Errorf("work directory: in %s, sees %q, written %q", r.Dir, r.Seen[work], r.Written)
		}
		if info, err := os.Stat(filepath.Join(work, "new")); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != f.id.uid {
			t.Errorf("what was written does not belong to us: %v", err)
		}
		if r.Seen[sockets] != "one.sock" {
			t.Errorf("the socket's directory shows %q", r.Seen[sockets])
		}
		if got := r.Seen[f.dir]; got != "sockets work" {
			t.Errorf("the parent of the work directory shows %q", got)
		}
		if got := r.Seen[filepath.Join(f.dir, "home")]; !strings.Contains(got, "no such file") {
			t.Errorf("credproxy's directory shows %q", got)
		}
		if got := r.Seen[f.id.home]; got != "" && !strings.Contains(got, "no such file") {
			t.Errorf("the home directory shows %q", got)
		}
		for _, p := range []string{"/run/user", "/run/docker.sock"} {
			if got := r.Seen[p]; !strings.Contains(got, "no such file") {
				t.Errorf("%s shows %q", p, got)
			}
		}
		for name, err := range r.Connected {
			if err == "" {
				t.Errorf("connected to %s", name)
			}
		}
		if got := r.Seen["/etc/shadow"]; strings.Contains(got, "root:") {
			t.Error("the host's passwords can be read")
		}
		for _, p := range []string{containerBinary, bwrapBinary, "/proc/sys/kernel/domainname"} {
			if r.Written[p] == "" {
				t.Errorf("wrote to %s", p)
			}
		}
		if len(r.FDs) > 3 {
			t.Errorf("inherited files: %q", r.FDs)
		}
		if f.kind == Bwrap && r.Keys != syscall.EPERM.Error() { // containers get key rings of their own
			t.Errorf("keyctl: %s", r.Keys)
		}
		checkEnviron(t, f, r.Env)
	})
}

func checkEnviron(t *testing.T, f *fixture, env []string) {
	t.Helper()
	allowed := map[string]bool{"PATH": true, "HOME": true, "HOSTNAME": true, SocketEnv: true, "MINE": true, "DOCKER_HOST": true, "XDG_DATA_HOME": true}
	if f.kind == Podman {
		allowed["TERM"], allowed["container"] = true, true
	}
	if f.kind == Bwrap {
		delete(allowed, "HOSTNAME")
		for _, n := range []string{"TERM", "LANG", "USER", "LOGNAME", "TMPDIR", "PWD"} {
			allowed[n] = true
		}
	}
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); !allowed[name] {
			t.Errorf("%s is in the environment", name)
		}
	}
	want := []EnvVar{{SocketEnv, f.spec.Spec.Socket}}
	for _, v := range append(want, f.spec.Spec.Env...) {
		if got, ok := lookup(env, v.Name); !ok || got != v.Value {
			t.Errorf("%s is %q, want %q", v.Name, got, v.Value)
		}
	}
}

func TestE2EExitStatusAndPipes(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		f.write(t, "work/plain", "not a program")
		for _, c := range []struct {
			words []string
			want  int
			both  bool // also over TLS, where another process of ours waits for the command
		}{
			{[]string{"credproxy", "exit", "0"}, 0, false},
			{[]string{"credproxy", "exit", "3"}, 3, true},
			{[]string{"credproxy", "exit", "125"}, 125, false},
			{[]string{"credproxy", "kill", "15"}, 143, false},
			{[]string{"credproxy", "kill", "9"}, 137, true},
			{[]string{"no-such-command"}, 127, true},
			{[]string{"/no/such/command"}, 127, false},
			{[]string{"./plain"}, 126, true},
			{[]string{f.spec.Spec.Workdir}, 126, false},
		} {
			if f.transport == TransportTLS && !c.both {
				continue
			}
			if status, _, errs := f.run(t, "", c.words...); status != c.want {
				t.Errorf("%q: status %d, want %d\n%s", c.words, status, c.want, errs)
			}
		}
		big := strings.Repeat("0123456789abcde\n", 1<<14)
		if status, out, _ := f.run(t, big, "credproxy", "cat"); status != 0 || out != big {
			t.Errorf("cat: status %d, %d bytes came back of %d", status, len(out), len(big))
		}
		odd := []string{"a b", "", "--rm", "-v", "$HOME", "`id`", "a,b", "ü\n"}
		if _, out, errs := f.run(t, "", append([]string{"credproxy", "args"}, odd...)...); out != fmt.Sprintf("%q\n", odd) {
			t.Errorf("arguments arrived as %s%s", out, errs)
		}
		f.spec.Spec.Volumes = []Volume{{Source: "/no/such/place", Target: "/x"}}
		if status, _, errs := f.run(t, "", "credproxy", "version"); status != 99 || !strings.Contains(errs, "/no/such/place") {
			t.Errorf("a missing volume: status %d, %s", status, errs)
		}
	})
}

// TestE2EStdinIsLeft: what the command does not read is there for the next, except that a container's client reads ahead.
func TestE2EStdinIsLeft(t *testing.T) {
	t.Parallel()
	for _, c := range engineCases(t) {
		if c.kind != Bwrap {
			continue
		}
		f := newFixture(t, c)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w, "for the next")
		w.Close()
		cmd := f.command(t, "credproxy", "exit", "0")
		cmd.Stdin = r
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "for the next\n" {
			t.Errorf("%s: %q is left", c.name, rest)
		}
	}
}

func TestE2ESignals(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
			cmd := f.command(t, "credproxy", "hold")
			conn := f.held(t, cmd)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if said := gone(t, conn); said != sig.String()+"\n" {
				t.Errorf("%s: inside got %q", sig, said)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 40+int(sig) {
				t.Errorf("%s: status %d, want the command's own, %d", sig, got, 40+int(sig))
			}
			f.nothingLeft(t)
		}
		f.spec.Spec.Grace = time.Second
		cmd := f.command(t, "credproxy", "hold", "whatever comes")
		conn := f.held(t, cmd)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if said := gone(t, conn); said != "terminated\n" {
			t.Errorf("ignored SIGTERM: inside got %q", said)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 137 {
			t.Errorf("killed after the grace period: status %d", got)
		}
		f.nothingLeft(t)
	})
}

func TestE2EKilled(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		kill := func(words ...string) *bufio.Reader {
			cmd := f.command(t, append([]string{"credproxy", "hold"}, words...)...)
			conn := f.held(t, cmd)
			if f.kind != Bwrap {
				f.sweep(t, "") // it lives
			}
			var carriers []int
			if f.transport == TransportTLS {
				carriers = carriersOf(t, cmd.Process.Pid)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			systest.Until(t, "nothing carries", func() bool {
				return !slices.ContainsFunc(carriers, func(pid int) bool { return syscall.Kill(pid, 0) == nil })
			})
			return conn
		}
		conn := kill()
		if f.kind == Bwrap {
			if said := gone(t, conn); said != "" {
				t.Errorf("inside got %q", said)
			}
			f.nothingLeft(t)
			return
		}
		// The engine's client tells the program, unless it had not got that far itself (podman forwards signals only some
		// time after the start). What holds in any case is that the next start removes what is left.
		f.sweep(t, "*")
		if said := gone(t, conn); said != "" && said != "terminated\n" {
			t.Errorf("inside got %q when its credproxy was killed", said)
		}
		f.nothingLeft(t)

		conn = kill("whatever comes")
		f.sweep(t, "credproxy-")
		gone(t, conn)
		f.nothingLeft(t)
	})
}

// sweep runs Sweep in a process of its own; want is what the names of the removed containers begin with, "*" stands for any.
func (f *fixture) sweep(t *testing.T, want string) {
	t.Helper()
	f.spec.Sweep = true
	cmd := f.command(t)
	f.spec.Sweep = false
	out, err := cmd.CombinedOutput()
	got := strings.TrimSpace(string(out))
	if err != nil || want != "*" && (!strings.HasPrefix(got, want) || (want == "") != (got == "")) {
		t.Fatalf("sweep: removed %q, want %q: %v", got, want, err)
	}
}
