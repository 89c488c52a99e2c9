//go:build e2e && linux

package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is on another machine is refused by its address alone, however the real clients have come by it: nothing listens there.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	context := func(name, host string) {
		t.Helper()
		cmd := exec.Command("docker", "context", "create", name, "--docker", "host="+host)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	context("far", "ssh://me@192.0.2.1")
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[engine]\nactive_service = \"build\"\n[engine.service_destinations.build]\nuri = \"ssh://me@192.0.2.1:22/run/podman/podman.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind Kind
		env  []string
		want string
	}{
		{Docker, []string{"DOCKER_HOST=ssh://me@192.0.2.1"}, "it is on another machine (ssh://me@192.0.2.1)"},
		{Docker, []string{"DOCKER_HOST=tcp://192.0.2.1:2375"}, "it is on another machine (tcp://192.0.2.1:2375)"},
		{Docker, []string{"DOCKER_HOST=tcp://127.0.0.1:2375"}, "it is reached over the network (tcp://127.0.0.1:2375)"},
		{Docker, []string{"DOCKER_CONFIG=" + dir, "DOCKER_CONTEXT=far"}, "it is on another machine (ssh://me@192.0.2.1)"},
		{Podman, []string{"CONTAINER_HOST=ssh://me@192.0.2.1/run/podman/podman.sock"}, "it is on another machine (ssh://me@192.0.2.1/"},
		{Podman, []string{"CONTAINER_HOST=tcp://127.0.0.1:2375"}, "it is reached over the network (tcp://127.0.0.1:2375)"},
		{Podman, []string{"CONTAINERS_CONF=" + conf, "CONTAINER_CONNECTION=build"}, "it is on another machine (ssh://me@192.0.2.1:22/"},
	} {
		began := time.Now()
		_, err := Host{Environ: append(os.Environ(), c.env...)}.Select(t.Context(), c.kind, "x")
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, ErrNoEngine) || !strings.Contains(err.Error(), c.want) || e.Hint() == "" {
			t.Errorf("%q: %v", c.env, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%q: refused after %v: somebody was asked", c.env, took)
		}
	}
}

// Whose better engine does not work hears which it is that they get, and why.
func TestPassedOver(t *testing.T) {
	h := Host{Environ: append(os.Environ(), "DOCKER_HOST=unix:///nowhere/docker.sock")}
	e, err := h.Select(t.Context(), Auto, "x")
	if err != nil || e.Kind != Podman || len(e.Passed) != 1 || !strings.HasPrefix(e.Passed[0], "docker: Cannot connect") && !strings.HasPrefix(e.Passed[0], "docker: failed to connect") {
		t.Errorf("%+v, %v", e, err)
	}
	_, err = h.Select(t.Context(), Docker, "x")
	if e, ok := errors.AsType[*Error](err); !ok || e.Hint() != "unset DOCKER_HOST, or start the server that DOCKER_HOST names" {
		t.Errorf("docker: %v", err)
	}
	// What is not installed is not missed.
	dir := t.TempDir()
	podman, err := exec.LookPath("podman")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(podman, filepath.Join(dir, "podman")); err != nil {
		t.Fatal(err)
	}
	if e, err = (Host{Environ: append(os.Environ(), "PATH="+dir)}).Select(t.Context(), Auto, "x"); err != nil || e.Kind != Podman || e.Passed != nil {
		t.Errorf("without docker: %+v, %v", e, err)
	}
}

// A service of podman's on a socket of this machine is as good as podman itself.
func TestServiceHere(t *testing.T) {
	dir := t.TempDir()
	address := "unix://" + filepath.Join(dir, "podman.sock")
	service := exec.Command("podman", "system", "service", "--time=0", address)
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = service.Process.Kill()
		_ = service.Wait()
	}()
	h := Host{Environ: append(os.Environ(), "CONTAINER_HOST="+address)}
	var e Engine
	for deadline := time.Now().Add(20 * time.Second); ; {
		var err error
		if e, err = h.Select(t.Context(), Podman, "x"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if !e.Service || e.VM || e.Rootless || e.Arch == "" {
		t.Errorf("%+v", e)
	}
	out, err := h.output(t.Context(), e.Path, "info", "--format", "json")
	var info podmanInfo
	if err != nil || json.Unmarshal([]byte(out), &info) != nil || info.Host.Kernel != thisMachine().kernel {
		t.Errorf("kernel %q, here %q, %v", info.Host.Kernel, thisMachine().kernel, err)
	}
}
