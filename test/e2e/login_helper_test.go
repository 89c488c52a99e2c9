//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// station is where commands run: on the host, or inside a sandbox.
type station interface {
	begin(args ...string) (*running, error) // credproxy args…
}

// running is a command of a station.
type running struct {
	args           []string
	stdout, stderr *collector
	ended          <-chan struct{}
	code           func() int         // once it has ended
	types          func(string) error // on its stdin
	signal         func(syscall.Signal) error
}

func (r *running) String() string {
	return fmt.Sprintf("credproxy %s\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.stdout, r.stderr)
}

// wait returns the exit status.
func (r *running) wait() (int, error) {
	select {
	case <-r.ended:
		return r.code(), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("still runs after %v: %v", patience, r)
	}
}

// shows waits for a text and returns the groups of re.
func (r *running) shows(c *collector, re *regexp.Regexp) ([]string, error) {
	if m := c.find(re, r.ended, patience); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no %v: %v", re, r)
}

// hostStation is the host itself.
type hostStation struct{ *host }

func (h hostStation) begin(args ...string) (*running, error) {
	b := h.start(h.command(args...))
	return &running{
		args: args, stdout: b.stdout, stderr: b.stderr, ended: b.ended,
		code:   func() int { return b.ProcessState.ExitCode() },
		types:  func(text string) error { _, err := io.WriteString(b.stdin, text); return err },
		signal: func(s syscall.Signal) error { return b.Process.Signal(s) },
	}, nil
}

// order is what the program "hands" inside is told, a line of JSON each; report is what it tells.
type order struct {
	ID      int
	Run     []string       // start this command,
	Type    string         // or type this on its stdin,
	Signal  syscall.Signal // or send it this,
	Op      string         // or ask the socket for this operation
	Payload m
}

type report struct {
	ID       int
	Out, Err string
	Ended    bool
	Code     int
	Answer   *answer
	Failure  string
}

// inside is a station in a sandbox. Its goroutine reads the reports, until the sandbox ends.
type inside struct {
	b *background

	mu      sync.Mutex
	next    int
	runs    map[int]*innerRun
	answers map[int]chan report
}

type innerRun struct {
	stdout, stderr *collector
	ended          chan struct{}
	code           int
}

// enter starts the guest program "hands" in a sandbox of s. The sandbox ends with leave.
func (s *sandboxed) enter(t *testing.T, flags ...string) *inside {
	t.Helper()
	return s.hands(t, s.command(s.args(flags, "./guest", "hands")...))
}

// hands starts a command that runs the guest program of this name.
func (h *host) hands(t *testing.T, cmd *exec.Cmd) *inside {
	t.Helper()
	in := &inside{runs: map[int]*innerRun{}, answers: map[int]chan report{}}
	var reading sync.WaitGroup
	t.Cleanup(reading.Wait) // when start's own has ended the process
	in.b = h.start(cmd)
	ready := in.b.stdout.find(regexp.MustCompile(`^ready\n`), in.b.ended, time.Minute)
	if ready == nil {
		t.Fatalf("nobody is inside; stdout: %s stderr: %s", in.b.stdout, in.b.stderr)
	}
	reading.Go(func() {
		seen := len(ready[0])
		for {
			in.b.stdout.mu.Lock()
			text, changed := in.b.stdout.buf.String()[seen:], in.b.stdout.changed
			in.b.stdout.mu.Unlock()
			line, _, whole := strings.Cut(text, "\n")
			if whole {
				seen += len(line) + 1
				in.take(line)
				continue
			}
			select {
			case <-changed:
			case <-in.b.ended:
				return
			}
		}
	})
	return in
}

func (in *inside) take(line string) {
	var r report
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return
	}
	in.mu.Lock()
	run, waiting := in.runs[r.ID], in.answers[r.ID]
	in.mu.Unlock()
	if waiting != nil {
		waiting <- r
	}
	if run == nil {
		return
	}
	_, _ = io.WriteString(run.stdout, r.Out)
	_, _ = io.WriteString(run.stderr, r.Err+r.Failure)
	if r.Ended {
		run.code = r.Code
		close(run.ended)
	}
}

func (in *inside) tell(o order) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	_, err = in.b.stdin.Write(append(line, '\n'))
	return err
}

func (in *inside) id() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.next++
	return in.next
}

func (in *inside) begin(args ...string) (*running, error) { return in.execute("credproxy", args...) }

// execute starts any program inside.
func (in *inside) execute(program string, args ...string) (*running, error) {
	id := in.id()
	run := &innerRun{stdout: newCollector(), stderr: newCollector(), ended: make(chan struct{})}
	in.mu.Lock()
	in.runs[id] = run
	in.mu.Unlock()
	return &running{
		args: args, stdout: run.stdout, stderr: run.stderr, ended: run.ended,
		code:   func() int { return run.code },
		types:  func(text string) error { return in.tell(order{ID: id, Type: text}) },
		signal: func(s syscall.Signal) error { return in.tell(order{ID: id, Signal: s}) },
	}, in.tell(order{ID: id, Run: append([]string{program}, args...)})
}

// ask has the socket asked from inside, by a client that is not ours.
func (in *inside) ask(op string, payload m) (answer, error) {
	id, waiting := in.id(), make(chan report, 1)
	in.mu.Lock()
	in.answers[id] = waiting
	in.mu.Unlock()
	if err := in.tell(order{ID: id, Op: op, Payload: payload}); err != nil {
		return answer{}, err
	}
	select {
	case r := <-waiting:
		if r.Answer == nil {
			return answer{}, errors.New(r.Failure)
		}
		return *r.Answer, nil
	case <-time.After(2 * patience):
		return answer{}, fmt.Errorf("%s: no answer", op)
	}
}

// leave ends the sandbox.
func (in *inside) leave(t *testing.T) {
	t.Helper()
	if err := in.b.stdin.Close(); err != nil {
		t.Error(err)
	}
	if code := in.b.wait(patience); code != 0 {
		t.Errorf("the sandbox ended with status %d; stderr: %s", code, in.b.stderr)
	}
}

var (
	shownAddress = regexp.MustCompile(`(?m)^(https?://\S+)$`)
	shownCode    = regexp.MustCompile(`(?m)^and enter this code there: (\S+)$`)
)

// person is somebody with a browser, who does what a login shows.
type person struct{ s *oauthtest.Server }

// login does the person's part of a login that a command shows.
func (p person) login(r *running, flow string) error {
	shown, err := r.shows(r.stdout, shownAddress)
	if err != nil {
		return err
	}
	switch flow {
	case "device":
		code, err := r.shows(r.stderr, shownCode)
		if err != nil {
			return err
		}
		return p.enter(shown[1], code[1])
	case "paste":
		pasted, err := p.copies(shown[1])
		if err != nil {
			return err
		}
		return r.types(pasted + "\n")
	}
	return p.opens(shown[1])
}

// enter types a code on the page of device logins.
func (p person) enter(address, code string) error {
	if want := p.s.EndpointURL(oauthtest.Verify); address != want {
		return fmt.Errorf("the page for the code is %s, want %s", address, want)
	}
	if !p.s.Decide(code, true) {
		return fmt.Errorf("nobody waits for the code %s", code)
	}
	return nil
}

func (p person) copies(address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.s.Copy(ctx, address)
}

// opens follows a page back to the listener, which is gone when it has answered.
func (p person) opens(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	redirect, err := p.s.Approve(ctx, address)
	if err != nil {
		return err
	}
	status, page, err := p.s.Follow(ctx, redirect)
	if err != nil || status != 200 || !strings.Contains(page, "You are logged in") {
		return fmt.Errorf("the browser ends on a page with status %d: %s, %v", status, page, err)
	}
	for begun := time.Now(); listens(listenerOf(address)); time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > patience {
			return fmt.Errorf("%s still listens after its answer", listenerOf(address))
		}
	}
	return nil
}

var redirectIn = regexp.MustCompile(`(?:redirect_uri|callback_url)=http%3A%2F%2F([^%]+)%3A(\d+)%2F`)

// listenerOf is host:port of the loopback address that a browser login comes back to; empty if there is none.
func listenerOf(address string) string {
	m := redirectIn.FindStringSubmatch(address)
	if m == nil {
		return ""
	}
	return net.JoinHostPort(strings.Replace(m[1], "localhost", "127.0.0.1", 1), m[2])
}

func listens(address string) bool {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// vendorPorts are 1455 and 1457, which all logins to the dialects codex and chatgpt on this machine share.
var vendorPorts sync.Mutex

// vendor is a provider for the tests: a server that plays it, and what is promised of it.
type vendor struct {
	name      string
	s         *oauthtest.Server
	section   string   // of the configuration
	flows     []string // in the provider's order
	refreshes bool
	rotates   bool
	token     m // members that its token has inside
	ownPorts  bool
}

// vendors starts a server for every dialect. With pace the device logins of all of them have an interval of a second;
// without it, Qwen has its own, which is longer because it sends none.
func vendors(t testing.TB, pace bool) []*vendor {
	t.Helper()
	all := []*vendor{
		{name: "my-anthropic", flows: []string{"paste", "browser"}, refreshes: true, rotates: true},
		{name: "my-codex", flows: []string{"browser", "device", "paste"}, refreshes: true, rotates: true, ownPorts: true, token: m{"account_id": "test-account", "token_type": "Bearer"}},
		{name: "my-chatgpt", flows: []string{"browser", "paste"}, refreshes: true, rotates: true, ownPorts: true},
		{name: "my-gemini", flows: []string{"paste", "browser"}, refreshes: true},
		{name: "my-qwen", flows: []string{"device"}, refreshes: true, rotates: true, token: m{"resource_url": "portal.qwen.invalid"}},
		{name: "my-github", flows: []string{"device"}, token: m{"expiry": 0.0, "token_type": "Bearer"}},
		{name: "my-xai", flows: []string{"device"}, refreshes: true},
		{name: "my-kimi", flows: []string{"device"}, refreshes: true, rotates: true},
		{name: "my-openrouter", flows: []string{"browser", "paste"}, token: m{"expiry": 0.0}},
		{name: "plain", flows: []string{"device", "browser", "paste"}, refreshes: true, rotates: true, token: m{"account_id": "acct-1"}},
		{name: "found", flows: []string{"browser", "device", "paste"}, refreshes: true, rotates: true},
	}
	for _, v := range all {
		o := oauthtest.Options{Approval: oauthtest.AskUser, DeviceInterval: time.Second}
		dialect, ok := strings.CutPrefix(v.name, "my-")
		if ok {
			o.Dialect = dialect
		}
		switch v.name {
		case "plain":
			o.SendIssuer = true
			o.Extra = map[string]any{"account_id": "acct-1", "not_named": "stays on the host"}
		case "found":
			o.IssuerPath = "/tenant"
		}
		v.s = start(t, o)
		switch v.name {
		case "plain":
			v.section = strings.Replace(v.s.Settings(v.name), "redirect_url", "flows = [\"device\", \"browser\", \"paste\"]\n# ", 1)
		case "found":
			v.section = v.s.DiscoverySettings(v.name)
		default:
			v.section = v.s.Settings(v.name)
		}
		if v.name == "my-qwen" && pace {
			v.s.Fault(oauthtest.Device, oauthtest.With("interval", "1"), -1)
		}
	}
	// All dialects that there are.
	for _, dialect := range oauthtest.Dialects() {
		if !slices.ContainsFunc(all, func(v *vendor) bool { return v.name == "my-"+dialect }) {
			t.Errorf("no login by the dialect %s is tested", dialect)
		}
	}
	return all
}

// start starts an authorisation server with the options as they are.
func start(t testing.TB, o oauthtest.Options) *oauthtest.Server {
	t.Helper()
	s, err := oauthtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// sections are the configuration of vendors.
func sections(all []*vendor) string {
	var b strings.Builder
	for _, v := range all {
		b.WriteString("\n" + v.section)
	}
	return b.String()
}
