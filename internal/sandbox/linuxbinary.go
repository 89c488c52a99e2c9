package sandbox

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// ErrNoGuest: the program that is to run inside, ours for Linux and the engine's architecture, is missing or not the right one.
var ErrNoGuest = errors.New("no guest program")

// guestUnused is how long a copy of the guest program is kept that no run has asked for.
const guestUnused = 30 * 24 * time.Hour

// stamp is the version as the linker sets it (-X, see the Makefile): "credproxy-stamp:{v1.2.3}", which can be found in the file of a
// program that cannot be run here. Build information does not have the linker's flags with -trimpath.
var stamp string

// stampBegin is in two pieces, so that it is not found in a program that has no stamp.
var stampBegin = strings.Join([]string{"credproxy", "stamp:{"}, "-")

// GuestBinary returns the path of the program that is mounted into e's containers: the executable itself where that can run there,
// else credproxy-linux-ARCH beside it or in ../libexec/credproxy. It is checked to be of our version, if both know theirs: the
// commit, the version of the module, or the stamp. The error is an ErrNoGuest.
func (h Host) GuestBinary(e Engine, executable string) (string, error) {
	arch := e.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	if runtime.GOOS == "linux" && arch == runtime.GOARCH {
		return executable, nil
	}
	own, _ := debug.ReadBuildInfo()
	return findGuest(arch, executable, own)
}

func findGuest(arch, executable string, own *debug.BuildInfo) (string, error) {
	name := "credproxy-linux-" + arch
	what := "make build, or make install"
	if runtime.GOOS == "linux" {
		what = "make guest-" + arch // make build makes none: few need one
	}
	missing := func(why string) error {
		return &Error{ErrNoGuest, name, why, "in the source's directory: " + what + "; it has to lie beside credproxy, or in ../libexec/credproxy"}
	}
	// The link in /usr/local/bin, and where it leads: Homebrew's.
	places := []string{executable}
	if resolved, err := filepath.EvalSymlinks(executable); err == nil && resolved != executable {
		places = append(places, resolved)
	}
	var looked []string
	for _, place := range places {
		beside := filepath.Dir(place)
		for _, dir := range []string{beside, filepath.Join(filepath.Dir(beside), "libexec/credproxy")} {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				looked = append(looked, dir)
				continue
			} else if err != nil {
				return "", missing(err.Error())
			}
			if err := checkGuest(path, arch, own); err != nil {
				return "", missing(fmt.Sprintf("%s: %v", path, err))
			}
			return path, nil
		}
	}
	return "", missing("the program that runs inside is neither in " + strings.Join(slices.Compact(looked), " nor in "))
}

// machines are the ELF names of architectures, by GOARCH.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "386": elf.EM_386, "arm": elf.EM_ARM,
	"riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH,
}

// checkGuest looks into the program: what is wrong would otherwise come to light inside, as "exec format error".
func checkGuest(path, arch string, own *debug.BuildInfo) error {
	f, err := elf.Open(path)
	if err != nil {
		return errors.New("not a program for Linux")
	}
	defer f.Close()
	if want, known := machines[arch]; known && f.Machine != want {
		return fmt.Errorf("it is for another processor (%s)", strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_")))
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return errors.New("not a program for Linux")
	}
	if loader := Interpreter(path); loader != "" {
		return fmt.Errorf("it needs %s, which images may not have", loader)
	}
	theirs, err := buildinfo.ReadFile(path)
	if err != nil {
		return errors.New("not credproxy")
	}
	if err := sameBuild(own, theirs); err != nil {
		return err
	}
	return sameStamp(path, stamp)
}

// sameStamp looks for our stamp in the program. One that has none has nothing that could be compared.
func sameStamp(path, own string) error {
	if own == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if bytes.Contains(content, []byte(own)) {
		return nil
	}
	_, rest, found := bytes.Cut(content, []byte(stampBegin))
	if !found {
		return nil
	}
	theirs, _, _ := strings.Cut(string(rest[:min(100, len(rest))]), "}")
	return fmt.Errorf("it is of another version (%s, this is %s)", firstLine(theirs), strings.TrimSuffix(strings.TrimPrefix(own, stampBegin), "}"))
}

// sameBuild reports whether two programs come from the same source, as far as they know where they come from.
func sameBuild(own, theirs *debug.BuildInfo) error {
	if own == nil || own.Main.Path == "" {
		return nil
	}
	if theirs.Main.Path != own.Main.Path {
		return errors.New("not credproxy")
	}
	a, b := revision(own), revision(theirs)
	if a != "" && b != "" && a != b {
		return fmt.Errorf("it is of another version (%s, this is %s)", b, a)
	}
	return nil
}

// revision is the commit of a program's source, or the version of a released module, or nothing.
func revision(b *debug.BuildInfo) string {
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	if b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return ""
}

// placeGuest returns a path under which e's containers can have the program. Every engine in a virtual machine shares the home
// directory with it, and not every one anything else; so a program from elsewhere is copied below runDir. The copy is named after its
// content and checked against it, and what is not used any more goes.
func placeGuest(e Engine, path, home, runDir string) (string, error) {
	if !e.VM {
		return path, nil
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("guest program: %w", err)
	}
	if home, err := filepath.EvalSymlinks(home); err == nil && home != "/" && isBelow(resolved, home) {
		return resolved, nil
	}
	content, err := os.ReadFile(resolved)
	if err != nil {
		return "", fmt.Errorf("guest program: %w", err)
	}
	sum := sha256.Sum256(content)
	dir := filepath.Join(runDir, GuestDir)
	copied := filepath.Join(dir, "credproxy-"+hex.EncodeToString(sum[:8]))
	if err := copyGuest(copied, content); err != nil {
		return "", fmt.Errorf("copy of the guest program, which a virtual machine can see: %w", err)
	}
	now := time.Now()
	_ = os.Chtimes(copied, now, now) // only says when it was used last
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > guestUnused {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return filepath.EvalSymlinks(copied)
}

// GuestDir is the directory below Spec.RunDir with copies of the guest program, which outlive the runs. Sweep passes over directories.
const GuestDir = "guest"

func copyGuest(path string, content []byte) error {
	if there, err := os.Open(path); err == nil {
		defer there.Close()
		had, err := io.ReadAll(io.LimitReader(there, int64(len(content))+1))
		info, statErr := there.Stat()
		if err == nil && statErr == nil && bytes.Equal(had, content) && info.Mode().IsRegular() && info.Mode().Perm() == 0o755 {
			return nil
		}
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing once it is renamed
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
