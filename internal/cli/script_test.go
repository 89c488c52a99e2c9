package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// TestMain lets scripts run the real command, in processes of its own, and a browser that follows redirects.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"credproxy": func() {
			browserPatience, completionTime = patient, patient // no script is about who waits no longer
			os.Exit(Main())
		},
		"browse":  browse,
		"failing": func() { os.Exit(1) },
	})
}

// browse stands for a person with a browser who agrees to everything.
func browse() {
	response, err := http.Get(os.Args[len(os.Args)-1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = response.Body.Close()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, scripts("testdata/script", setupScript))
}

// Scripts with a passphrase run the command as it is shipped: deriving a key from a passphrase takes a second, and many
// with the race detector.
func TestPassphraseScripts(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/credproxy/credproxy/cmd/credproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	testscript.Run(t, scripts("testdata/passphrase", func(e *testscript.Env) error {
		e.Setenv("PATH", bin+string(filepath.ListSeparator)+e.Getenv("PATH"))
		return setupScript(e)
	}))
}

func scripts(dir string, setup func(*testscript.Env) error) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":     exits,
			"readonly":  readonly,
			"full":      full,
			"unread":    unread,
			"oauth":     oauth,
			"login":     loginCmd,
			"expire":    expire,
			"provider":  providerCmd,
			"refreshes": refreshes,
			"proxy":     proxy,
			"signal":    signalCmd,
			"logged":    logged,
			"end":       end,
			"leave":     leave,
			"interrupt": interrupt,
			"typing":    typing,
			"taken":     taken,
			"pasting":   pasting,
			"nosecrets": noSecrets,
			"jsonkeys":  jsonKeys,
			"secretfile": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(args[2:], " ")+"\n"), 0o600))
				mode, err := strconv.ParseUint(args[1], 8, 32)
				ts.Check(err)
				ts.Check(os.Chmod(ts.MkAbs(args[0]), os.FileMode(mode)))
			},
		},
	}
}

// patient is how long a test waits for what has to come, on a busy machine too.
const patient = 2 * time.Minute

// script is what one script has running.
type script struct {
	server *oauthtest.Server
	gate   chan struct{} // of `provider wait`
	calls  int           // to the provider's token endpoint, when the gate was closed
	proxy  *exec.Cmd
	stderr *logBuffer

	devices int // logins by device code that `provider allow` has allowed

	keys []string // API keys that no output but `key get` may show
}

// logBuffer is a process's log, which can be read while it is written. grown, of capacity 1, has a value after a write.
type logBuffer struct {
	mu    sync.Mutex
	text  strings.Builder
	grown chan struct{}
}

func newLogBuffer() *logBuffer { return &logBuffer{grown: make(chan struct{}, 1)} }

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.grown <- struct{}{}:
	default:
	}
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until the log has a text.
func (l *logBuffer) await(ts *testscript.TestScript, text string) {
	limit := time.After(patient)
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.grown:
		case <-limit:
			ts.Fatalf("the log never had %q:\n%s", text, l)
		}
	}
}

type scriptKey struct{}

func running(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func setupScript(e *testscript.Env) error {
	// Short, for the path of the socket; testscript's own directories are too long for it.
	tmp, err := os.MkdirTemp("/tmp", "cp")
	if err != nil {
		return err
	}
	e.Defer(func() { _ = os.RemoveAll(tmp) })
	home := filepath.Join(e.WorkDir, "credhome")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(fileStore), 0o600); err != nil {
		return err
	}
	for _, name := range scriptVariables {
		e.Setenv(name, map[string]string{
			"CREDPROXY_HOME": home, "HOME": filepath.Join(e.WorkDir, "home"), "TMPDIR": tmp, "BROWSER": "browse", "TERM": "xterm",
		}[name])
	}
	self, err := exec.LookPath("credproxy")
	if err != nil {
		return err
	}
	e.Setenv("CREDPROXY", self)
	e.Setenv("GORACE", "atexit_sleep_ms=0") // each process would wait for a second at its end
	if err := os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o700); err != nil {
		return err
	}
	s := &script{keys: []string{"test-api-key-1", "test-api-key-2"}}
	e.Values[scriptKey{}] = s
	e.Defer(func() {
		if s.proxy != nil {
			_ = s.proxy.Process.Kill()
			_ = s.proxy.Wait()
		}
		if s.server != nil {
			_ = s.server.Close(context.Background())
		}
	})
	return nil
}

// scriptVariables are what our command, and those that it starts, look at; scripts begin with most of them empty.
var scriptVariables = []string{
	"CREDPROXY_HOME", "CREDPROXY_CONFIG", "CREDPROXY_PASSPHRASE_FILE", "LLXPRT_CREDENTIAL_SOCKET", "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS", "HOME", "TMPDIR",
	"GORACE", "BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "TERM", "NO_COLOR",
}

const fileStore = "store = \"file\"\n[file_store]\nkey = \"file\"\n"

// exits runs a command and compares its exit status: exits 3 credproxy token acme.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	status := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if want, err := strconv.Atoi(args[0]); err != nil || status != want {
		ts.Fatalf("%s exited with status %d, not %s", strings.Join(args[1:], " "), status, args[0])
	}
}

// readonly runs a command for which directories are on a read-only file system, and compares its exit status:
// readonly data,recovery 0 credproxy token acme. They are data, the store's files; recovery, those beside it; and tmp.
func readonly(ts *testscript.TestScript, neg bool, args []string) {
	var prepare strings.Builder
	prepare.WriteString("true")
	for name := range strings.SplitSeq(args[0], ",") {
		dir := map[string]string{"data": `"$CREDPROXY_HOME/data"`, "recovery": `"$CREDPROXY_HOME/state/recovery"`, "tmp": `"$TMPDIR"`}[name]
		fmt.Fprintf(&prepare, " && mount --bind %s %[1]s && mount -o remount,bind,ro %[1]s", dir)
	}
	mounted(ts, neg, prepare.String(), args[1:])
}

// full runs a command for which the store's files are on a disk that is full, and compares its exit status. What it
// changes in the store is gone afterwards.
func full(ts *testscript.TestScript, neg bool, args []string) {
	mounted(ts, neg, `mkdir -p "$CREDPROXY_HOME/disk" && mount -t tmpfs -o size=256k,mode=700 tmpfs "$CREDPROXY_HOME/disk" &&
		cp -a "$CREDPROXY_HOME/data/." "$CREDPROXY_HOME/disk" && mount --bind "$CREDPROXY_HOME/disk" "$CREDPROXY_HOME/data" &&
		! dd if=/dev/zero of="$CREDPROXY_HOME/data/ballast" bs=4k 2>/dev/null`, args)
}

// mounted runs a command in a mount namespace that a shell has prepared.
func mounted(ts *testscript.TestScript, neg bool, prepare string, args []string) {
	exits(ts, neg, append([]string{args[0], "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", prepare + ` && exec "$@"`, "sh"}, args[1:]...))
}

// unread runs a command whose stdout nobody reads, and compares its exit status. Its stderr is in the file "unread":
// unread 141 credproxy auth status.
func unread(ts *testscript.TestScript, _ bool, args []string) {
	cmd := command(ts, args[1:])
	var stderr bytes.Buffer
	r, w, err := os.Pipe()
	ts.Check(err)
	ts.Check(r.Close())
	cmd.Stdout, cmd.Stderr = w, &stderr
	ts.Check(cmd.Start())
	ts.Check(w.Close())
	_ = cmd.Wait()
	ts.Check(os.WriteFile(ts.MkAbs("unread"), stderr.Bytes(), 0o600))
	if got := cmd.ProcessState.String(); got != "exit status "+args[0] {
		ts.Fatalf("%s: %s, not %s\n%s", strings.Join(args[1:], " "), got, args[0], &stderr)
	}
}

// proxy starts `credproxy serve` with the arguments, waits for its first line, and sets SOCKET and PROXY_PID. With
// --json or not, the line is in the file "line".
func proxy(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	s.proxy = command(ts, append([]string{"credproxy", "serve"}, args...))
	s.stderr = newLogBuffer()
	s.proxy.Stderr = s.stderr
	stdout, err := s.proxy.StdoutPipe()
	ts.Check(err)
	ts.Check(s.proxy.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = s.proxy.Wait()
		s.proxy = nil
		ts.Fatalf("serve did not print its line: %v\n%s", err, s.stderr.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("line"), []byte(line), 0o600))
	socket := strings.TrimSuffix(strings.TrimPrefix(line, socketVariable+"='"), "'; export "+socketVariable+";\n")
	var object struct {
		Socket string
		PID    int
	}
	if json.Unmarshal([]byte(line), &object) == nil {
		socket = object.Socket
		if object.PID != s.proxy.Process.Pid {
			ts.Fatalf("serve is process %d and says it is %d", s.proxy.Process.Pid, object.PID)
		}
	}
	if info, err := os.Stat(socket); err != nil || info.Mode()&os.ModeSocket == 0 {
		ts.Fatalf("%q is not a socket: %v", socket, err)
	}
	ts.Setenv("SOCKET", socket)
	ts.Setenv("PROXY_PID", strconv.Itoa(s.proxy.Process.Pid))
}

// command is a process with the script's environment and directory, for what testscript's own exec cannot do.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	path := args[0]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if info, err := os.Stat(filepath.Join(dir, path)); err == nil && !info.IsDir() {
			path = filepath.Join(dir, path)
			break
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	for _, name := range scriptVariables {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

// interrupt starts a command, sends it SIGINT once it says that it waits, and demands the status that a shell gives to
// what SIGINT ended. Its stderr is in the file "interrupted".
func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	cmd := command(ts, args)
	var stderr bytes.Buffer
	lines, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	for r := bufio.NewReader(io.TeeReader(lines, &stderr)); ; {
		line, err := r.ReadString('\n')
		if strings.HasPrefix(line, "waiting for") {
			ts.Check(cmd.Process.Signal(syscall.SIGINT))
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()
	ts.Check(os.WriteFile(ts.MkAbs("interrupted"), stderr.Bytes(), 0o600))
	if status := cmd.ProcessState.ExitCode(); status != 130 {
		ts.Fatalf("%s exited with status %d\n%s", args[0], status, stderr.String())
	}
}

var signalNames = map[string]syscall.Signal{
	"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL,
}

// leave starts a command with --verbose while the provider waits, sends it a signal, once more when it says what it still
// waits for, lets the provider answer, and demands the status that a shell gives to what such a signal ended:
// leave INT credproxy token acme.
func leave(ts *testscript.TestScript, _ bool, args []string) {
	sig := signalNames[args[0]]
	cmd := command(ts, append(args[1:], "--verbose"))
	var stdout bytes.Buffer
	stderr := newLogBuffer()
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	providerCmd(ts, false, []string{"wait"})
	ts.Check(cmd.Start())
	providerCmd(ts, false, []string{"asked"})
	ts.Check(cmd.Process.Signal(sig))
	stderr.await(ts, "waiting for what a provider is answering")
	ts.Check(cmd.Process.Signal(sig))
	providerCmd(ts, false, []string{"open"})
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != 128+int(sig) || stdout.Len() > 0 {
		ts.Fatalf("%s exited with status %d, and %d bytes on stdout\n%s", args[1], status, stdout.Len(), stderr)
	}
	ts.Check(os.WriteFile(ts.MkAbs("left"), []byte(stderr.String()), 0o600))
}

// signal sends the proxy a signal: signal TERM.
func signalCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(running(ts).proxy.Process.Signal(signalNames[args[0]]))
}

// logged waits until the proxy's log has a text.
func logged(ts *testscript.TestScript, _ bool, args []string) { running(ts).stderr.await(ts, args[0]) }

// end sends the proxy a signal, or "-" for none, and compares its exit status; its log is in the file "log" then:
// end TERM 0.
func end(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	if args[0] != "-" {
		ts.Check(s.proxy.Process.Signal(signalNames[args[0]]))
	}
	_ = s.proxy.Wait()
	status := s.proxy.ProcessState.ExitCode()
	s.proxy = nil
	ts.Check(os.WriteFile(ts.MkAbs("log"), []byte(s.stderr.String()), 0o600))
	if strconv.Itoa(status) != args[1] {
		ts.Fatalf("serve exited with status %d after SIG%s\n%s", status, args[0], s.stderr.String())
	}
}

// noSecrets looks for secrets where none may be: in files, and in "stdout" and "stderr". With -token first, access
// tokens may be there; with -key, API keys.
func noSecrets(ts *testscript.TestScript, _ bool, args []string) {
	s := running(ts)
	var issued oauthtest.Issued
	if s.server != nil {
		issued = s.server.Issued()
	}
	secrets := append(append(issued.RefreshTokens, issued.Codes...), issued.DeviceCodes...)
	tokens, keys := issued.AccessTokens, s.keys
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-token":
			tokens = nil
		case "-key":
			keys = nil
		}
		args = args[1:]
	}
	secrets = append(append(secrets, tokens...), keys...)
	for _, name := range args {
		content := ts.ReadFile(name)
		for _, secret := range secrets {
			if strings.Contains(content, secret) {
				ts.Fatalf("%s holds a secret that begins with %.6q", name, secret)
			}
		}
	}
}

// jsonKeys compares the names in the JSON object on stdout, or in the first one of an array: jsonkeys a,b,c.
func jsonKeys(ts *testscript.TestScript, _ bool, args []string) {
	raw := json.RawMessage(ts.ReadFile("stdout"))
	if len(raw) > 0 && raw[0] == '[' {
		var list []json.RawMessage
		ts.Check(json.Unmarshal(raw, &list))
		raw = list[0]
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	_, err := d.Token()
	ts.Check(err)
	var names []string
	for d.More() {
		name, err := d.Token()
		ts.Check(err)
		names = append(names, name.(string))
		var value json.RawMessage
		ts.Check(d.Decode(&value))
	}
	if got := strings.Join(names, ","); got != args[0] {
		ts.Fatalf("the names are %s, not %s", got, args[0])
	}
}
