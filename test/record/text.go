//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// frame is one step of a moving line, as the command draws it: back to the begin of the line, erase, draw.
var frame = regexp.MustCompile(`\r\x1b\[K[` + frames + `] ([^\r\x1b]*)`)

const (
	frames    = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	moves     = 12 // steps of a moving line in a recording
	clearLine = "\r\x1b[K"
)

// unstable are the texts that differ each time, and what stands for them.
var unstable = []struct {
	found *regexp.Regexp
	stand string
}{
	// Waits that are shown only if they take long.
	{regexp.MustCompile(`(\r\x1b\[K[` + frames + `] waiting for the (host|provider)[^\r\x1b]*)+\r\x1b\[K`), ""},
	{regexp.MustCompile(`([?&](?:state|code_challenge|nonce)=)[^&\s\x1b]+`), "${1}…"},
	{regexp.MustCompile(`127\.0\.0\.1(:|%3A)\d+`), "127.0.0.1${1}49152"},
	{regexp.MustCompile(`/tmp/cp\d+`), "/tmp/example"},
	{regexp.MustCompile(`\b\d+m\d+s left`), "9m59s left"},
	{regexp.MustCompile(`in 59 minutes`), "in 60 minutes"},
	{regexp.MustCompile(`in 53 minutes`), "in 54 minutes"},
	{regexp.MustCompile(`\bpid \d+`), "pid 4711"},
}

// stable puts stable text in the place of what differs, and gives every moving line the same number of steps.
func stable(shown string) string {
	for _, u := range unstable {
		shown = u.found.ReplaceAllString(shown, u.stand)
	}
	var b strings.Builder
	last := ""
	for len(shown) > 0 {
		at := frame.FindStringSubmatchIndex(shown)
		if at == nil {
			break
		}
		b.WriteString(shown[:at[0]])
		line := shown[at[2]:at[3]]
		if at[0] > 0 || line != last {
			for i := range moves {
				b.WriteString(clearLine + string([]rune(frames)[i%10]) + " " + line)
			}
		}
		shown, last = shown[at[1]:], line
	}
	return b.String() + shown
}

// cast is the recording, in the format of asciinema, version 2. The times are made up: a person types, reads and waits.
func cast(title, shown string) []byte {
	var b bytes.Buffer
	write := func(v any) {
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v) // of strings and numbers, into memory
	}
	write(map[string]any{"version": 2, "width": columns, "height": rows, "title": title, "env": map[string]string{"TERM": "xterm-256color"}})
	at := 0.0
	event := func(pause float64, text string) {
		at += pause
		write([]any{json.RawMessage(fmt.Sprintf("%.2f", at)), "o", text})
	}
	for _, line := range strings.SplitAfter(shown, "\n") {
		if command, ok := strings.CutPrefix(line, prompt); ok {
			event(1, prompt)
			for i, r := range strings.TrimSuffix(command, "\r\n") {
				pause := 0.05
				if i == 0 {
					pause = 1
				}
				event(pause, string(r))
			}
			event(0.5, "\r\n")
			continue
		}
		parts := strings.SplitAfter(line, clearLine)
		for i, part := range parts {
			pause := 0.05
			if i > 0 {
				pause = 0.25
			}
			if part != "" {
				event(pause, part)
			}
		}
	}
	return b.Bytes()
}

// Escape sequences (ECMA-48): hyperlinks and what else has text in it, those with parameters, character sets, the rest.
var escapes = regexp.MustCompile(`\x1b[\]P][^\x1b\a]*(?:\x1b\\|\a)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]+[0-~]|\x1b[0-~]`)

// transcript is what is to be read on the terminal, from the first to the last line. A moving line is there once, although
// it is erased in the end.
func transcript(shown string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.ReplaceAll(shown, "\r\n", "\n"), "\n") {
		drawn := strings.Split(line, clearLine)
		for i, part := range drawn {
			part = strings.TrimRight(strings.TrimLeft(escapes.ReplaceAllString(part, ""), "\r"), " ")
			moving := part != "" && strings.ContainsAny(part[:min(3, len(part))], frames)
			next := i+1 < len(drawn)
			if next && (!moving || drawn[i+1] != "" && strings.ContainsAny(drawn[i+1][:min(3, len(drawn[i+1]))], frames)) {
				continue // drawn over
			}
			if next || i == 0 || part != "" {
				b.WriteString(part + "\n")
			}
		}
	}
	text := strings.TrimSpace(b.String())
	return strings.TrimSpace(strings.TrimSuffix(text, prompt+"exit"))
}

// insert puts a transcript between its markers.
func insert(page []byte, name, text string) ([]byte, error) {
	begin, end := "<!-- recording: "+name+" -->\n", "<!-- end -->"
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return nil, fmt.Errorf("it has no marker %q with an end", strings.TrimSpace(begin))
	}
	return []byte(before + begin + "```console\n" + text + "\n```\n" + end + after), nil
}
