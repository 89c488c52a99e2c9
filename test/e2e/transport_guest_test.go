//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// searchOrder is what the program "search" reads from its stdin, as a line of JSON: what to look for, by name, with every byte
// changed by mask, so that neither it nor the pipe that brought it is a place where it can be found.
type searchOrder struct{ Needles map[string][]byte }

// searchReport is what it prints.
type searchReport struct {
	Found      []string          // "NAME in PLACE"
	Closed     map[int][]string  // by process, which of its files in /proc cannot be read
	Processes  map[int]string    // their arguments
	MemoryRead int64             // bytes
	FilesRead  map[string]string // what regular files there are outside of /proc and /sys: why one could not be read, or ""
}

const mask = 0xA5

func masked(b []byte) []byte {
	c := slices.Clone(b)
	for i := range c {
		c[i] ^= mask
	}
	return c
}

// search looks for the needles in everything of every process and in the whole file system, as far as the kernel lets it.
func search([]string) int {
	fmt.Println("ready")
	line, err := bufio.NewReaderSize(os.Stdin, 1<<20).ReadSlice('\n')
	var o searchOrder
	if err == nil {
		err = json.Unmarshal(line, &o)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	r := searchReport{Closed: map[int][]string{}, Processes: map[int]string{}, FilesRead: map[string]string{}}
	look := func(place string, data []byte) {
		hidden := masked(data)
		for name, needle := range o.Needles {
			if found := name + " in " + place; bytes.Contains(hidden, needle) && !slices.Contains(r.Found, found) {
				r.Found = append(r.Found, found)
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		pid, _ := strconv.Atoi(filepath.Base(p))
		words, _ := os.ReadFile(p + "/cmdline")
		r.Processes[pid] = string(bytes.ReplaceAll(words, []byte{0}, []byte{' '}))
		for _, name := range []string{"environ", "cmdline", "comm", "status", "auxv", "maps", "mountinfo", "stack", "wchan"} {
			b, err := os.ReadFile(p + "/" + name)
			if err != nil {
				r.Closed[pid] = append(r.Closed[pid], name)
			}
			look(p+"/"+name, b)
		}
		if links, err := os.ReadDir(p + "/fd"); err != nil {
			r.Closed[pid] = append(r.Closed[pid], "fd")
		} else {
			opaque := 0
			for _, l := range links {
				path := p + "/fd/" + l.Name()
				target, err := os.Readlink(path)
				if err != nil {
					opaque++
				}
				look(path, []byte(target))
				// Reading a pipe would take what is in it away from somebody.
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
					_ = inFile(path, look)
				}
			}
			if opaque == len(links) { // their numbers are the most that can be seen
				r.Closed[pid] = append(r.Closed[pid], "fd")
			}
		}
		if pid == os.Getpid() {
			continue // the needles are here, and what comes of masking them once more
		}
		n, err := inMemory(pid, look)
		r.MemoryRead += n
		if err != nil {
			r.Closed[pid] = append(r.Closed[pid], "mem")
		}
	}
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := os.Lstat(path) // the directory knows what lies below a mount, not what is mounted
		switch {
		case path == "/proc" || path == "/sys":
			return fs.SkipDir
		case err != nil || !info.Mode().IsRegular():
			look("the name "+path, []byte(path))
			if target, err := os.Readlink(path); err == nil {
				look("the target of "+path, []byte(target))
			}
			return nil
		}
		r.FilesRead[path] = ""
		if err := inFile(path, look); err != nil {
			r.FilesRead[path] = err.Error()
		}
		return nil
	})
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // and stays, so that the host can look at it
	return 0
}

// chunks reads from r and hands out pieces that overlap, so that nothing is cut in two.
func chunks(place string, r io.Reader, look func(place string, data []byte)) error {
	const overlap = 4 << 10
	buffer, kept := make([]byte, 1<<20), 0
	for {
		n, err := io.ReadFull(r, buffer[kept:])
		look(place, buffer[:kept+n])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
		kept = copy(buffer, buffer[len(buffer)-overlap:])
	}
}

func inFile(path string, look func(place string, data []byte)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return chunks(path, f, look)
}

// inMemory hands out the memory of a process, and returns how much there was of it.
func inMemory(pid int, look func(place string, data []byte)) (read int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer memory.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var rights string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); n != 3 || rights[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		_ = chunks(fmt.Sprintf("the memory of process %d", pid), io.NewSectionReader(memory, from, to-from), func(place string, data []byte) {
			read += int64(len(data))
			look(place, data)
		})
	}
	return read, nil
}

// keepInMind has a secret in its memory and nowhere else, and stays.
func keepInMind(words []string) int {
	secret := []byte(strings.ToUpper(words[0]))
	fmt.Println("held", len(secret))
	for {
		time.Sleep(time.Hour)
		secret[0] |= 0 // it is still needed
	}
}

// knock tries to connect to two TCP ports at several hosts, and says which answer. "gateway" is that of the container.
func knock(args []string) int {
	closed, open, hosts := args[0], args[1], args[2:]
	routes, _ := os.ReadFile("/proc/net/route")
	for line := range strings.Lines(string(routes)) {
		var name, target, gateway string
		if n, _ := fmt.Sscan(line, &name, &target, &gateway); n == 3 && target == "00000000" && len(gateway) == 8 {
			b, _ := strconv.ParseUint(gateway, 16, 32)
			hosts = append(hosts, net.IPv4(byte(b), byte(b>>8), byte(b>>16), byte(b>>24)).String())
		}
	}
	var all sync.WaitGroup
	for _, host := range hosts {
		for what, port := range map[string]string{"the closed one": closed, "the open one": open} {
			all.Go(func() {
				if c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 2*time.Second); err == nil {
					fmt.Println(what, "answers at", host)
					c.Close()
				}
			})
		}
	}
	all.Wait()
	return 0
}
