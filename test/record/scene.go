//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/systest"
)

// The size of the terminal.
const (
	columns = 100
	rows    = 40
)

// issuer is where people see the authorization server. It is really on loopback: only the token endpoint, which nobody sees,
// is configured by that address.
const issuer = "https://auth.example"

// shownCode is the user code that every login shows.
const shownCode = "WDJB-MJHT"

// scene is what happens on one terminal.
type scene struct {
	name, title string
	steps       []step
}

// step waits for a text on the terminal, behind that of the step before, and then types or acts.
type step struct {
	await string
	typed string
	act   func(ctx context.Context, t *stage) (typed string, err error)
}

var scenes = []scene{
	{"browser", "Log in by browser", []step{
		{await: prompt, typed: "credproxy auth login acme\n"},
		{await: "waiting for the login", act: approve},
		{await: prompt, typed: "credproxy auth status\n"},
		{await: prompt, typed: "exit\n"},
	}},
	{"device", "Log in by device code", []step{
		{await: prompt, typed: "credproxy auth login acme --flow device --qr\n"},
		{await: "waiting for the login", act: allowDevice},
		{await: prompt, typed: "exit\n"},
	}},
	{"paste", "Log in by pasted code", []step{
		{await: prompt, typed: "credproxy auth login acme --flow paste\n"},
		{await: "(not shown): ", act: copyCode},
		{await: prompt, typed: "exit\n"},
	}},
	{"inside", "Log in from inside a sandbox", []step{
		{await: prompt, typed: "credproxy run --engine bwrap -- credproxy auth login acme\n"},
		{await: "[y/N] ", typed: "y\n"},
		{await: "waiting for the login", act: approve},
		{await: prompt, typed: "credproxy auth status\n"},
		{await: prompt, typed: "exit\n"},
	}},
}

const prompt = "$ "

// loop is a shell that looks the same whichever one /bin/sh is: none of them edits this line, or has a prompt of its own.
const loop = `while printf '$ ' && read -r line && [ "$line" != exit ]; do eval "$line"; done`

// stage is a scene that is being played.
type stage struct {
	server *oauthtest.Server
	shown  bytes.Buffer
}

// play returns everything that the terminal was sent.
func (s scene) play(ctx context.Context, bin string) (shown string, err error) {
	top, err := os.MkdirTemp("/tmp", "cp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(top)
	home, work := filepath.Join(top, "home"), filepath.Join(top, "work")
	for _, dir := range []string{home, work} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", err
		}
	}
	t := &stage{}
	t.server, err = oauthtest.Start(oauthtest.Options{
		Clients:        []oauthtest.Client{{ID: "agent", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
		Approval:       oauthtest.AskUser,
		DeviceInterval: time.Second,
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = t.server.Close(context.WithoutCancel(ctx)) }()
	t.server.Fault(oauthtest.Device, oauthtest.Fault{Edit: func(answer map[string]any) {
		answer["user_code"] = shownCode
		answer["verification_uri"] = issuer + "/device"
		answer["verification_uri_complete"] = issuer + "/device?user_code=" + shownCode
	}}, -1)
	config := fmt.Sprintf(`store = "file"
[file_store]
key = "file"
[providers.acme]
flows = ["browser", "device", "paste"]
client_id = "agent"
authorize_url = "%s/authorize"
device_url = "%s"
token_url = "%s"
`, issuer, t.server.EndpointURL(oauthtest.Device), t.server.EndpointURL(oauthtest.Token))
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600); err != nil {
		return "", err
	}

	master, slave, err := systest.OpenPTY(rows, columns)
	if err != nil {
		return "", err
	}
	defer master.Close()
	shell := exec.CommandContext(ctx, "/bin/sh", "-c", loop)
	shell.Dir = work
	shell.Env = []string{
		"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + top, "TMPDIR=" + top, "CREDPROXY_HOME=" + home,
		"BROWSER=true", "TERM=xterm-256color", "LANG=C.UTF-8",
	}
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = shell.Start()
	_ = slave.Close()
	if err != nil {
		return "", err
	}
	err = t.run(ctx, master, s.steps)
	if err != nil {
		_ = shell.Process.Kill()
	}
	waitErr := shell.Wait()
	return t.shown.String(), errors.Join(err, waitErr)
}

func (t *stage) run(ctx context.Context, master *os.File, steps []step) error {
	deadline, _ := ctx.Deadline()
	if err := master.SetReadDeadline(deadline); err != nil {
		return err
	}
	seen := 0
	buffer := make([]byte, 4096)
	for {
		n, err := master.Read(buffer)
		t.shown.Write(buffer[:n])
		for len(steps) > 0 {
			i := strings.Index(t.shown.String()[seen:], steps[0].await)
			if i < 0 {
				break
			}
			seen += i + len(steps[0].await)
			typed := steps[0].typed
			if act := steps[0].act; act != nil {
				if typed, err = act(ctx, t); err != nil {
					return err
				}
			}
			if _, err := io.WriteString(master, typed); err != nil {
				return err
			}
			steps = steps[1:]
		}
		if err != nil { // EIO: the shell has ended
			if len(steps) > 0 {
				return fmt.Errorf("the terminal never showed %q:\n%s", steps[0].await, t.shown.String())
			}
			return nil
		}
	}
}

var address = regexp.MustCompile(regexp.QuoteMeta(issuer) + `/authorize\?[^\s\x1b]+`)

// opened is the address that the command showed, where the server really is.
func (t *stage) opened() (string, error) {
	found := address.FindString(t.shown.String())
	if found == "" {
		return "", fmt.Errorf("there is no address on the terminal:\n%s", t.shown.String())
	}
	return t.server.URL() + strings.TrimPrefix(found, issuer), nil
}

// approve plays a person who says yes on the page, from which the browser goes back to the command.
func approve(ctx context.Context, t *stage) (string, error) {
	address, err := t.opened()
	if err != nil {
		return "", err
	}
	redirect, err := t.server.Approve(ctx, address)
	if err != nil {
		return "", err
	}
	_, _, err = t.server.Follow(ctx, redirect)
	return "", err
}

// allowDevice plays a person who enters the code and says yes.
func allowDevice(_ context.Context, t *stage) (string, error) {
	codes := t.server.Issued().UserCodes
	if len(codes) == 0 || !t.server.Decide(codes[len(codes)-1], true) {
		return "", errors.New("no device waits to be allowed")
	}
	return "", nil
}

// copyCode plays a person who says yes, and types what the page shows, as a terminal sends what is pasted.
func copyCode(ctx context.Context, t *stage) (string, error) {
	address, err := t.opened()
	if err != nil {
		return "", err
	}
	code, err := t.server.Copy(ctx, address)
	return "\x1b[200~" + code + "\x1b[201~\r", err
}
