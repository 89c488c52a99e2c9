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
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// roles are what this test program plays as another process: inside a sandbox, or as another user.
var roles = map[string]func(args []string) int{
	"look-around":  lookAround,
	"first-bytes":  firstBytes,
	"spy":          spy,
	"ask":          ask,
	"linger":       linger,
	"open-files":   openFiles,
	"hands":        hands,
	"search":       search,
	"keep-in-mind": keepInMind,
	"knock":        knock,
}

// surroundings is what a program in a sandbox can see.
type surroundings struct {
	UID, GID   int
	Dir        string
	Env        []string
	Sockets    []string          // all that there are in the file system
	Processes  map[string]string // command lines and environments of all processes
	Names      []string          // all names outside of system directories
	Files      map[string][]byte // contents of the readable ones of at most 1 MiB
	Writable   map[string]bool   // of the paths that were asked about
	Readable   map[string]bool   // likewise
	Status     map[string]string // the interesting lines of /proc/self/status
	Interfaces []string
}

// lookAround prints, as JSON, what it sees. Its arguments are paths to try to read and to write.
func lookAround(paths []string) int {
	s := surroundings{UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(),
		Processes: map[string]string{}, Files: map[string][]byte{}, Writable: map[string]bool{}, Readable: map[string]bool{}, Status: map[string]string{}}
	s.Dir, _ = os.Getwd()
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		switch {
		case !d.IsDir():
		case slices.Contains([]string{"/proc", "/sys", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32", "/dev/pts"}, path):
			return fs.SkipDir
		}
		s.Names = append(s.Names, path)
		info, err := os.Lstat(path) // the directory knows what lies below a mount, not what is mounted
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSocket != 0:
			s.Sockets = append(s.Sockets, path)
		case info.Mode().IsRegular() && info.Size() <= 1<<20:
			if b, err := os.ReadFile(path); err == nil {
				s.Files[path] = b
			}
		}
		return nil
	})
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		environ, _ := os.ReadFile(p + "/environ")
		s.Processes[filepath.Base(p)] = string(bytes.ReplaceAll(append(append(cmdline, '\n'), environ...), []byte{0}, []byte{' '}))
	}
	for _, path := range paths {
		if _, err := os.ReadDir(path); err == nil {
			s.Readable[path] = true
		} else if f, err := os.Open(path); err == nil {
			_, err := f.Read(make([]byte, 1))
			s.Readable[path] = err == nil || err == io.EOF
			f.Close()
		}
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			s.Writable[path] = true
			f.Close()
		} else if f, err := os.CreateTemp(path, "guest"); err == nil {
			s.Writable[path] = true
			f.Close()
			os.Remove(f.Name())
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		s.Status[name] = strings.TrimSpace(value)
	}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		s.Interfaces = append(s.Interfaces, i.Name)
	}
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return 1
	}
	return 0
}

// firstBytes connects, sends a handshake and a request, and prints what comes back.
func firstBytes(args []string) int {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`))
	_, _ = c.Write(framed(`{"v":1,"id":"1","op":"get_api_key","payload":{"name":"openai"}}`))
	b, err := io.ReadAll(c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		fmt.Println("open")
		return 1
	}
	if len(b) > 0 {
		fmt.Printf("%q\n", b)
		return 0
	}
	fmt.Println("closed")
	return 0
}

// spy tries to get at the memory and the environment of another process of its user, and prints what it could.
func spy(args []string) int {
	pid, _ := strconv.Atoi(args[0])
	for _, name := range []string{"mem", "environ", "maps", "auxv", "fd", "cwd", "exe", "stack"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		if name == "cwd" || name == "exe" {
			if _, err := os.Readlink(path); err == nil {
				fmt.Println("read", name)
			}
			continue
		}
		if f, err := os.Open(path); err == nil {
			if _, err := f.Readdirnames(1); err == nil {
				fmt.Println("listed", name)
			} else if _, err := f.Read(make([]byte, 1)); err == nil || name == "mem" {
				fmt.Println("read", name)
			}
			f.Close()
		}
	}
	runtime.LockOSThread() // a tracer is a thread
	if err := syscall.PtraceAttach(pid); err == nil {
		fmt.Println("traced")
		// It has to go on: it may not have come to its protection yet.
		_, _ = syscall.Wait4(pid, nil, syscall.WALL, nil)
		_ = syscall.PtraceDetach(pid)
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	fmt.Println("done")
	return 0
}

// ask is a client inside: it asks the socket from the environment for an operation, in JSON on the arguments.
func ask(args []string) int {
	c, err := net.Dial("unix", os.Getenv("LLXPRT_CREDENTIAL_SOCKET"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	k := &conn{Conn: c}
	_, _ = c.Write(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`))
	if a, err := k.recv(patience); err != nil || !a.OK {
		fmt.Println(a, err)
		return 1
	}
	for i, request := range args {
		_, _ = c.Write(framed(fmt.Sprintf(`{"v":1,"id":"%d",%s}`, i, request)))
		a, err := k.recv(patience)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(a)
	}
	return 0
}

// hands does what it is told in orders on stdin, all at once, and reports on stdout. It ends with stdin.
func hands([]string) int {
	var mu sync.Mutex // guards stdout, and started
	say := func(r report) {
		line, _ := json.Marshal(r)
		mu.Lock()
		defer mu.Unlock()
		_, _ = os.Stdout.Write(append(line, '\n'))
	}
	fmt.Println("ready")
	type child struct {
		cmd   *exec.Cmd
		stdin io.Writer
	}
	started := map[int]child{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			fmt.Println(err)
			return 1
		}
		switch {
		case o.Run != nil:
			cmd := exec.Command(o.Run[0], o.Run[1:]...)
			stdout, _ := cmd.StdoutPipe()
			stderr, _ := cmd.StderrPipe()
			stdin, err := cmd.StdinPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				say(report{ID: o.ID, Failure: err.Error(), Ended: true, Code: -1})
				continue
			}
			started[o.ID] = child{cmd, stdin}
			go func() {
				var copying sync.WaitGroup
				hand := func(from io.Reader, as func(string) report) {
					buffer := make([]byte, 64<<10)
					for {
						n, err := from.Read(buffer)
						if n > 0 {
							say(as(string(buffer[:n])))
						}
						if err != nil {
							return
						}
					}
				}
				copying.Go(func() { hand(stdout, func(s string) report { return report{ID: o.ID, Out: s} }) })
				copying.Go(func() { hand(stderr, func(s string) report { return report{ID: o.ID, Err: s} }) })
				copying.Wait()
				_ = cmd.Wait()
				say(report{ID: o.ID, Ended: true, Code: cmd.ProcessState.ExitCode()})
			}()
		case o.Type != "":
			_, _ = io.WriteString(started[o.ID].stdin, o.Type)
		case o.Signal != 0:
			_ = started[o.ID].cmd.Process.Signal(o.Signal)
		case o.Op != "":
			go func() {
				a, err := askOnce(o.Op, o.Payload)
				if err != nil {
					say(report{ID: o.ID, Failure: err.Error()})
					return
				}
				say(report{ID: o.ID, Answer: &a})
			}()
		}
	}
	return 0
}

// askOnce asks the socket from the environment for one operation, on a connection of its own.
func askOnce(op string, payload m) (answer, error) {
	c, err := net.Dial("unix", os.Getenv("LLXPRT_CREDENTIAL_SOCKET"))
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	k := &conn{Conn: c}
	_, _ = c.Write(framed(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":1}}`))
	if a, err := k.recv(patience); err != nil || !a.OK {
		return a, err
	}
	request, err := json.Marshal(m{"v": 1, "id": "1", "op": op, "payload": payload})
	if err != nil {
		return answer{}, err
	}
	_, _ = c.Write(framed(string(request)))
	return k.recv(2 * patience)
}

// linger writes a file, ignores what can be ignored and stays until it is killed, with a child that does the same.
func linger(args []string) int {
	signal.Ignore(syscall.SIGHUP)
	if len(args) > 1 && args[1] == "stubborn" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	if err := os.WriteFile(args[0], []byte(strconv.Itoa(os.Getpid())), 0o666); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("here")
	for {
		time.Sleep(time.Hour)
	}
}

// openFiles prints what the descriptors that this process was born with refer to.
func openFiles([]string) int {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.Contains(target, "anon_inode") {
			fmt.Println(e.Name(), target)
		}
	}
	return 0
}
