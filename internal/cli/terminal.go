package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// paint colours text for f, or leaves it as it is: colours are for terminals that can show them, and NO_COLOR (not
// empty, https://no-color.org) turns them off.
func (a *app) paint(f *os.File) painter {
	return painter(os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(f))
}

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

// relative says when t is, seen from now: "in 59 minutes", "3 days ago".
func relative(t, now time.Time) string {
	d := t.Sub(now)
	if d < 0 {
		return span(-d) + " ago"
	}
	return "in " + span(d)
}

// span is a duration in its largest unit, for people: rounded down, so that nothing seems to last longer than it does.
func span(d time.Duration) string {
	units := []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}}
	for _, u := range units {
		if n := int64(d / u.length); n > 0 || u.length == time.Second {
			if n != 1 {
				u.name += "s"
			}
			return fmt.Sprintf("%d %s", n, u.name)
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

// wait is something that people have to wait for.
type wait struct {
	what    string
	limit   time.Duration // how long it may take
	soon    bool          // usually too short to speak of: shown only when it is not
	cancels bool          // Ctrl-C ends it
}

// Of a wait that is usually short: how long nothing is shown, on a terminal and elsewhere.
const (
	soonShown   = 300 * time.Millisecond
	soonPrinted = 3 * time.Second
)

// waiting shows on stderr what is waited for and how long: a line that moves on a terminal, one plain line elsewhere.
// The returned function ends it and waits for its goroutine.
func (a *app) waiting(w wait) (stop func()) {
	moving := isTerminal(a.stderr) && os.Getenv("TERM") != "dumb"
	cancels := ""
	if w.cancels {
		cancels = "; Ctrl-C cancels"
	}
	plain := func() { fmt.Fprintf(a.stderr, "waiting for %s, for up to %s%s\n", w.what, span(w.limit), cancels) }
	if !moving && !w.soon {
		plain()
		return func() {}
	}
	begun := time.Now()
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
		for i := 0; ; i++ {
			left := max(0, w.limit-time.Since(begun)).Round(time.Second)
			fmt.Fprintf(a.stderr, "\r\x1b[K%s waiting for %s, %s left%s", frames[i%len(frames)], w.what, left, cancels)
			select {
			case <-tick.C:
			case <-quit:
				fmt.Fprint(a.stderr, "\r\x1b[K")
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		close(quit)
		showing.Wait()
	})
}
