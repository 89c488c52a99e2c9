//go:build e2e && linux

package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

// The end-to-end tests run real engines, which test/engines.sh prepares, as root. Every run is a process of its own (this test
// binary, started as `run-spec FILE`), as root or as the unprivileged user, so that it can be signalled and killed.

// ample is how long a condition may take to come true before a test gives up, and how long a command may take to end: nothing of
// what is tested depends on how quick a machine is.
const ample = 2 * time.Minute

// inside is the program that stands for credproxy in the sandboxes; testBinary is a copy of this one that all may run.
var shared, inside, testBinary string

// runSpec is what a runner process is told. It takes its environment as Spec.Host.Environ.
type runSpec struct {
	Spec  Spec
	Kind  Kind
	Avoid []string
	Sweep bool // remove what is left in RunDir instead of running anything
	Deaf  bool // over TLS: nobody listens any more when the sandbox starts
	AsVM  bool // treat the engine as one in a virtual machine
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
	if rs.AsVM {
		rs.Spec.Engine.VM, rs.Spec.Engine.HostNames = true, podmanVM
	}
	if rs.Spec.Transport, err = rs.Spec.Engine.Choose(rs.Spec.Transport, rs.Spec.EngineArgs); err != nil {
		return fail(err)
	}
	if rs.Spec.Transport == TransportTLS {
		if rs.Spec.Bridge, err = serveBridge(rs.Spec.Socket); err != nil {
			return fail(err)
		}
		if rs.Deaf {
			rs.Spec.Bridge.Close()
		}
	}
	s, err := Prepare(ctx, rs.Spec)
	if err != nil {
		return fail(err)
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	pauseWhenTold(s)
	status, err := s.Run(ctx, Stdio{os.Stdin, os.Stdout, os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		fmt.Fprintln(os.Stderr, "hint:", e.Hint())
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

// engineCase is one engine with one identity, and one transport.
type engineCase struct {
	name      string
	kind      Kind
	id        identity
	transport Transport
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
		{"docker", Docker, root, TransportUnix}, {"docker-user", Docker, docker, TransportUnix},
		{"podman", Podman, root, TransportUnix}, {"podman-rootless", Podman, someone, TransportUnix},
		{"bwrap", Bwrap, root, TransportUnix}, {"bwrap-user", Bwrap, someone, TransportUnix},
		{"docker-tls", Docker, root, TransportTLS}, {"docker-user-tls", Docker, docker, TransportTLS},
		{"podman-tls", Podman, root, TransportTLS}, {"podman-rootless-tls", Podman, someone, TransportTLS},
	}
}

// eachEngine runs a test for every engine, identity and transport. Much of it is waiting for them, so all such tests run at once.
func eachEngine(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Parallel()
	for _, c := range engineCases(t) {
		t.Run(c.name, func(t *testing.T) { t.Parallel(); test(t, newFixture(t, c)) })
	}
}

// mostEngines is for tests of many runs: over TLS it leaves out those that differ from another only in who starts them.
func mostEngines(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Parallel()
	for _, c := range engineCases(t) {
		if c.name != "docker-user-tls" && c.name != "podman-tls" {
			t.Run(c.name, func(t *testing.T) { t.Parallel(); test(t, newFixture(t, c)) })
		}
	}
}

// eachMounted leaves out the transport that does not matter for the test.
func eachMounted(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Parallel()
	for _, c := range engineCases(t) {
		if c.transport == TransportUnix {
			t.Run(c.name, func(t *testing.T) { t.Parallel(); test(t, newFixture(t, c)) })
		}
	}
}

func engineNamed(t *testing.T, name string) engineCase {
	t.Helper()
	for _, c := range engineCases(t) {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no engine called %s", name)
	return engineCase{}
}

// fixture is a directory with a project, credproxy's directories and a socket, all of which belong to the identity.
type fixture struct {
	engineCase
	dir   string
	spec  runSpec
	conns chan *net.UnixConn // of programs that hold, see testdata/inside
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
	f.listen(t, socket)
	f.spec = runSpec{Kind: c.kind, Spec: Spec{
		Socket: socket, Binary: inside, Workdir: filepath.Join(dir, "work"), Home: c.id.home,
		ProtectedDirs: []string{filepath.Join(dir, "home")}, RunDir: filepath.Join(dir, "runs"), Grace: ample,
		Transport: c.transport,
	}}
	if c.kind != Bwrap {
		f.spec.Spec.Image = os.Getenv("CREDPROXY_TEST_IMAGE")
		f.spec.Spec.EngineArgs = []string{"--label", testLabel + "=" + filepath.Base(dir), "--network=none"}
	}
	f.own(t)
	return f
}

func (f *fixture) listen(t *testing.T, socket string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() { defer close(accepted); f.accept(l) }()
	t.Cleanup(func() { l.Close(); <-accepted })
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
}

// accept answers each connection with its peer's UID and what was written, and hands over those that begin with "ready".
func (f *fixture) accept(listener *net.UnixListener) {
	for {
		conn, err := listener.AcceptUnix()
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
		buf := make([]byte, 256)
		n, _ := conn.Read(buf)
		switch {
		case strings.HasPrefix(string(buf[:n]), "ready"):
			f.conns <- conn
			continue
		case n > 0 && buf[0] == 0: // a frame: the sandbox asks whether there is a proxy
			_, _ = conn.Write(frame.Append(nil, wire.AppendHandshake(nil, 1)))
		default:
			fmt.Fprintf(conn, "%d %s", uid, buf[:n])
		}
		conn.Close()
	}
}

// serveBridge listens for a sandbox and connects what comes from it to the socket, until the runner ends.
func serveBridge(socket string) (*bridge.Listener, error) {
	l, err := bridge.Listen(bridge.Options{})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c.(*bridge.Conn), socket)
		}
	}()
	return l, nil
}

func relay(c *bridge.Conn, socket string) {
	defer c.Close()
	if peer, ok := bridge.Identify(c); !ok || peer.UID != os.Getuid() {
		fmt.Fprintf(c, "%d, who is somebody else, said", peer.UID)
		return
	}
	out, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return
	}
	defer out.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = io.Copy(c, out)
		_ = c.CloseWrite()
	}()
	_, _ = io.Copy(out, c)
	if c.HungUp() { // as the kernel would tell the other end
		out.Close()
	}
	_ = out.CloseWrite()
	<-answered
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
	case <-time.After(ample):
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
	case <-time.After(ample):
		t.Fatal("the program inside still runs")
		return ""
	}
}
