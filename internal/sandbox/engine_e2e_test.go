//go:build e2e && linux

package sandbox

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
)

// What is on another machine is refused by its address alone, however the real clients have come by it: nobody connects to it.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	// Where the clients would get to: a listener, and what docker starts for ssh.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connected := make(chan int)
	go func() {
		n := 0
		for {
			c, err := l.Accept()
			if err != nil {
				connected <- n
				return
			}
			n++
			c.Close()
		}
	}()
	here, dialled := l.Addr().String(), filepath.Join(dir, "dialled")
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte("#!/bin/sh\n: >"+dialled+"\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	environ := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	context := func(name, host string) {
		t.Helper()
		cmd := exec.Command("docker", "context", "create", name, "--docker", "host="+host)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	context("far", "ssh://me@"+here)
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[engine]\nactive_service = \"build\"\n[engine.service_destinations.build]\nuri = \"ssh://me@192.0.2.1:22/run/podman/podman.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind Kind
		env  []string
		want string
	}{
		{Docker, []string{"DOCKER_HOST=ssh://me@" + here}, "it is on another machine (ssh://me@" + here + ")"},
		{Docker, []string{"DOCKER_HOST=tcp://192.0.2.1:2375"}, "it is on another machine (tcp://192.0.2.1:2375)"},
		{Docker, []string{"DOCKER_HOST=tcp://" + here}, "it is reached over the network (tcp://" + here + ")"},
		{Docker, []string{"DOCKER_CONFIG=" + dir, "DOCKER_CONTEXT=far"}, "it is on another machine (ssh://me@" + here + ")"},
		{Podman, []string{"CONTAINER_HOST=ssh://me@192.0.2.1/run/podman/podman.sock"}, "it is on another machine (ssh://me@192.0.2.1/"},
		{Podman, []string{"CONTAINER_HOST=tcp://" + here}, "it is reached over the network (tcp://" + here + ")"},
		{Podman, []string{"CONTAINERS_CONF=" + conf, "CONTAINER_CONNECTION=build"}, "it is on another machine (ssh://me@192.0.2.1:22/"},
	} {
		_, err := Host{Environ: append(slices.Clone(environ), c.env...)}.Select(t.Context(), c.kind, "x")
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, ErrNoEngine) || !strings.Contains(err.Error(), c.want) || e.Hint() == "" {
			t.Errorf("%q: %v", c.env, err)
		}
	}
	l.Close()
	if n := <-connected; n > 0 {
		t.Errorf("%d connections were made", n)
	}
	if _, err := os.Lstat(dialled); err == nil {
		t.Error("ssh was started")
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
	systest.Until(t, "podman's service answers", func() bool {
		var err error
		e, err = h.Select(t.Context(), Podman, "x")
		return err == nil
	})
	if !e.Service || e.VM || e.Rootless || e.Arch == "" {
		t.Errorf("%+v", e)
	}
	out, err := h.output(t.Context(), e.Path, "info", "--format", "json")
	var info podmanInfo
	if err != nil || json.Unmarshal([]byte(out), &info) != nil || info.Host.Kernel != thisMachine().kernel {
		t.Errorf("kernel %q, here %q, %v", info.Host.Kernel, thisMachine().kernel, err)
	}
}
