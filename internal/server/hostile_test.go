package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

// heap returns the bytes of the heap in use after a collection.
func heap() int {
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

const (
	hostileBytes = 60 << 20 // what hostile clients may take while they are there
	leftBytes    = 4 << 20  // what may be left of them: buffers in pools, map buckets
)

type noAudit struct{}

func (noAudit) Record(*audit.Event) {}

// siege checks that a bystander is served and memory is bounded while an attack lasts, and that nothing is left of it.
func siege(t *testing.T, change func(*Config, *proxy), attack func(t *testing.T, p *proxy) (end func())) {
	t.Helper()
	p := start(t, func(cfg *Config, p *proxy) {
		cfg.Audit, cfg.Logger = noAudit{}, nil // which would keep what they get in memory here
		if change != nil {
			change(cfg, p)
		}
	})
	bystander := p.open(t, 1)
	bystander.served()
	idle := heap()

	end := attack(t, p)
	bystander.served()
	p.open(t, 1).served()
	if a := p.open(t, 1).ask("list_buckets", `{"provider":"acme"}`); !a.OK {
		t.Errorf("list_buckets: %+v", a)
	}
	if n := heap() - idle; n > hostileBytes {
		t.Errorf("the attack took %d KiB", n>>10)
	}
	end()
	bystander.served()
	systest.Until(t, "memory is back", func() bool { return heap()-idle < leftBytes })
	systest.Until(t, "nothing is counted as heavy", func() bool { return p.heavy.Load() == 0 })
}

// crowd opens n connections and does something with each at the same time; end closes them and waits.
func crowd(t *testing.T, n int, open func() *client, do func(c *client)) (end func()) {
	var wg sync.WaitGroup
	var conns []*client
	for range n {
		c := open()
		conns = append(conns, c)
		if do != nil {
			wg.Go(func() { do(c) })
		}
	}
	return func() {
		for _, c := range conns {
			_ = c.Close()
		}
		wg.Wait()
	}
}

func TestSilentConnections(t *testing.T) {
	siege(t, nil, func(t *testing.T, p *proxy) func() {
		return crowd(t, 400, func() *client { return p.connect(t) }, nil)
	})
}

func TestAnnouncedFrames(t *testing.T) {
	zeros := make([]byte, 4<<20)
	for _, sent := range []int{0, 1, 60 << 10, 4<<20 - 1} {
		t.Run(strconv.Itoa(sent), func(t *testing.T) {
			siege(t, nil, func(t *testing.T, p *proxy) func() {
				return crowd(t, 40, func() *client { return p.open(t, 2) }, func(c *client) {
					_, _ = c.Write(binary.BigEndian.AppendUint32(nil, 4<<20))
					_, _ = c.Write(zeros[:sent])
				})
			})
		})
	}
}

// Peers that ask and never read: what is answered from memory, what takes a goroutine, and answers that are long.
func TestPeersThatNeverRead(t *testing.T) {
	peers := 40
	if carrying {
		peers = 10 // there is more room on the way, which takes longer to fill
	}
	for _, tt := range []struct{ op, payload string }{
		{"get_token", `{"provider":"acme"}`}, {"list_buckets", `{"provider":"acme"}`}, {"get_token", `{"provider":"big"}`},
	} {
		t.Run(tt.op, func(t *testing.T) {
			big := func(_ *Config, p *proxy) {
				p.vault.tokens[[2]string{"big", "default"}] = &wire.Token{AccessToken: strings.Repeat("a", 3<<20), TokenType: "B"}
			}
			siege(t, big, func(t *testing.T, p *proxy) func() {
				var full sync.WaitGroup
				full.Add(peers)
				end := crowd(t, peers, func() *client { return p.open(t, 2) }, func(c *client) {
					once := sync.OnceFunc(full.Done)
					defer once()
					for i := 0; ; i++ {
						// Full, as far as the peer can tell, when nothing has been taken from it for a while.
						_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
						if _, err := c.Write(framed(request(2, strconv.Itoa(i), tt.op, tt.payload))); err != nil {
							return
						}
					}
				})
				full.Wait()
				return end
			})
		})
	}
}

// Large saves that the store does not finish.
func TestSavesThatHang(t *testing.T) {
	gate := make(chan struct{})
	token := `{"access_token":"` + strings.Repeat("a", 3<<20) + `","expiry":1,"token_type":"Bearer"}`
	p := start(t, func(_ *Config, p *proxy) { p.vault.gate = gate })
	bystander := p.open(t, 1)
	idle := heap()
	var conns []*client
	for range 12 { // few enough that the first still hang when the last has been sent, on a slow machine too
		c := p.open(t, 2)
		c.send(request(2, "1", "save_token", `{"provider":"big","token":`+token+`}`))
		conns = append(conns, c)
	}
	systest.Until(t, "as many as fit hang", func() bool { return p.vault.held.Load() == heavyBytes/(3<<20) })
	bystander.served()
	busy := 0
	systest.Until(t, "the others are told that there is no room", func() bool {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			var b [1 << 10]byte
			if n, _ := c.Read(b[:]); n > 0 && strings.Contains(string(b[:n]), errBusy.Message) {
				busy++
			}
		}
		return busy == len(conns)-heavyBytes/(3<<20)
	})
	if n := heap() - idle - 2*len(token); n > hostileBytes {
		t.Errorf("saves that hang took %d KiB", n>>10)
	}
	close(gate)
	systest.Until(t, "all are done", func() bool { return p.heavy.Load() == 0 })
}

func TestBytesOneAtATime(t *testing.T) {
	p := start(t, nil)
	c := p.connect(t)
	for _, b := range framed(`{"v":1,"op":"handshake"}`, request(1, "x", "get_token", `{"provider":"acme"}`)) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if a := c.answer(); !a.OK {
			t.Errorf("%+v", a)
		}
	}
}

func TestNesting(t *testing.T) {
	p := start(t, nil)
	for _, nest := range []string{
		`{"v":1,"id":"x","op":"get_token","payload":{"provider":"acme","y":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}}`,
		`{"v":1,"id":"x","op":"save_token","payload":{"provider":"acme","token":` + strings.Repeat(`{"a":`, 10_000) + `1` + strings.Repeat("}", 10_000) + `}}`,
		strings.Repeat("[", 65_000), strings.Repeat(`{"":`, 16_000),
	} {
		c := p.open(t, 1)
		c.send(nest)
		if a := c.answer(); a.Code != "INVALID_REQUEST" {
			t.Errorf("%.60s…: %+v", nest, a)
		}
	}
	p.open(t, 1).served()
}

// Whatever the bytes, what comes back is frames of JSON or the end, and the server lives.
func TestGarbage(t *testing.T) {
	p := start(t, func(cfg *Config, _ *proxy) { cfg.Connections = 1000 })
	good := framed(`{"v":1,"op":"handshake"}`, request(1, "1", "get_token", `{"provider":"acme"}`),
		request(1, "2", "save_token", `{"provider":"acme","bucket":"g","token":`+newToken+`}`), request(1, "3", "list_providers", `{}`))
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b := append([]byte(nil), good...)
		for range 1 + rnd.IntN(4) {
			switch i := rnd.IntN(len(b)); rnd.IntN(3) {
			case 0:
				b[i] = byte(rnd.Uint32())
			case 1:
				b = append(b[:i], b[min(len(b), i+rnd.IntN(9)):]...)
			default:
				b = append(b[:i:i], append([]byte{byte(rnd.Uint32())}, b[i:]...)...)
			}
			if len(b) == 0 {
				b = []byte{0}
			}
		}
		c := p.connect(t)
		_, _ = c.Write(b)
		_ = c.Conn.(*net.UnixConn).CloseWrite()
		for {
			s, err := c.read()
			if err != nil {
				break
			}
			if !strings.HasPrefix(s, `{"v":1,`) {
				t.Fatalf("%q was answered by %q", b, s)
			}
		}
		_ = c.Close()
	}
	p.open(t, 1).served()
	p.close(t)
	if strings.Contains(p.log.String(), "panic") {
		t.Error(p.log.String())
	}
}

// A process that has no file descriptors left goes on when some come free.
func TestOutOfDescriptors(t *testing.T) {
	c := roles.Start(t, nil, "descriptors")
	t.Cleanup(func() {
		if err := c.End(); err != nil {
			t.Errorf("the child: %v", err)
		}
	})
	path := c.Line(t)
	dial := func() *client {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return &client{nc, t}
	}
	p := &proxy{dial: func() (net.Conn, error) { return net.Dial("unix", path) }}
	bystander := p.open(t, 1)
	var open []*client
	for range childDescriptors { // the last ones wait in the system's queue
		open = append(open, dial())
	}
	bystander.served()
	for _, c := range open {
		_ = c.Close()
	}
	p.open(t, 1).served()
	bystander.served()
}

const childDescriptors = 40

var roles = systest.Roles{"descriptors": serveWithFew}

// serveWithFew is the child of TestOutOfDescriptors.
func serveWithFew([]string) error {
	lim := unix.Rlimit{Cur: childDescriptors, Max: childDescriptors}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", "server")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", dir+"/s")
	if err != nil {
		return err
	}
	p := prepare(func(cfg *Config, _ *proxy) { cfg.Connections = 500 })
	go func() { p.served <- p.Serve(ln) }()
	fmt.Println(ln.Addr())
	systest.AwaitEnd()
	return p.Shutdown(patiently())
}

func patiently() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	context.AfterFunc(ctx, cancel)
	return ctx
}
