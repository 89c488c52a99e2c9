package privatedir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/credproxy/credproxy/internal/privatedir"
)

func TestOpenMakesPrivateDirectories(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	if _, err := privatedir.Open(path, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open without create: %v", err)
	}
	root, err := privatedir.Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	sub, err := privatedir.Sub(root, "c", true)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for _, p := range []string{path, filepath.Join(path, "c"), filepath.Dir(path)} {
		if info, err := os.Lstat(p); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	if _, err := privatedir.Sub(root, "none", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Sub without create: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"symbolic link", func(t *testing.T, path string) {
			if err := os.Symlink(t.TempDir(), path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		{"dangling symbolic link", func(t *testing.T, path string) {
			if err := os.Symlink("/nonexistent/target", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		{"file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
		{"open to all", func(t *testing.T, path string) { mkdir(t, path, 0o755) }, "mode 0755"},
		{"open to the group", func(t *testing.T, path string) { mkdir(t, path, 0o710) }, "mode 0710"},
		{"of another user", func(t *testing.T, path string) {
			mkdir(t, path, 0o700)
			if os.Geteuid() != 0 {
				t.Log("only root can give a directory away: this case runs as root")
				mkdirMode(t, path, 0o777)
				return
			}
			if err := os.Chown(path, 12345, -1); err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			path := filepath.Join(parent, "d")
			tt.make(t, path)
			before, _ := os.Lstat(path)

			root, err := privatedir.Open(path, true)
			if err == nil {
				_ = root.Close()
				t.Fatal("Open took it")
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v", err)
			}
			in, err := os.OpenRoot(parent)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := privatedir.Sub(in, "d", true); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Sub: %v", err)
			}
			if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() {
				t.Errorf("it was changed: %v, %v", after.Mode(), err)
			}
		})
	}
}

func TestOpenTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			root, err := privatedir.Open(path, true)
			if err != nil {
				t.Error(err)
				return
			}
			defer root.Close()
			sub, err := privatedir.Sub(root, "c", true)
			if err != nil {
				t.Error(err)
				return
			}
			_ = sub.Close()
		})
	}
	wg.Wait()
}

func mkdir(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	mkdirMode(t, path, mode)
}

func mkdirMode(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
