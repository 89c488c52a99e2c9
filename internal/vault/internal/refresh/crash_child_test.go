package refresh_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/grant"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
)

// child is this test binary as a process of its own. Its standard output is lines for the test, each written at once; it waits
// for the test by reading a byte.
type child struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer
}

func startChild(t testing.TB, do task) *child {
	t.Helper()
	text, err := json.Marshal(do)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: roles.Command(t, do.Role, string(text))}
	c.cmd.Stderr = &c.stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill() })
	return c
}

// line is the next that the child says.
func (c *child) line(t testing.TB) string {
	t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.kill()
		t.Fatalf("the child ended: %s", c.stderr.String())
	}
	return strings.TrimSuffix(line, "\n")
}

// until reads lines up to this one.
func (c *child) until(t testing.TB, want string) {
	t.Helper()
	for c.line(t) != want {
	}
}

// goOn ends the child's waiting.
func (c *child) goOn(t testing.TB) {
	t.Helper()
	if _, err := c.in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

// kill ends the child as kill -9 does, and returns what it had said and nobody had read. It may have ended before.
func (c *child) kill() (lines []string) {
	_ = c.cmd.Process.Kill()
	rest, _ := io.ReadAll(c.out)
	_ = c.cmd.Wait()
	lines = strings.Split(string(rest), "\n")
	return lines[:len(lines)-1]
}

// say is a line for the test. Once it returns, the test will read it, whatever happens to this process.
func say(line string) error {
	_, err := os.Stdout.WriteString(line + "\n")
	return err
}

// hear waits for the test, and ends the process if there is no test any more.
func hear() {
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(2)
	}
}

// readAs is the login as a process reads it.
func readAs(p *process, bucket string) (*grant.Grant, error) {
	sealed, err := p.Store().Read(context.Background(), item(bucket))
	if err != nil {
		return nil, err
	}
	return grant.Parse(sealed)
}

// refreshAll refreshes one login after the other, says "BUCKET STEP" at every step, and stops at the one that it is told.
func refreshAll(do task) error {
	p, end, err := do.Place.open()
	if err != nil {
		return err
	}
	var bucket string // of the refresh that is running
	refresh.AtStep(func(step string) {
		if say(bucket+" "+step) != nil || step == do.Step {
			hear()
		}
	})
	for _, bucket = range do.Buckets {
		g, err := readAs(p, bucket)
		if err != nil {
			return err
		}
		if _, err := p.Refresh(context.Background(), item(bucket), g); err != nil {
			return err
		}
		if err := say(bucket + " done"); err != nil {
			return err
		}
	}
	hear()
	return end()
}

// askAtOnce says which tokens (their fingerprints, each once) so many goroutines got that asked at once: for the token that they
// had found, then for it again, as late comers do, and then for the new one.
func askAtOnce(do task) error {
	p, end, err := do.Place.open()
	if err != nil {
		return err
	}
	old, err := readAs(p, do.Buckets[0])
	if err != nil {
		return err
	}
	ask := func(seen *grant.Grant) (*grant.Grant, error) {
		if err := say("ready"); err != nil {
			return nil, err
		}
		hear()
		answers, errs := make([]*grant.Grant, do.Number), make([]error, do.Number)
		var wg sync.WaitGroup
		for i := range do.Number {
			wg.Go(func() { answers[i], errs[i] = p.Refresh(context.Background(), item(do.Buckets[0]), seen) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		var tokens []string
		for _, a := range answers {
			tokens = append(tokens, a.AccessToken.Fingerprint())
		}
		slices.Sort(tokens)
		return answers[0], say(strings.Join(slices.Compact(tokens), " "))
	}
	first, err := ask(old)
	if err != nil {
		return err
	}
	for _, seen := range []*grant.Grant{old, first} {
		if _, err := ask(seen); err != nil {
			return err
		}
	}
	return end()
}
