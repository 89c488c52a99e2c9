package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// foreground reports whether the terminal belongs to this job, as far as that can be told.
func foreground(terminal *os.File) bool {
	group, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// paint colours text for f, or leaves it as it is: colours are for terminals that can show them, and NO_COLOR (not
// empty, https://no-color.org) turns them off.
func (a *app) paint(f *os.File) painter {
	return painter(os.Getenv("NO_COLOR") == "" && !dumb() && isTerminal(f))
}

// dumb reports whether terminals are said to know no escape sequences.
func dumb() bool { return os.Getenv("TERM") == "dumb" }

type painter bool

func (p painter) with(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) red(s string) string    { return p.with("31", s) }
func (p painter) green(s string) string  { return p.with("32", s) }
func (p painter) yellow(s string) string { return p.with("33", s) }
func (p painter) bold(s string) string   { return p.with("1", s) }

// table aligns columns; the first row is the heading. paintCell colours a cell that is aligned already; nil leaves all plain.
func table(rows [][]string, paintCell func(row, column int, cell string) string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for r, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			if paintCell != nil && cell != "" {
				cell = paintCell(r, i, cell)
			}
			line.WriteString(cell)
			line.WriteString(pad)
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// relative says when t is, seen from now: "in 59 minutes", "3 days ago", "just now".
func relative(t, now time.Time) string {
	d := t.Sub(now).Round(time.Second)
	switch {
	case d > 0:
		return "in " + span(d)
	case d < 0:
		return span(-d) + " ago"
	case t.Before(now):
		return "just now"
	}
	return "now"
}

// span is a duration for people, to the nearest of its unit.
func span(d time.Duration) string {
	return inUnits(d, func(unit time.Duration) time.Duration { return unit / 2 })
}

// atMost is a duration that people have to wait, rounded up: who waits as long has waited long enough.
func atMost(d time.Duration) string {
	return inUnits(d, func(unit time.Duration) time.Duration { return unit - 1 })
}

// inUnits spells out a duration in whole units; what extra says is added before the rest is cut off. A unit begins at two of
// it, for 90 minutes are neither one hour nor two.
func inUnits(d time.Duration, extra func(unit time.Duration) time.Duration) string {
	for _, u := range []struct {
		length time.Duration
		name   string
		below  int64
	}{{time.Second, "second", 120}, {time.Minute, "minute", 120}, {time.Hour, "hour", 48}, {24 * time.Hour, "day", math.MaxInt64}} {
		if n := int64((d + extra(u.length)) / u.length); n < u.below {
			return count(int(n), u.name)
		}
	}
	return ""
}

// writeJSON prints v as one line of JSON. Characters stay as they are: the output is for programs, not for HTML.
func (a *app) writeJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return failed("writing JSON", err)
	}
	return a.write(b.String())
}

func jsonFlag(c *cobra.Command, asJSON *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print JSON, for programs (fields: docs/commands.md)")
}

// cut is s in so many columns at most, if they are known (1 or more): a line that is drawn over must not wrap.
func cut(s string, columns int) string {
	if columns < 1 || utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// wait is something that people have to wait for.
type wait struct {
	what  string
	limit time.Duration // how long it may take

	// until, if it is there, is asked in place of limit again and again: it may change while this is shown. The zero
	// Time says that nobody knows. A goroutine of the wait calls it.
	until func() time.Time

	soon  bool   // usually too short to speak of: shown only when it is not
	ctrlC string // what Ctrl-C does: "cancels"
}

// What Ctrl-C does to a wait.
const (
	cancels = "cancels"

	// endsLater is of a provider that this process asks: what it answers has to be stored.
	endsLater = "ends it once the provider has answered"
)

// Of a wait that is usually short: how long nothing is shown, on a terminal and elsewhere.
const (
	soonShown   = 300 * time.Millisecond
	soonPrinted = 3 * time.Second
)

// waiting shows on stderr what is waited for and how long: a line that moves on a terminal, one plain line elsewhere, and from a job
// in the background, whose keys and cursor are another's. The returned function ends it and waits for its goroutine.
func (a *app) waiting(w wait) (stop func()) {
	ours := !isTerminal(a.stderr) || foreground(a.stderr)
	moving := isTerminal(a.stderr) && !dumb() && ours
	ctrlC := ""
	if w.ctrlC != "" && ours {
		ctrlC = "; Ctrl-C " + w.ctrlC
	}
	if w.until == nil {
		end := time.Now().Add(w.limit)
		w.until = func() time.Time { return end }
	}
	plain := func() {
		limit := ""
		if end := w.until(); !end.IsZero() {
			limit = ", for up to " + atMost(max(0, time.Until(end)))
		}
		fmt.Fprintf(a.stderr, "waiting for %s%s%s\n", w.what, limit, ctrlC)
	}
	if !moving && !w.soon {
		plain()
		return func() {}
	}
	quit := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() {
		if w.soon {
			delay := soonPrinted
			if moving {
				delay = soonShown
			}
			select {
			case <-time.After(delay):
			case <-quit:
				return
			}
		}
		if !moving {
			plain()
			return
		}
		frames := []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		draw := func(line string) {
			if foreground(a.stderr) { // it may have become a job in the background
				fmt.Fprint(a.stderr, "\r\x1b[K"+line)
			}
		}
		for i := 0; ; i++ {
			left := ""
			if end := w.until(); time.Now().Before(end) {
				left = fmt.Sprintf(", %s left", time.Until(end).Round(time.Second))
			}
			line := frames[i%len(frames)] + " waiting for " + w.what + left + ctrlC
			draw(cut(line, width(a.stderr)-1))
			select {
			case <-tick.C:
			case <-quit:
				draw("")
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		close(quit)
		showing.Wait()
	})
}
