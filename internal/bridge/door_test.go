package bridge

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// crowd is connections that say nothing.
type crowd []net.Conn

func gather(t *testing.T, l *Listener, n int) (c crowd) {
	t.Helper()
	for range n {
		c = append(c, dialTCP(t, l))
	}
	return c
}

// evicted waits until all but the last few have had to give way.
func (c crowd) evicted(t *testing.T, left int) {
	t.Helper()
	for i, conn := range c[:len(c)-left] {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d of a crowd: %v, want that it is closed", i, err)
		}
	}
}

// hesitant does what meanwhile says once it has begun to speak: after the ClientHello.
type hesitant struct {
	net.Conn
	meanwhile func()
	once      sync.Once
}

func (h *hesitant) Write(b []byte) (int, error) {
	n, err := h.Conn.Write(b)
	h.once.Do(h.meanwhile)
	return n, err
}

// A crowd that says nothing does not keep the sandbox out, and is not logged one by one.
func TestCrowd(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	const size = 4 * maxUnfinished
	begun := time.Now()
	gather(t, l, size)
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	systest.Until(t, "the crowd is noticed", func() bool { return len(w.all()) >= toldRefusals })
	all := w.all()
	for _, why := range all {
		if !errors.Is(why, ErrCrowded) {
			t.Errorf("refused: %v", why)
		}
	}
	if n, most := len(all), mostTold(begun); n > most {
		t.Errorf("%d of %d refusals were told, at most %d may be", n, size, most)
	}
}

// mostTold is how many refusals since begun may be told by now.
func mostTold(begun time.Time) int { return toldRefusals + int(time.Since(begun)/refusalInterval) + 1 }

// Connections that say nothing give way to one that has begun as ours do, although it is older.
func TestCrowdGivesWayToWhoHasBegun(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	raw := dialTCP(t, l)
	s, err := Attach(inTime(t), &hesitant{Conn: raw, meanwhile: func() {
		systest.Until(t, "its beginning is noticed", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.waiting) == 1 && time.Until(l.waiting[0].safe) > time.Second
		})
		gather(t, l, 3*maxUnfinished).evicted(t, maxUnfinished-1)
	}}, l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// Those that begin and do not go on give way in the end.
func TestCrowdThatBegins(t *testing.T) {
	limits := patientTimes()
	limits.begun = 200 * time.Millisecond
	l := start(t, Options{}, limits)
	var all crowd
	for range maxUnfinished {
		raw := dialTCP(t, l)
		if _, err := greet(raw, nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, raw)
	}
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	all.evicted(t, maxUnfinished-1) // the first
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.waiting); n != maxUnfinished-1 {
		t.Errorf("%d of %d were closed for one that came", maxUnfinished-n, maxUnfinished)
	}
}

// What comes from our own process is not one of the crowd: it is older than all of them, says nothing for a while, begins and stops, and
// is let in.
func TestDialPassesTheCrowd(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	own, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	gather(t, l, 2*maxUnfinished).evicted(t, maxUnfinished)
	s, err := Attach(inTime(t), &hesitant{Conn: own, meanwhile: func() {
		gather(t, l, 2*maxUnfinished).evicted(t, maxUnfinished)
	}}, l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	<-l.Attached()
	_ = s.Close()
	<-l.Lost()
}

// It proves itself as every other does, and is told apart in the log.
func TestDialProvesItself(t *testing.T) {
	var log strings.Builder
	var mu sync.Mutex
	told := 0
	l := start(t, Options{Refused: func(remote string, why error) {
		mu.Lock()
		defer mu.Unlock()
		told++
		log.WriteString(remote + ": " + why.Error() + "\n")
	}}, patientTimes())
	attach := func(wrong bool) (*Session, error) {
		own, err := l.Dial()
		if err != nil {
			t.Fatal(err)
		}
		h := l.Handover()
		if wrong {
			h.Secret[0] ^= 1
		}
		return Attach(inTime(t), own, h)
	}
	if _, err := attach(true); !errors.Is(err, ErrRefused) {
		t.Errorf("a wrong secret: %v", err)
	}
	s, err := attach(false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := attach(false); !errors.Is(err, ErrRefused) {
		t.Errorf("a second session: %v", err)
	}
	systest.Until(t, "both are told", func() bool { mu.Lock(); defer mu.Unlock(); return told == 2 })
	want := "the engine's exec: " + ErrWrongProof.Error() + "\nthe engine's exec: " + ErrSecondSession.Error() + "\n"
	if log.String() != want {
		t.Errorf("told:\n%swant:\n%s", log.String(), want)
	}
}

func TestDialAndClose(t *testing.T) {
	limits := patientTimes()
	limits.carried = 100 * time.Millisecond
	w := new(witness)
	l := start(t, Options{}, limits)
	slow, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_ = slow.SetReadDeadline(time.Now().Add(patience))
	if _, err := slow.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("who says nothing: %v, want the end", err)
	}
	l = start(t, w.options(), patientTimes())
	waits, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	_ = l.Close()
	_ = waits.SetReadDeadline(time.Now().Add(patience))
	if _, err := waits.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after Close: %v, want the end", err)
	}
	if c, err := l.Dial(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close: %v, %v", c, err)
	}
	if got := w.all(); len(got) > 0 {
		t.Errorf("refused: %v", got)
	}
}

// greeted makes the TLS session of an honest inside, and returns it with what has to be sent next: the version and the proof.
func greeted(t *testing.T, l *Listener, raw net.Conn) (conn *tls.Conn, hello []byte) {
	t.Helper()
	conn, err := greet(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := l.Handover()
	proof, err := prove(conn.ConnectionState(), h.Secret[:])
	if err != nil {
		t.Fatal(err)
	}
	return conn, append([]byte{version}, proof...)
}

// A connection that is evicted while its proof is on its way has not used up the secret.
func TestEvictedProofCounts(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	conn, hello := greeted(t, l, dialTCP(t, l))
	l.mu.Lock()
	c := l.waiting[0]
	c.evicted = true // and its connection is closed in the next moment
	l.mu.Unlock()
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// dumb cannot be written to once it is broken.
type dumb struct {
	net.Conn
	mu     sync.Mutex
	broken bool
}

func (d *dumb) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken {
		return 0, io.ErrClosedPipe
	}
	return d.Conn.Write(b)
}

// A sandbox that could not be told that it is let in is not: it comes again in another way.
func TestUnansweredProofIsTakenBack(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	near, far := net.Pipe()
	d := &dumb{Conn: far}
	c := &candidate{conn: d, remote: "127.0.0.1:1", accepted: time.Now()}
	l.mu.Lock()
	l.waiting = append(l.waiting, c)
	l.running.Go(func() { l.examine(c) })
	l.mu.Unlock()
	conn, hello := greeted(t, l, near)
	d.mu.Lock()
	d.broken = true
	d.mu.Unlock()
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	if n, err := near.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of an answer", n)
	}
	w.expect(t, ErrNotOurs)
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// strangers make so many connections, two at a time, and shake hands over each. It returns how many could.
func strangers(t *testing.T, l *Listener, n int) (shaken int) {
	t.Helper()
	worked := make(chan bool)
	for range 2 {
		go func() {
			for range n / 2 {
				raw, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					worked <- false
					continue
				}
				_, err = greet(raw, nil)
				_ = raw.Close()
				worked <- err == nil
			}
		}()
	}
	for range n {
		if <-worked {
			shaken++
		}
	}
	return shaken
}

// attached has a session.
func attached(t *testing.T, o Options, limits times) *Listener {
	t.Helper()
	l := start(t, o, limits)
	s, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	<-l.Attached()
	return l
}

// After the sandbox has come, many strangers at once cost no handshakes.
func TestLateFlood(t *testing.T) {
	w := new(witness)
	limits := patientTimes()
	limits.late = time.Hour
	l := attached(t, w.options(), limits)
	begun := time.Now()
	if shaken := strangers(t, l, 200); shaken != lateHandshakes {
		t.Errorf("%d of 200 had a handshake, %d may", shaken, lateHandshakes)
	}
	systest.Until(t, "it is told", func() bool {
		return slices.ContainsFunc(w.all(), func(why error) bool { return errors.Is(why, ErrLate) })
	})
	if all, most := w.all(), mostTold(begun); len(all) > most {
		t.Errorf("%d were told, at most %d may be: %v", len(all), most, all)
	}
}

// A few are heard out, and all when it is quiet again, so that a second session is known for one.
func TestSecondSessionAfterAFlood(t *testing.T) {
	w := new(witness)
	l := attached(t, w.options(), patientTimes())
	strangers(t, l, 4*lateHandshakes)
	systest.Until(t, "a second session is refused as one", func() bool {
		l.refused.mu.Lock()
		l.refused.told = bucket{} // as after a while
		l.refused.mu.Unlock()
		_, err := Attach(inTime(t), dialTCP(t, l), l.Handover())
		if err == nil {
			t.Fatal("a second session was let in")
		}
		return errors.Is(err, ErrRefused)
	})
	systest.Until(t, "and is told as one", func() bool {
		return slices.ContainsFunc(w.all(), func(why error) bool { return errors.Is(why, ErrSecondSession) })
	})
}
