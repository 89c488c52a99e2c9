package sandbox

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A program that is told /dev/fd/3 finds the content there, as an engine's client does; no file is left.
func TestNamelessFile(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for name, make := range map[string]func([]byte) (*os.File, error){"as it comes": namelessFile, "file": unlinkedFile, "this system's": memoryFile} {
		for _, content := range []string{"", "PATH=/x\n", strings.Repeat("x", 1<<20)} {
			f, err := make([]byte(content))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if left, _ := os.ReadDir(tmp); len(left) != 0 {
				t.Errorf("%s, %d bytes: it has a name: %v", name, len(content), left)
			}
			cmd := exec.Command("cat", "/dev/fd/3")
			cmd.ExtraFiles = []*os.File{f}
			got, err := cmd.Output()
			if err != nil || string(got) != content {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	f, err := namelessFile([]byte("small"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("what is small gets to a disk: %v, %v", info.Mode(), err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "small" {
		t.Errorf("%q, %v", b, err)
	}
}
