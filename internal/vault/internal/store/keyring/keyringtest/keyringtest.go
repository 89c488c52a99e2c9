//go:build linux

// Package keyringtest runs a real GNOME Keyring for tests, in a D-Bus session and directories of its own: [NewUnlocked].
// It needs the Debian packages dbus, gnome-keyring and libsecret-tools, and no other user than the one that tests.
package keyringtest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// A Session is a D-Bus session of its own, with directories of its own, in which a test starts what it needs. Nothing of
// the machine's own session is touched, and nothing is started by the bus.
type Session struct {
	Dir     string // short: the path of a socket has 108 bytes
	Address string // of the bus
	Bus     *exec.Cmd
	Keyring *exec.Cmd // nil: none
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

// Home gives the test a home directory of its own in dir: the keyring store takes locks below HOME.
func Home(t *testing.T, dir string) {
	t.Helper()
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	for _, name := range []string{"LLXPRT_LOG_HOME", "LLXPRT_CONFIG_HOME", "XDG_STATE_HOME"} {
		t.Setenv(name, "")
	}
}

// New is a session with a bus and no keyring. HOME is that of the session from now on.
func New(t *testing.T) *Session {
	t.Helper()
	dir, err := os.MkdirTemp("", "credproxy-keyring-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Session{Dir: dir}
	Home(t, dir)
	for _, sub := range []string{"run", "control"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bus.conf"), fmt.Appendf(nil, busConfig, filepath.Join(dir, "run", "bus")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.StartBus(t)
	return s
}

// NewUnlocked is a session with an unlocked GNOME Keyring in it.
func NewUnlocked(t *testing.T) *Session {
	t.Helper()
	s := New(t)
	s.StartKeyring(t, "--unlock")
	return s
}

// StartBus starts the bus, at the address that it had before.
func (s *Session) StartBus(t *testing.T) {
	t.Helper()
	_ = os.Remove(filepath.Join(s.Dir, "run", "bus"))
	s.Bus = s.command(t, "dbus-daemon", "dbus", "--nofork", "--nopidfile", "--nosyslog", "--print-address=1",
		"--config-file="+filepath.Join(s.Dir, "bus.conf"))
	out, err := s.Bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, s.Bus)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon: %v", err)
	}
	s.Address = strings.TrimSpace(line)
}

// StartKeyring starts gnome-keyring-daemon and waits until it offers its keyring. With "--unlock" the password of the
// default collection is right, and the collection is made if it is not there.
func (s *Session) StartKeyring(t *testing.T, args ...string) {
	t.Helper()
	s.Keyring = s.command(t, "gnome-keyring-daemon", "gnome-keyring", append(args, "--foreground", "--components=secrets",
		"--control-directory="+filepath.Join(s.Dir, "control"))...)
	s.Keyring.Stdin = strings.NewReader("test-password")
	start(t, s.Keyring)
	s.waitForKeyring(t)
}

// waitForKeyring waits until the keyring's name on the bus is that of the keyring that was started: one that was killed may
// have it for a moment longer. By then the keyring is unlocked, if it was to be.
func (s *Session) waitForKeyring(t *testing.T) {
	t.Helper()
	bus, err := dbus.Connect(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	deadline := time.Now().Add(time.Minute)
	for s.owner(bus) != s.Keyring.Process.Pid {
		if time.Now().After(deadline) {
			t.Fatal("gnome-keyring-daemon does not offer a keyring")
		}
		time.Sleep(time.Millisecond) // between two looks: the bus has other things to do
	}
}

// owner is the process that offers a keyring on the bus; 0: none.
func (s *Session) owner(bus *dbus.Conn) (pid int) {
	var number uint32
	if err := bus.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixProcessID", 0, "org.freedesktop.secrets").Store(&number); err != nil {
		return 0
	}
	return int(number)
}

// command runs a program that a package of Debian has, in the session.
func (s *Session) command(t *testing.T, name, debianPackage string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: install the package %s (apt-get install %s)", name, debianPackage, debianPackage)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + filepath.Join(s.Dir, "home"),
		"XDG_RUNTIME_DIR=" + filepath.Join(s.Dir, "run"), "DBUS_SESSION_BUS_ADDRESS=" + s.Address,
		"GNOME_KEYRING_CONTROL=" + filepath.Join(s.Dir, "control"),
	}
	return cmd
}

// start starts a program that the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { End(cmd) })
}

// EndKeyring kills the keyring, and returns when the bus knows.
func (s *Session) EndKeyring(t *testing.T) {
	t.Helper()
	bus, err := dbus.Connect(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	End(s.Keyring)
	for s.owner(bus) != 0 {
		time.Sleep(time.Millisecond)
	}
}

// End kills a program of the session.
func End(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// SecretTool runs libsecret's own program.
func (s *Session) SecretTool(t *testing.T, stdin string, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := s.command(t, "secret-tool", "libsecret-tools", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	return string(out), err
}

// StoreAs stores an item as another program does.
func (s *Session) StoreAs(t *testing.T, label, value string, attributes ...string) {
	t.Helper()
	if _, err := s.SecretTool(t, value, append([]string{"store", "--label=" + label}, attributes...)...); err != nil {
		t.Fatalf("secret-tool store: %v", err)
	}
}

// Lookup is what another program finds.
func (s *Session) Lookup(t *testing.T, attributes ...string) string {
	t.Helper()
	out, err := s.SecretTool(t, "", append([]string{"lookup"}, attributes...)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Fatalf("secret-tool lookup: %v", err)
	}
	return out
}

// An Item is what is stored as another program sees it.
type Item struct {
	Label      string
	Attributes map[string]string
}

// Items returns the items with these attributes, over a connection of the test's own.
func (s *Session) Items(t *testing.T, attributes map[string]string) []Item {
	t.Helper()
	bus, err := dbus.Connect(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var unlocked, locked []dbus.ObjectPath
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	if err := service.Call("org.freedesktop.Secret.Service.SearchItems", 0, attributes).Store(&unlocked, &locked); err != nil {
		t.Fatal(err)
	}
	var found []Item
	for _, path := range append(unlocked, locked...) {
		var f Item
		item := bus.Object("org.freedesktop.secrets", path)
		if err := item.StoreProperty("org.freedesktop.Secret.Item.Label", &f.Label); err != nil {
			t.Fatal(err)
		}
		if err := item.StoreProperty("org.freedesktop.Secret.Item.Attributes", &f.Attributes); err != nil {
			t.Fatal(err)
		}
		delete(f.Attributes, "xdg:schema") // gnome-keyring's own addition
		found = append(found, f)
	}
	return found
}

// Lock locks the default collection.
func (s *Session) Lock(t *testing.T) {
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

// Unlock unlocks it with the password, as a login does, through GNOME Keyring's own interface for that.
func (s *Session) Unlock(t *testing.T) {
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
func (s *Session) collection(t *testing.T) (bus *dbus.Conn, collection dbus.ObjectPath) {
	t.Helper()
	bus, err := dbus.Connect(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	service := bus.Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	if err := service.Call("org.freedesktop.Secret.Service.ReadAlias", 0, "default").Store(&collection); err != nil {
		t.Fatal(err)
	}
	return bus, collection
}
