//go:build e2e && linux

package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The end-to-end tests run real engines, which test/engines.sh prepares, as root. Every run is a process of its own (this test
// binary, started as `run-spec FILE`), as root or as the unprivileged user, so that it can be signalled and killed.

// inside is the program that stands for credproxy in the sandboxes; testBinary is a copy of this one that all may run.
var shared, inside, testBinary string

// runSpec is what a runner process is told. It takes its environment as Spec.Host.Environ.
type runSpec struct {
	Spec  Spec
	Kind  Kind
	Avoid []string
	Sweep bool // remove what is left in RunDir instead of running anything
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "run-spec" {
		os.Exit(runner(os.Args[2]))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests start engines as root and as another user: run them as root")
		return 1
	}
	if os.Getenv("CREDPROXY_TEST_IMAGE") == "" {
		fmt.Fprintln(os.Stderr, "no engines: run `eval $(test/engines.sh)` first and export what it sets")
		return 1
	}
	var err error
	if shared, err = os.MkdirTemp("/var/tmp", "credproxy-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(shared)
	inside, testBinary = filepath.Join(shared, "inside"), filepath.Join(shared, "sandbox.test")
	build := exec.Command("go", "build", "-o", inside, "./testdata/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err == nil {
		out, err = exec.Command("cp", "/proc/"+strconv.Itoa(os.Getpid())+"/exe", testBinary).CombinedOutput()
	}
	if err == nil {
		err = os.Chmod(shared, 0o755)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
		return 1
	}
	return m.Run()
}

func runner(file string) int {
	var rs runSpec
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &rs)
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "runner:", err)
		return 99
	}
	if err != nil {
		return fail(err)
	}
	ctx := context.Background()
	host := Host{Environ: os.Environ(), Avoid: rs.Avoid, UID: os.Getuid()}
	if rs.Sweep {
		removed, err := host.Sweep(ctx, rs.Spec.RunDir)
		if err != nil {
			return fail(err)
		}
		fmt.Println(strings.Join(removed, " "))
		return 0
	}
	rs.Spec.Host, rs.Spec.UID, rs.Spec.GID = host, os.Getuid(), os.Getgid()
	if rs.Spec.Engine, err = host.Select(ctx, rs.Kind, rs.Spec.Image); err != nil {
		return fail(err)
	}
	s, err := Prepare(ctx, rs.Spec)
	if err != nil {
		return fail(err)
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	status, err := s.Run(ctx, Stdio{os.Stdin, os.Stdout, os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
	}
	return status
}

const testLabel = "io.credproxy.test"

// identity is who runs an engine.
type identity struct {
	uid, gid int
	groups   []uint32
	env      []string
	home     string
}

// engineCase is one engine with one identity.
type engineCase struct {
	name string
	kind Kind
	id   identity
}

func engineCases(t *testing.T) []engineCase {
	t.Helper()
	path := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	conf := "CONTAINERS_CONF=" + os.Getenv("CONTAINERS_CONF")
	root := identity{home: "/root", env: []string{path, conf, "HOME=/root", "USER=root", "TERM=xterm", "SECRET_OF_THE_HOST=x"}}
	u, err := user.Lookup(os.Getenv("CREDPROXY_TEST_USER"))
	if err != nil {
		t.Fatalf("no unprivileged user: %v: run test/engines.sh", err)
	}
	someone := identity{home: u.HomeDir, env: []string{path, conf, "HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username,
		"TERM=xterm", "XDG_RUNTIME_DIR=" + os.Getenv("CREDPROXY_TEST_USER_RUNTIME"), "SECRET_OF_THE_HOST=x"}}
	someone.uid, _ = strconv.Atoi(u.Uid)
	someone.gid, _ = strconv.Atoi(u.Gid)
	docker := someone
	g, err := user.LookupGroup("docker")
	if err != nil {
		t.Fatalf("no docker group: %v: run test/engines.sh", err)
	}
	gid, _ := strconv.Atoi(g.Gid)
	docker.groups = []uint32{uint32(gid)}
	return []engineCase{
		{"docker", Docker, root}, {"docker-user", Docker, docker},
		{"podman", Podman, root}, {"podman-rootless", Podman, someone},
		{"bwrap", Bwrap, root}, {"bwrap-user", Bwrap, someone},
	}
}

// eachEngine runs a test for every engine and identity.
func eachEngine(t *testing.T, test func(t *testing.T, f *fixture)) {
	for _, c := range engineCases(t) {
		t.Run(c.name, func(t *testing.T) { t.Parallel(); test(t, newFixture(t, c)) })
	}
}

// fixture is a directory with a project, credproxy's directories and a socket, all of which belong to the identity.
type fixture struct {
	engineCase
	dir      string
	spec     runSpec
	listener *net.UnixListener
	conns    chan *net.UnixConn // of programs that hold, see testdata/inside
}

func newFixture(t *testing.T, c engineCase) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cpe2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{engineCase: c, dir: dir, conns: make(chan *net.UnixConn, 8)}
	for _, d := range []string{"work", "home", "home/config", "sockets", "runs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.write(t, "home/config/secret", "a secret")
	f.write(t, "sockets/other.sock", "")
	socket := filepath.Join(dir, "sockets", "one.sock")
	if f.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() { defer close(accepted); f.accept() }()
	t.Cleanup(func() { f.listener.Close(); <-accepted })
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	f.spec = runSpec{Kind: c.kind, Spec: Spec{
		Socket: socket, Binary: inside, Workdir: filepath.Join(dir, "work"), Home: c.id.home,
		ProtectedDirs: []string{filepath.Join(dir, "home")}, RunDir: filepath.Join(dir, "runs"), Grace: time.Second,
	}}
	if c.kind != Bwrap {
		f.spec.Spec.Image = os.Getenv("CREDPROXY_TEST_IMAGE")
		f.spec.Spec.EngineArgs = []string{"--label", testLabel + "=" + filepath.Base(dir), "--network=none"}
	}
	f.own(t)
	return f
}

// accept answers each connection with its peer's UID and what was written, and hands over those that begin with "ready".
func (f *fixture) accept() {
	for {
		conn, err := f.listener.AcceptUnix()
		if err != nil {
			return
		}
		raw, err := conn.SyscallConn()
		uid := -1
		if err == nil {
			_ = raw.Control(func(fd uintptr) {
				if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
					uid = int(cred.Uid)
				}
			})
		}
		buf := make([]byte, 64)
		n, _ := conn.Read(buf)
		if strings.HasPrefix(string(buf[:n]), "ready") {
			f.conns <- conn
			continue
		}
		fmt.Fprintf(conn, "%d %s", uid, buf[:n])
		conn.Close()
	}
}

func (f *fixture) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) own(t *testing.T) {
	t.Helper()
	if err := filepath.Walk(f.dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, f.id.uid, f.id.gid)
	}); err != nil {
		t.Fatal(err)
	}
}

// command returns a runner process, not yet started, that runs the given words inside.
func (f *fixture) command(t *testing.T, words ...string) *exec.Cmd {
	t.Helper()
	f.spec.Spec.Command = words
	b, err := json.Marshal(f.spec)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "spec.json", string(b))
	f.own(t)
	cmd := exec.Command(testBinary, "run-spec", filepath.Join(f.dir, "spec.json"))
	cmd.Env, cmd.Dir = f.id.env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(f.id.uid), Gid: uint32(f.id.gid), Groups: f.id.groups}}
	return cmd
}

// run runs the given words inside and returns the exit status and what came out.
func (f *fixture) run(t *testing.T, stdin string, words ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := f.command(t, words...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	_ = cmd.Run()
	f.nothingLeft(t)
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// nothingLeft fails when a container or a run record is still there.
func (f *fixture) nothingLeft(t *testing.T) {
	t.Helper()
	if left := f.containers(t); left != "" {
		t.Errorf("containers left behind: %s", left)
	}
	if entries, _ := os.ReadDir(f.spec.Spec.RunDir); len(entries) > 0 {
		t.Errorf("run records left behind: %v", entries)
	}
}

func (f *fixture) containers(t *testing.T) string {
	t.Helper()
	if f.kind == Bwrap {
		return ""
	}
	cmd := exec.Command(string(f.kind), "ps", "--all", "--quiet", "--filter", "label="+testLabel+"="+filepath.Base(f.dir))
	cmd.Env, cmd.Dir = f.id.env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(f.id.uid), Gid: uint32(f.id.gid), Groups: f.id.groups}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s ps: %v", f.kind, err)
	}
	return strings.TrimSpace(string(out))
}

type report struct {
	UID, GID                          int
	Status                            map[string]string
	Env, FDs, Init                    []string
	Dir, Echo, Type, Keys             string
	Seen, Connected, Written, Renamed map[string]string
}

func (f *fixture) report(t *testing.T, words ...string) report {
	t.Helper()
	status, out, errs := f.run(t, "", append([]string{"credproxy", "report"}, words...)...)
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 {
		t.Fatalf("report: status %d, %v\n%s%s", status, err, out, errs)
	}
	return r
}

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
			"write="+filepath.Join(work, "new"), "write=/usr/local/bin/credproxy", "write="+bwrapBinary)

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
		for _, p := range []string{containerBinary, bwrapBinary} {
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
	eachEngine(t, func(t *testing.T, f *fixture) {
		f.write(t, "work/plain", "not a program")
		for _, c := range []struct {
			words []string
			want  int
		}{
			{[]string{"credproxy", "exit", "0"}, 0},
			{[]string{"credproxy", "exit", "3"}, 3},
			{[]string{"credproxy", "exit", "125"}, 125},
			{[]string{"credproxy", "kill", "15"}, 143},
			{[]string{"credproxy", "kill", "9"}, 137},
			{[]string{"no-such-command"}, 127},
			{[]string{"/no/such/command"}, 127},
			{[]string{"./plain"}, 126},
			{[]string{f.spec.Spec.Workdir}, 126},
		} {
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

// held starts a program inside that holds a connection to the socket.
func (f *fixture) held(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	// A file, not a pipe: an engine's client may outlive a runner that is killed.
	errs, err := os.Create(filepath.Join(f.dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case conn := <-f.conns:
		t.Cleanup(func() { conn.Close() })
		return bufio.NewReader(conn)
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		said, _ := os.ReadFile(errs.Name())
		t.Fatalf("nothing runs inside: %s", said)
		return nil
	}
}

// gone returns once the program at the other end has ended, and what it said before.
func gone(t *testing.T, conn *bufio.Reader) string {
	t.Helper()
	said := make(chan string, 1)
	go func() { b, _ := io.ReadAll(conn); said <- string(b) }()
	select {
	case s := <-said:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("the program inside still runs")
		return ""
	}
}

func TestE2ESignals(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
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
	eachEngine(t, func(t *testing.T, f *fixture) {
		kill := func(words ...string) *bufio.Reader {
			cmd := f.command(t, append([]string{"credproxy", "hold"}, words...)...)
			conn := f.held(t, cmd)
			if f.kind != Bwrap {
				f.sweep(t, "") // it lives
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return conn
		}
		said := gone(t, kill())
		if f.kind == Bwrap {
			if said != "" {
				t.Errorf("inside got %q", said)
			}
			f.nothingLeft(t)
			return
		}
		if said != "terminated\n" {
			t.Errorf("inside got %q when its credproxy was killed", said)
		}
		f.sweep(t, "*")
		f.nothingLeft(t)

		conn := kill("whatever comes")
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
