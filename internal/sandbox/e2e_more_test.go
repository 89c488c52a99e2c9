//go:build e2e && linux

package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// TestE2ECoveredDirectories: the work directory holds credproxy's directories and its socket, as it does when somebody works
// in the temporary directory.
func TestE2ECoveredDirectories(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		missing := filepath.Join(f.dir, "state")
		home, sockets := filepath.Join(f.dir, "home"), filepath.Join(f.dir, "sockets")
		f.spec.Spec.Workdir = f.dir
		f.spec.Spec.ProtectedDirs = []string{home, filepath.Join(home, "config"), missing, filepath.Join(missing, "audit")}
		r := f.report(t, "see="+f.dir, "see="+home, "see="+missing, "see="+sockets,
			"write="+filepath.Join(f.dir, "work", "new"), "rename="+home, "rename="+missing, "rename="+sockets)
		for path, want := range map[string]string{home: "", missing: "", sockets: "one.sock"} {
			if r.Seen[path] != want {
				t.Errorf("%s shows %q, want %q", path, r.Seen[path], want)
			}
		}
		if r.Written[filepath.Join(f.dir, "work", "new")] != "" {
			t.Errorf("written: %q", r.Written)
		}
		for path, err := range r.Renamed {
			if err != syscall.EBUSY.Error() {
				t.Errorf("rename of %s: %q", path, err)
			}
		}
		if !strings.HasSuffix(r.Echo, " hello") {
			t.Errorf("the socket answered %q", r.Echo)
		}
		if b, _ := os.ReadFile(filepath.Join(home, "config", "secret")); string(b) != "a secret" {
			t.Errorf("the secret is now %q", b)
		}
		if info, err := os.Stat(missing); err != nil || info.Mode().Perm() != 0o700 || int(info.Sys().(*syscall.Stat_t).Uid) != f.id.uid {
			t.Errorf("the missing directory was not made for us: %v", err)
		}
		if entries, _ := os.ReadDir(sockets); len(entries) != 2 {
			t.Errorf("the socket directory holds %v", entries)
		}
	})
}

func TestE2ERefusedMounts(t *testing.T) {
	eachMounted(t, func(t *testing.T, f *fixture) {
		home := filepath.Join(f.dir, "home")
		if err := os.Symlink(home, filepath.Join(f.dir, "work", "link")); err != nil {
			t.Fatal(err)
		}
		for _, v := range []Volume{
			{Source: "/", Target: "/host"}, {Source: "/proc", Target: "/host"}, {Source: home, Target: "/host"},
			{Source: filepath.Join(f.dir, "work", "link"), Target: "/host"}, {Source: filepath.Join(home, "config"), Target: "/host", ReadOnly: true},
			{Source: filepath.Join(f.dir, "sockets"), Target: "/host"}, {Source: f.id.home, Target: "/host"}, {Source: "/run", Target: "/host"},
			{Source: f.dir, Target: filepath.Dir(f.dir)},
		} {
			f.spec.Spec.Volumes = []Volume{v}
			status, out, errs := f.run(t, "", "credproxy", "version")
			if status != 99 || out != "" || !strings.Contains(errs, "mount ") {
				t.Errorf("%v: status %d, %s%s", v, status, out, errs)
			}
		}
		f.spec.Spec.Volumes = nil
		f.spec.Spec.Workdir = filepath.Dir(f.dir) // /tmp: everything of ours lies deeper
		if status, _, errs := f.run(t, "", "credproxy", "version"); status != 99 || !strings.Contains(errs, "deeper") {
			t.Errorf("a parent of our directories: status %d, %s", status, errs)
		}

		work := filepath.Join(f.dir, "work")
		f.write(t, "work/credproxy.toml", "store = 'file'\n")
		f.spec.Spec.Workdir, f.spec.Spec.ProtectedFiles = work, []string{filepath.Join(work, "credproxy.toml")}
		if status, _, errs := f.run(t, "", "credproxy", "version"); status != 99 || !strings.Contains(errs, "could change what it may use") {
			t.Errorf("a configuration that the sandbox could write: status %d, %s", status, errs)
		}
	})
}

func TestE2EVolumes(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		odd := filepath.Join(f.dir, `a,b "c" d=e`)
		if err := os.MkdirAll(filepath.Join(odd, "in it"), 0o700); err != nil {
			t.Fatal(err)
		}
		f.spec.Spec.Workdir = odd
		f.spec.Spec.Volumes = []Volume{{Source: filepath.Join(f.dir, "work"), Target: "/data/w"}, {Source: odd, Target: "/ro", ReadOnly: true}}
		r := f.report(t, "see=/data/w", "see=/ro", "write=/data/w/x", "write=/ro/x", "write="+filepath.Join(odd, "y"))
		if r.Dir != odd || r.Seen["/ro"] != "in it" || r.Written["/ro/x"] == "" || r.Written["/data/w/x"] != "" || r.Written[filepath.Join(odd, "y")] != "" {
			t.Errorf("in %s, seen %q, written %q", r.Dir, r.Seen, r.Written)
		}

		f.spec.Spec.Workdir, f.spec.Spec.Volumes = "", nil
		if r := f.report(t, "see="+f.dir); r.Seen[f.dir] != "sockets" {
			t.Errorf("without a work directory: seen %q", r.Seen)
		}
	})
}

// TestE2ETerminal: the command has the terminal, its size and its Ctrl-C. Where the terminal is not the controlling one of
// credproxy, as under some programs that drive others, Ctrl-C is no signal, but one that is sent is handed on.
func TestE2ETerminal(t *testing.T) {
	for _, controlling := range []bool{true, false} {
		t.Run(fmt.Sprintf("controlling=%t", controlling), func(t *testing.T) {
			each := eachEngine
			if !controlling {
				each = eachMounted
			}
			each(t, func(t *testing.T, f *fixture) { useTerminal(t, f, controlling) })
		})
	}
}

func useTerminal(t *testing.T, f *fixture, controlling bool) {
	master, slave := openTerminal(t)
	cmd := f.command(t, "credproxy", "tty")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, controlling, 0
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	lines := readLines(master)
	expect := func(want string) {
		t.Helper()
		for deadline := time.After(ample); ; {
			select {
			case line, ok := <-lines:
				if strings.Contains(line, want) {
					return
				}
				if !ok {
					t.Fatalf("the terminal ended before %q", want)
				}
			case <-deadline:
				_ = cmd.Process.Signal(syscall.SIGTERM)
				t.Fatalf("no %q on the terminal", want)
			}
		}
	}
	expect("size 33 77 0 TERM=xterm")
	io.WriteString(master, "abc\n")
	expect("line abc")
	if controlling {
		io.WriteString(master, "\x03")
	} else if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	expect("interrupted")
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("status %d, want the command's own, 7", got)
	}
	f.nothingLeft(t)
}

func TestE2ETerminalSignalled(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		master, slave := openTerminal(t)
		cmd := f.command(t, "credproxy", "hold")
		cmd.Stdin, cmd.Stdout = slave, slave
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
		lines := readLines(master)
		go func() {
			for range lines {
			}
		}()
		conn := f.held(t, cmd)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if said := gone(t, conn); said != "terminated\n" {
			t.Errorf("inside got %q", said)
		}
		_ = cmd.Wait()
		slave.Close()
		if got := cmd.ProcessState.ExitCode(); got != 40+15 {
			t.Errorf("status %d", got)
		}
		f.nothingLeft(t)
	})
}

// TestE2ETyping: the terminal filter denies TIOCSTI even for the controlling terminal.
func TestE2ETyping(t *testing.T) {
	t.Parallel()
	for _, c := range engineCases(t) {
		if c.kind != Bwrap {
			continue
		}
		f := newFixture(t, c)
		master, slave := openTerminal(t)
		cmd := f.command(t, "credproxy", "report")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		slave.Close()
		found := false
		for line := range readLines(master) {
			found = found || strings.Contains(line, `"Type":"operation not permitted"`)
		}
		_ = cmd.Wait()
		if !found {
			t.Errorf("%s: TIOCSTI was not denied", c.name)
		}
	}
}

// TestE2EInheritedFiles: a directory that credproxy's parent left open is no way out.
func TestE2EInheritedFiles(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := f.command(t, "credproxy", "report")
		var out bytes.Buffer
		cmd.Stdout = &out
		cmd.ExtraFiles = []*os.File{dir, dir, dir, dir, dir}
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		var r report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || len(r.FDs) != 3 {
			t.Errorf("inherited: %q, %v", r.FDs, err)
		}
	})
}

// TestE2EArguments: no value of the environment is in the arguments of any process.
func TestE2EArguments(t *testing.T) {
	mostEngines(t, func(t *testing.T, f *fixture) {
		const value = "test-value-of-a-variable-1"
		f.spec.Spec.Env = []EnvVar{{"API_KEY", value}, {"XDG_CACHE_HOME", value}, {"PATH", "/bin:/" + value}}
		cmd := f.command(t, "credproxy", "hold")
		conn := f.held(t, cmd)
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			if b, _ := os.ReadFile(file); strings.Contains(string(b), value) {
				t.Errorf("in the arguments of a process: %q", b)
			}
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		gone(t, conn)
		_ = cmd.Wait()
	})
}

func TestE2EProbe(t *testing.T) {
	for _, c := range engineCases(t) {
		if c.id.uid != 0 {
			continue
		}
		for _, st := range (Host{Environ: c.id.env}).Probe(t.Context()) {
			if !st.OK || st.Version == "" {
				t.Errorf("%s: %s: %s", st.Kind, st.Detail, st.Hint)
			}
		}
		e, err := (Host{Environ: c.id.env}).Select(t.Context(), Auto, "")
		if err != nil || e.Kind != Bwrap {
			t.Errorf("auto without an image: %s, %v", e.Kind, err)
		}
		e, err = (Host{Environ: c.id.env}).Select(t.Context(), Auto, "x")
		if err != nil || e.Kind != Docker {
			t.Errorf("auto with an image: %s, %v", e.Kind, err)
		}
		_, err = (Host{Environ: append(c.id.env, "DOCKER_HOST=tcp://192.0.2.1:2375")}).Select(t.Context(), Docker, "x")
		if err == nil || !strings.Contains(err.Error(), "another machine") {
			t.Errorf("a docker server elsewhere: %v", err)
		}
		return
	}
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, slave, err := systest.OpenPTY(33, 77)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	return master, slave
}

// readLines reads until the other end is closed; the goroutine ends with it.
func readLines(r io.Reader) <-chan string {
	lines := make(chan string, 256)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
	}()
	return lines
}
