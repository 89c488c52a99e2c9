package sandbox

import (
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// What the engines print, cut down to what could matter; from their makers' documentation and from reports of their users.
const (
	infoDesktopMac = `{"ID":"3e5c8c7e-0000-0000-0000-000000000000","Containers":3,"Driver":"overlayfs","KernelVersion":"6.10.14-linuxkit",
"OperatingSystem":"Docker Desktop","OSType":"linux","Architecture":"aarch64","NCPU":8,"DockerRootDir":"/var/lib/docker",
"HttpProxy":"http.docker.internal:3128","Name":"docker-desktop","Labels":["com.docker.desktop.address=unix:///Users/me/Library/Containers/com.docker.docker/Data/docker-cli.sock"],
"ServerVersion":"28.3.2","Runtimes":{"runc":{"path":"runc"}},"DefaultRuntime":"runc","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0","Expected":"de40ad0"},
"SecurityOptions":["name=seccomp,profile=unconfined","name=cgroupns"],"Warnings":null,
"ClientInfo":{"Debug":false,"Version":"28.3.2","Os":"darwin","Arch":"arm64","Context":"desktop-linux"}}`
	infoDesktopLinux = `{"KernelVersion":"6.10.14-linuxkit","OperatingSystem":"Docker Desktop","OSType":"linux","Architecture":"x86_64","Name":"docker-desktop",
"ServerVersion":"28.3.2","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0"},"SecurityOptions":["name=seccomp,profile=unconfined","name=cgroupns"]}`
	infoOrbStack = `{"KernelVersion":"6.14.10-orbstack-00291-g1b252bd3edea","OperatingSystem":"OrbStack","OSType":"linux","Architecture":"aarch64","Name":"orbstack",
"ServerVersion":"28.2.2","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0"},"SecurityOptions":["name=seccomp,profile=builtin","name=cgroupns"]}`
	infoColima = `{"KernelVersion":"6.8.0-50-generic","OperatingSystem":"Ubuntu 24.04.1 LTS","OSType":"linux","Architecture":"x86_64","Name":"colima",
"ServerVersion":"27.4.0","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0"},"SecurityOptions":["name=apparmor","name=seccomp,profile=builtin","name=cgroupns"]}`
	infoRancher = `{"KernelVersion":"6.6.71-0-virt","OperatingSystem":"Alpine Linux v3.21","OSType":"linux","Architecture":"x86_64","Name":"lima-rancher-desktop",
"ServerVersion":"26.1.5","InitBinary":"docker-init","InitCommit":{"ID":""},"SecurityOptions":["name=seccomp,profile=builtin","name=cgroupns"]}`
	infoDebian = `{"KernelVersion":"6.18.44","OperatingSystem":"Debian GNU/Linux 12 (bookworm)","OSType":"linux","Architecture":"x86_64","Name":"vm",
"ServerVersion":"28.2.2","InitBinary":"docker-init","InitCommit":{"ID":"N/A"},"SecurityOptions":["name=seccomp,profile=builtin","name=cgroupns"]}`
	infoRootless = `{"KernelVersion":"6.18.44","OperatingSystem":"Debian GNU/Linux 12 (bookworm)","Architecture":"x86_64","Name":"vm",
"ServerVersion":"28.2.2","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0"},"SecurityOptions":["name=seccomp,profile=builtin","name=rootless","name=cgroupns"]}`
	infoRemapped = `{"KernelVersion":"6.18.44","OperatingSystem":"Debian GNU/Linux 12 (bookworm)","Architecture":"x86_64","Name":"vm",
"ServerVersion":"28.2.2","InitBinary":"docker-init","InitCommit":{"ID":"de40ad0"},"SecurityOptions":["name=seccomp,profile=builtin","name=userns"]}`
)

func TestJudgeDocker(t *testing.T) {
	linux, mac := here{goos: "linux", kernel: "6.18.44"}, here{goos: "darwin"}
	for name, c := range map[string]struct {
		at             here
		endpoint, info string
		want           Engine
	}{
		"Docker Desktop": {mac, "unix:///Users/me/.docker/run/docker.sock", infoDesktopMac,
			Engine{Version: "28.3.2", Product: "Docker Desktop", Arch: "arm64", VM: true}},
		"Docker Desktop on Linux": {linux, "unix:///home/me/.docker/desktop/docker.sock", infoDesktopLinux,
			Engine{Version: "28.3.2", Product: "Docker Desktop", Arch: "amd64", VM: true}},
		// One kernel for all of WSL.
		"Docker Desktop in WSL": {here{goos: "linux", kernel: "6.10.14-linuxkit"}, "unix:///var/run/docker.sock", infoDesktopLinux,
			Engine{Version: "28.3.2", Product: "Docker Desktop", Arch: "amd64", VM: true}},
		"OrbStack": {mac, "unix:///Users/me/.orbstack/run/docker.sock", infoOrbStack,
			Engine{Version: "28.2.2", Product: "OrbStack", Arch: "arm64", VM: true}},
		"Colima": {mac, "unix:///Users/me/.colima/default/docker.sock", infoColima,
			Engine{Version: "27.4.0", Product: "Colima", Arch: "amd64", VM: true}},
		"Colima on Linux": {linux, "unix:///home/me/.colima/default/docker.sock", infoColima,
			Engine{Version: "27.4.0", Product: "Colima", Arch: "amd64", VM: true}},
		"Rancher Desktop": {mac, "unix:///Users/me/.rd/docker.sock", infoRancher,
			Engine{Version: "26.1.5", Product: "Rancher Desktop", Arch: "amd64", VM: true}},
		"some other machine": {mac, "unix:///Users/me/.lima/docker/sock/docker.sock", infoRootless,
			Engine{Version: "28.2.2", Arch: "amd64", VM: true, Rootless: true}},
		"Linux":           {linux, "unix:///var/run/docker.sock", infoDebian, Engine{Version: "28.2.2", Arch: "amd64"}},
		"Linux, rootless": {linux, "unix:///run/user/1000/docker.sock", infoRootless, Engine{Version: "28.2.2", Arch: "amd64", Rootless: true}},
		"Linux, remapped": {linux, "unix:///srv/docker.sock", infoRemapped, Engine{Version: "28.2.2", Arch: "amd64", Remapped: true}},
		"kernel unknown":  {here{goos: "linux"}, "", infoDebian, Engine{Version: "28.2.2", Arch: "amd64"}},
	} {
		var info dockerInfo
		if err := json.Unmarshal([]byte(c.info), &info); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got Engine
		judgeDocker(c.at, c.endpoint, info, &got)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
		}
	}
}

func TestDockerEndpoint(t *testing.T) {
	for endpoint, want := range map[string]string{
		"":                                   "",
		"unix:///var/run/docker.sock":        "",
		"unix:///Users/a b/docker.sock":      "",
		"tcp://192.0.2.1:2375":               "it is on another machine (tcp://192.0.2.1:2375)",
		"ssh://me@build.example":             "it is on another machine (ssh://me@build.example)",
		"ssh://me:hunter2@build.example:22":  "it is on another machine (ssh://me:xxxxx@build.example:22)",
		"ssh://me@localhost":                 "it is on another machine (ssh://me@localhost)", // or so far away that only ssh leads there
		"tcp://127.0.0.1:2375":               "it is reached over the network (tcp://127.0.0.1:2375)",
		"tcp://localhost:2375":               "it is reached over the network",
		"tcp://[::1]:2375":                   "it is reached over the network",
		"tcp://127.0.0.1.example:2375":       "it is on another machine",
		"npipe:////./pipe/docker_engine":     "it is on another machine",
		"https://docker.example/":            "it is on another machine",
		"tcp://%zz":                          "it is on another machine (an address that cannot be read)",
		"unix":                               "it is on another machine",
		"tcp://user:secret@127.0.0.1:2375/x": "it is reached over the network (tcp://user:xxxxx@127.0.0.1:2375/x)",
	} {
		got := dockerEndpoint(endpoint, way{})
		if got.bad() != (want != "") || !strings.HasPrefix(got.detail, want) || got.bad() == (got.hint == "") {
			t.Errorf("%q: %+v, want %q", endpoint, got, want)
		}
		if strings.Contains(got.detail, "hunter2") || strings.Contains(got.detail, "secret@") {
			t.Errorf("a password is shown: %s", got.detail)
		}
	}
}

const (
	// Of podman 5; 4 has neither IsMachine nor ReadWrite.
	connectionsMachine = `[
 {"Name":"podman-machine-default","URI":"ssh://core@127.0.0.1:53671/run/user/501/podman/podman.sock","Identity":"/Users/me/.local/share/containers/podman/machine/machine","IsMachine":true,"Default":true,"ReadWrite":true},
 {"Name":"podman-machine-default-root","URI":"ssh://root@127.0.0.1:53671/run/podman/podman.sock","Identity":"/Users/me/.local/share/containers/podman/machine/machine","IsMachine":true,"Default":false,"ReadWrite":true},
 {"Name":"build","URI":"ssh://me@build.example:22/run/user/1000/podman/podman.sock","Identity":"","IsMachine":false,"Default":false,"ReadWrite":true}]`
	connectionsOld = `[{"Name":"podman-machine-default","URI":"ssh://core@localhost:49777/run/user/501/podman/podman.sock","Identity":"/Users/me/.ssh/podman-machine-default","Default":true}]`
	connectionsFar = `[{"Name":"build","URI":"ssh://me:hunter2@build.example:22/run/podman/podman.sock","Identity":"","IsMachine":false,"Default":true,"ReadWrite":true}]`
)

func TestPodmanDestination(t *testing.T) {
	for name, c := range map[string]struct {
		environ []string
		list    string
		uri     string // connected to
		bad     string // why not
	}{
		"machine":                {nil, connectionsMachine, "ssh://core@127.0.0.1:53671/run/user/501/podman/podman.sock", ""},
		"machine of podman 4":    {nil, connectionsOld, "ssh://core@localhost:49777/run/user/501/podman/podman.sock", ""},
		"rootful, by name":       {[]string{"CONTAINER_CONNECTION=podman-machine-default-root"}, connectionsMachine, "ssh://root@127.0.0.1:53671/run/podman/podman.sock", ""},
		"another one, by name":   {[]string{"CONTAINER_CONNECTION=build"}, connectionsMachine, "ssh://me@build.example:22/run/user/1000/podman/podman.sock", "it is on another machine"},
		"the name comes first":   {[]string{"CONTAINER_HOST=tcp://192.0.2.1:1", "CONTAINER_CONNECTION=podman-machine-default"}, connectionsMachine, "ssh://core@127.0.0.1:53671/run/user/501/podman/podman.sock", ""},
		"a name nobody has":      {[]string{"CONTAINER_CONNECTION=gone"}, connectionsMachine, "", "no connection called gone"},
		"an address":             {[]string{"CONTAINER_HOST=ssh://me@192.0.2.1/run/podman/podman.sock"}, connectionsMachine, "ssh://me@192.0.2.1/run/podman/podman.sock", "it is on another machine"},
		"that of the machine":    {[]string{"CONTAINER_HOST=ssh://root@127.0.0.1:53671/run/podman/podman.sock"}, connectionsMachine, "ssh://root@127.0.0.1:53671/run/podman/podman.sock", ""},
		"a socket":               {[]string{"CONTAINER_HOST=unix:///var/folders/x/T/podman/podman-machine-default-api.sock"}, connectionsMachine, "unix:///var/folders/x/T/podman/podman-machine-default-api.sock", ""},
		"TCP on loopback":        {[]string{"CONTAINER_HOST=tcp://127.0.0.1:8080"}, "[]", "tcp://127.0.0.1:8080", "it is reached over the network"},
		"TCP elsewhere":          {[]string{"CONTAINER_HOST=tcp://192.0.2.1:8080"}, "[]", "tcp://192.0.2.1:8080", "it is on another machine"},
		"the default, far away":  {nil, connectionsFar, "ssh://me:hunter2@build.example:22/run/podman/podman.sock", "it is on another machine (ssh://me:xxxxx@build.example:22/"},
		"no machine":             {nil, "[]", "", "no connection"},
		"none":                   {nil, "null", "", "no connection"},
		"an empty name":          {[]string{"CONTAINER_CONNECTION="}, connectionsOld, "ssh://core@localhost:49777/run/user/501/podman/podman.sock", ""},
		"a machine, not on here": {nil, `[{"Name":"m","URI":"ssh://core@192.0.2.7:22/x","Default":true,"IsMachine":true}]`, "ssh://core@192.0.2.7:22/x", "it is on another machine"},
	} {
		list, err := parseConnections(c.list)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		to, err := podmanDestination(c.environ, list)
		if err != nil {
			if c.uri != "" || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		v := judgeDestination(to, podmanWay(c.environ))
		if to.URI != c.uri || v.bad() != (c.bad != "") || !strings.HasPrefix(v.detail, c.bad) || strings.Contains(v.detail, "hunter2") || v.bad() == (v.hint == "") {
			t.Errorf("%s: %q, %+v", name, to.URI, v)
		}
	}
	if _, err := parseConnections("Name  URI"); err == nil {
		t.Error("a table is taken for JSON")
	}
}

func TestJudgePodman(t *testing.T) {
	const (
		machine = `{"host":{"arch":"arm64","os":"linux","kernel":"6.12.7-200.fc41.aarch64","serviceIsRemote":true,"hostname":"localhost.localdomain",
"idMappings":{"uidmap":[{"container_id":0,"host_id":501,"size":1},{"container_id":1,"host_id":100000,"size":1000000}]},
"remoteSocket":{"path":"unix:///run/user/501/podman/podman.sock","exists":true},"security":{"rootless":true}},"version":{"Version":"5.3.1","OsArch":"linux/arm64"}}`
		rootful = `{"host":{"arch":"amd64","kernel":"6.18.44","serviceIsRemote":false,"idMappings":{"gidmap":null,"uidmap":null},"security":{"rootless":false}},"version":{"Version":"4.3.1"}}`
		service = `{"host":{"arch":"amd64","kernel":"6.18.44","serviceIsRemote":true,"idMappings":{"gidmap":null,"uidmap":null},"security":{"rootless":false}},"version":{"Version":"4.3.1"}}`
		single  = `{"host":{"arch":"amd64","kernel":"6.18.44","idMappings":{"uidmap":[{"container_id":0,"host_id":1000,"size":1}]},"security":{"rootless":true}},"version":{"Version":"4.3.1"}}`
	)
	linux, mac := here{goos: "linux", kernel: "6.18.44"}, here{goos: "darwin"}
	names := []string{"host.containers.internal", "host.docker.internal"}
	for name, c := range map[string]struct {
		at   here
		info string
		want Engine
		bad  string
	}{
		"machine":          {mac, machine, Engine{Version: "5.3.1", Product: "podman machine", Arch: "arm64", Rootless: true, VM: true, Service: true, HostNames: names}, ""},
		"machine on Linux": {linux, machine, Engine{Version: "5.3.1", Product: "podman machine", Arch: "arm64", Rootless: true, VM: true, Service: true, HostNames: names}, ""},
		"rootful":          {linux, rootful, Engine{Version: "4.3.1", Arch: "amd64"}, ""},
		"a service here":   {linux, service, Engine{Version: "4.3.1", Arch: "amd64", Service: true}, ""},
		"one UID":          {linux, single, Engine{Version: "4.3.1", Arch: "amd64", Rootless: true}, "no subordinate UIDs"},
	} {
		var info podmanInfo
		if err := json.Unmarshal([]byte(c.info), &info); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got Engine
		v := judgePodman(c.at, info, &got)
		if !reflect.DeepEqual(got, c.want) || v.bad() != (c.bad != "") || !strings.HasPrefix(v.detail, c.bad) {
			t.Errorf("%s: %+v\n got %+v\nwant %+v", name, v, got, c.want)
		}
	}
}

func TestAbout(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	for want, e := range map[string]Engine{
		"":                               {Arch: runtime.GOARCH},
		"rootless":                       {Rootless: true},
		"users remapped":                 {Remapped: true},
		"in a virtual machine":           {VM: true},
		"OrbStack, in a virtual machine": {VM: true, Product: "OrbStack"},
		"through its service":            {Service: true},
		"podman machine, in a virtual machine, rootless, " + other: {VM: true, Service: true, Product: "podman machine", Rootless: true, Arch: other},
	} {
		if got := e.about(); got != want {
			t.Errorf("%+v: %q, want %q", e, got, want)
		}
	}
}

func TestHintsToInstallAndStart(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		for _, k := range []Kind{Docker, Podman} {
			for _, hint := range []string{installHint(goos, k), startHint(goos, k, "connection refused", way{}), startHint(goos, k, "permission denied", way{})} {
				if hint == "" || goos == "darwin" && (strings.Contains(hint, "apt-get") || strings.Contains(hint, "systemctl")) || goos == "linux" && strings.Contains(hint, "brew") {
					t.Errorf("%s on %s: %q", k, goos, hint)
				}
			}
		}
	}
}

// What a person has set is what the hint undoes.
func TestWay(t *testing.T) {
	for _, c := range []struct {
		environ []string
		context string
		back    string
	}{
		{nil, "default", ""},
		{nil, "", ""},
		{[]string{"DOCKER_HOST="}, "default", ""},
		{[]string{"DOCKER_HOST=tcp://192.0.2.1:1", "DOCKER_CONTEXT=far"}, "default", "unset DOCKER_HOST"},
		{[]string{"DOCKER_CONTEXT=far"}, "far", "unset DOCKER_CONTEXT"},
		{[]string{"DOCKER_CONTEXT=nobody-knows"}, "", "unset DOCKER_CONTEXT"},
		{[]string{"DOCKER_CONTEXT=default"}, "default", ""},
		{nil, "far", "docker context use default"},
	} {
		w := dockerWay(c.environ, c.context)
		if w.back != c.back || (w.by == "") != (c.back == "") {
			t.Errorf("docker %q, context %q: %+v, want %q", c.environ, c.context, w, c.back)
		}
		if got := startHint("linux", Docker, "Error response from daemon: page not found", w); strings.Contains(got, "systemctl") {
			t.Errorf("docker %q, context %q, it answers: %q", c.environ, c.context, got)
		}
		if got := dockerEndpoint("tcp://192.0.2.1:1", w).hint; c.back != "" && got != c.back || got == "" {
			t.Errorf("docker %q, context %q, far away: %q", c.environ, c.context, got)
		}
		got := startHint("linux", Docker, "connection refused", w)
		if strings.Contains(got, "systemctl") != (c.back == "") || !strings.HasPrefix(got, c.back) {
			t.Errorf("docker %q, context %q, not there: %q", c.environ, c.context, got)
		}
	}
	for want, environ := range map[string][]string{
		"": {"CONTAINER_HOST="}, "unset CONTAINER_HOST": {"CONTAINER_HOST=unix:///x"},
		"unset CONTAINER_CONNECTION": {"CONTAINER_HOST=unix:///x", "CONTAINER_CONNECTION=build"},
	} {
		if got := podmanWay(environ); got.back != want {
			t.Errorf("podman %q: %+v, want %q", environ, got, want)
		}
	}
	// On macOS the default context is seldom the one that works.
	if got := startHint("darwin", Docker, "x", dockerWay(nil, "desktop-linux")); !strings.HasPrefix(got, "start Docker Desktop") {
		t.Errorf("a context on macOS: %q", got)
	}
}

func TestImageHint(t *testing.T) {
	if got := imageHint("linux", "install it"); got != "install it, or name an image with --image (docker, podman)" {
		t.Error(got)
	}
	if got := imageHint("darwin", "use docker or podman"); got != "name an image with --image (docker, podman)" {
		t.Error(got)
	}
}
