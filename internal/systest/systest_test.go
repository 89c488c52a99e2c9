package systest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// roles have those of one system added by its file.
var roles = Roles{
	"echo": func(args []string) error {
		fmt.Println(strings.Join(args, " "))
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	},
	"fail": func([]string) error { return errors.New("it is broken") },
	"hang": func([]string) error { fmt.Println("hanging"); select {} },
}

func TestMain(m *testing.M) {
	roles.Play()
	os.Exit(m.Run())
}

func TestProcess(t *testing.T) {
	p := roles.Start(t, nil, "echo", "a", "b c")
	if got := p.Line(t); got != "a b c" {
		t.Errorf("it says %q", got)
	}
	p.Say(t, "d")
	if got := p.Line(t); got != "d" {
		t.Errorf("it answers %q", got)
	}
	if err := p.End(); err != nil {
		t.Error(err)
	}
	err := roles.Start(t, nil, "fail").End()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "fail: it is broken") {
		t.Errorf("a role that fails: %v", err)
	}
}

// A child that nobody ends is gone after the test that started it.
func TestCommandIsKilled(t *testing.T) {
	var cmd *exec.Cmd
	t.Run("test", func(t *testing.T) {
		cmd = roles.Command(t, "hang")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if exit, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok || exit.ExitCode() != -1 {
		t.Errorf("it was not killed: %v", exit)
	}
}

func TestUntil(t *testing.T) {
	var written Buffer
	go fmt.Fprint(&written, "something")
	Until(t, "something is written", func() bool { return written.String() == "something" })
}

func TestSharedDir(t *testing.T) {
	var dir string
	t.Run("test", func(t *testing.T) {
		dir = SharedDir(t, 0o777|os.ModeSticky)
		if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
			t.Errorf("%v, %v", info, err)
		}
	})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the test: %v", err)
	}
}
