package sandbox

import (
	"debug/elf"
	"io"
	"strings"
)

// Interpreter returns the dynamic linker that a program asks for, or nothing: it is linked statically, or not an ELF file.
func Interpreter(path string) string {
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return "unknown"
			}
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}
