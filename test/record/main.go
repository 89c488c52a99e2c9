//go:build linux

// Record makes the recordings of logins in docs/recordings, and their transcripts in docs/logins.md:
//
//	test/record-logins.sh
//
// Each scene is a shell on a terminal of its own, in which the built command logs in to a real authorization server on
// loopback, on the host or in a sandbox. This program types, and plays the person in the browser; everything on the
// terminal comes from the command. What differs from one time to the next (ports, codes, states, the steps of a moving line)
// is put in the place of stable text, and the times are those of a person, so that a recording changes only when the command
// does. All of it is in a temporary directory.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	bin := flag.String("bin", "", "directory with the built credproxy")
	docs := flag.String("docs", "docs", "directory of the documentation, to be written to")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := record(ctx, *bin, *docs); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(ctx context.Context, bin, docs string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bin, "credproxy")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(docs, "recordings"), 0o755); err != nil {
		return err
	}
	page := filepath.Join(docs, "logins.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	for _, s := range scenes {
		shown, err := s.play(ctx, bin)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		shown = stable(shown)
		if err := os.WriteFile(filepath.Join(docs, "recordings", s.name+".cast"), cast(s.title, shown), 0o644); err != nil {
			return err
		}
		if text, err = insert(text, s.name, transcript(shown)); err != nil {
			return fmt.Errorf("%s: %w", page, err)
		}
	}
	return os.WriteFile(page, text, 0o644)
}
