//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// machine is a user's machine: directories of its own and a configuration with the file store, and with limits that
// are out of the way. All else is as it comes: the audit log, the log level, the profile.
type machine struct {
	binary, dir string
}

func newMachine(binary string) (*machine, error) {
	dir, err := os.MkdirTemp("", "cpbench")
	if err != nil {
		return nil, err
	}
	m := &machine{binary, dir}
	for _, sub := range []string{"/home", "/tmp"} {
		if err := os.Mkdir(dir+sub, 0o700); err != nil {
			return m, err
		}
	}
	return m, m.configure("")
}

func (m *machine) configure(providers string) error {
	text := "store = \"file\"\n[file_store]\nkey = \"file\"\n[limits]\nrequests_per_second = 1000000\nconnections = 600\n" + providers
	return os.WriteFile(m.dir+"/home/config.toml", []byte(text), 0o600)
}

func (m *machine) remove() { _ = os.RemoveAll(m.dir) }

// command prepares a command in a session of its own: it finds no terminal to ask on.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(m.binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir, "CREDPROXY_HOME=" + m.dir + "/home", "TMPDIR=" + m.dir + "/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

func (m *machine) setKey(name, value string) error {
	cmd := m.command("key", "set", name)
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("key set: %w\n%s", err, out)
	}
	return nil
}

// login makes a login of the provider acme: an authorisation server, `credproxy auth login`, and a browser that is one
// GET.
func (m *machine) login() (err error) {
	s, err := oauthtest.Start(oauthtest.Options{
		Clients: []oauthtest.Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(context.Background())) }()
	err = m.configure(fmt.Sprintf("[providers.acme]\nflows = [\"browser\"]\nclient_id = \"test-client\"\nauthorize_url = %q\ntoken_url = %q\n",
		s.EndpointURL(oauthtest.Authorize), s.EndpointURL(oauthtest.Token)))
	if err != nil {
		return err
	}
	cmd := m.command("auth", "login", "acme", "--no-browser")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	page, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		var answer *http.Response
		if answer, err = http.Get(strings.TrimSpace(page)); err == nil {
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("auth login: %w\n%s", err, said.String())
	}
	return nil
}
