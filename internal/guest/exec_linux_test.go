package guest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a/dir", "b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"b/dir": 0o755, "b/plain": 0o644, "b/prog": 0o755} {
		if err := os.WriteFile(filepath.Join(root, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(root, "a") + ":" + filepath.Join(root, "b")
	for name, want := range map[string]string{"prog": "b/prog", "dir": "b/dir"} {
		if got, err := find(name, path); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := find("./x", path); got != "./x" || err != nil {
		t.Errorf("a path: %q, %v", got, err)
	}
	if _, err := find("plain", path); !errors.Is(err, os.ErrPermission) {
		t.Errorf("not executable: %v", err)
	}
	if _, err := find("nothing", path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not there: %v", err)
	}
}
