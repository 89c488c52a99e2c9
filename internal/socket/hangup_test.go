package socket

import (
	"net"
	"runtime"
	"testing"
)

// carried is a connection that knows by itself.
type carried struct {
	net.Conn
	gone bool
}

func (c carried) HungUp() bool { return c.gone }

func TestHungUp(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for _, gone := range []bool{false, true} {
		if got := HungUp(carried{a, gone}); got != gone {
			t.Errorf("a connection that says %v: %v", gone, got)
		}
	}
	if !HungUp(a) {
		t.Error("of a connection that can be asked in no way, a write would have to tell")
	}

	tempDir(t)
	l := mustListen(t)
	peer, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := accept(t, l)
	for _, step := range []struct {
		name string
		do   func() error
		want bool
	}{
		{"open", func() error { return nil }, false},
		{"sends no more", peer.(*net.UnixConn).CloseWrite, false},
		{"closed", peer.Close, runtime.GOOS == "linux"},
		{"closed here, too", c.Close, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := HungUp(c); got != step.want {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}
