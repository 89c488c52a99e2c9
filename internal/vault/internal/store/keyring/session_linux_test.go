package keyring_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/keyring"
)

// session is a D-Bus session of its own, with directories of its own, in which a test starts what it needs. Nothing of
// the machine's own session is touched, and nothing is started by the bus.
type session struct {
	dir     string // short: the path of a socket has 108 bytes
	address string
	bus     *exec.Cmd
	keyring *exec.Cmd // nil: none
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>`

func newSession(t *testing.T) *session {
	t.Helper()
	dir, err := os.MkdirTemp("", "credproxy-keyring-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &session{dir: dir}
	for _, sub := range []string{"home", "run", "control"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bus.conf"), fmt.Appendf(nil, busConfig, filepath.Join(dir, "run", "bus")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.startBus(t)
	return s
}

// newKeyring is a session with an unlocked GNOME Keyring in it.
func newKeyring(t *testing.T) *session {
	t.Helper()
	s := newSession(t)
	s.startKeyring(t, "--unlock")
	return s
}

func (s *session) startBus(t *testing.T) {
	t.Helper()
	_ = os.Remove(filepath.Join(s.dir, "run", "bus"))
	s.bus = s.command(t, "dbus-daemon", "dbus", "--nofork", "--nopidfile", "--nosyslog", "--print-address=1",
		"--config-file="+filepath.Join(s.dir, "bus.conf"))
	out, err := s.bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, s.bus)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon: %v", err)
	}
	s.address = strings.TrimSpace(line)
}

func (s *session) startKeyring(t *testing.T, args ...string) {
	t.Helper()
	s.keyring = s.command(t, "gnome-keyring-daemon", "gnome-keyring", append(args, "--foreground", "--components=secrets",
		"--control-directory="+filepath.Join(s.dir, "control"))...)
	s.keyring.Stdin = strings.NewReader("test-password")
	start(t, s.keyring)
	s.waitForKeyring(t)
}

// waitForKeyring waits until someone on the bus has the keyring's name.
func (s *session) waitForKeyring(t *testing.T) {
	t.Helper()
	bus, err := dbus.Connect(s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	deadline := time.Now().Add(20 * time.Second)
	for owned := false; !owned; {
		if err := bus.BusObject().CallWithContext(t.Context(), "org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.secrets").Store(&owned); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("gnome-keyring-daemon does not offer a keyring")
		}
	}
}

// command runs a program that a package of Debian has, in the session.
func (s *session) command(t *testing.T, name, debianPackage string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: install the package %s (apt-get install %s)", name, debianPackage, debianPackage)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + filepath.Join(s.dir, "home"),
		"XDG_RUNTIME_DIR=" + filepath.Join(s.dir, "run"), "DBUS_SESSION_BUS_ADDRESS=" + s.address,
		"GNOME_KEYRING_CONTROL=" + filepath.Join(s.dir, "control"),
	}
	return cmd
}

// start starts a program that the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// secretTool runs libsecret's own program.
func (s *session) secretTool(t *testing.T, stdin string, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := s.command(t, "secret-tool", "libsecret-tools", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	return string(out), err
}

// storeAs stores an item as another program does.
func (s *session) storeAs(t *testing.T, label, value string, attributes ...string) {
	t.Helper()
	if _, err := s.secretTool(t, value, append([]string{"store", "--label=" + label}, attributes...)...); err != nil {
		t.Fatalf("secret-tool store: %v", err)
	}
}

// lookup is what another program finds.
func (s *session) lookup(t *testing.T, attributes ...string) string {
	t.Helper()
	out, err := s.secretTool(t, "", append([]string{"lookup"}, attributes...)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Fatalf("secret-tool lookup: %v", err)
	}
	return out
}

// foreign is an item as another program sees it.
type foreign struct {
	label      string
	attributes map[string]string
}

// items returns the items with these attributes, over a connection of the test's own.
func (s *session) items(t *testing.T, attributes map[string]string) []foreign {
	t.Helper()
	bus, err := dbus.Connect(s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var unlocked, locked []dbus.ObjectPath
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	if err := service.Call("org.freedesktop.Secret.Service.SearchItems", 0, attributes).Store(&unlocked, &locked); err != nil {
		t.Fatal(err)
	}
	var found []foreign
	for _, path := range append(unlocked, locked...) {
		var f foreign
		item := bus.Object("org.freedesktop.secrets", path)
		if err := item.StoreProperty("org.freedesktop.Secret.Item.Label", &f.label); err != nil {
			t.Fatal(err)
		}
		if err := item.StoreProperty("org.freedesktop.Secret.Item.Attributes", &f.attributes); err != nil {
			t.Fatal(err)
		}
		delete(f.attributes, "xdg:schema") // gnome-keyring's own addition
		found = append(found, f)
	}
	return found
}

// lock locks the default collection.
func (s *session) lock(t *testing.T) {
	t.Helper()
	bus, collection := s.collection(t)
	defer bus.Close()
	var prompt dbus.ObjectPath
	var locked []dbus.ObjectPath
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	err := service.Call("org.freedesktop.Secret.Service.Lock", 0, []dbus.ObjectPath{collection}).Store(&locked, &prompt)
	if err != nil || len(locked) != 1 {
		t.Fatalf("Lock: %v, %v", locked, err)
	}
}

// unlock unlocks it with the password, as a login does, through GNOME Keyring's own interface for that.
func (s *session) unlock(t *testing.T) {
	t.Helper()
	bus, collection := s.collection(t)
	defer bus.Close()
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	var output dbus.Variant
	password := struct {
		Session    dbus.ObjectPath
		Parameters []byte
		Value      []byte
		Type       string
	}{Parameters: []byte{}, Value: []byte("test-password"), Type: "text/plain"}
	if err := service.Call("org.freedesktop.Secret.Service.OpenSession", 0, "plain", dbus.MakeVariant("")).Store(&output, &password.Session); err != nil {
		t.Fatal(err)
	}
	const method = "org.gnome.keyring.InternalUnsupportedGuiltRiddenInterface.UnlockWithMasterPassword"
	if err := service.Call(method, 0, collection, password).Err; err != nil {
		t.Fatal(err)
	}
}

// collection connects to the bus and finds the default collection.
func (s *session) collection(t *testing.T) (bus *dbus.Conn, collection dbus.ObjectPath) {
	t.Helper()
	bus, err := dbus.Connect(s.address)
	if err != nil {
		t.Fatal(err)
	}
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	if err := service.Call("org.freedesktop.Secret.Service.ReadAlias", 0, "default").Store(&collection); err != nil {
		t.Fatal(err)
	}
	return bus, collection
}

func (s *session) signal(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (s *session) open(t *testing.T) *keyring.Store {
	t.Helper()
	k, err := keyring.Open(keyring.Options{LockDir: filepath.Join(s.dir, "locks"), Bus: s.address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func write(t *testing.T, k store.Store, it store.Item, value string) {
	t.Helper()
	if err := k.Write(t.Context(), it, secret.New(value)); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func wantValue(t *testing.T, k store.Store, it store.Item, want string) {
	t.Helper()
	if got, err := k.Read(t.Context(), it); err != nil {
		t.Fatalf("Read: %v", err)
	} else if got.Reveal() != want {
		t.Fatalf("Read: %q, want %q", got.Reveal(), want)
	}
}

// wantAll checks that every operation fails with want, within the time, all of them asked at once.
func wantAll(t *testing.T, k store.Store, it store.Item, want error, within time.Duration, says string) {
	t.Helper()
	var wg sync.WaitGroup
	for name, f := range map[string]func(context.Context) error{
		"Read":   func(ctx context.Context) error { _, err := k.Read(ctx, it); return err },
		"Write":  func(ctx context.Context) error { return k.Write(ctx, it, secret.New("test-canary")) },
		"Delete": func(ctx context.Context) error { return k.Delete(ctx, it) },
		"List":   func(ctx context.Context) error { _, err := k.List(ctx, it.Service); return err },
		"Check":  k.Check,
	} {
		wg.Go(func() {
			begun := time.Now()
			err := f(t.Context())
			if !errors.Is(err, want) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v, want %v saying %q", name, err, want, says)
			}
			if took := time.Since(begun); took > within {
				t.Errorf("%s took %v", name, took)
			}
		})
	}
	wg.Wait()
}
