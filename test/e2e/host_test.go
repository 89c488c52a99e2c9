//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// patience is how long a condition may take to come true before a test gives up: a machine may be slow, or stand still for a while.
const patience = time.Minute

// host is one user's machine: directories of their own and the environment that commands run in.
type host struct {
	t    testing.TB
	home string // CREDPROXY_HOME
	tmp  string // TMPDIR: short, for a socket's path has 108 bytes
	work string // the current directory of commands
	uid  int
	vars []string // the whole environment of commands

	said *transcript // all that commands wrote, for the searches
}

// transcript collects text from several goroutines.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *transcript) record(texts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range texts {
		s.text.WriteString(text)
		s.text.WriteByte('\n')
	}
}

func (s *transcript) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.text.Bytes())
}

// newHost makes a machine of root's; newUserHost one of another user's. Without more, the store is files with the key in
// a file.
func newHost(t testing.TB) *host { return newUserHost(t, 0) }

func newUserHost(t testing.TB, uid int) *host {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cpe2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	h := &host{t: t, home: dir + "/home", tmp: dir + "/tmp", work: dir + "/work", uid: uid, said: &transcript{}}
	for _, d := range []string{h.home, h.tmp, h.work, dir + "/user"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		h.own(d)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.vars = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8",
		"HOME=" + dir + "/user", "CREDPROXY_HOME=" + h.home, "TMPDIR=" + h.tmp,
	}
	h.configure("")
	return h
}

// own gives path to the host's user.
func (h *host) own(path string) {
	if err := os.Lchown(path, h.uid, h.uid); err != nil {
		h.t.Fatal(err)
	}
}

// configure writes the configuration file: the file store, and what is given.
func (h *host) configure(text string) {
	h.t.Helper()
	h.writeConfig("store = \"file\"\n" + text)
}

// writeConfig replaces the configuration file as editors do, by rename.
func (h *host) writeConfig(text string) {
	h.t.Helper()
	path := filepath.Join(h.home, "config.toml")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.own(path + ".new")
	if err := os.Rename(path+".new", path); err != nil {
		h.t.Fatal(err)
	}
}

// command prepares `credproxy args…` in a session of its own, so that it has no terminal to ask on.
func (h *host) command(args ...string) *exec.Cmd { return h.program(credproxy, args...) }

// program prepares any program as the host's user.
func (h *host) program(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = h.work, h.vars
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if h.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}
	}
	return cmd
}

// result is what a finished command left.
type result struct {
	args           []string
	stdout, stderr string
	code           int // -1: a signal
	state          *os.ProcessState
}

func (r result) String() string {
	return fmt.Sprintf("credproxy %s: status %d (%v)\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.state, r.stdout, r.stderr)
}

// run runs `credproxy args…` to its end.
func (h *host) run(args ...string) result { h.t.Helper(); return h.runWith("", args...) }

// runWith gives the command stdin.
func (h *host) runWith(stdin string, args ...string) result {
	h.t.Helper()
	cmd := h.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	return h.finish(cmd, 3*patience)
}

// finish runs a prepared command to its end and kills its process group when that takes too long.
func (h *host) finish(cmd *exec.Cmd, limit time.Duration) result {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	slow := time.AfterFunc(limit, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	r := result{args: cmd.Args[1:], stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode(), state: cmd.ProcessState}
	h.said.record(r.stdout, r.stderr)
	if !slow.Stop() {
		h.t.Fatalf("took longer than %v: %v", limit, r)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%v: %v", r, err)
	}
	return r
}

// must runs a command that has to succeed and returns its stdout.
func (h *host) must(args ...string) string { h.t.Helper(); return h.mustWith("", args...) }

func (h *host) mustWith(stdin string, args ...string) string {
	h.t.Helper()
	r := h.runWith(stdin, args...)
	if r.code != 0 {
		h.t.Fatalf("%v", r)
	}
	return r.stdout
}

// fails runs a command that has to fail with a status and say a text on stderr, as "credproxy: …".
func (h *host) fails(code int, text string, args ...string) result {
	h.t.Helper()
	r := h.run(args...)
	h.failed(r, code, text)
	return r
}

func (h *host) failed(r result, code int, text string) {
	h.t.Helper()
	if r.code != code || !strings.Contains(r.stderr, text) || !strings.Contains(r.stderr, "credproxy: ") {
		h.t.Errorf("want status %d and %q on stderr: %v", code, text, r)
	}
}

// background is a command that runs on. Its output is collected while it does.
type background struct {
	*exec.Cmd
	h      *host
	stdin  io.WriteCloser
	stdout *collector
	stderr *collector
	ended  chan struct{} // closed when the process has been waited for
}

// start starts a prepared command. The test's end kills its process group and waits for it.
func (h *host) start(cmd *exec.Cmd) *background {
	h.t.Helper()
	b := &background{Cmd: cmd, h: h, stdout: newCollector(), stderr: newCollector(), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = b.stdout, b.stderr
	cmd.WaitDelay = patience
	var err error
	if b.stdin, err = cmd.StdinPipe(); err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		h.said.record(b.stdout.String(), b.stderr.String())
		close(b.ended)
	}()
	h.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-b.ended
	})
	return b
}

// wait waits for the end and returns the exit status, -1 for a signal.
func (b *background) wait(limit time.Duration) int {
	b.h.t.Helper()
	select {
	case <-b.ended:
		return b.ProcessState.ExitCode()
	case <-time.After(limit):
		b.h.t.Fatalf("%s still runs after %v; stderr: %s", b.Args, limit, b.stderr)
		return 0
	}
}

func (b *background) signal(s syscall.Signal) {
	b.h.t.Helper()
	if err := b.Process.Signal(s); err != nil {
		b.h.t.Fatalf("signal %v: %v", s, err)
	}
}

// collector is a buffer that can be waited on.
type collector struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

func newCollector() *collector { return &collector{changed: make(chan struct{})} }

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
	return c.buf.Write(p)
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// find waits until the text has a match of re and returns its groups.
func (c *collector) find(re *regexp.Regexp, ended <-chan struct{}, limit time.Duration) []string {
	deadline := time.After(limit)
	for {
		c.mu.Lock()
		text, changed := c.buf.String(), c.changed
		c.mu.Unlock()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-changed:
		case <-ended:
			return re.FindStringSubmatch(c.String())
		case <-deadline:
			return nil
		}
	}
}

// proxy is a running `credproxy serve`.
type proxy struct {
	*background
	socket string
}

// serve starts `credproxy serve --json args…` and waits until it listens.
func (h *host) serve(args ...string) *proxy {
	h.t.Helper()
	return h.serving(h.command(append([]string{"serve", "--json"}, args...)...))
}

// serving starts a prepared serve --json.
func (h *host) serving(cmd *exec.Cmd) *proxy {
	h.t.Helper()
	b := h.start(cmd)
	line := b.stdout.find(regexp.MustCompile(`^.*\n`), b.ended, patience)
	if line == nil {
		h.t.Fatalf("%s does not listen; stdout: %s stderr: %s", cmd.Args, b.stdout, b.stderr)
	}
	var ready struct {
		Socket  string `json:"socket"`
		PID     int    `json:"pid"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal([]byte(line[0]), &ready); err != nil || ready.PID != cmd.Process.Pid || ready.Version == "" {
		h.t.Fatalf("first line of serve --json is %q (%v), want this process's pid %d, a socket and a version", line[0], err, cmd.Process.Pid)
	}
	return &proxy{b, ready.Socket}
}

// stop ends the proxy as a person does and waits for it.
func (p *proxy) stop() {
	p.h.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(patience); code != 0 {
		p.h.t.Errorf("serve ended with status %d after SIGTERM; stderr: %s", code, p.stderr)
	}
}

// rss is the proxy's resident memory, in bytes.
func (p *proxy) rss() int {
	p.h.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		p.h.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int
		if n, _ := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	p.h.t.Fatal("no VmRSS: the proxy has ended")
	return 0
}

// inside returns the host with the proxy's socket in the environment of its commands, as a sandbox has it.
func (h *host) inside(socket string) *host {
	inner := *h
	inner.vars = append(slices.Clone(h.vars), "LLXPRT_CREDENTIAL_SOCKET="+socket)
	return &inner
}

// oauth starts an authorisation server that ends with the test.
func oauth(t testing.TB, o oauthtest.Options) *oauthtest.Server {
	t.Helper()
	if o.Clients == nil {
		o.Clients = []oauthtest.Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback", "http://localhost/callback"}}}
	}
	s, err := oauthtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	return s
}

// providerConfig describes s as the provider name; more lines of the section may follow.
func providerConfig(name string, s *oauthtest.Server, more ...string) string {
	return fmt.Sprintf(`
[providers.%s]
flows = ["browser"]
client_id = "test-client"
authorize_url = %q
token_url = %q
revoke_url = %q
%s
`, name, s.EndpointURL(oauthtest.Authorize), s.EndpointURL(oauthtest.Token), s.EndpointURL(oauthtest.Revoke), strings.Join(more, "\n"))
}

var anyURL = regexp.MustCompile(`https?://\S+`)

// login runs `credproxy auth login` and is the browser: it opens the URL that was printed and follows where it leads.
func (h *host) login(login string) {
	h.t.Helper()
	r, page := h.tryLogin(login)
	if r.code != 0 || page != http.StatusOK {
		h.t.Fatalf("auth login %s: the browser ended on a page with status %d: %v", login, page, r)
	}
}

func (h *host) tryLogin(login string) (r result, page int) {
	h.t.Helper()
	b := h.start(h.command("auth", "login", login, "--no-browser"))
	url := b.stdout.find(anyURL, b.ended, patience)
	if url == nil {
		h.t.Fatalf("auth login printed no URL; stdout: %s stderr: %s", b.stdout, b.stderr)
	}
	answer, err := http.Get(url[0])
	if err != nil {
		h.t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	h.said.record(string(text))
	code := b.wait(patience)
	return result{args: b.Args[1:], stdout: b.stdout.String(), stderr: b.stderr.String(), code: code, state: b.ProcessState}, answer.StatusCode
}

// eventually waits for a condition, at most limit.
func eventually(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	start := time.Now()
	for !condition() {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
