package sandbox

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	var (
		docker         = Engine{Kind: Docker}
		dockerRootless = Engine{Kind: Docker, Rootless: true}
		remapped       = Engine{Kind: Docker, Remapped: true}
		desktop        = Engine{Kind: Docker, VM: true, Product: "Docker Desktop"}
		podman         = Engine{Kind: Podman}
		rootless       = Engine{Kind: Podman, Rootless: true}
		machine        = Engine{Kind: Podman, VM: true, Rootless: true, Service: true, Product: "podman machine"}
		bwrap          = Engine{Kind: Bwrap}
	)
	const refused = ""
	for _, c := range []struct {
		name   string
		engine Engine
		args   string
		auto   Transport
		unix   Transport
		tls    Transport
	}{
		{"docker", docker, "", TransportUnix, TransportUnix, TransportTLS},
		{"docker, host users", docker, "--userns=host", TransportUnix, TransportUnix, TransportTLS},
		{"docker rootless", dockerRootless, "--memory 1g", TransportUnix, TransportUnix, TransportTLS},
		{"docker remapped", remapped, "", TransportTLS, refused, TransportTLS},
		{"docker remapped, host users", remapped, "--userns host", TransportUnix, TransportUnix, TransportTLS},
		{"Docker Desktop", desktop, "", TransportTLS, refused, TransportTLS},
		{"podman", podman, "", TransportUnix, TransportUnix, TransportTLS},
		{"podman auto", podman, "--userns=auto:size=2000", TransportTLS, refused, TransportTLS},
		{"podman host", podman, "--userns=host", TransportUnix, TransportUnix, TransportTLS},
		{"podman rootless", rootless, "", TransportUnix, TransportUnix, TransportTLS},
		{"podman keep-id", rootless, "--userns=keep-id", TransportUnix, TransportUnix, TransportTLS},
		{"podman keep-id as another", rootless, "--userns keep-id:uid=200,gid=210", TransportUnix, TransportUnix, TransportTLS},
		{"podman rootless host", rootless, "--userns=host", TransportUnix, TransportUnix, TransportTLS},
		{"podman rootless auto", rootless, "--userns=auto", TransportTLS, refused, TransportTLS},
		{"podman nomap", rootless, "--userns=nomap", TransportTLS, refused, TransportTLS},
		{"podman, the last counts", rootless, "--userns=nomap --userns=host", TransportUnix, TransportUnix, TransportTLS},
		{"podman machine", machine, "", TransportTLS, refused, TransportTLS},
		{"bwrap", bwrap, "", TransportUnix, TransportUnix, refused},
		{"docker auto", docker, "--userns=auto", refused, refused, refused},
		{"docker private", docker, "--userns=", refused, refused, refused},
		{"podman keep-id as root", podman, "--userns=keep-id", refused, refused, refused},
		{"podman nomap as root", podman, "--userns=nomap", refused, refused, refused},
		{"podman private", rootless, "--userns=private", refused, refused, refused},
		{"podman container", rootless, "--userns=container:other", refused, refused, refused},
		{"podman path", rootless, "--userns=ns:/proc/1/ns/user", refused, refused, refused},
		{"podman nothing", rootless, "--userns=", refused, refused, refused},
		{"podman keep-id with nothing", rootless, "--userns=keep-id:", refused, refused, refused},
		{"podman keep-id below 0", rootless, "--userns=keep-id:uid=-1", refused, refused, refused},
		{"podman keep-id and size", rootless, "--userns=keep-id:uid=1,size=9", refused, refused, refused},
		{"podman host with options", rootless, "--userns=host:x", refused, refused, refused},
	} {
		for want, expected := range map[Transport]Transport{TransportAuto: c.auto, TransportUnix: c.unix, TransportTLS: c.tls} {
			got, err := c.engine.Choose(want, strings.Fields(c.args))
			if got != expected || (err != nil) != (expected == refused) || err != nil && !errors.Is(err, ErrRefused) {
				t.Errorf("%s: %s became %q, want %q; %v", c.name, want, got, expected, err)
			}
		}
	}
	for _, unknown := range []Transport{"", "test-api-key-1"} {
		if _, err := docker.Choose(unknown, nil); !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "key") {
			t.Errorf("unknown transport: %v", err)
		}
	}
	_, err := desktop.Choose(TransportUnix, nil)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Error(), "Docker Desktop") || !strings.Contains(e.Hint(), "--transport tls") {
		t.Errorf("a mounted socket in a virtual machine: %v", err)
	}
}

func TestUsers(t *testing.T) {
	for _, c := range []struct {
		name   string
		engine Engine
		args   string
		want   users
	}{
		{"docker", Engine{Kind: Docker}, "", users{uid: 1000, gid: 1001}},
		{"docker rootless", Engine{Kind: Docker, Rootless: true}, "", users{}},
		{"docker remapped, host users", Engine{Kind: Docker, Remapped: true}, "--userns=host", users{uid: 1000, gid: 1001}},
		{"podman", Engine{Kind: Podman}, "", users{uid: 1000, gid: 1001}},
		{"podman rootless", Engine{Kind: Podman, Rootless: true}, "", users{uid: 1000, gid: 1001, userns: "keep-id"}},
		{"podman rootless host", Engine{Kind: Podman, Rootless: true}, "--userns=host", users{}},
		{"keep-id", Engine{Kind: Podman, Rootless: true}, "--userns=keep-id", users{uid: 1000, gid: 1001}},
		{"keep-id as another", Engine{Kind: Podman, Rootless: true}, "--userns=keep-id:uid=200,gid=210", users{uid: 200, gid: 210}},
		{"keep-id as half another", Engine{Kind: Podman, Rootless: true}, "--userns=keep-id:gid=0", users{uid: 1000, gid: 0}},
		{"podman machine", Engine{Kind: Podman, Rootless: true, VM: true}, "", users{uid: 1000, gid: 1001, userns: "keep-id:uid=1000,gid=1001"}},
		{"rootful podman machine", Engine{Kind: Podman, VM: true}, "", users{uid: 1000, gid: 1001}},
	} {
		got, err := c.engine.users(strings.Fields(c.args), 1000, 1001)
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	names := []string{"host.docker.internal", "host.containers.internal"}
	for _, c := range []struct {
		engine Engine
		args   string
		want   []string
	}{
		{Engine{HostNames: names}, "--network=none", nil},
		{Engine{VM: true, HostNames: names}, "", []string{"host.docker.internal:81", "host.containers.internal:81"}},
		{Engine{}, "--network=slirp4netns:mtu=1,allow_host_loopback=true", []string{"10.0.2.2:81"}},
		{Engine{}, "--net slirp4netns:allow_host_loopback=true", []string{"10.0.2.2:81"}},
		{Engine{}, "--network slirp4netns:allow_host_loopback=false", nil},
		{Engine{}, "--label slirp4netns:allow_host_loopback=true", nil},
	} {
		if got := c.engine.addresses(strings.Fields(c.args), 81); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.args, got, c.want)
		}
	}
	if names[0] != "host.docker.internal" {
		t.Error("the engine's own list was changed")
	}
}

func TestHealthArgs(t *testing.T) {
	for args, ok := range map[string]bool{"--memory 1g": true, "--health-cmd=true": false, "--health-interval 1s": false, "--no-healthcheck": true} {
		if err := checkHealthArgs(strings.Fields(args)); (err == nil) != ok {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestFirstBytes(t *testing.T) {
	const much = 9000
	text := strings.Repeat("x", much)
	for name, from := range map[string]io.Reader{"at once": strings.NewReader(text), "in parts": io.LimitReader(strings.NewReader(text), much)} {
		var b firstBytes
		if n, err := io.Copy(&b, from); n != much || err != nil { // as os/exec does it
			t.Errorf("%s: wrote %d, %v", name, n, err)
		}
		if n := len(b.String()); n != 4<<10 {
			t.Errorf("%s: kept %d bytes", name, n)
		}
	}
}

// TestMakeCoversOverTLS: the directory in which the socket is opened inside is a cover itself, or lies in one.
func TestMakeCoversOverTLS(t *testing.T) {
	for target, opened := range map[string]string{"/p/home": "", "/p/home/s": "", "/p": "home/s"} {
		dir := t.TempDir()
		r := run{plan: plan{socket: "/p/home/s/one.sock", transport: TransportTLS, mounts: []mount{{kind: tmpfs, target: target}}}}
		if err := r.makeCovers(dir); err != nil {
			t.Fatal(err)
		}
		writable := target == "/p/home/s"
		if want := (mount{source: filepath.Join(dir, "0"), target: target, readOnly: !writable}); r.plan.mounts[0] != want {
			t.Errorf("%s: got %+v", target, r.plan.mounts[0])
		}
		if target == "/p/home" {
			opened = "s"
		}
		info, err := os.Stat(filepath.Join(dir, "0", opened))
		mode := os.ModeDir | os.ModeSticky | 0o777
		if writable { // our program inside wants a directory of its user's alone
			mode = os.ModeDir | 0o700
		}
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: the socket's directory: %v, %v", target, info, err)
		}
		args := strings.Join(containerArgs(r.plan), "\n")
		if got := strings.Count(args, "dst=/p/home/s,") + strings.Count(args, "dst=/p/home/s\n"); got != 1 {
			t.Errorf("%s: %d mounts are where the socket is opened:\n%s", target, got, args)
		}
	}
}
