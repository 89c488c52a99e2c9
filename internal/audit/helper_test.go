package audit

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// patience is how long a test waits for what has to come: a machine may stand still for seconds.
const patience = time.Minute

// roles are other proxies that write to a log.
var roles = systest.Roles{"writer": childWriter, "forever": childForever}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

// A logBuffer is a logger that keeps what it is told.
type logBuffer struct{ systest.Buffer }

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// count is the number of lines with text in them.
func (b *logBuffer) count(text string) int { return strings.Count(b.String(), text) }

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
