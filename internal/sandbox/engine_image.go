package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// imageEnv returns the variables that an image sets. An image that is not there is downloaded.
func (h Host) imageEnv(ctx context.Context, e Engine, image string, progress io.Writer) ([]string, error) {
	what, kind := "image "+image, string(e.Kind)
	ask := func() (string, error) {
		ctx, cancel := limited(ctx, askLimit)
		defer cancel()
		return h.output(ctx, e.Path, "image", "inspect", "--format", "{{json .Config.Env}}", image)
	}
	out, err := ask()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &Error{ErrImage, what, err.Error(), "check with: " + kind + " image inspect " + image}
	case err != nil:
		if why := h.pull(ctx, e, image, progress); ctx.Err() != nil {
			return nil, ctx.Err()
		} else if why != "" {
			return nil, &Error{ErrImage, what, why, pullHint(kind, image, why)}
		}
		if out, err = ask(); err != nil {
			return nil, &Error{ErrImage, what, err.Error(), ""}
		}
	}
	var env []string
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		return nil, fmt.Errorf("%s: %s image inspect: %w", what, kind, err)
	}
	return env, nil
}

// pull downloads an image and returns why it could not, or nothing.
func (h Host) pull(ctx context.Context, e Engine, image string, progress io.Writer) (why string) {
	if progress == nil {
		progress = io.Discard
	}
	words := &pullWords{progress: progress}
	cmd := exec.CommandContext(ctx, e.Path, "pull", image)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.engineEnv(), "/", progress, words
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	words.end()
	switch {
	case err == nil:
		return ""
	case words.failure != "":
		return words.failure
	case words.last != "":
		return words.last
	}
	return err.Error()
}

func pullHint(kind, image, why string) string {
	if strings.Contains(why, "no such host") || strings.Contains(why, "name resolution") || strings.Contains(why, "server misbehaving") {
		return "its registry's name cannot be looked up: check the name, and the network; an image of this machine is listed by `" + kind + " images`"
	}
	return "check its name with: " + kind + " pull " + image
}

// pullWords passes on what a client writes to stderr while it downloads, line by line, except the line that says why it has failed:
// that is for the error.
type pullWords struct {
	progress io.Writer
	line     []byte
	failure  string
	last     string
}

// mostOfLine is what is kept of a line whose end does not come.
const mostOfLine = 16 << 10

func (w *pullWords) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		end := bytes.IndexAny(rest, "\r\n") + 1
		if end == 0 {
			end = len(rest)
		}
		w.line, rest = append(w.line, rest[:end]...), rest[end:]
		if last := w.line[len(w.line)-1]; last == '\n' || last == '\r' || len(w.line) > mostOfLine {
			w.end()
		}
	}
	return len(p), nil // if nobody sees it, the download goes on
}

// end deals with the line that has come so far.
func (w *pullWords) end() {
	line := firstLine(string(w.line))
	switch {
	case strings.HasPrefix(line, "Error"), strings.HasPrefix(line, "error"):
		w.failure = strings.TrimPrefix(line, "Error: ")
	default:
		_, _ = w.progress.Write(w.line)
		if line != "" {
			w.last = line
		}
	}
	w.line = w.line[:0]
}
