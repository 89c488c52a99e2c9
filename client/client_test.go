package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

func TestLazyConnect(t *testing.T) {
	px := &proxy{answer: vault}
	c := px.listen(t, Options{})
	_ = c.Tokens()
	if n := px.conns.Load(); n != 0 {
		t.Errorf("%d connections before the first request", n)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Tokens().Token(t.Context(), "p", ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := px.conns.Load(); n != 1 {
		t.Errorf("%d connections for 20 first requests at once", n)
	}
}

// Answers come in any order: each call gets its own.
func TestParallelRequests(t *testing.T) {
	var (
		mu       sync.Mutex
		waiting  []func()
		inFlight atomic.Int32
		ids      sync.Map
	)
	const batch = 40
	px := &proxy{answer: func(p *peer, r *wire.Request) {
		if n := inFlight.Add(1); n > wire.MaxInFlight {
			t.Errorf("%d requests in flight", n)
		}
		if _, twice := ids.LoadOrStore(r.ID, true); twice {
			t.Errorf("id %s was used twice", r.ID)
		}
		mu.Lock()
		defer mu.Unlock()
		waiting = append(waiting, func() {
			inFlight.Add(-1)
			p.reply(r.ID, wire.Buckets{r.Provider})
		})
		if len(waiting) == batch {
			for i := range waiting {
				waiting[batch-1-i]()
			}
			waiting = nil
		}
	}}
	c := px.listen(t, Options{})
	var wg sync.WaitGroup
	for i := range 10 * batch {
		wg.Go(func() {
			name := fmt.Sprintf("p%d", i)
			got, err := c.Tokens().Buckets(t.Context(), name)
			if err != nil || len(got) != 1 || got[0] != name {
				t.Errorf("request for %s: %v, %v", name, got, err)
			}
		})
	}
	wg.Wait()
}

func TestConnectionLostInMidRequest(t *testing.T) {
	var arrived sync.WaitGroup
	arrived.Add(10)
	px := &proxy{}
	px.answer = func(p *peer, r *wire.Request) {
		arrived.Done()
		arrived.Wait()
		_ = p.Close()
	}
	c := px.listen(t, Options{})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := c.Tokens().Token(t.Context(), "p", ""); !isLost(err) {
				t.Errorf("pending request: %v", err)
			}
		})
	}
	wg.Wait()
	for range 3 {
		if err := c.Tokens().RemoveToken(t.Context(), "p", ""); !isLost(err) {
			t.Errorf("later request: %v", err)
		}
	}
	if n := px.conns.Load(); n != 1 {
		t.Errorf("%d connections: it was made again after the loss", n)
	}
	if err := c.Connect(t.Context()); !isLost(err) {
		t.Errorf("Connect: %v", err)
	}
}

func TestConnectionLostBetweenRequests(t *testing.T) {
	px := &proxy{}
	peers := make(chan *peer, 1)
	px.answer = func(p *peer, r *wire.Request) {
		p.reply(r.ID, wire.Providers{})
		peers <- p
	}
	c := px.listen(t, Options{})
	if _, err := c.Tokens().Providers(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = (<-peers).Close()
	if _, err := c.Tokens().Providers(t.Context()); !isLost(err) {
		t.Errorf("error %v", err)
	}
}

// A server that does not keep to the protocol is as good as gone.
func TestBadAnswers(t *testing.T) {
	framed := func(s string) []byte { return frame.Append(nil, []byte(s)) }
	for name, bytes := range map[string][]byte{
		"not a frame":     []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"too long":        binary.BigEndian.AppendUint32(nil, 4<<20+1),
		"empty":           {0, 0, 0, 0},
		"not JSON":        framed(`hello`),
		"null":            framed(`null`),
		"wrong version":   framed(`{"v":1,"id":"1","ok":true,"data":{}}`),
		"id not a string": framed(`{"v":2,"id":1,"ok":true,"data":{}}`),
		"no data":         framed(`{"v":2,"id":"1","ok":true}`),
		"duplicate name":  framed(`{"v":2,"id":"1","id":"1","ok":true,"data":{}}`),
		"bad UTF-8":       framed("{\"v\":2,\"id\":\"1\",\"ok\":true,\"data\":{\"key\":\"\xff\"}}"),
		"cut":             framed(`{"v":2,"id":"1","ok":true,"data":{}}`)[:20],
	} {
		t.Run(name, func(t *testing.T) {
			c := (&proxy{answer: func(p *peer, _ *wire.Request) {
				_, _ = p.Conn.Write(bytes)
				if name == "cut" {
					_ = p.Close()
				}
			}}).listen(t, Options{})
			if _, err := c.Tokens().Providers(t.Context()); !isLost(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Answers that nobody asked for harm nobody.
func TestUnknownAndDuplicateAnswers(t *testing.T) {
	c := (&proxy{answer: func(p *peer, r *wire.Request) {
		p.reply("no such id", wire.Buckets{"wrong"})
		p.fail("unknown", wire.CodeInvalidRequest)
		p.reply(r.ID, wire.Buckets{r.Provider})
		p.reply(r.ID, wire.Buckets{"wrong"})
		p.fail(r.ID, wire.CodeInternal)
	}}).listen(t, Options{})
	for i := range 50 {
		name := fmt.Sprintf("p%d", i)
		got, err := c.Tokens().Buckets(t.Context(), name)
		if err != nil || len(got) != 1 || got[0] != name {
			t.Fatalf("request for %s: %v, %v", name, got, err)
		}
	}
}

// A well-formed answer of the wrong kind is that request's error, not the connection's end.
func TestAnswerOfWrongKind(t *testing.T) {
	c := (&proxy{answer: func(p *peer, r *wire.Request) { p.reply(r.ID, wire.Empty{}) }}).listen(t, Options{})
	if got, err := c.Tokens().Token(t.Context(), "p", ""); err == nil || isLost(err) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := c.Tokens().RemoveToken(t.Context(), "p", ""); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestContextCancel(t *testing.T) {
	for version := wire.MinVersion; version <= wire.MaxVersion; version++ {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			cancelled := make(chan string, 1)
			var slow string
			ctx, cancel := context.WithCancel(t.Context())
			c := (&proxy{maxVersion: version, answer: func(p *peer, r *wire.Request) {
				switch r.Op {
				case wire.OpRefreshToken:
					slow = r.ID
					cancel()
				case wire.OpCancel:
					cancelled <- r.TargetID
					p.reply(r.ID, wire.Empty{})
					p.fail(r.TargetID, wire.CodeCancelled)
				default:
					p.reply(r.ID, wire.Providers{"p"})
				}
			}}).listen(t, Options{})
			_, err := c.Tokens().RefreshToken(ctx, "p", "")
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if version >= wire.Version2 {
				if id := <-cancelled; id != slow {
					t.Errorf("cancelled %q, want %q", id, slow)
				}
			}
			if _, err := c.Tokens().Providers(t.Context()); err != nil {
				t.Errorf("the next request: %v", err)
			}
			if len(cancelled) > 0 {
				t.Error("cancel was sent in version 1")
			}
		})
	}
}

func TestContextDoneBefore(t *testing.T) {
	px := &proxy{}
	c := px.listen(t, Options{})
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // a select between a free slot and a context that is done takes either
		if _, err := c.Tokens().Providers(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
	}
}

func TestHandshakeRefused(t *testing.T) {
	const right = "test-capability"
	px := &proxy{capability: right, answer: vault}
	given := "wrong"
	c := px.listen(t, Options{CapabilityToken: func(context.Context) (string, error) { return given, nil }})
	_, err := c.Tokens().Providers(t.Context())
	if !errors.Is(err, wire.ErrUnauthorized) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.opts.Socket) {
		t.Errorf("wrong capability token: %v", err)
	}
	if h, ok := err.(interface{ Hint() string }); !ok || !strings.Contains(h.Hint(), "capability") {
		t.Errorf("wrong capability token: no hint about it: %v", err)
	}
	given = right
	if _, err := c.Tokens().Providers(t.Context()); err != nil {
		t.Errorf("right capability token: %v", err)
	}

	broken := errors.New("no token file")
	c = (&proxy{}).listen(t, Options{CapabilityToken: func(context.Context) (string, error) { return "", broken }})
	if _, err := c.Tokens().Providers(t.Context()); !errors.Is(err, broken) {
		t.Errorf("capability token that cannot be read: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	c := New(Options{Socket: path})
	defer c.Close()
	for range 2 {
		_, err := c.Tokens().Token(t.Context(), "p", "")
		if !errors.Is(err, ErrUnreachable) || !strings.HasPrefix(err.Error(), "credential proxy at "+path+" cannot be reached: ") {
			t.Errorf("error %v", err)
		}
	}

	// A server that was not there yet may be there later: nothing has been lost.
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	px := &proxy{}
	px.wg.Go(func() {
		if nc, err := ln.Accept(); err == nil {
			px.serve(nc)
		}
	})
	if err := c.Connect(t.Context()); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	_ = ln.Close()
	px.wg.Wait()
}

func TestHandshakeAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":     "",
		"not a frame": "HTTP/1.1 400 Bad Request\r\n\r\n",
		"not JSON":    "\x00\x00\x00\x01x",
		"version 3":   string(frame.Append(nil, wire.AppendHandshake(nil, 3))),
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c := New(Options{dial: func(context.Context) (net.Conn, error) { return ours, nil }})
			var wg sync.WaitGroup
			wg.Go(func() {
				defer theirs.Close()
				if _, err := frame.NewReader(theirs, 1<<16, nil).Next(); err == nil {
					_, _ = io.WriteString(theirs, answer)
				}
			})
			if err := c.Connect(t.Context()); !errors.Is(err, ErrUnreachable) {
				t.Errorf("error %v", err)
			}
			_ = c.Close()
			wg.Wait()
		})
	}
}

func TestClose(t *testing.T) {
	px := &proxy{}
	arrived := make(chan struct{})
	px.answer = func(*peer, *wire.Request) { close(arrived); <-px.done }
	c := px.listen(t, Options{})
	failed := make(chan error)
	go func() {
		_, err := c.Tokens().Providers(t.Context())
		failed <- err
	}()
	<-arrived
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("pending request: %v", err)
	}
	if _, err := c.Tokens().Providers(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("later request: %v", err)
	}
}

func TestRequestTooLarge(t *testing.T) {
	for version := wire.MinVersion; version <= wire.MaxVersion; version++ {
		synctest.Test(t, func(t *testing.T) { // so that it is in time, on the slowest machine
			px := &proxy{maxVersion: version}
			c := px.pipe(Options{})
			save := func(n int) error {
				return c.Tokens().SaveToken(t.Context(), "p", "", &wire.Token{AccessToken: strings.Repeat("x", n), TokenType: "Bearer"})
			}
			if err := save(wire.MaxPayload(version)); !errors.Is(err, wire.ErrInvalidRequest) {
				t.Errorf("version %d, too large: %v", version, err)
			}
			if n := px.requests.Load(); n > 0 {
				t.Errorf("version %d: it was sent", version)
			}
			if err := save(wire.MaxPayload(version) - 200); err != nil {
				t.Errorf("version %d, large: %v", version, err)
			}
			_ = c.Close()
			px.wg.Wait()
		})
	}
}

func BenchmarkToken(b *testing.B) {
	px := &proxy{answer: vault, done: make(chan struct{})}
	path := filepath.Join(b.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	px.wg.Go(func() {
		if nc, err := ln.Accept(); err == nil {
			px.serve(nc)
		}
	})
	c := New(Options{Socket: path})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Tokens().Token(b.Context(), "p", ""); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.Close()
	_ = ln.Close()
	px.wg.Wait()
}
