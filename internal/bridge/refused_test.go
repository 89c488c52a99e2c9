package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// witness keeps what a listener says of refused connections.
type witness struct {
	mu   sync.Mutex
	whys []error
	log  bytes.Buffer
}

func (w *witness) options() Options {
	return Options{
		Logger: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Refused: func(remote string, why error) {
			if host, _, err := net.SplitHostPort(remote); err != nil || host != "127.0.0.1" {
				why = errors.New("from " + remote)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.whys = append(w.whys, why)
		},
	}
}

func (w *witness) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func (w *witness) all() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.whys
}

func (w *witness) expect(t *testing.T, want ...error) {
	t.Helper()
	systest.Until(t, "the refusals are told", func() bool { return len(w.all()) >= len(want) })
	for i, got := range w.all() {
		if i >= len(want) || !errors.Is(got, want[i]) {
			t.Errorf("refused: %v, want %v", w.all(), want)
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := strings.Count(w.log.String(), "was refused"); n != len(want) {
		t.Errorf("%d refusals in the log, want %d:\n%s", n, len(want), w.log.String())
	}
}

func TestWrongPin(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	h := l.Handover()
	h.Pin[31] ^= 1
	raw := dialTCP(t, l)
	if _, err := Attach(inTime(t), raw, h); !errors.Is(err, ErrPin) {
		t.Errorf("%v, want ErrPin", err)
	}
	if h.Secret != [32]byte{} {
		t.Error("the secret is still there")
	}
	if _, err := raw.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
	w.expect(t, ErrNotOurs)
}

// A wrong secret does not use up the right one; the right one works once, and that is for good.
func TestOneSession(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	attempt := func(change func(*Handover)) (*Session, error) {
		h := l.Handover()
		if change != nil {
			change(h)
		}
		return Attach(inTime(t), dialTCP(t, l), h)
	}
	wrong := func(h *Handover) { h.Secret[0] ^= 1 }
	var told []error
	refused := func(what, why string, change func(*Handover)) {
		t.Helper()
		told = append(told, map[string]error{"proof": ErrWrongProof, "let in before": ErrSecondSession}[why])
		if _, err := attempt(change); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want that it is refused: %s", what, err, why)
		}
		w.expect(t, told...)
	}
	refused("a wrong secret", "proof", wrong)
	select {
	case <-l.Attached():
		t.Fatal("attached with a wrong secret")
	default:
	}
	s, err := attempt(nil)
	if err != nil {
		t.Fatal(err)
	}
	<-l.Attached()
	refused("a second session", "let in before", nil)
	refused("a wrong secret beside it", "proof", wrong)
	select {
	case <-l.Lost():
		t.Error("the first session has not survived the second")
	default:
	}
	_ = s.Close()
	<-l.Lost()
	refused("a second session after the first", "let in before", nil)
}

// Many at once with the right secret: one is let in.
func TestOneSessionOfMany(t *testing.T) {
	l := start(t, Options{}, patientTimes())
	var wg sync.WaitGroup
	const many = lateHandshakes - 2 // all of them are heard
	let := make(chan *Session, many)
	for range many {
		wg.Go(func() {
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			s, err := Attach(inTime(t), raw, l.Handover())
			switch {
			case err == nil:
				let <- s
			case !errors.Is(err, ErrRefused):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(let)
	n := 0
	for s := range let {
		n++
		_ = s.Close()
	}
	if n != 1 {
		t.Errorf("%d sessions were let in", n)
	}
}

// greet makes a TLS connection with the application protocols that are named.
func greet(raw net.Conn, change func(*tls.Config)) (*tls.Conn, error) {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}
	if change != nil {
		change(cfg)
	}
	conn := tls.Client(raw, cfg)
	return conn, conn.Handshake()
}

// A proof that somebody has seen in another session is worth nothing.
func TestReplayedProof(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	h := l.Handover()
	first, err := greet(dialTCP(t, l), nil)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := prove(first.ConnectionState(), h.Secret[:])
	if err != nil {
		t.Fatal(err)
	}
	second, err := greet(dialTCP(t, l), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := say(t, second, append([]byte{version}, proof...)); !bytes.Equal(got, []byte{answerWrong}) {
		t.Errorf("the answer to the proof of another session is %v", got)
	}
	w.expect(t, ErrWrongProof)
	if got := say(t, first, append([]byte{version + 1}, proof...)); !bytes.Equal(got, []byte{answerWrong}) {
		t.Errorf("the answer to another version is %v", got)
	}
	w.expect(t, ErrWrongProof, ErrWrongProof)
}

// say writes b and returns all that comes.
func say(t *testing.T, c net.Conn, b []byte) []byte {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after %v: %v", got, err)
	}
	return got
}

func TestStrangers(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, raw net.Conn)
		why  error
	}{
		{"TLS 1.2", func(t *testing.T, raw net.Conn) {
			if _, err := greet(raw, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }); err == nil {
				t.Error("TLS 1.2 was taken")
			}
		}, ErrNotOurs},
		{"another protocol", func(t *testing.T, raw net.Conn) {
			if _, err := greet(raw, func(c *tls.Config) { c.NextProtos = []string{"h2"} }); err == nil {
				t.Error("h2 was taken")
			}
		}, ErrNotOurs},
		{"no protocol", func(t *testing.T, raw net.Conn) {
			c, err := greet(raw, func(c *tls.Config) { c.NextProtos = nil })
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil {
				t.Error("it was taken")
			}
		}, ErrNotOurs},
		{"HTTP", func(t *testing.T, raw net.Conn) { _, _ = raw.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, ErrNotOurs},
		{"zeros", func(t *testing.T, raw net.Conn) { _, _ = raw.Write(make([]byte, 1<<20)) }, ErrNotOurs},
		{"silence and an end", func(t *testing.T, raw net.Conn) { _ = raw.Close() }, ErrUnfinished},
		{"half a proof and an end", func(t *testing.T, raw net.Conn) {
			c, err := greet(raw, nil)
			if err != nil {
				t.Error(err)
			}
			_, _ = c.Write(make([]byte, helloLen-1))
			_ = c.Close()
		}, ErrUnfinished},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := new(witness)
			l := start(t, w.options(), patientTimes())
			tt.do(t, dialTCP(t, l))
			w.expect(t, tt.why)
			if _, err := Attach(inTime(t), dialTCP(t, l), l.Handover()); err != nil {
				t.Errorf("the sandbox, after that: %v", err)
			}
		})
	}
}

// Whoever says nothing, says it slowly, or stops in the middle is let go of when the time is up.
func TestUnfinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(witness)
		l := newListener(w.options(), usualTimes)
		if err := l.makeSecrets(); err != nil {
			t.Fatal(err)
		}
		enter := func(own bool) net.Conn {
			near, far := net.Pipe()
			t.Cleanup(func() { _ = near.Close() })
			l.running.Go(func() { l.examine(&candidate{conn: far, remote: "127.0.0.1:1", accepted: time.Now(), own: own}) })
			return near
		}
		begun := time.Now()
		silent, slow, own := enter(false), enter(false), enter(true)
		stops := enter(false)
		if _, err := greet(stops, nil); err != nil {
			t.Fatal(err)
		}
		var slowly sync.WaitGroup
		slowly.Go(func() { // a TLS record that never ends
			for b := []byte{22, 3, 1, 0x40, 0}; ; b = []byte{0} {
				if _, err := slow.Write(b); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		gone := func(who string, c net.Conn, after time.Duration) {
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF || time.Since(begun) != after {
				t.Errorf("%s: %d bytes, %v after %v; want that it is closed after %v", who, n, err, time.Since(begun), after)
			}
		}
		gone("silent", silent, usualTimes.proof)
		gone("stops", stops, usualTimes.proof)
		slowly.Wait()
		gone("own", own, usualTimes.carried)
		l.running.Wait()
		w.expect(t, ErrUnfinished, ErrUnfinished, ErrUnfinished, ErrUnfinished)
	})
}

func TestRefusalsAreLimited(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	told, missed := 0, 0
	note := func() {
		if ok, m := r.take(now); ok {
			told, missed = told+1, missed+m
		}
	}
	for range 100 {
		note()
	}
	if told != toldRefusals || missed != 0 {
		t.Errorf("of 100 at once %d were told", told)
	}
	now = now.Add(refusalInterval)
	note()
	note()
	if told != toldRefusals+1 || missed != 100-toldRefusals {
		t.Errorf("then %d, which said that %d were not", told-toldRefusals, missed)
	}
	now = now.Add(time.Hour)
	for range 100 {
		note()
	}
	if told != 2*toldRefusals+1 {
		t.Errorf("of 100 an hour later %d were told", told-toldRefusals-1)
	}
}

// Attach ends with its context, whoever is at the other end.
func TestAttachEndsWithItsContext(t *testing.T) {
	mine, other := net.Pipe()
	defer other.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("that is enough")
	go func() {
		_, _ = io.ReadFull(other, make([]byte, 5)) // it has begun
		cancel(why)
	}()
	h := sample()
	if _, err := Attach(ctx, mine, h); !errors.Is(err, why) {
		t.Errorf("%v, want why the context ended", err)
	}
	if h.Secret != [32]byte{} {
		t.Error("the secret is still there")
	}
}

// Close ends what has not proved itself yet, and says nothing of it.
func TestCloseEndsTheUnfinished(t *testing.T) {
	w := new(witness)
	l := start(t, w.options(), patientTimes())
	for range maxUnfinished - 1 { // many, so that one of them looks while Close is at work
		dialTCP(t, l)
	}
	if _, err := greet(dialTCP(t, l), nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := w.all(); len(got) > 0 {
		t.Errorf("refused: %v", got)
	}
	if l.secret != [32]byte{} {
		t.Error("the secret is still there")
	}
}
