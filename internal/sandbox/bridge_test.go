package sandbox

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/bridge"
)

// throughPipes is the inside's end of a carrier. It says the first byte, and the rest when others have crowded the listener's port.
type throughPipes struct {
	net.Conn // deadlines and addresses: of a connection that nobody uses
	in       io.Reader
	out      *os.File
	crowd    func()
	once     sync.Once
}

func (p *throughPipes) Read(b []byte) (int, error) { return p.in.Read(b) }
func (p *throughPipes) Close() error               { return p.out.Close() }

func (p *throughPipes) Write(b []byte) (n int, err error) {
	p.once.Do(func() {
		n, err = p.out.Write(b[:1])
		p.crowd()
	})
	m, err := p.out.Write(b[n:])
	return n + m, err
}

// TestCarrierPassesTheCrowd: however many other users of this machine connect to the listener's port, and say nothing, the sandbox that speaks
// through the engine is let in.
func TestCarrierPassesTheCrowd(t *testing.T) {
	listener, err := bridge.Listen(bridge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	toInside, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer toInside.Close()
	out, fromInside, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	unused, other := net.Pipe()
	defer other.Close()
	c := &carrier{in: in, out: out}
	c.workers.Go(func() { c.fromSandbox(listener) })
	defer c.workers.Wait()
	defer c.close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	session, err := bridge.Attach(ctx, &throughPipes{Conn: unused, in: bridge.UnquoteFrom(toInside), out: fromInside, crowd: func() {
		var crowd []net.Conn
		for range 200 {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			crowd = append(crowd, conn)
		}
		for _, conn := range crowd[:100] { // at least these have to make way
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
				t.Fatalf("one of the crowd: %v", err)
			}
		}
	}}, listener.Handover())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-listener.Attached():
	case <-ctx.Done():
		t.Error("the sandbox is not attached")
	}
	_ = listener.Close()
	_ = session.Close()
}
