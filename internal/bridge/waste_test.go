package bridge

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What the host has no use for it reads slowly, however long it goes on.
func TestUselessFramesAreReadSlowly(t *testing.T) {
	const n = 20_000
	for name, useless := range map[string][]byte{
		"data of nothing":         frame(frameData, 0, 1, 0),
		"data of no stream":       frame(frameData, 0, 99, 0, 'x'),
		"an end of no stream":     frame(frameWindow, flagFIN, 99, 0),
		"a reset of what is over": frame(frameWindow, flagRST, 3, 0),
		"data for what is over":   frame(frameData, 0, 3, 0, 'x'),
		"a window":                frame(frameWindow, 0, 1, 1),
		"going away":              frame(frameGoAway, 0, 0, 0),
		"an answer to nothing":    frame(frameWindow, 2, 1, 0),
		"much data of no stream":  frame(frameData, 0, 99, 0, make([]byte, 60<<10)...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				l := newLine(plain{far}, &streams{accepts: true})
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for b := make([]byte, 4<<10); ; {
						if _, err := l.Read(b); err != nil {
							return
						}
					}
				}()
				if _, err := near.Write(bytes.Join([][]byte{open(1), open(3), frame(frameWindow, flagRST, 3, 0)}, nil)); err != nil {
					t.Fatal(err)
				}
				begun, frames := time.Now(), n
				if len(useless) > 1<<10 {
					frames = n * emptyFrame / len(useless) // for as long
				}
				for range frames / 500 {
					if _, err := near.Write(bytes.Repeat(useless, 500)); err != nil {
						t.Fatal(err)
					}
				}
				if took, least := time.Since(begun), (n*emptyFrame/mostWaste-10)*wasteTime; took < least {
					t.Errorf("they were read in %v, want at least %v", took, least)
				}
				// The line is closed while it rests.
				go func() { _, _ = near.Write(bytes.Repeat(useless, 5000)) }()
				synctest.Wait()
				begun = time.Now()
				_ = l.Close()
				<-ended
				if took := time.Since(begun); took > 0 {
					t.Errorf("its end took %v", took)
				}
				_ = near.Close()
			})
		})
	}
}

// What an inside of ours sends is of use: of all that a connection brings a frame or two are not, and one for every 128 KiB that it gets.
func TestUsefulFramesAreNot(t *testing.T) {
	p := newPair(t)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := p.l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	dial := func() *net.UnixConn {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	connections, got := 0, 0
	exchange := func(size, at int) {
		t.Helper()
		c := dial()
		defer c.Close()
		go func() {
			for b := bytes.Repeat([]byte("echo"), size/4); len(b) > 0; b = b[min(at, len(b)):] {
				if _, err := c.Write(b[:min(at, len(b))]); err != nil {
					t.Error(err)
					return
				}
			}
			_ = c.CloseWrite()
		}()
		if n, err := io.Copy(io.Discard, c); int(n) != size || err != nil {
			t.Errorf("%d bytes came back of %d: %v", n, size, err)
		}
		connections, got = connections+1, got+size
	}
	for range 20 { // in all fewer frames than it takes to rest, which would count anew
		exchange(400, 400)
	}
	exchange(2<<20, 1<<20)
	exchange(200, 1)
	_ = p.session.Close()
	<-p.l.Lost()
	_ = p.l.Close()
	served.Wait()
	if most := emptyFrame * (2*connections + got/(128<<10) + 20); p.l.line.waste > most || most >= mostWaste {
		t.Errorf("of %d connections that got %d KiB %d KiB are taken for waste, want %d at most", connections, got>>10, p.l.line.waste>>10, most>>10)
	}
}
