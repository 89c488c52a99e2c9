package sandbox

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func TestArguments(t *testing.T) {
	const work = "/home/u/my project"
	base := plan{
		name: "credproxy-1-0123456789abcdef", image: "agent:1", command: []string{"sh", "-c", "echo --rm"},
		socket: "/tmp/llxprt-cred-1000/one.sock", binary: "/opt/credproxy", workdir: work, uid: 1000, gid: 1001, stdin: true,
		mounts: []mount{
			{source: work, target: work},
			{source: "/tmp/covers/1", target: work + "/home", readOnly: true},
			{kind: named, source: "cache", target: "/cache"},
			{source: `/data/a,"b"`, target: "/data", readOnly: true},
		},
		env:  []EnvVar{{"API_KEY", "test-key-1"}, {"PATH", "/image/bin:/usr/local/bin"}, {"DOCKER_HOST", "x"}},
		args: []string{"--memory", "1g"},
	}
	bare := plan{name: base.name, image: "agent:1", command: []string{`["odd"]`}, socket: base.socket, binary: base.binary}
	terminal := base
	terminal.terminal, terminal.selinux = true, true
	with := func(p plan, e Engine) plan { p.engine = e; return p }
	over := func(p plan, t Transport) plan { p.transport = t; return p }
	kept := terminal
	kept.userns = "keep-id"
	base.engine.Kind, bare.engine.Kind = Docker, Docker
	inPodman := func(p plan) plan { return with(p, Engine{Kind: Podman}) }

	inBwrap := base
	inBwrap.image, inBwrap.args, inBwrap.home = "", []string{"--unshare-net"}, "/home/u"
	inBwrap.mounts = []mount{{source: work, target: work}, {kind: tmpfs, target: work + "/home"}, {source: "/data", target: "/data", readOnly: true}}
	inBwrap.system = []systemDir{{path: "/usr"}, {"/bin", "usr/bin"}, {path: "/etc"}}
	inBwrap.masks, inBwrap.extra = []string{"/etc/credproxy"}, []string{"/run/systemd/resolve/stub-resolv.conf"}
	inBwrap.hidden = []string{"/etc/shadow"}
	inBwrap.env = bwrapEnv([]string{"PATH=/usr/bin", "HOME=/else", "TERM=xterm", "SECRET=1", "LANG=C"}, "/home/u", base.socket, base.env)
	inBwrap.engine = Engine{Kind: Bwrap, filter: []byte{1}}
	bareBwrap := bare
	bareBwrap.home, bareBwrap.terminal = "/tmp", true

	for name, got := range map[string][]string{
		"docker":          dockerArgs(base),
		"docker-tls":      dockerArgs(over(base, TransportTLS)),
		"docker-exec":     execArgs(base),
		"docker-start":    startArgs(base),
		"docker-terminal": dockerArgs(with(terminal, Engine{Kind: Docker})),
		"docker-bare":     dockerArgs(bare),
		"podman":          podmanArgs(inPodman(base)),
		"podman-tls":      podmanArgs(over(with(kept, Engine{Kind: Podman, Rootless: true}), TransportTLS)),
		"podman-machine":  podmanArgs(over(with(bare, Engine{Kind: Podman, Rootless: true, VM: true, Service: true}), TransportTLS)),
		"podman-exec":     execArgs(inPodman(base)),
		"podman-start":    startArgs(inPodman(bare)),
		"podman-rootless": podmanArgs(with(kept, Engine{Kind: Podman, Rootless: true})),
		"podman-bare":     podmanArgs(with(bare, Engine{Kind: Podman})),
		"bwrap":           bwrapArgs(inBwrap),
		"bwrap-bare":      bwrapArgs(bareBwrap),
	} {
		file := filepath.Join("testdata", name+".golden")
		text := strings.Join(got, "\n") + "\n"
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s: the arguments differ from %s:\n%s", name, file, text)
		}
		if !strings.HasPrefix(name, "bwrap") && strings.Contains(text, "test-key-1") {
			t.Errorf("%s: a value of the environment is in the arguments", name)
		}
	}
}

func TestEngineArgs(t *testing.T) {
	for _, c := range []struct {
		kind    Kind
		args    string
		refused bool
	}{
		{Docker, "--memory=1g --cpus 2 -m 1g --hostname host --network none --label a=b", false},
		{Docker, "attacker:evil", true}, // it would be the image
		{Docker, "--memory 1g attacker:evil", true},
		{Docker, "--read-only attacker:evil", true},
		{Docker, "--read-only=attacker:evil", true},
		{Podman, "--pull attacker:evil", true}, // whose value is optional
		{Podman, "--pull=always", false},
		{Docker, "--memory", true},
		{Docker, "-m1g -h box -pm", false},
		{Docker, "-P", true},
		{Docker, "--gpus all", true},
		{Docker, "--pidfile=/x", true},
		{Docker, "--some-new-option", true},
		{Docker, "--workdir=/", true},
		{Docker, "-w/", true},
		{Podman, "--secret=x,type=env,target=LLXPRT_CREDENTIAL_SOCKET", true},
		{Podman, "--hooks-dir=/x", true},
		{Podman, "--annotation=a=b", true},
		{Podman, "--runtime=/tmp/evil", true},
		{Docker, `--network="name=host"`, true},
		{Docker, `--network=alias=x,"name=host"`, true},
		{Docker, "--network=NAME=HOST", true},
		{Docker, "--net host", true},
		{Bwrap, "word", true},
		{Bwrap, "--tmpfs", true},
		{Bwrap, "--tmpfs --bind", true},
		{Bwrap, "--unshare-net /bin/sh", true},
		{Podman, "--runtime runsc --add-host=host.docker.internal:host-gateway --network=pasta --tmpfs /x", false},
		{Docker, "--privileged", true},
		{Docker, "--privileged=true", true},
		{Docker, "--cap-add=SYS_ADMIN", true},
		{Docker, "--security-opt seccomp=unconfined", true},
		{Docker, "-v /:/host", true},
		{Docker, "-v/:/host", true},
		{Docker, "-itv/:/host", true},
		{Docker, "-Pv/:/host", true},
		{Docker, "--mount type=bind,src=/,dst=/host", true},
		{Docker, "--volumes-from other", true},
		{Docker, "--device /dev/sda", true},
		{Docker, "--use-api-socket", true},
		{Podman, "--seccomp-policy=image", true},
		{Docker, "--user 0", true},
		{Docker, "-u0", true},
		{Docker, "-eA=b", true},
		{Docker, "--env A=b", true},
		{Docker, "--env-file x", true},
		{Docker, "--network host", true},
		{Docker, "--network=host", true},
		{Docker, "--net=container:other", true},
		{Podman, "--cgroup-parent=/team/build..1", false},
		{Podman, "--cgroup-parent=../../../../tmp/x", true},
		{Docker, "--cgroup-parent /x/..", true},
		{Docker, "--network=name=host", true},
		{Docker, "--network alias=x,name=host", true},
		{Docker, "--network=name=own,alias=host1", false},
		{Podman, "--network=ns:/proc/1/ns/net", true},
		{Docker, "--pid host", true},
		{Docker, "--ipc=host", true},
		{Podman, "--userns=host", false}, // see Engine.users
		{Podman, "--uidmap 0:0:1", true},
		{Podman, "--rootfs", true},
		{Podman, "--preserve-fds=1", true},
		{Docker, "-d", true},
		{Docker, "--rm=false", true},
		{Docker, "--name=x", true},
		{Docker, "--entrypoint sh", true},
		{Docker, "--", true},
		{Bwrap, "--unshare-net --hostname box --tmpfs /x --chdir /", false},
		{Bwrap, "--bind / /", true},
		{Bwrap, "--dev-bind / /", true},
		{Bwrap, "--cap-add ALL", true},
		{Bwrap, "--setenv A b", true},
		{Bwrap, "--args 9", true},
		{Bwrap, "--", true},
	} {
		err := checkEngineArgs(c.kind, strings.Fields(c.args))
		if (err != nil) != c.refused || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s %s: %v", c.kind, c.args, err)
		}
	}
}

func TestParseEnv(t *testing.T) {
	environ := []string{"FROM_HOST=1", "FROM_HOST=2"}
	got, err := ParseEnv([]string{"A=1", "B=", "A=x=y", "FROM_HOST", "NOT_THERE", "PATH=/bin"}, environ)
	want := []EnvVar{{"B", ""}, {"A", "x=y"}, {"FROM_HOST", "2"}, {"PATH", "/bin"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "=secret-1", "A B=secret-1", "A*=secret-1", "A*", "1A=secret-1", SocketEnv + "=secret-1", "A=secret-1\x00", "HOME=secret-1\nX=y", "Ä=secret-1"} {
		_, err := ParseEnv([]string{bad}, environ)
		if !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "secret-1") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestEngineEnv(t *testing.T) {
	dir := t.TempDir()
	h := Host{Avoid: []string{dir}, Environ: []string{
		"PATH=/usr/bin:bin::.:" + dir + ":" + dir + "/bin:/bin", "HOME=/h", "DOCKER_HOST=unix:///x", "XDG_RUNTIME_DIR=/r",
		"API_KEY=1", "LD_PRELOAD=/x", "CONTAINERS_CONF=/c", "HTTPS_PROXY=p", SocketEnv + "=/s",
	}}
	want := []string{"HOME=/h", "DOCKER_HOST=unix:///x", "XDG_RUNTIME_DIR=/r", "CONTAINERS_CONF=/c", "HTTPS_PROXY=p", "PATH=/usr/bin:/bin"}
	if got := h.engineEnv(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSplitEnv(t *testing.T) {
	rest, file := splitEnv(Podman, []EnvVar{{"A", "x\ny"}, {"HOME", " h"}, {"LD_PRELOAD", "/l"}, {"GOOGLE_API_KEY", "k"}, {"DOCKER_CONFIG", "d"}})
	if !slices.Equal(rest, []EnvVar{{"A", "x\ny"}, {"GOOGLE_API_KEY", "k"}}) || file != "HOME= h\nLD_PRELOAD=/l\nDOCKER_CONFIG=d\n" {
		t.Errorf("got %v and %q", rest, file)
	}
}

// What systemd and podman tell their processes by variables, a command's variables must not tell the engine.
func TestEngineOwned(t *testing.T) {
	for _, name := range []string{
		"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "_CONTAINERS_USERNS_CONFIGURED", "_CONMON_X", "PODMAN_USERNS", "HTTP_PROXY", "LD_PRELOAD",
	} {
		if rest, file := splitEnv(Podman, []EnvVar{{name, "4"}}); len(rest) > 0 || file != name+"=4\n" {
			t.Errorf("%s is in the engine's environment: %v, %q", name, rest, file)
		}
	}
	h := Host{Environ: []string{"PODMAN_USERNS=auto", "NOTIFY_SOCKET=/x", "HOME=/h", "HTTP_PROXY=http://u:test-password-1@p", "no_proxy=x", "CONTAINERS_CONF=/c"}}
	for kind, want := range map[Kind]string{
		Podman: "HOME=/h HTTP_PROXY=http://u:test-password-1@p no_proxy=x CONTAINERS_CONF=/c PATH= MINE=1",
		Docker: "HOME=/h CONTAINERS_CONF=/c PATH= MINE=1",
	} {
		if got := strings.Join(h.makerEnv(kind, []EnvVar{{"MINE", "1"}}), " "); got != want {
			t.Errorf("%s is made a container by a client with %s, want %s", kind, got, want)
		}
	}
}

// What docker's configuration has for proxies stays out; what the user or the image has does not.
func TestDockerProxies(t *testing.T) {
	p := plan{name: "n", image: "i", socket: "/s/s", binary: "/b", engine: Engine{Kind: Docker},
		env: containerEnv(Docker, []EnvVar{{"HTTP_PROXY", "mine"}}, []string{"no_proxy=image", "HTTP_PROXY=image", "PATH=/usr/local/bin"})}
	environment, file := splitEnv(Docker, p.env)
	if want := []EnvVar{{"HTTP_PROXY", "mine"}, {"no_proxy", "image"}}; !slices.Equal(environment, want) || file != "" {
		t.Errorf("its client gets %v and %q, want %v", environment, file, want)
	}
	args := dockerArgs(p)
	for _, name := range proxyNames {
		if n := len(slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a != "--env="+name })); n != 1 {
			t.Errorf("%s is named %d times", name, n)
		}
	}
}

func TestContainerPath(t *testing.T) {
	for _, c := range []struct{ user, image, want string }{
		{"", "", ""}, // the engine's default has it
		{"", "/usr/local/bin:/bin", ""},
		{"", "/nix/bin", "/nix/bin:/usr/local/bin"},
		{"/mine", "/nix/bin", "/mine:/usr/local/bin"},
		{"/mine:/usr/local/bin", "", "/mine:/usr/local/bin"},
	} {
		var user []EnvVar
		if c.user != "" {
			user = []EnvVar{{"PATH", c.user}}
		}
		var image []string
		if c.image != "" {
			image = []string{"A=1", "PATH=" + c.image}
		}
		got, _ := lookup(envStrings(containerEnv(Docker, user, image)), "PATH")
		if got != c.want {
			t.Errorf("%v: PATH is %q", c, got)
		}
	}
}

func envStrings(vars []EnvVar) []string {
	var out []string
	for _, v := range vars {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}

func TestCheckImage(t *testing.T) {
	for image, ok := range map[string]bool{"a": true, "reg.example:5000/a/b@sha256:00": true, "": false, "--privileged": false, "a b": false, "a\n": false} {
		if err := checkImage(image); (err == nil) != ok {
			t.Errorf("%q: %v", image, err)
		}
	}
}
