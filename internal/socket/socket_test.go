package socket

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

func TestListen(t *testing.T) {
	tmp := tempDir(t)
	l := mustListen(t)

	want := regexp.MustCompile("^" + regexp.QuoteMeta(tmp) + "/llxprt-cred-" + strconv.Itoa(os.Geteuid()) +
		"/llxprt-cred-" + strconv.Itoa(os.Getpid()) + "-[0-9a-f]{16}\\.sock$")
	if !want.MatchString(l.Path()) {
		t.Errorf("path %s does not match %s", l.Path(), want)
	}
	if m := mode(t, l.Path()); m != fs.ModeSocket|0o600 {
		t.Errorf("socket mode %v, want 0600", m)
	}
	if m := mode(t, filepath.Dir(l.Path())); m != fs.ModeDir|0o700 {
		t.Errorf("directory mode %v, want 0700", m)
	}
	c, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accept(t, l)

	second := mustListen(t)
	if second.Path() == l.Path() {
		t.Error("two sockets under one path")
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := os.Lstat(l.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close the socket is still there: %v", err)
	}
	if _, err := os.Lstat(second.Path()); err != nil {
		t.Errorf("closing one socket removed the other: %v", err)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode()
}

func TestCloseLeavesASocketThatIsNotOurs(t *testing.T) {
	tempDir(t)
	l := mustListen(t)
	if err := os.Remove(l.Path()); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(l.Path()); err != nil {
		t.Errorf("close removed a socket that took the name later: %v", err)
	}
}

func TestSymlinksInTheTemporaryDirectoryAreResolved(t *testing.T) {
	tmp := tempDir(t)
	real := filepath.Join(tmp, "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tmp, "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", link)
	if l := mustListen(t); !strings.HasPrefix(l.Path(), real+"/") {
		t.Errorf("path %s is not under %s", l.Path(), real)
	}
}

// Each case makes something in the directory's place, as a squatter would; the socket directory must be refused, say
// why, and stay as it is.
func TestSquatting(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name  string
		setup func(dir string) error
		says  string
	}{
		{"symlink to a directory of ours", func(dir string) error {
			return errors.Join(os.Mkdir(dir+".real", 0o700), os.Symlink(dir+".real", dir))
		}, "is a symlink"},
		{"dangling symlink", func(dir string) error { return os.Symlink(dir+".nowhere", dir) }, "is a symlink"},
		{"file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "is a file"},
		{"fifo", func(dir string) error { return unix.Mkfifo(dir, 0o600) }, "is a file"},
		{"foreign owner, closed", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, otherUID, otherUID))
		}, "belongs to UID 1"},
		{"foreign owner, open", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777), os.Chown(dir, otherUID, otherUID))
		}, "belongs to UID 1"},
		{"group may enter", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o710)) }, "open to others"},
		{"others may read", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o704)) }, "open to others"},
		{"sticky and open", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|os.ModeSticky))
		}, "open to others"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(tempDir(t), ownName())
			if err := tt.setup(dir); err != nil {
				t.Fatal(err)
			}
			before := mode(t, dir)
			l, err := Listen()
			if err == nil {
				l.Close()
				t.Fatal("accepted")
			}
			if !errors.Is(err, ErrUnsafeDir) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "TMPDIR") {
				t.Errorf("error %q, want one that says %q and what to do", err, tt.says)
			}
			if _, err := SweepStale(dir); !errors.Is(err, ErrUnsafeDir) {
				t.Errorf("sweep: %v, want ErrUnsafeDir", err)
			}
			if after := mode(t, dir); after != before {
				t.Errorf("mode went from %v to %v", before, after)
			}
		})
	}
}

// The same from the other side: another user's process meets the directory that root made for that user's name.
func TestSquattingAgainstAnotherUser(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(tempDir(t), prefix+strconv.Itoa(otherUID))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := start(t, systest.AsUser(otherUID), "listen")
	if got := p.Line(t); !strings.Contains(got, "belongs to UID 0") {
		t.Errorf("answered %q, want a refusal that names the owner", got)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	q := start(t, systest.AsUser(otherUID), "listen")
	if got := q.Line(t); !strings.HasPrefix(got, dir+"/") {
		t.Errorf("answered %q, want a socket under %s", got, dir)
	}
}

func TestParentDirectory(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name string
		mode fs.FileMode
		uid  int
		ok   bool
	}{
		{"ours", 0o700, 0, true},
		{"like /tmp", 0o777 | os.ModeSticky, 0, true},
		{"everybody may rename", 0o777, 0, false},
		{"another user's", 0o755, otherUID, false},
		{"another user's, sticky", 0o777 | os.ModeSticky, otherUID, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmp := tempDir(t)
			if err := errors.Join(os.Chown(tmp, tt.uid, -1), os.Chmod(tmp, tt.mode)); err != nil {
				t.Fatal(err)
			}
			l, err := Listen()
			if err == nil {
				l.Close()
			}
			if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, ErrUnsafeDir) {
				t.Errorf("got %v, want ok=%v", err, tt.ok)
			}
			if !tt.ok {
				if entries, _ := os.ReadDir(tmp); len(entries) != 0 {
					t.Errorf("something was created: %v", entries)
				}
			}
		})
	}
}

// The temporary directory that macOS gives to a user leaves too little room for a socket's path.
func TestRoomy(t *testing.T) {
	const own = "/private/var/folders/8y/p_2vz3k50cl072b_yljl72v00000gn/T"
	for _, tt := range []struct {
		goos, tmp string
		uid       int
		want      string
	}{
		{"darwin", own, 501, "/private/tmp"},
		{"darwin", own + "/deeper", 501, "/private/tmp"},
		{"darwin", "/private/var/folders/zz/x/T", 501, "/private/var/folders/zz/x/T"}, // it fits
		{"darwin", "/private/tmp", 501, "/private/tmp"},
		{"darwin", "/Users/me/" + strings.Repeat("x", 80), 501, "/Users/me/" + strings.Repeat("x", 80)}, // asked for, and refused later
		{"linux", own, 501, own},
	} {
		got := roomy(tt.goos, tt.tmp, tt.uid)
		if got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.goos, tt.tmp, got, tt.want)
		}
		path := got + "/" + prefix + strconv.Itoa(tt.uid) + "/" + prefix + "99999-0123456789abcdef.sock"
		if strings.HasPrefix(tt.tmp, darwinUserTemps) && tt.goos == "darwin" && len(path) > darwinMaxPath {
			t.Errorf("%s has %d bytes", path, len(path))
		}
	}
}

func TestPathTooLong(t *testing.T) {
	tmp := tempDir(t)
	// What follows the temporary directory: "/llxprt-cred-0" and "/llxprt-cred-<pid>-<16 hex>.sock".
	rest := len("/"+ownName()) + len("/"+prefix+strconv.Itoa(os.Getpid())+"-0123456789abcdef.sock")
	for _, tt := range []struct {
		over int
		ok   bool
	}{{0, true}, {1, false}, {200, false}} {
		long := filepath.Join(tmp, strings.Repeat("d", maxPath-rest-len(tmp)-1+tt.over))
		if err := os.Mkdir(long, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", long)
		l, err := Listen()
		if tt.ok {
			if err != nil {
				t.Errorf("%d bytes: %v", maxPath+tt.over, err)
				continue
			}
			if len(l.Path()) != maxPath {
				t.Errorf("the test is off: path of %d bytes", len(l.Path()))
			}
			l.Close()
			continue
		}
		if !errors.Is(err, ErrPathTooLong) {
			t.Errorf("%d bytes: %v, want ErrPathTooLong", maxPath+tt.over, err)
		}
		if entries, _ := os.ReadDir(long); len(entries) != 0 {
			t.Errorf("%d bytes: something was created: %v", maxPath+tt.over, entries)
		}
	}
}

// A second goroutine looks at every socket in the directory while sockets come and go: none is ever wider than 0600,
// whatever the umask is.
func TestModeWhileBinding(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := filepath.Join(tempDir(t), ownName())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var looks, seen int
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			looks++
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				fi, err := os.Lstat(filepath.Join(dir, e.Name()))
				if err != nil {
					continue
				}
				seen++
				if fi.Mode() != fs.ModeSocket|0o600 {
					t.Errorf("%s had mode %v", e.Name(), fi.Mode())
				}
			}
			runtime.Gosched()
		}
	})
	for range 300 {
		l, err := Listen()
		if err != nil {
			t.Error(err)
			break
		}
		if err := l.Close(); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d looks, %d sockets seen", looks, seen)
}
