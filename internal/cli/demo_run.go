package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/sandbox"
)

// ran is a command of ours that the demo ran.
type ran struct {
	stdout, stderr string
	status         int
	err            error
}

// expect is an error unless the command exited with the status.
func (r ran) expect(status int) error {
	switch {
	case r.err != nil:
		return r.err
	case r.status != status:
		return fmt.Errorf("exit status %d, not %d: %s", r.status, status, firstLine(r.stderr))
	}
	return nil
}

// environ is this process's environment without what would lead to the user's own credentials.
func (d *demo) environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "CREDPROXY_") || strings.HasPrefix(e, "LLXPRT_")
	})
	return append(env, "CREDPROXY_HOME="+d.home)
}

func (d *demo) prepare(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.self, args...)
	cmd.Env = d.environ()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up after itself
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

func (d *demo) command(ctx context.Context, stdin string, args ...string) ran {
	var stdout, stderr bytes.Buffer
	cmd := d.prepare(ctx, args)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if cmd.Process != nil {
		d.runs = append(d.runs, cmd.Process.Pid)
	}
	return finished(cmd, err, stdout.String(), stderr.String())
}

func finished(cmd *exec.Cmd, err error, stdout, stderr string) ran {
	r := ran{stdout: stdout, stderr: stderr, err: err}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		r.err = nil
	}
	if cmd.ProcessState != nil {
		r.status = cmd.ProcessState.ExitCode()
	}
	return r
}

// commandWithURL runs a command and calls open with the first line that it prints.
func (d *demo) commandWithURL(ctx context.Context, open func(url string) error, args ...string) (ran, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stderr bytes.Buffer
	cmd := d.prepare(ctx, args)
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return ran{}, err
	}
	if err := cmd.Start(); err != nil {
		return ran{}, err
	}
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	var openErr error
	if readErr == nil {
		if openErr = open(strings.TrimSpace(line)); openErr != nil {
			cancel()
		}
	}
	return finished(cmd, cmd.Wait(), line, stderr.String()), openErr
}

// inside runs a command in a sandbox of its own, by `credproxy run`.
func (d *demo) inside(ctx context.Context, command ...string) ran {
	return d.command(ctx, "", d.runInside(command...)...)
}

// runInside is the command that runs another in a sandbox.
func (d *demo) runInside(command ...string) []string {
	args := []string{"run", "--engine", string(d.engine), "--profile", "demo", "--no-workdir"}
	if d.image != "" {
		args = append(args, "--image", d.image)
	}
	return append(append(args, "--"), command...)
}

// choose finds the best engine that really runs something: docker and podman first, with an image made here that holds
// nothing at all, for all that a sandbox needs is mounted into it.
func (d *demo) choose(ctx context.Context, want sandbox.Kind) error {
	host := sandbox.Host{Environ: d.environ(), UID: os.Geteuid()}
	kinds := []sandbox.Kind{sandbox.Docker, sandbox.Podman, sandbox.Bwrap}
	if want != sandbox.Auto {
		kinds = []sandbox.Kind{want}
	}
	if want == sandbox.Auto && runtime.GOOS != "linux" {
		kinds = slices.DeleteFunc(kinds, func(k sandbox.Kind) bool { return k == sandbox.Bwrap })
	}
	var why []string
	var tried []triedEngine
	for _, kind := range kinds {
		name := "credproxy-demo:" + strings.ToLower(randomText())
		image := name
		if kind == sandbox.Bwrap {
			image = ""
		}
		e, err := host.Select(ctx, kind, image)
		if err == nil && image != "" {
			d.engine = kind
			err = d.importImage(ctx, e.Path, image)
		}
		if err == nil {
			d.engine = kind
			if err = d.inside(ctx, "credproxy", "version").expect(0); err == nil {
				return nil
			}
			_ = d.dropImage(ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		why = append(why, string(kind)+": "+strings.TrimPrefix(err.Error(), string(kind)+": "))
		_, notThere := exec.LookPath(string(kind))
		_, hint := judge(err)
		tried = append(tried, triedEngine{kind, notThere == nil, hint})
	}
	return &failure{
		err:    errors.New("no sandbox engine works: " + strings.Join(why, "; ")),
		status: exitUnreachable, hint: engineHint(runtime.GOOS, want, tried),
	}
}

// triedEngine is an engine that did not work.
type triedEngine struct {
	kind  sandbox.Kind
	there bool   // its program is installed
	hint  string // what to do about it
}

// engineHint says what to do about engines of which none works: mend what is there, or install what is least trouble.
func engineHint(goos string, want sandbox.Kind, tried []triedEngine) string {
	var hints []string
	anyThere := slices.ContainsFunc(tried, func(e triedEngine) bool { return e.there })
	for _, e := range tried {
		easy := goos == "linux" && e.kind == sandbox.Bwrap || goos != "linux" && !anyThere
		if e.hint != "" && (want != sandbox.Auto || e.there || easy) {
			hints = append(hints, e.hint)
		}
	}
	return strings.Join(hints, "; or ")
}

// demoParent is where the demo's directory is made: an engine in a virtual machine may see nothing of this machine but the home
// directory. "" is the directory for temporary files.
func demoParent() string {
	if runtime.GOOS != "linux" {
		if dir, err := os.UserCacheDir(); err == nil && os.MkdirAll(dir, 0o700) == nil {
			return dir
		}
	}
	return ""
}

// importImage makes an image of one empty directory.
func (d *demo) importImage(ctx context.Context, engine, name string) error {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if _, err := d.client(ctx, &archive, engine, "import", "-", name); err != nil {
		return err
	}
	d.image = name
	return nil
}

func (d *demo) dropImage(ctx context.Context) error {
	if d.image == "" {
		return nil
	}
	name := d.image
	d.image = ""
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := d.client(ctx, nil, string(d.engine), "rmi", name); err != nil {
		return &failure{err: fmt.Errorf("the image %s could not be removed: %w", name, err), hint: string(d.engine) + " rmi " + name}
	}
	return nil
}

// client runs an engine's client.
func (d *demo) client(ctx context.Context, stdin *bytes.Buffer, engine string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, engine, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = d.environ(), "/", &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if err := cmd.Run(); err != nil {
		if line := firstLine(stderr.String()); line != "" {
			err = errors.New(line)
		}
		return "", fmt.Errorf("%s %s: %w", filepath.Base(engine), args[0], err)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// leftovers looks for sockets, processes, containers and records of the runs.
func (d *demo) leftovers(ctx context.Context) (string, error) {
	looked := []string{"no socket", "no process"}
	if d.socket == "" {
		return "", errors.New("the socket of the sandbox is not known")
	}
	entries, err := os.ReadDir(filepath.Dir(d.socket))
	if err != nil {
		return "", err
	}
	for _, pid := range d.runs {
		if syscall.Kill(pid, 0) == nil {
			return "", fmt.Errorf("process %d still runs", pid)
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), "-"+strconv.Itoa(pid)+"-") {
				return "", fmt.Errorf("the socket %s is still there", e.Name())
			}
		}
	}
	records, err := os.ReadDir(filepath.Join(d.home, "state", "runs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	records = slices.DeleteFunc(records, func(e fs.DirEntry) bool { return e.IsDir() && e.Name() == sandbox.GuestDir }) // is kept
	if len(records) > 0 {
		return "", fmt.Errorf("%d records of runs are still there", len(records))
	}
	if d.engine != sandbox.Bwrap {
		names, err := d.client(ctx, nil, string(d.engine), "ps", "--all", "--format", "{{.Names}}")
		if err != nil {
			return "", err
		}
		for name := range strings.Lines(names) {
			for _, pid := range d.runs {
				if strings.HasPrefix(name, fmt.Sprintf("credproxy-%d-", pid)) {
					return "", fmt.Errorf("the container %s is still there", strings.TrimSpace(name))
				}
			}
		}
		looked = append(looked, "no container")
	}
	return strings.Join(looked, ", ") + ": all of it is gone", nil
}

// randomText is a few characters that no other run of the demo has.
func randomText() string { return rand.Text()[:10] }

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return oneLine(line)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
