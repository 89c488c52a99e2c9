package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// record is the file that stands for a running container. The process that started it holds a lock on the file for as long
// as it lives; the kernel takes the lock away with the process, however that ends.
type record struct {
	Engine    Kind              `json:"engine"`
	Container string            `json:"container"`
	PID       int               `json:"pid"`
	Started   time.Time         `json:"started"`
	Env       map[string]string `json:"env,omitempty"` // what decides which server and which storage the client works with

	path string
	lock *flock.Flock
}

var recordEnv = []string{
	"HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF",
	"CONTAINER_HOST", "CONTAINER_CONNECTION", "CONTAINER_SSHKEY", "PODMAN_CONNECTIONS_CONF",
	"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
}

var containerName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^credproxy-[0-9]+-[0-9a-f]{16}$`) })

// keep writes the record of a container that is about to start. The file is locked before it gets its name, so that no Sweep
// can take it for a dead one's.
func keep(dir string, h Host, kind Kind, container string) (*record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run record: %w", err)
	}
	r := &record{Engine: kind, Container: container, PID: os.Getpid(), Started: time.Now().UTC(), Env: map[string]string{}}
	for _, name := range recordEnv {
		if v, ok := lookup(h.Environ, name); ok {
			r.Env[name] = v
		}
	}
	content, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	r.path = filepath.Join(dir, container+".json")
	unnamed := r.path + ".new"
	r.lock = flock.New(unnamed, flock.SetFlag(os.O_CREATE|os.O_EXCL|os.O_RDWR), flock.SetPermissions(0o600))
	if locked, err := r.lock.TryLock(); err != nil || !locked {
		return nil, errors.Join(fmt.Errorf("run record: cannot lock %s", unnamed), err)
	}
	// No O_CREATE: what is not there any more is not what was locked.
	f, err := os.OpenFile(unnamed, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(content)
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(unnamed, r.path)
	}
	if err != nil {
		_ = os.Remove(unnamed)
		r.close()
		return nil, fmt.Errorf("run record: %w", err)
	}
	return r, nil
}

// covers is a directory for what this run mounts over things that must not be seen. It goes with the record.
func (r *record) covers() string { return coversOf(r.path) }

func coversOf(record string) string { return strings.TrimSuffix(record, ".json") + ".covers" }

// remove says that nothing is left of the run; close alone leaves it to the next Sweep.
func (r *record) remove() { _ = removeRecord(r.path) }
func (r *record) close()  { _ = r.lock.Close() }

func removeRecord(path string) error {
	return errors.Join(os.RemoveAll(coversOf(path)), os.Remove(path))
}

// Sweep removes what runs whose process was killed have left behind in dir: their containers, then their records. It returns
// the names of the containers that it removed. Where an engine does not answer the record stays for the next Sweep, and the
// error says so; the caller need not fail for it.
func (h Host) Sweep(ctx context.Context, dir string) (removed []string, err error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var errs []error
	for _, f := range files {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasSuffix(f.Name(), ".new") && time.Since(info.ModTime()) < time.Minute {
			continue // the last may be between its creation and its lock
		}
		name, err := h.sweepOne(ctx, filepath.Join(dir, f.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("left by a killed run: %s: %w", f.Name(), err))
		}
		if name != "" {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(append(errs, err)...)
}

func (h Host) sweepOne(ctx context.Context, path string) (string, error) {
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY))
	locked, err := lock.TryLock()
	if err != nil || !locked {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return "", err // a living run
	}
	defer lock.Close()
	content, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // another Sweep was here
		}
		return "", err
	}
	if strings.HasSuffix(path, ".new") {
		return "", os.Remove(path) // killed before the container was started
	}
	var r record
	if err := json.Unmarshal(content, &r); err != nil || !containerName().MatchString(r.Container) || (r.Engine != Docker && r.Engine != Podman) {
		return "", removeRecord(path) // not a record that can be read
	}
	then := Host{Avoid: h.Avoid, UID: h.UID}
	for _, e := range h.Environ {
		name, _, _ := strings.Cut(e, "=")
		if _, ok := r.Env[name]; !ok {
			then.Environ = append(then.Environ, e)
		}
	}
	for name, value := range r.Env {
		then.Environ = append(then.Environ, name+"="+value)
	}
	program := then.look(string(r.Engine))
	if program == "" {
		return "", fmt.Errorf("%s: not found in PATH", r.Engine)
	}
	existed, err := then.remove(ctx, Engine{Kind: r.Engine, Path: program}, r.Container)
	if err != nil {
		return "", err
	}
	if !existed {
		return "", removeRecord(path)
	}
	return r.Container, removeRecord(path)
}

// ErrLeft: a container is still there, and may still run.
var ErrLeft = errors.New("left")

// remove removes a container with all that runs in it and reports whether there was one. The error is an ErrLeft if it is still
// there after 30 s.
func (h Host) remove(ctx context.Context, e Engine, container string) (existed bool, err error) {
	ctx, cancel := limited(ctx, 30*time.Second)
	defer cancel()
	// Docker's names begin with a slash, and not where it is podman that answers.
	list := []string{"ps", "--all", "--quiet", "--filter", "name=^/?" + container + "$"}
	why := errors.New("it is still listed")
	for pause := time.Duration(0); ctx.Err() == nil; pause = min(max(2*pause, 100*time.Millisecond), time.Second) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		id, err := h.output(ctx, e.Path, list...)
		if err != nil && existed {
			break
		}
		if err != nil || id == "" {
			return existed, err
		}
		existed = true
		// Killed first: podman would wait ten seconds for a command that does not care for SIGTERM.
		_, _ = h.output(ctx, e.Path, "kill", "--signal=KILL", container)
		// It fails where the engine is removing the container itself (--rm); the list then says when that is done.
		if _, err = h.output(ctx, e.Path, "rm", "--force", "--volumes", container); err != nil && ctx.Err() == nil {
			why = err
		}
	}
	return existed, &Error{ErrLeft, "the container " + container + " is still there", why.Error(),
		"see why the engine keeps it, and remove it: " + string(e.Kind) + " rm --force --volumes " + container}
}
