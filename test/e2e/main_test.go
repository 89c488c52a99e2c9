//go:build e2e && linux

// Package e2e tests the built command from outside: real processes, a real authorisation server, a client in another
// language, real container engines, a real keyring. What it knows of the product is what docs/protocol.md,
// docs/commands.md and docs/audit-log.md promise. It runs as root, because it plays several users of one machine, and
// test/all.sh starts it with everything installed:
//
//	CGO_ENABLED=0 go test -tags e2e ./test/e2e
//
// A test's machine is a [host]: a user with a home, a temporary directory and a work directory of their own. Nothing a
// test starts outlives it.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// credproxy is the command under test, and guest is this test program under a path that every user can run.
var credproxy, guest string

// variables that would let the machine of whoever runs the tests shine through.
var foreign = []string{"LLXPRT_CREDENTIAL_SOCKET", "CREDPROXY_HOME", "CREDPROXY_CONFIG", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if play, ok := roles[os.Args[1]]; ok {
			os.Exit(play(os.Args[2:]))
		}
	}
	status, err := withBinary(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	os.Exit(status)
}

// withBinary builds the command, or takes the one that CREDPROXY_E2E_BINARY names, and runs f.
func withBinary(f func() int) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("these tests play several users and need root: run make test")
	}
	for _, name := range foreign {
		os.Unsetenv(name)
	}
	dir, err := os.MkdirTemp("/tmp", "credproxy-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the tests' other users run what is in it
		return 0, err
	}
	credproxy, guest = filepath.Join(dir, "credproxy"), filepath.Join(dir, "guest")
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	if err := copyFile(self, guest, 0o755); err != nil {
		return 0, err
	}
	if built := os.Getenv("CREDPROXY_E2E_BINARY"); built != "" {
		err = copyFile(built, credproxy, 0o755)
	} else {
		build := exec.Command("go", "build", "-trimpath", "-o", credproxy, "github.com/credproxy/credproxy/cmd/credproxy")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		err = build.Run()
	}
	if err != nil {
		return 0, fmt.Errorf("the command under test: %w", err)
	}
	return f(), nil
}

func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}
