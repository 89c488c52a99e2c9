// Package socket owns the proxy's Unix sockets: where they lie, who may reach them, and who is at the other end.
//
// A server calls [Listen], which returns a listener that only its owner can connect to, and [SweepStale] to remove
// what killed processes left behind. For each accepted connection it calls [Identify] before it reads a byte, then
// [Authorize].
//
// The path is {tmp}/llxprt-cred-{uid}/llxprt-cred-{pid}-{nonce}.sock. Anybody can guess the directory's name, so
// somebody may have made it first: what is not a directory of our own, closed to everybody else, is refused and never
// repaired. Whoever opened it could still hold a descriptor on it or have left something inside.
package socket

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const prefix = "llxprt-cred-"

// Errors of [Listen] and [SweepStale].
var (
	ErrUnsafeDir   = errors.New("the socket directory cannot be trusted")
	ErrPathTooLong = errors.New("the socket's path is too long")
)

// Dir returns the directory of this user's sockets, with the temporary directory's symlinks resolved: a container
// gets the socket under the same path, and there a link of the host leads nowhere. On macOS it may be /private/tmp, see roomy.
// It creates nothing.
func Dir() (string, error) {
	tmp, err := filepath.Abs(os.TempDir())
	if err == nil {
		tmp, err = filepath.EvalSymlinks(tmp)
	}
	if err != nil {
		return "", fmt.Errorf("temporary directory: %w; set TMPDIR to a directory that exists", err)
	}
	uid := os.Geteuid()
	return filepath.Join(roomy(runtime.GOOS, tmp, uid), prefix+strconv.Itoa(uid)), nil
}

// macOS gives every user a temporary directory of their own, whose name alone takes half of what a socket's path may have.
const (
	darwinUserTemps = "/private/var/folders/"
	darwinTemp      = "/private/tmp"
	darwinMaxPath   = 103
)

// roomy returns tmp, or for macOS's own directory the one that all users share, if no socket's path would fit into the first.
// What somebody has set TMPDIR to is taken as it is. It does not depend on the process, so all agree on one directory.
func roomy(goos, tmp string, uid int) string {
	longest := len(tmp) + len("/"+prefix+strconv.Itoa(uid)) + len("/"+prefix+"99999-0123456789abcdef.sock")
	if goos == "darwin" && strings.HasPrefix(tmp, darwinUserTemps) && longest > darwinMaxPath {
		return darwinTemp
	}
	return tmp
}

// Listener is a listening socket of mode 0600. Close removes the socket from the directory, unless something else
// has taken its name.
type Listener struct {
	*net.UnixListener
	path string
	dir  *os.File // the directory as it was checked: removal goes through it, not through the path
	id   fileID

	closing  sync.Once
	closeErr error
}

// Path returns the socket's absolute path, free of symlinks.
func (l *Listener) Path() string { return l.path }

// Close stops listening and removes the socket. Later calls return the first one's result.
func (l *Listener) Close() error {
	l.closing.Do(func() {
		name := filepath.Base(l.path)
		var st unix.Stat_t
		// A second look by inode: the name may have been removed and taken again by somebody else of our UID.
		if err := unix.Fstatat(int(l.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && idOf(&st) == l.id {
			if err := unix.Unlinkat(int(l.dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
				l.closeErr = fmt.Errorf("remove socket %s: %w", l.path, err)
			}
		}
		l.closeErr = errors.Join(l.UnixListener.Close(), l.closeErr, l.dir.Close())
	})
	return l.closeErr
}

// Listen creates the directory where it is missing, checks it, and listens on a new socket in it. There is no moment
// at which another user could connect: the directory is 0700 before the socket is made, and the socket is made with
// mode 0600. Nothing is created when the path would be too long for the system.
func Listen() (*Listener, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 8)
	_, _ = rand.Read(nonce) // never fails
	name := prefix + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(nonce) + ".sock"
	path := filepath.Join(dir, name)
	if len(path) > maxPath {
		return nil, fmt.Errorf("%w: %s has %d bytes and this system takes %d; set TMPDIR to a shorter directory",
			ErrPathTooLong, path, len(path), maxPath)
	}

	d, err := openDir(dir, true)
	if err != nil {
		return nil, err
	}
	ln, err := bind(path)
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The name goes with Listener.Close, which looks at the inode first.
	ln.SetUnlinkOnClose(false)

	l := &Listener{UnixListener: ln, path: path, dir: d}
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("socket %s is not in the directory that was checked: %w", path, err)
	}
	l.id = idOf(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Mode&0o7777 != 0o600 || int(st.Uid) != os.Geteuid() {
		_ = l.Close()
		return nil, fmt.Errorf("socket %s came out with mode %04o, want 0600; use a umask that leaves the owner's bits alone",
			path, st.Mode&0o7777)
	}
	return l, nil
}

// openDir opens the socket directory and checks what it opened, not what lay at the path a moment ago.
func openDir(dir string, create bool) (*os.File, error) {
	if create {
		if err := checkParent(filepath.Dir(dir)); err != nil {
			return nil, err
		}
		if err := unix.Mkdir(dir, 0o700); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("create socket directory %s: %w", dir, err)
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, whyNotOpen(dir, err)
	}
	d := os.NewFile(uintptr(fd), dir)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("socket directory %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() {
		_ = d.Close()
		return nil, unsafe(dir, fmt.Sprintf("it belongs to UID %d, not to us (%d)", st.Uid, os.Geteuid()))
	}
	if st.Mode&0o077 != 0 {
		_ = d.Close()
		return nil, unsafe(dir, fmt.Sprintf("it is open to others (mode %04o, want 0700)", st.Mode&0o7777))
	}
	return d, nil
}

// whyNotOpen names what lies in the directory's place. The kernel says ENOTDIR or ELOOP for a symlink, depending on
// the system, and EACCES for another user's closed directory.
func whyNotOpen(dir string, err error) error {
	var st unix.Stat_t
	if lerr := unix.Lstat(dir, &st); lerr != nil {
		return fmt.Errorf("socket directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return unsafe(dir, "it is a symlink")
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return unsafe(dir, "it is a file, not a directory")
	case int(st.Uid) != os.Geteuid():
		return unsafe(dir, fmt.Sprintf("it belongs to UID %d, not to us (%d)", st.Uid, os.Geteuid()))
	}
	return fmt.Errorf("socket directory %s: %w", dir, err)
}

func unsafe(dir, why string) error {
	return fmt.Errorf("%w: %s: %s; find out who made it, then remove it, or set TMPDIR to a directory of your own",
		ErrUnsafeDir, dir, why)
}

// checkParent refuses a temporary directory in which another user could exchange our directory for one of theirs.
func checkParent(tmp string) error {
	var st unix.Stat_t
	if err := unix.Stat(tmp, &st); err != nil {
		return fmt.Errorf("temporary directory %s: %w; set TMPDIR to a directory that exists", tmp, err)
	}
	var why string
	sticky := st.Mode&unix.S_ISVTX != 0
	switch owner := int(st.Uid); {
	case st.Mode&0o002 != 0 && !sticky:
		why = fmt.Sprintf("everybody may rename what is in it (mode %04o, no sticky bit)", st.Mode&0o7777)
	case owner != 0 && owner != os.Geteuid() && (!sticky || owner != unmappedUID()):
		why = fmt.Sprintf("it belongs to UID %d, who may rename what is in it", owner)
	default:
		return nil
	}
	return fmt.Errorf("%w: temporary directory %s: %s; set TMPDIR to a directory of your own", ErrUnsafeDir, tmp, why)
}

// fileID tells one inode from another.
type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// pidOf returns the process id in a socket's name, or false for a name that is not ours.
func pidOf(name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	rest, ok = strings.CutSuffix(rest, ".sock")
	if !ok {
		return 0, false
	}
	digits, nonce, ok := strings.Cut(rest, "-")
	if !ok || len(nonce) < 8 || strings.Trim(nonce, "0123456789abcdef") != "" {
		return 0, false
	}
	pid, err := strconv.Atoi(digits)
	if err != nil || pid <= 0 || strconv.Itoa(pid) != digits {
		return 0, false
	}
	return pid, true
}
