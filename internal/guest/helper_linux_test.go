package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/bridge"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

const (
	self    = "/proc/self/exe" // go test's directory is closed to other users
	aUser   = 12345
	other   = 54321
	patient = time.Minute // a machine may stand still for seconds
)

// TestMain makes the test binary a guest, and what a guest is made to start.
func TestMain(m *testing.M) {
	connectTime, dialTime, directTime, probeTime, visitTime = patient, patient, patient, patient, patient
	if status, mine := Main(os.Args[1:]); mine {
		os.Exit(status)
	}
	roles.Play()
	if os.Geteuid() != 0 {
		fmt.Println("these tests make namespaces and play several users: run them as root, or under " +
			"`unshare --user --map-auto --map-root-user` (packages uidmap and util-linux)")
		os.Exit(1)
	}
	// In the background of a script these are ignored, which a command without us would inherit.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	os.Exit(m.Run())
}

// world is what an engine makes before it starts the first process. It crosses to the part "first" as JSON.
type world struct {
	SocketDir string // of the socket: a tmpfs
	User      int    // UID and GID
	Workdir   string
	Root      string // to chroot to, read-only; empty: the host's
	Umask     int
	Files     uint64 // soft RLIMIT_NOFILE; 0: as it is
}

// first makes the world of args[0] in its new namespaces, keeps the usual capabilities, and becomes args[1:].
func first(args []string) error {
	runtime.LockOSThread() // capabilities are the thread's, and execve keeps those of this one
	var w world
	if err := json.Unmarshal([]byte(args[0]), &w); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if w.Root != "" {
		if err := errors.Join(
			unix.Mount(w.Root, w.Root, "", unix.MS_BIND, ""),
			unix.Mount("", w.Root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
			unix.Chroot(w.Root), unix.Chdir("/")); err != nil {
			return fmt.Errorf("root: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	if err := unix.Mount("tmpfs", w.SocketDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=64k"); err != nil {
		return fmt.Errorf("tmpfs on %s: %w", w.SocketDir, err)
	}
	if w.Files != 0 {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		limit.Cur = w.Files
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
	}
	unix.Umask(w.Umask)
	if err := dropCapabilities(); err != nil {
		return err
	}
	if w.User != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(w.User), syscall.Setuid(w.User)); err != nil {
			return err
		}
	}
	if w.Workdir != "" {
		if err := os.Chdir(w.Workdir); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", args[1], syscall.Exec(args[1], args[1:], os.Environ()))
}

// usual are the capabilities that docker leaves to the root of a container when nobody says anything about them.
var usual = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
}

// dropCapabilities takes effect with the next execve of this thread.
func dropCapabilities() error {
	for c := range unix.CAP_LAST_CAP + 1 {
		if !slices.Contains(usual, c) {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// powerless becomes args with no more than the usual capabilities.
func powerless(args []string) error {
	runtime.LockOSThread()
	if os.Geteuid() == 0 {
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// box is a running first process, in PID and mount namespaces of its own.
type box struct {
	*exec.Cmd
	world
	socket string
	out    *systest.Buffer
	errs   *systest.Buffer
	ended  chan struct{} // closed once state is set
	read   chan struct{} // closed once all that came to its terminal is in out; nil: it has none, and ended says so
}

// newWorld has a directory for the socket that any user can reach.
func newWorld(t *testing.T) world {
	t.Helper()
	return world{SocketDir: systest.SharedDir(t, 0o755), Umask: 0o022}
}

// start starts argv as process 1. What tune changes comes before.
func start(t *testing.T, w world, tune func(*exec.Cmd), argv ...string) *box {
	t.Helper()
	spec, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{world: w, socket: filepath.Join(w.SocketDir, "llxprt-cred-1-00000000.sock"), out: new(systest.Buffer), errs: new(systest.Buffer), ended: make(chan struct{})}
	b.Cmd = exec.Command(self, append([]string{"first", string(spec)}, argv...)...)
	b.Dir = "/"
	b.Env = []string{SocketEnv + "=" + b.socket, "GORACE=atexit_sleep_ms=0", "PATH=/usr/local/bin:/usr/bin:/bin"}
	b.Stdout, b.Stderr = b.out, b.errs
	b.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	if tune != nil {
		tune(b.Cmd)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.Wait(); close(b.ended) }()
	t.Cleanup(func() {
		_ = b.Process.Kill()
		<-b.ended
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", b.out, b.errs)
		}
	})
	return b
}

// status waits for the end and returns how the first process ended: its exit status, or minus the signal.
func (b *box) status(t *testing.T) int {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(patient):
		t.Fatalf("the first process does not end")
	}
	ws := b.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return -int(ws.Signal())
	}
	return ws.ExitStatus()
}

// within starts argv in the namespaces of the box, as the engine's exec does.
func (b *box) within(t *testing.T, user int, stdin io.Reader, stdout io.Writer, argv ...string) *exec.Cmd {
	t.Helper()
	b.waitFor(t, "its world", func() bool {
		mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", b.Process.Pid))
		return bytes.Contains(mounts, []byte(" "+b.SocketDir+" tmpfs "))
	})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = b.Env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, b.errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: b.Root, Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	var spaces [2]*os.File
	for i, name := range []string{"pid", "mnt"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", b.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		spaces[i] = f
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_FS)
		for i, kind := range []int{unix.CLONE_NEWPID, unix.CLONE_NEWNS} {
			err = errors.Join(err, unix.Setns(int(spaces[i].Fd()), kind))
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return cmd
}

// waitFor waits for a condition, or for the end of the box or its time.
func (b *box) waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !condition(); time.Sleep(2 * time.Millisecond) {
		select {
		case <-b.ended:
			if b.read != nil {
				<-b.read
			}
			if condition() { // it came with the end
				return
			}
			t.Fatalf("the first process has ended (%v) before there was %s", b.ProcessState, what)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}

// says waits until the command has written text.
func (b *box) says(t *testing.T, text string) {
	t.Helper()
	b.waitFor(t, strconv.Quote(text), func() bool { return strings.Contains(b.out.String(), text) })
}

// static returns the guest as it is shipped, in a directory that every user can reach.
func static(t *testing.T) string {
	t.Helper()
	program := filepath.Join(newWorld(t).SocketDir, "guest")
	build := exec.Command("go", "build", "-o", program, "./testdata/static")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// host is the proxy's end: it shakes hands and sends every other frame back.
type host struct{ *bridge.Listener }

func newHost(t *testing.T) *host {
	t.Helper()
	ln, err := bridge.Listen(bridge.Options{Patience: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); echo(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	return &host{ln}
}

// echo answers a handshake, and then every frame with itself.
func echo(c net.Conn) {
	r := frame.NewReader(c, wire.MaxPayload(wire.MaxVersion), nil)
	defer r.Close()
	for shaken := false; ; shaken = true {
		payload, err := r.Next()
		if err != nil {
			return
		}
		if !shaken {
			payload = wire.AppendHandshake(nil, wire.MaxVersion)
		}
		if _, err := c.Write(frame.Append(nil, payload)); err != nil {
			return
		}
	}
}

// carrier is what the engine's exec runs, and the host's part of it.
type carrier struct {
	*exec.Cmd
	ended chan struct{}
	err   error
}

// handover starts a carrier in the box, hands over, and joins the carrier to the listener when it says something.
func (h *host) handover(t *testing.T, b *box, program string, addresses ...string) *carrier {
	t.Helper()
	return h.bring(t, b, program, h.Handover(addresses...))
}

// bring brings this handover, and wipes it.
func (h *host) bring(t *testing.T, b *box, program string, ho *bridge.Handover) *carrier {
	t.Helper()
	toInside, fromHost, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromInside, toHost, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &carrier{Cmd: b.within(t, b.User, toInside, toHost, program, CarryWord), ended: make(chan struct{})}
	_ = toInside.Close()
	_ = toHost.Close()
	defer ho.Wipe()
	if _, err := ho.WriteTo(bridge.QuoteTo(fromHost)); err != nil {
		t.Fatal(err)
	}
	var joined sync.WaitGroup
	joined.Go(func() {
		defer fromInside.Close()
		buf := make([]byte, 32<<10)
		n, err := fromInside.Read(buf)
		if err != nil { // it has found a way of its own
			return
		}
		up, err := h.Dial()
		if err != nil {
			return
		}
		joined.Go(func() { _, _ = io.Copy(bridge.QuoteTo(fromHost), up); _ = fromHost.Close() })
		if _, err := up.Write(buf[:n]); err == nil {
			_, _ = io.Copy(up, fromInside)
		}
		_ = up.Close()
	})
	go func() {
		c.err = c.Wait()
		_ = fromHost.Close()
		close(c.ended)
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-c.ended
		_ = h.Close()
		joined.Wait()
	})
	return c
}

// bridged starts a command in a box of its own over a bridge of its own.
func bridged(t *testing.T, w world, tune func(*exec.Cmd), command ...string) (*box, *host, *carrier) {
	t.Helper()
	b := start(t, w, tune, append([]string{self, BridgeWord}, command...)...)
	h := newHost(t)
	return b, h, h.handover(t, b, self)
}
