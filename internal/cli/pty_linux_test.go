package cli

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/credproxy/credproxy/internal/systest"
)

// typing runs a command on a terminal of its own and types an answer whenever a prompt shows; what the terminal showed
// is in the file "screen" then: typing STATUS PROMPT=ANSWER… -- COMMAND…
// Some answers are not typed: "(provider open)" has the provider answer, "(allow)" is a person who has entered the code and says
// yes. What begins with "$ " is a command line for a shell, whose terminal echoes. "(Ctrl-C)", "(Ctrl-D)" and "(Ctrl-Z)" are keys, and "(code)" is pasted, as what the page at the last address shows.
func typing(ts *testscript.TestScript, neg bool, args []string) {
	at := 0
	for at < len(args) && args[at] != "--" {
		at++
	}
	if neg || at < 1 || at+1 >= len(args) {
		ts.Fatalf("usage: typing STATUS PROMPT=ANSWER… -- COMMAND…")
	}
	master, slave, err := systest.OpenPTY(0, 0)
	ts.Check(err)
	defer master.Close()
	cmd := command(ts, args[at+1:])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	ts.Check(slave.Close())
	ts.Check(master.SetReadDeadline(time.Now().Add(patient)))

	var screen bytes.Buffer
	prompts, seen := args[1:at], 0
	buffer := make([]byte, 4096)
	for {
		n, err := master.Read(buffer)
		screen.Write(buffer[:n])
		if len(prompts) > 0 {
			prompt, answer, _ := strings.Cut(prompts[0], "=")
			if i := strings.Index(screen.String()[seen:], prompt); i >= 0 {
				answered := true
				switch answer {
				case "(provider open)":
					providerCmd(ts, false, []string{"open"})
				case "(allow)":
					providerCmd(ts, false, []string{"allow"})
				case "(Ctrl-C)":
					_, err := master.WriteString("\x03")
					ts.Check(err)
				case "(Ctrl-Z)": // to a question that may show what is typed
					_, err := master.WriteString("\x1a")
					ts.Check(err)
				case "(Ctrl-D)":
					if answered = quiet(master); answered {
						_, err := master.WriteString("\x04")
						ts.Check(err)
					}
				case "(code)":
					if answered = quiet(master); answered {
						addresses := shownAddress.FindAllStringSubmatch(screen.String(), -1)
						_, err := master.WriteString("\x1b[200~" + copied(ts, addresses[len(addresses)-1][1]) + "\x1b[201~\r")
						ts.Check(err)
					}
				case "y", "n": // to a question that shows what is typed
					_, err := master.WriteString(answer + "\n")
					ts.Check(err)
				default:
					if line, ok := strings.CutPrefix(answer, "$ "); ok {
						_, err := master.WriteString(line + "\n")
						ts.Check(err)
					} else if answered = quiet(master); answered {
						_, err := master.WriteString(answer + "\n")
						ts.Check(err)
					}
				}
				if answered {
					seen += i + len(prompt)
					prompts = prompts[1:]
				}
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // what waits for an answer that does not come is not waited for
			_ = cmd.Process.Kill()
		}
		if err != nil { // EIO: nobody has the terminal open any more
			break
		}
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(strings.ReplaceAll(screen.String(), "\r\n", "\n")), 0o600))
	if len(prompts) > 0 {
		ts.Fatalf("the prompt %q never came:\n%s", prompts[0], screen.String())
	}
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exited with status %s, not %s:\n%s", got, args[0], screen.String())
	}
}

// shownAddress is an address as a terminal shows it.
var shownAddress = regexp.MustCompile(`\x1b\\(http[^\s\x1b]+)`)

// quiet waits until the terminal does not echo: a prompt is printed a moment before that.
func quiet(master *os.File) bool {
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		state, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS)
		if err != nil {
			return false
		}
		if state.Lflag&unix.ECHO == 0 {
			return true
		}
	}
	return false
}
