//go:build e2e && linux

package e2e

import (
	"bytes"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// sandboxed is a host, stocked, with an engine of its user's.
type sandboxed struct {
	*host
	engine    string
	transport string // "" leaves the choice to credproxy
	image     string // "" for bwrap
	user      string // the home directory of the user on the real machine
	oauth     *oauthtest.Server
	shell     []string // a POSIX shell inside
}

// setting returns what test/engines.sh printed.
func setting(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf(`%s is not set: the engines have to be prepared first, eval "$(test/engines.sh up | sed 's/^/export /')"`, name)
	}
	return v
}

// engineCase is an engine of root's or of an ordinary user's, and how the socket gets inside.
type engineCase struct {
	name, engine string
	root         bool
	transport    string
	server       string // of docker: the setting with its address; "" is the usual one
}

var (
	everyEngine = []engineCase{
		{"docker", "docker", true, "", ""},
		{"podman", "podman", true, "", ""},
		{"podman rootless", "podman", false, "", ""},
		{"bwrap", "bwrap", true, "", ""},
		{"bwrap as a user", "bwrap", false, "", ""},
	}
	everyEngineOverTLS = []engineCase{
		{"docker over tls", "docker", true, "tls", ""},
		{"podman over tls", "podman", true, "tls", ""},
		{"podman rootless over tls", "podman", false, "tls", ""},
	}
)

// eachEngine runs f with every engine, as root and as an ordinary user, over each transport that there is for it.
func eachEngine(t *testing.T, f func(t *testing.T, s *sandboxed)) {
	t.Helper()
	inEngines(t, append(everyEngine[:len(everyEngine):len(everyEngine)], everyEngineOverTLS...), f)
}

// inEngines runs f with the engines of cases. Most of it is waiting for them, so all such tests run at once, after the others.
func inEngines(t *testing.T, cases []engineCase, f func(t *testing.T, s *sandboxed)) {
	t.Helper()
	t.Parallel()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f(t, newSandboxed(t, c))
		})
	}
}

func newSandboxed(t *testing.T, c engineCase) *sandboxed {
	t.Helper()
	s := &sandboxed{engine: c.engine, transport: c.transport, user: "/root", shell: []string{"/bin/sh", "-c"}}
	uid, runtime := 0, ""
	if !c.root {
		u, err := user.Lookup(setting(t, "CREDPROXY_TEST_USER"))
		if err != nil {
			t.Fatal(err)
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			t.Fatal(err)
		}
		s.user, runtime = u.HomeDir, setting(t, "CREDPROXY_TEST_USER_RUNTIME")
	}
	s.host, s.oauth = stockedFor(t, uid, generous+`
[profiles.work]
keys = ["openai", "nothing"]
[profiles.work.providers]
acme = ["default", "nowhere"]
`)
	s.vars = append(s.vars, "HOME="+s.user, "CONTAINERS_CONF="+setting(t, "CONTAINERS_CONF"))
	if c.server != "" {
		s.vars = append(s.vars, "DOCKER_HOST="+setting(t, c.server))
		if err := os.Chmod(s.work, 0o777); err != nil { // whoever is inside may be nobody here
			t.Fatal(err)
		}
	}
	if runtime != "" {
		s.vars = append(s.vars, "XDG_RUNTIME_DIR="+runtime)
	}
	if c.engine != "bwrap" {
		s.image = setting(t, "CREDPROXY_TEST_IMAGE")
	}
	if err := copyFile(guest, s.work+"/guest", 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// args are those of `credproxy run … -- command`.
func (s *sandboxed) args(flags []string, command ...string) []string {
	args := append([]string{"run", "--engine", s.engine, "--profile", "work"}, flags...)
	if s.transport != "" {
		args = append(args, "--transport", s.transport)
	}
	if s.image != "" {
		args = append(args, "--image", s.image)
	}
	return append(append(args, "--"), command...)
}

// in runs a command in a sandbox.
func (s *sandboxed) in(command ...string) result {
	s.t.Helper()
	return s.run(s.args(nil, command...)...)
}

// nothingLeft waits until nothing of the work directory's processes, sockets and containers is left.
func (s *sandboxed) nothingLeft(t *testing.T, what string) {
	t.Helper()
	eventually(t, patience, what+" leaves no process", func() bool { return len(processesWith(s.work)) == 0 })
	eventually(t, patience, what+" leaves no socket", func() bool { return len(s.sockets()) == 0 })
	if s.image != "" {
		eventually(t, patience, what+" leaves no container", func() bool { return s.container(t) == "" })
	}
}

func (s *sandboxed) sockets() []string {
	list, _ := filepath.Glob(s.tmp + "/llxprt-cred-*/*")
	return list
}

// container is the id of the one that mounts this test's work directory, or empty.
func (s *sandboxed) container(t *testing.T) string {
	t.Helper()
	out, err := s.program(s.engine, "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Mounts}}").Output()
	if err != nil {
		t.Fatalf("%s ps: %v", s.engine, err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, s.work) {
			id, _, _ := strings.Cut(line, " ")
			return id
		}
	}
	return ""
}

// processesWith returns the processes of the machine that have text in their arguments, but for this one.
func processesWith(text string) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if pid != os.Getpid() && bytes.Contains(cmdline, []byte(text)) {
			found[pid] = string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
		}
	}
	return found
}
