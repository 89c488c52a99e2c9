//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/credproxy/credproxy/internal/frame"
)

// Targets. docs/benchmarks.md says what each means.
const (
	oneP50, oneCPU = 1.4, 1.6
	manyP50        = 4.0
	startTime      = 15e6 // ns
	idleMemory     = 12.0 // MiB
	crowdMemory    = 40.0 // MiB
	flatRatio      = 1.1  // what "flat" means beside the noise of a small machine
)

// bench is one run. The proxy and the echo live from prepare to close.
type bench struct {
	binary      string
	table       table
	few, full   *machine
	proxy, echo *target
	size        int // of the frame that answers get_token
}

// prepare fills a store with a login and a key, and starts the two servers.
func (b *bench) prepare() (err error) {
	if b.few, err = newMachine(b.binary); err != nil {
		return err
	}
	if err := errors.Join(b.few.login(), b.few.setKey("bench-key", "test-key-1")); err != nil {
		return err
	}
	if b.proxy, err = b.few.serve(); err != nil {
		return err
	}
	c, err := b.proxy.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.ask("get_token", getToken("default"))
	if err != nil {
		return err
	}
	b.size = frame.HeaderLen + len(answer)
	if b.echo, err = startEcho(b.few.dir, b.size); err != nil {
		return err
	}
	return nil
}

func (b *bench) close() {
	for _, t := range []*target{b.proxy, b.echo} {
		if t != nil {
			_ = t.stop()
		}
	}
	for _, m := range []*machine{b.few, b.full} {
		if m != nil {
			m.remove()
		}
	}
}

// start measures from exec to the first answer to get_token, of the proxy and of the echo.
func (b *bench) start() error {
	var proxy, raw []float64
	for range 41 {
		d, err := firstAnswer(b.few.serve)
		if err != nil {
			return err
		}
		proxy = append(proxy, d)
		if d, err = firstAnswer(func() (*target, error) { return startEcho(b.few.dir+"/tmp", b.size) }); err != nil {
			return err
		}
		raw = append(raw, d)
	}
	b.table.add("start of the process to its first answer", median(proxy), startTime, ms, "the echo "+ms(median(raw)))
	return nil
}

func firstAnswer(start func() (*target, error)) (ns float64, err error) {
	begun := time.Now()
	t, err := start()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	c, err := t.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b, _ := request("get_token", getToken("default"))
	if _, err = c.Write(b); err == nil {
		_, err = c.skip()
	}
	return float64(time.Since(begun)), err
}

// idle measures a proxy that has answered once and then has nothing to do.
func (b *bench) idle() error {
	t, err := b.few.serve()
	if err != nil {
		return err
	}
	c, err := t.dial()
	if err == nil {
		_, err = c.ask("get_token", getToken("default"))
		_ = c.Close()
	}
	time.Sleep(2 * time.Second) // what it does by itself is done
	rss, memErr := t.memory("VmRSS")
	if err := errors.Join(err, memErr, t.stop()); err != nil {
		return err
	}
	b.table.add("resident, idle", rss, idleMemory, mib, "")
	return nil
}

// pair is what rounds of two servers in turn have shown, as medians: of the first, of the second, and of the ratios.
type pair struct{ p50, p50Other, p50Ratio, cpu, cpuOther, cpuRatio float64 }

// turns puts the same load on two servers by turns, rounds times each.
func turns(t, other *target, s shape, rounds, size int) (p pair, err error) {
	var p50, p50Other, p50Ratio, cpu, cpuOther, cpuRatio []float64
	for i := range rounds + 1 {
		o, err := other.load(s, size)
		if err != nil {
			return p, err
		}
		r, err := t.load(s, size)
		if err != nil {
			return p, err
		}
		if i == 0 {
			continue // to get warm
		}
		p50, p50Other, p50Ratio = append(p50, r.p50), append(p50Other, o.p50), append(p50Ratio, r.p50/o.p50)
		cpu, cpuOther, cpuRatio = append(cpu, r.cpu), append(cpuOther, o.cpu), append(cpuRatio, r.cpu/o.cpu)
	}
	return pair{median(p50), median(p50Other), median(p50Ratio), median(cpu), median(cpuOther), median(cpuRatio)}, nil
}

func (p pair) latencies() string { return us(p.p50) + " beside " + us(p.p50Other) }
func (p pair) cpus() string      { return us(p.cpu) + " beside " + us(p.cpuOther) }

// one measures a client that waits for each answer.
func (b *bench) one() error {
	p, err := turns(b.proxy, b.echo, shape{1, 1, 200 * time.Millisecond}, 51, b.size)
	if err != nil {
		return err
	}
	b.table.add("get_token, 1 connection, 1 in flight: p50", p.p50Ratio, oneP50, times, p.latencies())
	b.table.add("  the server's processor time a request", p.cpuRatio, oneCPU, times, p.cpus())
	return nil
}

// many measures clients that have many requests in flight.
func (b *bench) many() error {
	p, err := turns(b.proxy, b.echo, shape{8, 16, 200 * time.Millisecond}, 51, b.size)
	if err != nil {
		return err
	}
	b.table.add("get_token, 8 connections, 16 in flight: p50", p.p50Ratio, manyP50, times, p.latencies())
	b.table.add("  the server's processor time a request", p.cpuRatio, 0, times, p.cpus())
	return nil
}

const stored = 10_000

// flat compares a proxy that has 10,000 logins with the one that has a single one: a token in memory, and tokens that
// have to be read and decrypted first.
func (b *bench) flat() error {
	m, err := newMachine(b.binary)
	if err != nil {
		return err
	}
	b.full = m
	if err := m.login(); err != nil {
		return err
	}
	t, err := m.serve()
	if err != nil {
		return err
	}
	defer func() { _ = t.stop() }()
	if err := t.fill(1, coldReads); err != nil {
		return err
	}
	coldFew, err := coldRead(m)
	if err != nil {
		return err
	}
	if err := t.fill(coldReads+1, stored-1); err != nil { // and the one from the login
		return err
	}
	coldMany, err := coldRead(m)
	if err != nil {
		return err
	}
	p, err := turns(t, b.proxy, shape{1, 1, 200 * time.Millisecond}, 31, b.size)
	if err != nil {
		return err
	}
	b.table.add("10,000 stored beside 1: p50", p.p50Ratio, flatRatio, times, p.latencies())
	b.table.add("  the server's processor time a request", p.cpuRatio, flatRatio, times, p.cpus())
	b.table.add("  a token's first read, beside 200 stored: p50", coldMany/coldFew, 0, times, us(coldMany)+" beside "+us(coldFew))
	d, err := firstAnswer(m.serve)
	if err != nil {
		return err
	}
	b.table.add("  start of the process to its first answer", d, startTime, ms, "")
	return nil
}

// fill stores logins through the socket: it is the same store that `auth login` writes to, and one process does it.
func (t *target) fill(from, to int) error {
	c, err := t.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for i := from; i <= to; i++ {
		data := fmt.Sprintf(`{"provider":"acme","bucket":"%s","token":{"access_token":"test-access-token-%d","expiry":%d,"token_type":"Bearer"}}`,
			bucket(i), i, time.Now().Add(time.Hour).Unix())
		if _, err := c.ask("save_token", data); err != nil {
			return err
		}
	}
	return nil
}

func bucket(i int) string { return fmt.Sprintf("b%05d", i) }

const coldReads = 200

// coldRead is the median time that a new process needs for a token that it has not read yet, in nanoseconds.
func coldRead(m *machine) (float64, error) {
	t, err := m.serve()
	if err != nil {
		return 0, err
	}
	defer func() { _ = t.stop() }()
	c, err := t.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var took []float64
	for i := range coldReads {
		begun := time.Now()
		if _, err := c.ask("get_token", getToken(bucket(i+1))); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(begun)))
	}
	return median(took), nil
}

// crowd measures the memory of a proxy with 500 connections that have 16 requests in flight each, at most and after.
func (b *bench) crowd() error {
	t, err := b.few.serve()
	if err != nil {
		return err
	}
	defer func() { _ = t.stop() }()
	r, err := t.load(shape{500, 16, 8 * time.Second}, b.size)
	if err != nil {
		return err
	}
	peak, err := t.memory("VmHWM")
	if err != nil {
		return err
	}
	b.table.add("resident at most, 500 connections, 16 in flight", peak, crowdMemory, mib, fmt.Sprintf("%d requests in 8 s", r.n))
	for _, wait := range []time.Duration{5 * time.Second, 10 * time.Second} {
		time.Sleep(wait)
		rss, err := t.memory("VmRSS")
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "bench: after", wait, mib(rss))
		if wait == 10*time.Second {
			b.table.add("  15 s after", rss, 0, mib, "")
		}
	}
	return nil
}
