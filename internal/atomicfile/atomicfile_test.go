package atomicfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/systest"
)

// roles are other processes; a file for one system adds its own.
var roles = systest.Roles{"write for ever": writeForEver}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// names lists a directory without its order mattering: os.ReadDir sorts.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestWriteFile(t *testing.T) {
	root := openRoot(t)
	if err := root.Mkdir("sub", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", filepath.Join("sub", "a")} {
		for _, content := range []string{"first", "", strings.Repeat("long", 50_000)} {
			if err := WriteFile(root, name, []byte(content)); err != nil {
				t.Fatal(err)
			}
			got, err := root.ReadFile(name)
			if err != nil || string(got) != content {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			info, err := root.Stat(name)
			if err != nil || info.Mode() != 0o600 {
				t.Fatalf("mode %v, %v", info.Mode(), err)
			}
		}
	}
	if got := names(t, root.Name()) + " " + names(t, filepath.Join(root.Name(), "sub")); got != "a sub a" {
		t.Errorf("left: %s", got)
	}
}

func TestWriteFileTightensTheMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteFileIn(dir, "a", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestSymlinkIsReplaced(t *testing.T) {
	root, outside := openRoot(t), filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink(outside, "a"); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(root, "a", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if info, err := root.Lstat("a"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "untouched" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	root := openRoot(t)
	if err := root.MkdirAll(filepath.Join("directory", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		step string
		is   error // nil: any
	}{
		{filepath.Join("missing", "a"), "create temporary file", fs.ErrNotExist},
		{filepath.Join("..", "a"), "create temporary file", nil},
		{"directory", "rename", nil},
		{tempPrefix + "x" + tempSuffix, "check name", nil},
		{strings.Repeat("n", 300), "rename", syscall.ENAMETOOLONG},
	} {
		err := WriteFile(root, tt.name, []byte("x"))
		if err == nil || !strings.HasPrefix(err.Error(), "write "+tt.name+": "+tt.step+": ") || (tt.is != nil && !errors.Is(err, tt.is)) {
			t.Errorf("%.40s: %v", tt.name, err)
		}
		if err != nil && strings.Contains(strings.TrimPrefix(err.Error(), "write "+tt.name), tempPrefix) {
			t.Errorf("the error names the temporary file: %v", err)
		}
	}
	if got := names(t, root.Name()); got != "directory" {
		t.Errorf("left: %s", got)
	}
	err := WriteFileIn(filepath.Join(root.Name(), "missing"), "a", nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "open directory") {
		t.Error(err)
	}
}

// A root whose directory is gone stands for any failure of the last steps: what the system says is what the caller gets.
func TestDirectoryGone(t *testing.T) {
	root := openRoot(t)
	if err := os.Remove(root.Name()); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(root, "a", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	root := openRoot(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if err := WriteFile(root, "a", bytes.Repeat([]byte{'0' + byte(i)}, 5000)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := root.ReadFile("a")
	if err != nil || len(got) != 5000 || !bytes.Equal(got, bytes.Repeat(got[:1], 5000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got := names(t, root.Name()); got != "a" {
		t.Errorf("left: %s", got)
	}
}

// A generation is its number on each of many lines, so that a mixture or a part of two is seen.
const generationLines = 20_000

func generation(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d\n", n), generationLines) }

func parseGeneration(data []byte) (int, error) {
	if len(data) != 9*generationLines || !bytes.Equal(data, bytes.Repeat(data[:9], generationLines)) {
		return 0, fmt.Errorf("%d bytes that are not one generation", len(data))
	}
	return strconv.Atoi(string(data[:8]))
}

// writeForEver DIR writes one generation after the other and says so on stdout after each.
func writeForEver(args []string) error {
	for n := 1; ; n++ {
		if err := WriteFileIn(args[0], "a", generation(n)); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func TestKill(t *testing.T) {
	root := openRoot(t)
	for round := range 25 {
		cmd := roles.Command(t, "write for ever", root.Name())
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said, lines := 0, bufio.NewScanner(stdout)
		for range 1 + round%3 {
			if lines.Scan() {
				said, _ = strconv.Atoi(lines.Text())
			}
		}
		// Reading takes time that differs from round to round, so the kill hits different moments of a write.
		for range round % 7 {
			data, err := root.ReadFile("a")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseGeneration(data); err != nil {
				t.Fatal("during the writes:", err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			said, _ = strconv.Atoi(lines.Text())
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatal("the writer ended by itself:", err)
		}
		data, err := root.ReadFile("a")
		if err != nil {
			t.Fatal(err)
		}
		// It is what was last said to be written, or the one after that.
		if n, err := parseGeneration(data); err != nil || said == 0 || (n != said && n != said+1) {
			t.Fatalf("round %d: said %d, found %d: %v", round, said, n, err)
		}
	}
	removed, err := RemoveTemps(root, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d temporary files were left by 25 kills", removed)
	if got := names(t, root.Name()); got != "a" {
		t.Errorf("left: %s", got)
	}
}

func TestRemoveTemps(t *testing.T) {
	root := openRoot(t)
	temp := func(n int) string { return fmt.Sprintf("%s%d%s", tempPrefix, n, tempSuffix) }
	if err := root.MkdirAll(filepath.Join("sub", temp(9)), 0o700); err != nil { // a directory of that name is none of ours
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for name, age := range map[string]time.Time{
		temp(1): old, filepath.Join("sub", temp(2)): old, temp(3): time.Now(),
		"a": old, tempPrefix + "a": old, "a" + tempSuffix: old,
	} {
		if err := root.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := root.Chtimes(name, age, age); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Symlink("a", temp(4)); err != nil {
		t.Fatal(err)
	}
	removed, err := RemoveTemps(root, time.Minute)
	if err != nil || removed != 2 {
		t.Errorf("removed %d, %v", removed, err)
	}
	want := strings.Join([]string{temp(3), temp(4), tempPrefix + "a", "a", "a" + tempSuffix, "sub"}, " ")
	if got := names(t, root.Name()); got != want {
		t.Errorf("left %s\nwant %s", got, want)
	}
	if got := names(t, filepath.Join(root.Name(), "sub")); got != temp(9) {
		t.Errorf("left in sub: %s", got)
	}
}
