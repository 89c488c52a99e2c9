package client

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/wire"
)

// inBubble runs f with a Client of px in a bubble of its own time.
func inBubble(t *testing.T, px *proxy, f func(t *testing.T, c *Client, since func() time.Duration)) {
	synctest.Test(t, func(t *testing.T) {
		c := px.pipe(Options{})
		start := time.Now()
		f(t, c, func() time.Duration { return time.Since(start) })
		close(px.done)
		_ = c.Close()
		px.wg.Wait()
	})
}

func TestRequestTimeout(t *testing.T) {
	px := &proxy{}
	var cancelled sync.Map
	px.answer = func(p *peer, r *wire.Request) {
		switch r.Op {
		case wire.OpRefreshToken: // slower than the client waits
			time.Sleep(40 * time.Second)
			p.reply(r.ID, &wire.Token{AccessToken: "late", TokenType: "Bearer"})
		case wire.OpCancel:
			cancelled.Store(r.TargetID, true)
			p.reply(r.ID, wire.Empty{})
		default:
			p.reply(r.ID, wire.Providers{})
		}
	}
	inBubble(t, px, func(t *testing.T, c *Client, since func() time.Duration) {
		_, err := c.Tokens().RefreshToken(t.Context(), "p", "")
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || since() != 30*time.Second {
			t.Errorf("%v after %v", err, since())
		}
		synctest.Wait()
		if _, ok := cancelled.Load("1"); !ok {
			t.Error("the request was not cancelled")
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, err = c.Tokens().RefreshToken(ctx, "p", "")
		if errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || since() != 31*time.Second {
			t.Errorf("with a deadline: %v after %v", err, since())
		}
		time.Sleep(time.Minute) // the late answers come, and nobody minds
		if _, err := c.Tokens().Providers(t.Context()); err != nil {
			t.Errorf("the next request: %v", err)
		}
	})
}

func TestIdleClose(t *testing.T) {
	px := &proxy{answer: vault}
	inBubble(t, px, func(t *testing.T, c *Client, since func() time.Duration) {
		open := func() bool {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.conn != nil
		}
		use := func() {
			t.Helper()
			if _, err := c.Tokens().Token(t.Context(), "p", ""); err != nil {
				t.Fatalf("after %v: %v", since(), err)
			}
		}
		use()
		time.Sleep(4 * time.Minute)
		use() // the five minutes begin anew
		time.Sleep(5*time.Minute - time.Millisecond)
		if !open() {
			t.Fatal("closed before 5 minutes without a request")
		}
		time.Sleep(2 * time.Millisecond)
		if open() {
			t.Fatal("open after 5 minutes without a request")
		}
		use()
		if n := px.conns.Load(); n != 2 {
			t.Errorf("%d connections, want 2", n)
		}
		// For hours, each time at the moment of closing.
		for range 100 {
			time.Sleep(5 * time.Minute)
			use()
		}
	})
}

func TestSilentServerHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		c := New(Options{Socket: "/silent", dial: func(context.Context) (net.Conn, error) {
			ours, theirs := net.Pipe()
			wg.Go(func() {
				r := frame.NewReader(theirs, 1<<16, nil)
				for {
					if _, err := r.Next(); err != nil {
						_ = theirs.Close()
						return
					}
				}
			})
			return ours, nil
		}})
		start := time.Now()
		err := c.Connect(t.Context())
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no handshake within 5s") {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("after %v", d)
		}
		_ = c.Close()
		wg.Wait()
	})
}

// The caller who began to connect leaves: the others get their connection.
func TestConnectOutlivesCaller(t *testing.T) {
	px := &proxy{answer: vault}
	synctest.Test(t, func(t *testing.T) {
		c := px.pipe(Options{})
		dial := c.opts.dial
		c.opts.dial = func(ctx context.Context) (net.Conn, error) {
			time.Sleep(2 * time.Second)
			return dial(ctx)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		first := make(chan error)
		go func() { first <- c.Connect(ctx) }()
		synctest.Wait()
		if _, err := c.Tokens().Token(t.Context(), "p", ""); err != nil {
			t.Errorf("the second caller: %v", err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first caller: %v", err)
		}
		if n := px.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		_ = c.Close()
		px.wg.Wait()
	})
}

func TestCloseWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{dial: func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		failed := make(chan error)
		go func() { failed <- c.Connect(t.Context()) }()
		synctest.Wait()
		start := time.Now()
		_ = c.Close()
		if err := <-failed; !errors.Is(err, ErrClosed) || time.Since(start) > 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A server that stops reading holds up nobody longer than they want to wait, and is given up in the end.
func TestServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := frame.NewReader(theirs, 1<<16, nil).Next(); err == nil {
				_, _ = theirs.Write(frame.Append(nil, wire.AppendHandshake(nil, 2)))
			}
		})
		c := New(Options{dial: func(context.Context) (net.Conn, error) { return ours, nil }})
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		start := time.Now()
		for i := range 3 {
			ctx, stop := context.WithTimeout(t.Context(), time.Second)
			_, err := c.Tokens().Providers(ctx)
			stop()
			if want := time.Duration(i+1) * time.Second; !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != want {
				t.Errorf("%v after %v, want %v", err, time.Since(start), want)
			}
		}
		if _, err := c.Tokens().Providers(t.Context()); !isLost(err) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if d := time.Since(start); d > 31*time.Second {
			t.Errorf("lost after %v", d)
		}
		_ = c.Close()
		_ = theirs.Close()
	})
}

// A frame that the server takes slowly still arrives whole.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		big := strings.Repeat("x", 300_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer theirs.Close()
			r := frame.NewReader(slowly{theirs}, 1<<20, nil)
			if _, err := r.Next(); err != nil {
				return
			}
			_, _ = theirs.Write(frame.Append(nil, wire.AppendHandshake(nil, 2)))
			payload, err := r.Next()
			if err != nil {
				t.Error(err)
				return
			}
			req, err := wire.DecodeRequest(payload, 2)
			if err != nil || req.Token.AccessToken != big {
				t.Errorf("request: %v", err)
			}
			_, _ = theirs.Write(frame.Append(nil, wire.AppendResponse(nil, 2, req.ID, wire.Empty{})))
			_, _ = r.Next()
		})
		c := New(Options{dial: func(context.Context) (net.Conn, error) { return ours, nil }})
		if err := c.Tokens().SaveToken(t.Context(), "p", "", &wire.Token{AccessToken: big, TokenType: "Bearer"}); err != nil {
			t.Error(err)
		}
		_ = c.Close()
		wg.Wait()
	})
}

// slowly reads at most 10,000 bytes in 100 ms.
type slowly struct{ net.Conn }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.Conn.Read(p[:min(len(p), 10_000)])
}
