package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/frame"
	"github.com/credproxy/credproxy/internal/protect"
	"github.com/credproxy/credproxy/wire"
)

// BenchmarkEcho compares get_token from memory, with the audit log on, with a raw echo of the same frame sizes: three
// processes, the two servers in turns, medians of ratios. It reports the ratios; ns/op is the server's p50.
//
//	go test -run '^$' -bench Echo ./internal/server
func BenchmarkEcho(b *testing.B) {
	for _, shape := range []struct{ conns, depth, rounds int }{{1, 1, 31}, {8, 16, 21}} {
		b.Run(fmt.Sprintf("%dx%d", shape.conns, shape.depth), func(b *testing.B) {
			srv, echo := newTarget(b, "bench-server", true), newTarget(b, "bench-echo", false)
			const d = 100 * time.Millisecond
			for _, t := range []*target{srv, echo} { // warm
				t.load(b, shape.conns, shape.depth, d)
			}
			var p50s, ratios, cpus []float64
			for b.Loop() {
				for range shape.rounds {
					e, ecpu := echo.load(b, shape.conns, shape.depth, d)
					s, scpu := srv.load(b, shape.conns, shape.depth, d)
					p50s = append(p50s, s)
					ratios = append(ratios, s/e)
					cpus = append(cpus, scpu/ecpu)
				}
			}
			b.ReportMetric(median(p50s), "ns/op")
			b.ReportMetric(median(ratios), "p50-ratio")
			b.ReportMetric(median(cpus), "cpu-ratio")
		})
	}
}

// BenchmarkMemory reports the resident memory of a server process: idle, and at most with 500 connections of 16
// requests in flight each.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		srv := newTarget(b, "bench-server", true)
		time.Sleep(100 * time.Millisecond)
		b.ReportMetric(srv.status(b, "VmRSS"), "idle-MiB")
		srv.load(b, 500, 16, 2*time.Second)
		b.ReportMetric(srv.status(b, "VmHWM"), "peak-MiB")
	}
	b.ReportMetric(0, "ns/op")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// The request that is measured, and the length of its answer.
var (
	benchRequest = framed(request(1, "req-000001", "get_token", `{"provider":"acme","bucket":"default"}`))
	benchToken   = &wire.Token{AccessToken: strings.Repeat("a", 200), Expiry: 1789000000, TokenType: "Bearer", Scope: "openid offline_access"}
)

func benchAnswer() []byte {
	b, _ := appendAnswer(nil, 1, "req-000001", benchToken, nil)
	return b
}

// target is a server in a process of its own.
type target struct {
	*process
	path  string
	shake bool
}

func newTarget(b *testing.B, part string, shake bool) *target {
	p := child(b, part)
	return &target{p, p.line(b), shake}
}

// load keeps depth requests in flight on each of conns connections for about d. It returns the p50 of the answers'
// latency and the processor time that the server spent per request, in nanoseconds.
func (t *target) load(b *testing.B, conns, depth int, d time.Duration) (p50, cpu float64) {
	b.Helper()
	var ready, wg sync.WaitGroup
	var mu sync.Mutex
	var all []time.Duration
	begin := make(chan struct{})
	for range conns {
		nc, err := net.Dial("unix", t.path)
		if err != nil {
			b.Fatal(err)
		}
		ready.Add(1)
		wg.Go(func() {
			defer nc.Close()
			r := bufio.NewReaderSize(nc, 16<<10)
			if t.shake {
				_, _ = nc.Write(framed(`{"v":1,"op":"handshake"}`))
				if _, err := readFrame(r); err != nil {
					b.Error(err)
				}
			}
			ready.Done()
			<-begin
			l, err := pump(nc, r, depth, d)
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			all = append(all, l...)
			mu.Unlock()
		})
	}
	ready.Wait()
	before := t.cpu(b)
	close(begin)
	wg.Wait()
	spent := t.cpu(b) - before
	slices.Sort(all)
	return float64(all[len(all)/2]), float64(spent) / float64(len(all))
}

// pump keeps depth requests in flight. Answers come in order here.
func pump(nc net.Conn, r *bufio.Reader, depth int, d time.Duration) (latencies []time.Duration, err error) {
	var sent []time.Time
	var out []byte
	end := time.Now().Add(d)
	for range depth {
		out = append(out, benchRequest...)
		sent = append(sent, time.Now())
	}
	for head := 0; head < len(sent); {
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return nil, err
			}
			out = out[:0]
		}
		for {
			if _, err := readFrame(r); err != nil {
				return nil, err
			}
			now := time.Now()
			latencies = append(latencies, now.Sub(sent[head]))
			head++
			if now.Before(end) {
				out = append(out, benchRequest...)
				sent = append(sent, now)
			}
			if r.Buffered() == 0 {
				break
			}
		}
	}
	return latencies, nil
}

func readFrame(r *bufio.Reader) (n int, err error) {
	head, err := r.Peek(4)
	if err != nil {
		return 0, err
	}
	return r.Discard(4 + int(binary.BigEndian.Uint32(head)))
}

// cpu returns the processor time of the process's threads so far, in nanoseconds.
func (t *target) cpu(b *testing.B) (ns int64) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", t.Process.Pid))
	if len(files) == 0 {
		b.Fatal("this kernel has no /proc/PID/task/TID/schedstat (CONFIG_SCHED_INFO)")
	}
	for _, f := range files {
		s, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		n, _ := strconv.ParseInt(strings.Fields(string(s))[0], 10, 64)
		ns += n
	}
	return ns
}

// status returns a field of /proc/PID/status that is in kB, in MiB.
func (t *target) status(b *testing.B, field string) float64 {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB`).FindSubmatch(s)
	n, _ := strconv.Atoi(string(m[1]))
	return float64(n) / 1024
}

// benchServer is the process that is measured.
func benchServer() error {
	if err := protect.Harden(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log, err := audit.Open(filepath.Join(dir, "audit.log"), audit.Options{})
	if err != nil {
		return err
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	p := prepare(func(cfg *Config, p *proxy) {
		cfg.Audit, cfg.Logger, cfg.Connections = log, nil, 1000
		p.vault.tokens[[2]string{"acme", "default"}] = benchToken
	})
	go func() { p.served <- p.Serve(ln) }()
	fmt.Println(ln.Addr())
	awaitStdin()
	if err := p.Shutdown(tenSeconds()); err != nil {
		return err
	}
	return log.Close(context.Background())
}

// benchEcho answers every frame with one of the answer's size, and answers that go out together in one write.
func benchEcho() error {
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	answer := benchAnswer()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
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
			}()
		}
	}()
	fmt.Println(ln.Addr())
	awaitStdin()
	return ln.Close()
}
