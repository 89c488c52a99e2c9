// Inside is what the end-to-end tests run in a sandbox, in the place of credproxy: it looks around and says what it sees.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/credproxy/credproxy/internal/sandbox"
)

// Report is what `inside report` prints, as one line of JSON.
type Report struct {
	UID, GID  int
	Status    map[string]string // CapEff, CapBnd, NoNewPrivs, Seccomp of /proc/self/status
	Env       []string
	Dir       string
	FDs       []string
	Init      []string // the arguments of process 1
	Echo      string   // what the socket answered
	Seen      map[string]string
	Connected map[string]string
	Written   map[string]string
	Renamed   map[string]string
	Type      string // the error of TIOCSTI on stdin
	Keys      string // the error of keyctl
}

func main() {
	sandbox.Enter()
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch os.Args[1] {
	case "version":
		fmt.Println("inside")
	case "report":
		report(os.Args[2:])
	case "exit":
		n, _ := strconv.Atoi(os.Args[2])
		os.Exit(n)
	case "kill":
		n, _ := strconv.Atoi(os.Args[2])
		syscall.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "talk": // each line of the input to the socket, and the answer to the output
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println(ask(lines.Text()))
		}
	case "args":
		fmt.Printf("%q\n", os.Args[2:])
	case "hold": // until a signal ends it
		hold(os.Args[2:])
	case "tty":
		tty()
	}
}

func tty() {
	// An engine may set the size after the command has begun.
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	var size [4]uint16
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	for size[0] == 0 && errno == 0 {
		<-resized
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	}
	fmt.Printf("size %d %d %d TERM=%s\n", size[0], size[1], errno, os.Getenv("TERM"))
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, syscall.SIGINT)
	var line string
	fmt.Scanln(&line)
	fmt.Printf("line %s\n", line)
	<-interrupts
	fmt.Println("interrupted")
	os.Exit(7)
}

func hold(args []string) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	conn, err := net.Dial("unix", os.Getenv("LLXPRT_CREDENTIAL_SOCKET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(conn, "ready")
	for s := range signals {
		fmt.Fprintln(conn, s)
		if len(args) == 0 {
			os.Exit(40 + int(s.(syscall.Signal)))
		}
	}
}

func report(args []string) {
	r := Report{
		UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(), Status: map[string]string{}, Seen: map[string]string{},
		Connected: map[string]string{}, Written: map[string]string{}, Renamed: map[string]string{},
	}
	r.Dir, _ = os.Getwd()
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		r.Status[name] = strings.TrimSpace(value)
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/sys/fs/cgroup/") && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			r.FDs = append(r.FDs, e.Name()+" "+target)
		}
	}
	cmdline, _ := os.ReadFile("/proc/1/cmdline")
	r.Init = strings.Split(string(cmdline), "\x00")
	r.Echo = ask("hello")
	for _, a := range args {
		what, arg, _ := strings.Cut(a, "=")
		switch what {
		case "see":
			entries, err := os.ReadDir(arg)
			names := ""
			for _, e := range entries {
				names += e.Name() + " "
			}
			if errors.Is(err, syscall.ENOTDIR) {
				b, err := os.ReadFile(arg)
				r.Seen[arg] = "file:" + string(b) + text(err)
				continue
			}
			r.Seen[arg] = strings.TrimSpace(names) + text(err)
		case "connect":
			conn, err := net.Dial("unix", arg)
			r.Connected[arg] = text(err)
			if err == nil {
				conn.Close()
			}
		case "write":
			r.Written[arg] = text(os.WriteFile(arg, []byte("from inside"), 0o644))
		case "rename":
			r.Renamed[arg] = text(os.Rename(arg, arg+".moved"))
		}
	}
	c := byte('x')
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCSTI, uintptr(unsafe.Pointer(&c)))
	r.Type = errno.Error()
	_, _, errno = syscall.Syscall(syscall.SYS_KEYCTL, 0, ^uintptr(2), 0)
	r.Keys = errno.Error()
	json.NewEncoder(os.Stdout).Encode(r)
}

// ask returns what the socket answers.
func ask(what string) string {
	conn, err := net.Dial("unix", os.Getenv("LLXPRT_CREDENTIAL_SOCKET"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.Write([]byte(what))
	conn.(*net.UnixConn).CloseWrite()
	b, _ := io.ReadAll(conn)
	return string(b)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	return err.Error()
}
