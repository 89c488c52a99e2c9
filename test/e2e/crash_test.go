//go:build e2e && linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// watchedProvider is an authorisation server of which is known when an answer was given to the kernel, and whether the
// other side has read it.
type watchedProvider struct {
	*oauthtest.Server
	closing sync.WaitGroup
	mu      sync.Mutex
	last    *watchedConn // of the last token request
}

// watchedConn is one connection of a client. Linux answers what was sent to a process that died before it had read it with a reset;
// a connection on which everything was read ends in order.
type watchedConn struct {
	net.Conn
	p        *watchedProvider
	answered time.Time // when the last of the answer was handed to the kernel; zero: nothing was
	ended    error     // how the client's side ended; nil: it has not
}

func (c *watchedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.answered = time.Now()
	return n, err
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.end(err)
	return n, err
}

func (c *watchedConn) end(err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.ended == nil && !errors.Is(err, os.ErrDeadlineExceeded) { // with a deadline, the server interrupts its own reading
		c.ended = err
	}
}

// Close waits for the client's side to end, if this is the connection that a test asks about.
func (c *watchedConn) Close() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.ended != nil || c != c.p.last {
		return c.Conn.Close()
	}
	c.p.closing.Go(func() {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := io.Copy(io.Discard, c.Conn)
		if err == nil {
			err = io.EOF
		}
		c.end(err)
		_ = c.Conn.Close()
	})
	return nil
}

type watchedListener struct {
	net.Listener
	p *watchedProvider
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: c, p: l.p}, nil
}

func newWatchedProvider(t testing.TB) *watchedProvider {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := oauthtest.New(oauthtest.Options{
		Issuer:  "http://" + l.Addr().String(),
		Clients: []oauthtest.Client{{ID: "test-client", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &watchedProvider{Server: s}
	type key struct{}
	server := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, key{}, c) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == string(oauthtest.Token) {
				p.mu.Lock()
				p.last = r.Context().Value(key{}).(*watchedConn)
				p.mu.Unlock()
			}
			s.Handler().ServeHTTP(w, r)
		}),
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(watchedListener{l, p}) }()
	t.Cleanup(func() { _ = s.Close(context.Background()); _ = server.Close(); <-served; p.closing.Wait() })
	return p
}

// dirEvents are changes of files in some directories, in the order in which they happen.
type dirEvents struct {
	t    testing.TB
	file *os.File
	read []byte // events that next has not looked at
}

// watchDirs watches each directory for what its mask says.
func watchDirs(t testing.TB, dirs map[string]uint32) *dirEvents {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { file.Close() })
	for dir, mask := range dirs {
		if _, err := syscall.InotifyAddWatch(fd, dir, mask); err != nil {
			t.Fatalf("inotify of %s: %v", dir, err)
		}
	}
	return &dirEvents{t: t, file: file}
}

// happened reports, without waiting, whether there has been a change of that kind of a file with text in its name. What came
// before is forgotten.
func (d *dirEvents) happened(kind uint32, text string) (yes bool) {
	d.t.Helper()
	raw, err := d.file.SyscallConn()
	if err == nil {
		err = d.file.SetReadDeadline(time.Time{})
	}
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			for buf := make([]byte, 16<<10); ; {
				n, err := syscall.Read(int(fd), buf)
				if err != nil || n == 0 {
					return true
				}
				d.read = append(d.read, buf[:n]...)
			}
		})
	}
	if err != nil {
		d.t.Fatal(err)
	}
	for mask, name := range d.events {
		yes = yes || mask&kind != 0 && strings.Contains(name, text)
	}
	return yes
}

// events takes what has been read.
func (d *dirEvents) events(yield func(mask uint32, name string) bool) {
	for len(d.read) >= syscall.SizeofInotifyEvent {
		event := (*syscall.InotifyEvent)(unsafe.Pointer(&d.read[0]))
		end := syscall.SizeofInotifyEvent + int(event.Len)
		name := bytes.TrimRight(d.read[syscall.SizeofInotifyEvent:end], "\x00")
		d.read = d.read[end:]
		if !yield(event.Mask, string(name)) {
			return
		}
	}
}

// next waits for the next change of a file with text in its name.
func (d *dirEvents) next(text string) (mask uint32) {
	d.t.Helper()
	if err := d.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	for buf := make([]byte, 16<<10); ; {
		for mask, name := range d.events {
			if strings.Contains(name, text) {
				return mask
			}
		}
		n, err := d.file.Read(buf)
		if err != nil {
			d.t.Fatalf("no change of a file with %q in its name: %v", text, err)
		}
		d.read = buf[:n]
	}
}

// A proxy is killed again and again while it refreshes: at any time around the provider's answer, at the moment at which the
// answer is written ahead, and at the moment at which it is in the store. The next proxy always works, and has the new
// token in every case in which the answer had been written down; where it was lost, the kill came before it could be.
func TestKilledWhileRefreshing(t *testing.T) {
	t.Parallel()
	const rounds = 48
	s := newWatchedProvider(t)
	h := newHost(t)
	h.configure(generous + providerConfig("acme", s.Server))
	for i := range rounds {
		h.login(fmt.Sprintf("acme/round-%02d", i))
	}
	// Without the places that the logins have made, an intent is a new file, and the write ahead the first change of it.
	places, err := filepath.Glob(h.home + "/state/recovery/file/acme*round-*")
	if err != nil || len(places) != rounds {
		t.Fatalf("%d recovery files: %v", len(places), err)
	}
	for _, place := range places {
		if err := os.Remove(place); err != nil {
			t.Fatal(err)
		}
	}
	h.login("acme/first")
	p := h.serve()
	if a := dial(t, p.socket).refresh("acme/first"); !a.OK {
		t.Fatal(a)
	}
	const writtenAhead, saved = syscall.IN_MODIFY, syscall.IN_MOVED_TO
	changes := watchDirs(t, map[string]uint32{h.home + "/state/recovery/file": writtenAhead, h.home + "/data/items/llxprt-code-oauth": saved})

	var unread, lost int
	var window []time.Duration // from when an answer was handed to the kernel until it was written ahead
	for i := range rounds {
		bucket := fmt.Sprintf("round-%02d", i)
		login := "acme/" + bucket
		family := s.Families()[i]
		delay := time.Duration(rand.IntN(10_000)) * time.Microsecond
		s.Fault(oauthtest.Token, oauthtest.Fault{Delay: delay}, 1)
		s.mu.Lock()
		s.last = nil
		s.mu.Unlock()
		before := len(refreshes(s.Server))
		dial(t, p.socket).request("refresh_token", about(login))
		how := [...]string{"some time around the answer", "when it was written ahead", "when it was in the store"}[i%3]
		var killed time.Time
		switch i % 3 {
		case 0:
			asked(t, s.Server, before+1)
			off := delay + time.Duration(rand.IntN(9_000)-3_000)*time.Microsecond
			for arrived := refreshes(s.Server)[before].Time; time.Since(arrived) < off; { // a timer would be late by as much as this is about
			}
			killed = time.Now()
		case 1:
			if changes.next(bucket) != writtenAhead {
				t.Errorf("round %d: the answer was stored before it was written ahead", i)
			}
			killed = time.Now()
		case 2:
			for changes.next(bucket) != saved {
			}
		}
		p.signal(syscall.SIGKILL)
		p.wait(patience)

		var answered time.Time
		var ended error
		var wasWritten bool
		if i%3 == 0 {
			wasWritten = changes.happened(writtenAhead, bucket)
			eventually(t, patience, "the connection to the provider has ended", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.last != nil {
					answered, ended = s.last.answered, s.last.ended
				}
				return ended != nil
			})
		}

		if i%3 == 1 {
			s.mu.Lock()
			window = append(window, killed.Sub(s.last.answered))
			s.mu.Unlock()
		}

		p = h.serve()
		c := dial(t, p.socket)
		issued := s.Families()[i]
		a := c.token(login)
		switch {
		case !a.OK:
			t.Errorf("round %d, killed %s: get_token: %+v", i, how, a)
		case a.Data["access_token"] == newest(s.Server, i):
		case i%3 != 0 || wasWritten || a.Data["access_token"] != family.AccessTokens[0]:
			t.Errorf("round %d, killed %s (it was written ahead: %v): get_token answers %v of %v", i, how, wasWritten, a, issued.AccessTokens)
		case answered.IsZero() || answered.After(killed) || !errors.Is(ended, io.EOF):
			unread++
		default:
			lost++
			t.Logf("round %d: killed %v after the answer was handed to the kernel, and it is lost", i, killed.Sub(answered))
		}
		calls := len(refreshes(s.Server))
		if again := c.refresh(login); !again.OK || calls > before && (again.Data["access_token"] != a.Data["access_token"] || len(refreshes(s.Server)) != calls) {
			t.Errorf("round %d, killed %s: refresh_token within 30 s: %+v after %v", i, how, again, a)
		}
		if state := c.stands(login)["state"]; state != "ok" {
			t.Errorf("round %d, killed %s: the state is %v", i, how, state)
		}
	}
	slices.Sort(window)
	t.Logf("%d rounds at any time: %d answers were not read, %d were read and lost; they are written ahead after %v (median)", rounds/3, unread, lost, window[len(window)/2])
	if slow := window[len(window)/2]; slow > time.Second {
		t.Errorf("an answer is written ahead after %v", slow)
	}
	neverReused(t, s.Server)
	h.onlySealed(s.Server)
}
