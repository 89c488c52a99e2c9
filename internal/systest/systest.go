// Package systest is what tests need of the system: children that are the test binary itself, other users, small and
// read-only file systems, and terminals. Only tests import it, and the programs under test/.
//
// A test that needs another process starts this one again, in a role. [Roles.Play] comes first in TestMain; then
// [Roles.Start] has a child that talks with the test over its standard input and output, and [Roles.Command] one that the
// test runs as it likes:
//
//	var roles = systest.Roles{"listen": listen} // func listen(args []string) error
//
//	func TestMain(m *testing.M) {
//		roles.Play()
//		os.Exit(m.Run())
//	}
//
//	p := roles.Start(t, nil, "listen", path)
//	first := p.Line(t) // that it prints
//
// A child that mounts file systems is run by [RunInNamespace], where anybody may, and every mount goes with it;
// [MountReadOnly] and [Remount] are for its role. [AsUser] makes a child another user's, [SharedDir] is a directory that such
// a child can enter, and [OpenPTY] a terminal for one. What has no end that could be waited for is awaited with [Until], and
// what is written meanwhile goes to a [Buffer].
//
// Nothing here skips a test: what the system does not let a test do fails it, with a word on what to change.
package systest

import (
	"bytes"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long what has to come is waited for: a machine may stand still for seconds.
const patience = time.Minute

// Until waits until ok says that what has come true by the work of another goroutine or process, and fails the test if it does
// not within a minute.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// Buffer is what others write, in any goroutine, and a test reads meanwhile. Its zero value is empty.
type Buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// Write appends p. It does not fail.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is all that has been written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// SharedDir makes a directory of this mode, whatever the umask, that is gone with the test. Its path is short enough for sockets
// in it, and other users can reach it, unlike that of TempDir.
func SharedDir(t testing.TB, mode fs.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

// AsUser has a command run as this user and group, which only root may.
func AsUser(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
}
