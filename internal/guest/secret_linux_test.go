package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

// thief plays a program of the sandbox that is the same user as process 1: it says what it can open of the
// process args[0].
func thief(args []string) error {
	dir := filepath.Join("/proc", args[0])
	for _, name := range []string{"mem", "maps", "smaps", "environ", "auxv", "syscall", "stack", "fd/0", "fd/3"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			_, err = f.Read(make([]byte, 1)) // some check only now
			if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EISDIR) || errors.Is(err, io.EOF) {
				err = nil // it was allowed to
			}
			_ = f.Close()
		}
		fmt.Println(name, verdict(err))
	}
	for _, name := range []string{"fd", "map_files", "cwd", "root", "exe", "ns"} { // root may list the numbers of fd
		links, err := filepath.Glob(filepath.Join(dir, name, "*"))
		if name == "cwd" || name == "root" || name == "exe" {
			links, err = []string{filepath.Join(dir, name)}, nil
		}
		for _, l := range links {
			if _, err = os.Readlink(l); err == nil {
				break
			}
		}
		if links == nil && err == nil { // not even that
			err = os.ErrPermission
		}
		fmt.Println("links of", name, verdict(err))
	}
	pid, _ := strconv.Atoi(args[0])
	fmt.Println("ptrace", verdict(unix.PtraceSeize(pid)))
	var b [1]byte
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
	fmt.Println("process_vm_readv", verdict(err))
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		_, err := unix.PidfdGetfd(fd, 0, 0)
		fmt.Println("pidfd_getfd", verdict(err))
	}
	return nil
}

func verdict(err error) string {
	switch {
	case err == nil:
		return "open"
	case errors.Is(err, os.ErrPermission):
		return "closed"
	}
	return err.Error()
}

// TestSameUserCannotLookInside is about process 1 and the carrier, once the command runs.
func TestSameUserCannotLookInside(t *testing.T) {
	for _, user := range []int{0, aUser} {
		w := newWorld(t)
		w.User = user
		b, _, c := bridged(t, w, nil, self, "hold", "sleep", "1000")
		b.says(t, "holding")
		plain := strings.Fields(b.out.String())[1]
		inside := func(pid int) string { // as it is called in there
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(status)) {
				if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
					f := strings.Fields(rest)
					return f[len(f)-1]
				}
			}
			t.Fatal("no NSpid")
			return ""
		}
		if got := inside(b.Process.Pid); got != "1" {
			t.Fatalf("process 1 is %s", got)
		}
		for _, victim := range []string{plain, "1", inside(c.Process.Pid)} {
			var out systest.Buffer
			cmd := b.within(t, user, nil, &out, self, "powerless", self, "thief", victim)
			if err := cmd.Wait(); err != nil {
				t.Errorf("the thief: %v: %s", err, out.String())
			}
			for line := range strings.Lines(out.String()) {
				open := strings.HasSuffix(line, " open\n")
				if victim != plain && !strings.HasSuffix(line, " closed\n") {
					t.Errorf("user %d, process %s: %s", user, victim, line)
				}
				if victim == plain && !open && (strings.HasPrefix(line, "mem ") || strings.HasPrefix(line, "environ ") || strings.HasPrefix(line, "fd/0 ")) {
					t.Errorf("user %d: nothing would be shown, an unprotected process is closed too: %s", user, line)
				}
			}
		}
		_ = b.signal(t, syscall.SIGTERM)
		b.status(t)
	}
}

// TestSecretIsGone reads all memory of all processes of the sandbox, as root of the host, once the command runs.
func TestSecretIsGone(t *testing.T) {
	program := static(t)
	for _, direct := range []bool{false, true} {
		b := start(t, newWorld(t), nil, program, BridgeWord, program)
		h := newHost(t)
		ho := h.Handover()
		secret := ho.Secret
		ho.Wipe()
		var addresses []string
		if direct {
			addresses = []string{fmt.Sprintf("127.0.0.1:%d", h.Port())}
		}
		c := h.handover(t, b, program, addresses...)
		b.says(t, "holding")
		command, _ := children(t, b.Process.Pid)
		pids := []int{b.Process.Pid, command}
		if !direct {
			pids = append(pids, c.Process.Pid)
		}
		// What an HMAC keeps of its key is the key with every bit of a constant turned (RFC 2104).
		needles := map[string][]byte{"the secret": secret[:]}
		for name, pad := range map[string]byte{"the inner pad": 0x36, "the outer pad": 0x5c} {
			k := bytes.Clone(secret[:])
			for i := range k {
				k[i] ^= pad
			}
			needles[name] = k
		}
		needles["the first half"], needles["the second half"] = secret[:16], secret[16:]
		const known = "the environment" // or the search would find nothing anywhere
		needles[known] = []byte(SocketEnv + "=" + b.socket)
		for _, pid := range pids {
			for name, n := range search(t, pid, needles) {
				if (name == known) != (n > 0) {
					t.Errorf("direct %v: %s is in the memory of process %d of %v %d times", direct, name, pid, pids, n)
				}
			}
		}
		_ = b.signal(t, syscall.SIGTERM)
		b.status(t)
	}
}

// search counts needles in the memory of a process.
func search(t *testing.T, pid int, needles map[string][]byte) map[string]int {
	t.Helper()
	found, longest := map[string]int{}, 0
	for name, needle := range needles {
		found[name], longest = 0, max(longest, len(needle))
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[1] != 'w' {
			continue
		}
		if strings.Contains(lines.Text(), "[vvar") {
			continue
		}
		carried := 0
		for at := from; at < to; {
			m, err := mem.ReadAt(buf[carried:min(len(buf), carried+int(to-at))], int64(at))
			if m == 0 || err != nil && m == 0 {
				at += 4096
				carried = 0
				continue
			}
			at += uint64(m)
			for name, needle := range needles {
				found[name] += bytes.Count(buf[:carried+m], needle)
			}
			keep := min(longest-1, carried+m) // what lies across two reads; some is counted twice
			copy(buf, buf[carried+m-keep:carried+m])
			carried = keep
		}
	}
	return found
}

// TestForeignVisitor: whoever is not our user is not let in, and does not take the place of who is.
func TestForeignVisitor(t *testing.T) {
	w := newWorld(t)
	w.User = aUser
	b := start(t, w, nil, self, BridgeWord, self, "ask")
	rendezvous := filepath.Join(fmt.Sprintf("/proc/%d/root", b.Process.Pid), w.SocketDir, handoverName)
	b.waitFor(t, "the rendezvous", func() bool { _, err := os.Lstat(rendezvous); return err == nil })
	info, err := os.Lstat(rendezvous)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the rendezvous: %v, %v", info.Mode(), err)
	}
	var c net.Conn
	b.waitFor(t, "an open door", func() bool {
		c, err = net.Dial("unix", rendezvous) // as root, whom the mode does not keep out
		return err == nil
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patient))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the visitor was kept: %v", err)
	}
	var out systest.Buffer
	cmd := b.within(t, other, strings.NewReader(""), &out, self, CarryWord)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != exitGuest {
		t.Errorf("another user's carrier: %v", err)
	}
	if !strings.Contains(b.errs.String(), "credproxy: the first process of the sandbox does not listen: permission denied\nhint: ") {
		t.Errorf("it said %q", b.errs)
	}
	h := newHost(t)
	h.handover(t, b, self)
	if got := b.status(t); got != 0 || b.out.String() != "answered\n" {
		t.Errorf("status %d, %q", got, b.out)
	}
}

// TestOneVisitor: the door closes behind the first, whatever it brings.
func TestOneVisitor(t *testing.T) {
	for what, text := range map[string]string{
		"nothing":        "credproxy: the proxy cannot be reached from the sandbox: the handover: ",
		"something else": "credproxy: the proxy cannot be reached from the sandbox: the handover: ",
	} {
		b := start(t, newWorld(t), nil, self, BridgeWord, self, "hold")
		in := ""
		if what == "something else" {
			in = strings.Repeat("GET / HTTP/1.1\r\n", 100)
		}
		var out systest.Buffer
		cmd := b.within(t, 0, strings.NewReader(in), &out, self, CarryWord)
		_ = cmd.Wait() // process 1 cannot end before somebody has waited for all of its namespace
		if got := b.status(t); got != exitGuest || !strings.HasPrefix(b.errs.String(), text) || !strings.Contains(b.errs.String(), "\nhint: ") {
			t.Errorf("%s: status %d, %q", what, got, b.errs)
		}
		if b.out.String() != "" {
			t.Errorf("%s: the command was started", what)
		}
	}
}

// TestWrongListener: what answers in the listener's place is found out, and gets no proof.
func TestWrongListener(t *testing.T) {
	b := start(t, newWorld(t), nil, self, BridgeWord, self, "hold")
	h := newHost(t)
	ho := h.Handover()
	ho.Pin[0] ^= 1 // as if another listened
	h.bring(t, b, self, ho)
	if got := b.status(t); got != exitGuest || !strings.Contains(b.errs.String(), "its key is another\nhint: something else answers") {
		t.Errorf("status %d, %q", got, b.errs)
	}
}

func TestNobodyComes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	dir := ownDir(t)
	_, err := meet(ctx, filepath.Join(dir, handoverName))
	if err == nil || err.Error() != "the proxy cannot be reached from the sandbox: nobody has told where it is within "+connectTime.String() {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// late is a context whose time is up when the test says so.
type late struct {
	context.Context
	up chan struct{}
}

func (l *late) Done() <-chan struct{} { return l.up }

func (l *late) Err() error {
	select {
	case <-l.up:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestVisitorSaysNothing(t *testing.T) {
	rendezvous := filepath.Join(ownDir(t), handoverName)
	ctx := &late{t.Context(), make(chan struct{})}
	met := make(chan error, 1)
	go func() {
		_, err := meet(ctx, rendezvous)
		met <- err
	}()
	patiently, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	c, err := visit(patiently, rendezvous)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for { // until it is let in, and the door is closed behind it
		if _, err := os.Lstat(rendezvous); err != nil || patiently.Err() != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(ctx.up)
	if err := <-met; err == nil || !strings.HasPrefix(err.Error(), "the proxy cannot be reached from the sandbox: the handover: no answer in time") {
		t.Error(err)
	}
}
