//go:build e2e && linux

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/systest"
)

// configured gives the fixture's podman a configuration with these lines for containers.
func (f *fixture) configured(t *testing.T, lines string) {
	t.Helper()
	usual, err := os.ReadFile(os.Getenv("CONTAINERS_CONF"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(usual), "[containers]\n", "[containers]\n"+lines+"\n", 1)
	if text == string(usual) {
		t.Fatalf("no [containers] in %s", usual)
	}
	f.write(t, "containers.conf", text)
	f.id.env = append(slices.Clone(f.id.env), "CONTAINERS_CONF="+filepath.Join(f.dir, "containers.conf"))
}

// expectUnmade: the run ends before anything of it has run.
func (f *fixture) expectUnmade(t *testing.T, status int, words ...string) {
	t.Helper()
	got, out, errs := f.run(t, "", "credproxy", "version")
	if got != status || out != "" {
		t.Errorf("status %d, want %d; it wrote %q", got, status, out)
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			t.Errorf("%q is not in: %s", w, errs)
		}
	}
}

// TestE2EConfigured: what podman's configuration adds to a container is as little let through as if it came by --engine-arg.
func TestE2EConfigured(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"podman", "podman-rootless-tls"} {
		for lines, want := range map[string]string{
			`volumes = ["/etc:/hostetc:ro"]`: "/etc is mounted at /hostetc",
			`netns = "host"`:                 `its network is "host"`,
		} {
			t.Run(name+" "+lines, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, engineNamed(t, name))
				f.spec.Spec.EngineArgs = f.spec.Spec.EngineArgs[:2] // without a network of its own
				f.configured(t, lines)
				f.expectUnmade(t, ExitEngine, "not what was asked for", want)
			})
		}
		t.Run(name+" namespaces", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			f.configured(t, "pidns = \"host\"\nutsns = \"host\"\nipcns = \"host\"\ncgroupns = \"host\"\nnetns = \"host\"\ndefault_capabilities = [\"SYS_ADMIN\"]")
			r := f.report(t)
			for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
				if r.Status[set] != "0000000000000000" {
					t.Errorf("%s is %s", set, r.Status[set])
				}
			}
			if host, _ := os.ReadFile("/proc/1/cmdline"); strings.Join(r.Init, "\x00") == string(host) {
				t.Errorf("its first process is the host's: %q", r.Init)
			}
		})
	}
	t.Run("podman devices", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, engineNamed(t, "podman"))
		f.configured(t, `devices = ["/dev/null:/dev/other:rwm"]`)
		f.expectUnmade(t, ExitEngine, "it has the device /dev/null")
	})
}

// TestE2EPodmanBehindDocker: docker's client can be answered by podman, whose configuration then counts.
func TestE2EPodmanBehindDocker(t *testing.T) {
	t.Parallel()
	f := newFixture(t, engineNamed(t, "podman"))
	f.configured(t, "pidns = \"host\"\ndevices = [\"/dev/null:/dev/other:rwm\"]")
	socket := filepath.Join(t.TempDir(), "podman.sock")
	address := "unix://" + socket
	service := exec.Command("podman", "system", "service", "--time=0", address)
	service.Env = f.id.env
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait()
	})
	f.kind, f.spec.Kind = Docker, Docker
	f.id.env = append(f.id.env, "DOCKER_HOST="+address)
	systest.Until(t, "podman's service answers", func() bool {
		e, err := (Host{Environ: f.id.env}).Select(t.Context(), Docker, "x")
		return err == nil && e.socket == socket
	})
	if e, err := (Host{Environ: append(slices.Clone(f.id.env), "CONTAINER_HOST="+address)}).Select(t.Context(), Podman, "x"); err != nil || e.socket != socket {
		t.Errorf("podman's client connects to %q, %v", e.socket, err)
	}
	f.expectUnmade(t, ExitEngine, "not what was asked for", `its pid namespace is "host"`, "it has the device /dev/null")
}

// TestE2EVolumeOfADirectory: a volume of the engine's that stands for a directory is judged as the directory.
func TestE2EVolumeOfADirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"docker", "podman-rootless"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, engineNamed(t, name))
			volume := func(suffix, path string) string {
				volume := "credproxy-test-" + strings.ToLower(filepath.Base(f.dir)) + suffix
				f.client(t, nil, "volume", "create", "--opt=type=none", "--opt=o=bind", "--opt=device="+path, volume)
				t.Cleanup(func() { f.client(t, nil, "volume", "rm", volume) })
				return volume
			}
			f.spec.Spec.Volumes = []Volume{{Source: volume("-own", filepath.Join(f.dir, "home")), Target: "/v"}}
			f.expectUnmade(t, 99, "it stands for "+filepath.Join(f.dir, "home"), "belongs to credproxy")

			if err := os.Mkdir(filepath.Join(f.dir, "other"), 0o700); err != nil {
				t.Fatal(err)
			}
			f.write(t, "other/file", "")
			unmade := "credproxy-test-" + strings.ToLower(filepath.Base(f.dir)) + "-new"
			f.spec.Spec.Volumes = []Volume{{Source: volume("-other", filepath.Join(f.dir, "other")), Target: "/v"}, {Source: unmade, Target: "/new"}}
			if r := f.report(t, "see=/v", "see=/new"); r.Seen["/v"] != "file" || r.Seen["/new"] != "" {
				t.Errorf("seen inside: %q", r.Seen)
			}
			f.client(t, nil, "volume", "rm", unmade)
		})
	}
}

// TestE2EDockerProxies: docker's own configuration puts proxies, perhaps with a password, into every container.
func TestE2EDockerProxies(t *testing.T) {
	t.Parallel()
	f := newFixture(t, engineNamed(t, "docker"))
	f.write(t, "config.json", `{"proxies":{"default":{"httpProxy":"http://u:test-password-1@192.0.2.1:1","noProxy":"x","allProxy":"http://u:test-password-1@192.0.2.1:1"}}}`)
	f.id.env = append(slices.Clone(f.id.env), "DOCKER_CONFIG="+f.dir, "HTTPS_PROXY=http://u:test-password-1@192.0.2.1:1")
	f.spec.Spec.Env = []EnvVar{{"http_proxy", "http://mine"}}
	r := f.report(t)
	for _, v := range r.Env {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasSuffix(strings.ToLower(name), "_proxy") && v != "http_proxy=http://mine" {
			t.Errorf("%s is set, to %d bytes", name, len(value))
		}
	}
	if !slices.Contains(r.Env, "http_proxy=http://mine") {
		t.Error("what was asked for is not set")
	}
}
