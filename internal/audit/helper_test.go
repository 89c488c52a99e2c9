package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what has to come: a machine may stand still for seconds.
const patience = time.Minute

// children are what a test can start this test binary as: a process of its own, that writes to a log like any other proxy.
var children = map[string]func(args []string) error{
	"writer":  childWriter,
	"forever": childForever,
}

func TestMain(m *testing.M) {
	if name := os.Getenv("AUDIT_TEST_CHILD"); name != "" {
		if err := children[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child returns the command that runs a child under the commands of wrap, if any.
func child(t *testing.T, wrap []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append(wrap, self), args...)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "AUDIT_TEST_CHILD="+name)
	cmd.Stderr = t.Output()
	return cmd
}

// A logBuffer is a logger that keeps what it is told.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// count is the number of lines with text in them.
func (b *logBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), text)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func open(t *testing.T, path string, opts Options) *Log {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	l, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // one attempt
		l.Close(ctx)
	})
	return l
}

// numbered is the i-th event of a process: Key tells the number.
func numbered(i int) *Event {
	return &Event{Profile: "p", Op: "get_api_key", Key: strconv.Itoa(i), Outcome: OK, UID: 0, PID: 1}
}

// long is numbered with a line that is as long as lines get.
func long(i int) *Event {
	name := strings.Repeat("n", 64)
	return &Event{Profile: name, Op: name, Provider: name, Bucket: name, Key: strconv.Itoa(i), Outcome: OK, Code: name, Container: name}
}

// numbers reads files of numbered events, in this order, and returns the numbers of each process in the order in which they stand,
// and the lines that are none.
func numbers(t *testing.T, files ...string) (byProxy map[int][]int, torn []string) {
	t.Helper()
	byProxy = map[int][]int{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for text := range strings.Lines(string(data)) {
			var line Line
			n, err := -1, json.Unmarshal([]byte(text), &line)
			if err == nil {
				n, err = strconv.Atoi(line.Key)
			}
			if err != nil || !strings.HasSuffix(text, "}\n") {
				torn = append(torn, text)
				continue
			}
			byProxy[line.Proxy] = append(byProxy[line.Proxy], n)
		}
	}
	return byProxy, torn
}

// rotated are the files of a log that exist, the oldest first.
func rotated(t *testing.T, path string) []string {
	t.Helper()
	var files []string
	for i := 1; ; i++ {
		name := path + "." + strconv.Itoa(i)
		if _, err := os.Stat(name); err != nil {
			break
		}
		files = append([]string{name}, files...)
	}
	all, err := filepath.Glob(path + "*")
	if err != nil || len(all) != len(files)+1 {
		t.Errorf("files %q, %v", all, err)
	}
	return append(files, path)
}

// wantSequence checks that got is from, from+1, … up to and without to.
func wantSequence(t *testing.T, what string, got []int, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Errorf("%s: %d events, want %d", what, len(got), to-from)
		return
	}
	for i, n := range got {
		if n != from+i {
			t.Errorf("%s: event %d stands where %d should", what, n, from+i)
			return
		}
	}
}
