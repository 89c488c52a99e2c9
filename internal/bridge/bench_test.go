package bridge

import (
	"io"
	"net"
	"path/filepath"
	"testing"
)

// A request of 100 bytes and an answer of 2000, one after the other over one connection.
func BenchmarkRoundTrip(b *testing.B) {
	request, answer := make([]byte, 100), make([]byte, 2000)
	run := func(b *testing.B, program, host net.Conn) {
		served := make(chan struct{})
		go func() {
			defer close(served)
			for buf := make([]byte, len(request)); ; {
				if _, err := io.ReadFull(host, buf); err != nil {
					return
				}
				if _, err := host.Write(answer); err != nil {
					return
				}
			}
		}()
		b.ReportAllocs()
		for buf := make([]byte, len(answer)); b.Loop(); {
			if _, err := program.Write(request); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(program, buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = program.Close()
		<-served
	}
	b.Run("unix", func(b *testing.B) {
		ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		program, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		host, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		defer host.Close()
		run(b, program, host)
	})
	b.Run("tls", func(b *testing.B) {
		program, host := newPair(b).dial(b)
		run(b, program, host)
	})
}

// From connect to the first byte of an answer.
func BenchmarkConnect(b *testing.B) {
	p := newPair(b)
	for b.Loop() {
		program, host := p.dial(b)
		go func() { _ = host.Close() }()
		if _, err := program.Read(make([]byte, 1)); err != io.EOF {
			b.Fatal(err)
		}
		_ = program.Close()
	}
}
