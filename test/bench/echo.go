//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/credproxy/credproxy/internal/frame"
)

// echo is the other process: it answers every frame with one of size bytes, and does nothing else. It is as fast as
// plain Go gets: one read takes what has arrived, one write sends what answers it.
func echo(path, size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	fmt.Println(path)
	answer := make([]byte, n)
	binary.BigEndian.PutUint32(answer, uint32(n-frame.HeaderLen))
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go echoConn(nc, answer)
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin) // until whoever started us has gone
	return ln.Close()
}

func echoConn(nc net.Conn, answer []byte) {
	defer nc.Close()
	r, w := bufio.NewReaderSize(nc, 4<<10), bufio.NewWriterSize(nc, 16<<10)
	buf := make([]byte, 4<<10)
	for {
		if _, err := io.ReadFull(r, buf[:frame.HeaderLen]); err != nil {
			return
		}
		if _, err := io.ReadFull(r, buf[:binary.BigEndian.Uint32(buf)]); err != nil {
			return
		}
		_, _ = w.Write(answer)
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}
