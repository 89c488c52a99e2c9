package bridge

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
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
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
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

// patientTimes are for what is not about time.
func patientTimes() times {
	limits := usualTimes
	limits.proof, limits.carried, limits.begun = time.Minute, time.Minute, time.Minute
	limits.silent = 10 * time.Millisecond
	return limits
}

// A crowd that says nothing does not keep the sandbox out, and is not logged one by one.
func TestCrowd(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), usualTimes)
	const size = 4 * maxUnfinished
	gather(t, l, size)
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	until(t, "the crowd is noticed", func() bool { return len(w.all()) >= toldRefusals })
	for _, why := range w.all() {
		if !errors.Is(why, ErrCrowded) {
			t.Errorf("refused: %v", why)
		}
	}
	if n := len(w.all()); n > toldRefusals+3 {
		t.Errorf("%d of %d refusals were told", n, size)
	}
}

// Connections that say nothing give way to one that has begun as ours do, although it is older.
func TestCrowdGivesWayToWhoHasBegun(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	raw := dialTCP(t, l)
	s, err := Attach(tenSeconds(t), &hesitant{Conn: raw, meanwhile: func() {
		until(t, "its beginning is noticed", func() bool {
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
	limits := usualTimes
	limits.proof, limits.begun = time.Minute, 200*time.Millisecond
	l := start(t, Options{}, limits)
	var all crowd
	for range maxUnfinished {
		raw := dialTCP(t, l)
		if _, err := greet(raw, nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, raw)
	}
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	all.closedOne(t)
}

// closedOne expects that one has been closed: TLS says nothing more to the others.
func (c crowd) closedOne(t *testing.T) {
	t.Helper()
	n := 0
	for _, conn := range c {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := io.Copy(io.Discard, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of %d were closed for one that came", n, len(c))
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
	s, err := Attach(tenSeconds(t), &hesitant{Conn: own, meanwhile: func() {
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
	}}, usualTimes)
	attach := func(wrong bool) (*Session, error) {
		own, err := l.Dial()
		if err != nil {
			t.Fatal(err)
		}
		h := l.Handover()
		if wrong {
			h.Secret[0] ^= 1
		}
		return Attach(tenSeconds(t), own, h)
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
	until(t, "both are told", func() bool { mu.Lock(); defer mu.Unlock(); return told == 2 })
	want := "the engine's exec: " + ErrWrongProof.Error() + "\nthe engine's exec: " + ErrSecondSession.Error() + "\n"
	if log.String() != want {
		t.Errorf("told:\n%swant:\n%s", log.String(), want)
	}
}

func TestDialAndClose(t *testing.T) {
	limits := usualTimes
	limits.carried = 100 * time.Millisecond
	w := new(witness)
	l := start(t, Options{}, limits)
	slow, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_ = slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := slow.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("who says nothing: %v, want the end", err)
	}
	l = start(t, w.options(), usualTimes)
	waits, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	_ = l.Close()
	_ = waits.SetReadDeadline(time.Now().Add(10 * time.Second))
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

// A connection that is evicted while its proof is on its way has not used up the secret.
func TestEvictedProofCounts(t *testing.T) {
	l := start(t, Options{}, usualTimes)
	conn, err := greet(dialTCP(t, l), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := l.Handover()
	proof, err := prove(conn.ConnectionState(), h.Secret[:])
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	c := l.waiting[0]
	c.evicted = true // and its connection is closed in the next moment
	l.mu.Unlock()
	if _, err := conn.Write(append([]byte{version}, proof...)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
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
	l := start(t, w.options(), usualTimes)
	near, far := net.Pipe()
	d := &dumb{Conn: far}
	c := &candidate{conn: d, remote: "127.0.0.1:1", accepted: time.Now()}
	l.mu.Lock()
	l.waiting = append(l.waiting, c)
	l.running.Go(func() { l.examine(c) })
	l.mu.Unlock()
	conn, err := greet(near, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := l.Handover()
	proof, err := prove(conn.ConnectionState(), h.Secret[:])
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.broken = true
	d.mu.Unlock()
	if _, err := conn.Write(append([]byte{version}, proof...)); err != nil {
		t.Fatal(err)
	}
	if n, err := near.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of an answer", n)
	}
	w.expect(t, ErrNotOurs)
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// After the sandbox has come, many strangers at once cost no handshakes; a few are heard out, so that a second session is known for one.
func TestLateFlood(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), usualTimes)
	s, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	<-l.Attached()
	begun := time.Now()
	const strangers = 200
	shaken, worked := 0, make(chan bool)
	for range 2 {
		go func() {
			for range strangers / 2 {
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
	for range strangers {
		if <-worked {
			shaken++
		}
	}
	if most := lateHandshakes + int(time.Since(begun)/lateInterval) + 1; shaken > most || shaken == 0 {
		t.Errorf("%d of %d had a handshake in %v, at most %d may", shaken, strangers, time.Since(begun), most)
	}
	late := 0
	for _, why := range w.all() {
		if errors.Is(why, ErrLate) {
			late++
		}
	}
	if late == 0 || len(w.all()) > toldRefusals+10 {
		t.Errorf("told: %v", w.all())
	}
	// Then it is quiet, and whoever has the secret is found out.
	until(t, "a second session is refused as one", func() bool {
		l.refused.mu.Lock()
		l.refused.told = bucket{} // as after a while
		l.refused.mu.Unlock()
		_, err := Attach(tenSeconds(t), dialTCP(t, l), l.Handover())
		if err == nil {
			t.Fatal("a second session was let in")
		}
		return errors.Is(err, ErrRefused)
	})
	until(t, "and is told as one", func() bool {
		all := w.all()
		return errors.Is(all[len(all)-1], ErrSecondSession)
	})
}
