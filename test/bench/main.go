//go:build linux

// Command bench measures the built credproxy from outside, beside a raw echo of the same frame sizes, and prints one
// table: what was measured, the target, and whether it is met. test/bench.sh runs it; docs/benchmarks.md explains it.
//
//	go run ./test/bench bin/credproxy               # everything
//	go run ./test/bench bin/credproxy start crowd   # some of: start idle one many flat crowd
//
// The client is this process. The proxy and the echo are processes of their own, and take turns: every ratio is the
// median of the ratios of many short rounds, so what else the machine does touches both alike. A missed target is no
// error; only what cannot be measured is.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == "echo": // the other process
		err = echo(args[1], args[2])
	case len(args) > 0:
		err = run(args[0], args[1:])
	default:
		err = fmt.Errorf("usage: %s PATH-OF-CREDPROXY [MEASUREMENT…]", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(binary string, only []string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w; make build", err)
	}
	b := &bench{binary: binary}
	defer b.close()
	if err := b.prepare(); err != nil {
		return err
	}
	for _, m := range []struct {
		name    string
		measure func() error
	}{{"start", b.start}, {"idle", b.idle}, {"one", b.one}, {"many", b.many}, {"flat", b.flat}, {"crowd", b.crowd}} {
		if len(only) > 0 && !slices.Contains(only, m.name) {
			continue
		}
		if err := m.measure(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	b.table.print(os.Stdout)
	return nil
}

// table collects the results.
type table struct{ rows []row }

type row struct {
	what, measured, target string
	met                    bool
}

// add takes a value and the most that it may be; 0 is a value without a target. format prints either of them.
func (t *table) add(what string, value, most float64, format func(float64) string, detail string) {
	r := row{what: what, measured: format(value), met: true}
	if detail != "" {
		r.measured += " (" + detail + ")"
	}
	if most > 0 {
		r.target, r.met = "≤ "+format(most), value <= most
	}
	t.rows = append(t.rows, r)
	fmt.Fprintln(os.Stderr, "bench:", what+":", r.measured)
}

func times(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) + " ×" }
func ms(v float64) string    { return strconv.FormatFloat(v/1e6, 'f', 1, 64) + " ms" }
func us(v float64) string    { return strconv.FormatFloat(v/1e3, 'f', 1, 64) + " µs" }
func mib(v float64) string   { return strconv.FormatFloat(v, 'f', 1, 64) + " MiB" }

func (t *table) print(f *os.File) {
	line := func(what, measured, target, result string) {
		fmt.Fprintf(f, "%-52s %-42s %-12s %s\n", what, measured, target, result)
	}
	missed := 0
	line("what", "measured", "target", "result")
	for _, r := range t.rows {
		result := ""
		switch {
		case !r.met:
			result = "MISSED"
			missed++
		case r.target != "":
			result = "ok"
		}
		line(r.what, r.measured, r.target, result)
	}
	if missed == 0 {
		fmt.Fprintln(f, "\nEvery target is met.")
		return
	}
	fmt.Fprintf(f, "\n%d missed:\n", missed)
	for _, r := range t.rows {
		if !r.met {
			fmt.Fprintf(f, "  %s: %s, not %s\n", r.what, r.measured, r.target)
		}
	}
}
