package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// What docker and podman say about the machine that containers run on, judged by functions that ask nobody anything. They are
// tested everywhere, for every system.

// here is this machine, as far as it matters for an engine.
type here struct {
	goos   string // as runtime.GOOS
	kernel string // as uname -r says it; empty: unknown
}

// verdict is why an engine does not work and what to do; the zero value says that it does.
type verdict struct{ detail, hint string }

func (v verdict) bad() bool { return v.detail != "" }

// dockerInfo is what is needed of what `docker info --format '{{json .}}'` prints.
type dockerInfo struct {
	ServerVersion, OperatingSystem, KernelVersion, Architecture, Name string
	SecurityOptions, ServerErrors                                     []string
}

// way is what has led an engine's client to where it connects, if a person has chosen that.
type way struct {
	by       string // empty: nobody has
	back     string // what undoes it
	variable bool   // it is one of the environment's
}

// orElse is what undoes the choice, or another hint where there was none.
func (w way) orElse(hint string) string {
	if w.by == "" {
		return hint
	}
	return w.back
}

func variable(name string) way { return way{name, "unset " + name, true} }

// dockerWay looks at what docker's client looks at, in its order. The context is the one that it has named.
func dockerWay(environ []string, context string) way {
	chosen, _ := lookup(environ, "DOCKER_CONTEXT")
	switch host, _ := lookup(environ, "DOCKER_HOST"); {
	case host != "":
		return variable("DOCKER_HOST")
	case context == "default", context == "" && chosen == "":
		return way{}
	case chosen != "":
		return variable("DOCKER_CONTEXT")
	}
	return way{by: "the docker context " + context, back: "docker context use default"}
}

// podmanWay is the same for podman. Its connections are chosen otherwise, see podmanDestination.
func podmanWay(environ []string) way {
	for _, name := range []string{"CONTAINER_CONNECTION", "CONTAINER_HOST"} {
		if value, _ := lookup(environ, name); value != "" {
			return variable(name)
		}
	}
	return way{}
}

// dockerEndpoint judges the address of docker's server before anybody connects to it.
func dockerEndpoint(endpoint string, way way) verdict {
	hint := way.orElse("choose a server of this machine: docker context ls, then docker context use NAME")
	scheme, _, found := strings.Cut(endpoint, "://")
	switch {
	case endpoint == "" || scheme == "unix" && found:
		return verdict{}
	case isLoopback(endpoint) && scheme != "ssh":
		// A tunnel's end looks the same.
		return verdict{"it is reached over the network (" + shown(endpoint) + "), so what is mounted, and as whom, may be another machine's", hint}
	}
	return verdict{"it is on another machine (" + shown(endpoint) + "), where what is to be mounted is not", hint}
}

// judgeDocker fills in e by what the server says of itself. Its machines have a name for this one, host.docker.internal, which is of
// no use to us: Docker Desktop closes a TCP connection that has been idle for 5 minutes, keepalive or not, and a session lives as long
// as its sandbox. The way through docker's exec has no such limit.
func judgeDocker(at here, endpoint string, info dockerInfo, e *Engine) {
	e.Version, e.Arch = info.ServerVersion, goArch(info.Architecture)
	for _, o := range info.SecurityOptions {
		name, _, _ := strings.Cut(o, ",")
		e.Rootless = e.Rootless || name == "name=rootless"
		e.Remapped = e.Remapped || name == "name=userns"
	}
	desktop := info.OperatingSystem == "Docker Desktop"
	// A server on this machine runs on our kernel. Docker Desktop in WSL does so too, and still has other mounts.
	otherKernel := at.kernel != "" && info.KernelVersion != "" && at.kernel != info.KernelVersion
	if e.VM = at.goos != "linux" || desktop || otherKernel; !e.VM {
		return
	}
	switch path := strings.TrimPrefix(endpoint, "unix://"); {
	case desktop:
		e.Product = "Docker Desktop"
	case info.OperatingSystem == "OrbStack", strings.Contains(path, "/.orbstack/"):
		e.Product = "OrbStack"
	case strings.HasPrefix(info.Name, "colima"), strings.Contains(path, "/.colima/"), strings.Contains(path, "/.config/colima/"):
		e.Product = "Colima"
	case strings.Contains(info.Name, "rancher-desktop"), strings.HasPrefix(info.OperatingSystem, "Rancher Desktop"), strings.Contains(path, "/.rd/"):
		e.Product = "Rancher Desktop"
	}
}

// podmanInfo is what is needed of what `podman info --format json` prints.
type podmanInfo struct {
	Host struct {
		Arch, Kernel    string
		ServiceIsRemote bool
		IDMappings      struct{ UIDMap []struct{ Size int } }
		Security        struct{ Rootless bool }
	}
	Version struct{ Version string }
}

// podmanConnection is one of what `podman system connection list --format json` prints. Versions before 5 do not have IsMachine.
type podmanConnection struct {
	Name, URI          string
	Default, IsMachine bool
}

func parseConnections(out string) ([]podmanConnection, error) {
	var list []podmanConnection
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("podman system connection list: %w", err)
	}
	return list, nil
}

var errNoConnection = errors.New("no connection")

// podmanDestination returns what podman connects to if it does: CONTAINER_CONNECTION, CONTAINER_HOST, else the default
// connection; the order is podman's own.
func podmanDestination(environ []string, list []podmanConnection) (podmanConnection, error) {
	if name, _ := lookup(environ, "CONTAINER_CONNECTION"); name != "" {
		if i := slices.IndexFunc(list, func(c podmanConnection) bool { return c.Name == name }); i >= 0 {
			return list[i], nil
		}
		return podmanConnection{}, fmt.Errorf("%w called %s, as CONTAINER_CONNECTION has it", errNoConnection, name)
	}
	if uri, _ := lookup(environ, "CONTAINER_HOST"); uri != "" {
		// That of a machine can be given so, too.
		if i := slices.IndexFunc(list, func(c podmanConnection) bool { return c.URI == uri }); i >= 0 {
			return list[i], nil
		}
		return podmanConnection{Name: "CONTAINER_HOST", URI: uri}, nil
	}
	if i := slices.IndexFunc(list, func(c podmanConnection) bool { return c.Default }); i >= 0 {
		return list[i], nil
	}
	return podmanConnection{}, errNoConnection
}

// judgeDestination refuses a service on another machine before anybody connects to it. A machine of podman's is a virtual one
// here, which podman reaches by ssh over loopback.
func judgeDestination(c podmanConnection, way way) verdict {
	hint := way.orElse("choose one of this machine: podman system connection list, then podman system connection default NAME")
	scheme, _, _ := strings.Cut(c.URI, "://")
	switch {
	case scheme == "unix", c.IsMachine && isLoopback(c.URI), scheme == "ssh" && isLoopback(c.URI):
		return verdict{}
	case isLoopback(c.URI):
		return verdict{"it is reached over the network (" + shown(c.URI) + "), so what is mounted, and as whom, may be another machine's", hint}
	}
	return verdict{"it is on another machine (" + shown(c.URI) + "), where what is to be mounted is not", hint}
}

// podmanVM are the names inside a podman machine, as podman-run(1) has them.
var podmanVM = []string{"host.containers.internal", "host.docker.internal"}

// judgePodman fills in e by what podman, or its service, says of itself.
func judgePodman(at here, info podmanInfo, e *Engine) verdict {
	e.Version, e.Rootless, e.Arch = info.Version.Version, info.Host.Security.Rootless, goArch(info.Host.Arch)
	e.Service = info.Host.ServiceIsRemote
	otherKernel := at.kernel != "" && info.Host.Kernel != "" && at.kernel != info.Host.Kernel
	if e.VM = at.goos != "linux" || e.Service && otherKernel; e.VM {
		// Its init is in there, where we cannot look; over TLS none is needed.
		e.Product, e.HostNames = "podman machine", slices.Clone(podmanVM)
		return verdict{}
	}
	if e.Rootless && len(info.Host.IDMappings.UIDMap) < 2 {
		return verdict{"no subordinate UIDs are given to you",
			"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME, which is yours; then, as yourself: podman system migrate"}
	}
	return verdict{}
}

// goArch returns GOARCH for the name that a kernel or an engine has for an architecture.
func goArch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i686":
		return "386"
	case "armv6l", "armv7l", "armhf":
		return "arm"
	}
	return machine // the others, and those who know the name already
}

// socketPath returns the path of an address of the form unix://PATH, or nothing.
func socketPath(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "unix" || !filepath.IsAbs(u.Path) {
		return ""
	}
	return filepath.Clean(u.Path)
}

// isLoopback reports whether an address of the form scheme://host… names this machine.
func isLoopback(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return strings.EqualFold(u.Hostname(), "localhost") || ip != nil && ip.IsLoopback()
}

// shown is an address as it may be shown: without a password.
func shown(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "an address that cannot be read"
	}
	return u.Redacted()
}

// about says what is special about an engine, or nothing.
func (e Engine) about() string {
	var notes []string
	switch {
	case e.VM && e.Product != "":
		notes = append(notes, e.Product+", in a virtual machine")
	case e.VM:
		notes = append(notes, "in a virtual machine")
	case e.Service:
		notes = append(notes, "through its service")
	}
	if e.Rootless {
		notes = append(notes, "rootless")
	}
	if e.Remapped {
		notes = append(notes, "users remapped")
	}
	if e.Arch != "" && e.Arch != runtime.GOARCH {
		notes = append(notes, e.Arch)
	}
	return strings.Join(notes, ", ")
}
