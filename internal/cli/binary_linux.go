package cli

import (
	"debug/elf"
	"io"
	"strings"
)

// dynamicLoader returns the program that the system needs to start the one at path, or "" for a static one.
func dynamicLoader(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			return strings.TrimRight(string(b), "\x00"), err
		}
	}
	return "", nil
}
