package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ownDir is a directory as the host makes one where it covers something of its own with it.
func ownDir(t *testing.T) string {
	t.Helper()
	dir := newWorld(t).SocketDir
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheckPlace(t *testing.T) {
	dir := ownDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.Mkdir(at("own"), 0o700), os.Mkdir(at("own/below"), 0o700), os.Mkdir(at("shared"), 0o700), os.Chmod(at("shared"), 0o1777),
		os.Mkdir(at("group"), 0o750), os.Mkdir(at("other"), 0o700), os.Chown(at("other"), aUser, aUser),
		os.Symlink("own", at("link")), os.Symlink(at("shared"), at("far")), os.WriteFile(at("file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, says string // empty: it is good
		is         error
	}{
		{"own", "", nil},
		{"own/below", "", nil},
		{"shared", "", errShared},
		{"group", "", errShared},
		{"other", "", errShared},
		{"link", at("link") + " is a symbolic link", nil},
		{"link/below", at("link") + " is a symbolic link", nil},
		{"far", at("far") + " is a symbolic link", nil},
		{"file", "not a directory", nil},
		{"none", "", fs.ErrNotExist},
	} {
		err := checkPlace(at(tt.name))
		if tt.is == nil && tt.says == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v %s", tt.name, err, tt.is, tt.says)
		}
	}
}

// TestPlaceIsTaken: in a directory that is not ours alone, nothing is replaced.
func TestPlaceIsTaken(t *testing.T) {
	dir := ownDir(t)
	for _, path := range []string{filepath.Join(dir, "not-there", handoverName), filepath.Join(dir, strings.Repeat("x", 110)), filepath.Join(dir, handoverName)} {
		if filepath.Base(path) == handoverName {
			if err := os.WriteFile(filepath.Join(dir, handoverName), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := meet(t.Context(), path)
		if err == nil || !strings.HasPrefix(err.Error(), "the sandbox cannot be prepared: "+filepath.Dir(path)) {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, handoverName)); err != nil || len(b) > 0 {
		t.Errorf("what was there: %q, %v", b, err)
	}
}

// TestPlaceOfTheImage: an image has a link where the sockets are to be, so the engine mounts our tmpfs somewhere else; or something is
// in it. Neither process 1 nor what brings it the handover goes there.
func TestPlaceOfTheImage(t *testing.T) {
	linked := newWorld(t)
	link := filepath.Join(linked.SocketDir, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(linked.SocketDir, "real"), 0o755), os.Symlink("real", link)); err != nil {
		t.Fatal(err)
	}
	linked.SocketDir = link
	for _, tt := range []struct {
		world
		argv []string
		text string
	}{
		{linked, []string{self, BridgeWord, "echo", "ran"}, "credproxy: the sandbox cannot be prepared: " + link + ": " + link + " is a symbolic link\nhint: "},
		{linked, []string{self, CarryWord}, "credproxy: the first process of the sandbox is not visited: " + link + ": " + link + " is a symbolic link\nhint: "},
		// The test binary is in a directory of go test's own, and this shell is root.
		{newWorld(t), []string{"/bin/sh", "-c", `: >"${LLXPRT_CREDENTIAL_SOCKET%/*}/x" && exec "$0" "$@"`, os.Args[0], BridgeWord, "echo", "ran"},
			": something is in it already\nhint: "},
	} {
		b := start(t, tt.world, nil, tt.argv...)
		if got := b.status(t); got != exitGuest || b.out.String() != "" || !strings.Contains(b.errs.String(), tt.text) || strings.Count(b.errs.String(), "\n") != 2 {
			t.Errorf("%q: status %d, %q, %q", tt.argv, got, b.out, b.errs)
		}
	}
}
