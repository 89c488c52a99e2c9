package sandbox

import (
	"encoding/csv"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/credproxy/credproxy/internal/guest"
)

const (
	containerBin    = "/usr/local/bin"
	containerBinary = containerBin + "/credproxy"
	runLabel        = "io.credproxy.run"
	// envFile is how the engine's client names the first file that Run hands down to it.
	envFile = "/dev/fd/3"
)

// dockerArgs returns the arguments with which docker(1) makes the container of p.
func dockerArgs(p plan) []string {
	args := []string{"create"}
	args = append(args, p.args...)
	args = append(args, "--init=false") // our program is the first process, and buries the dead
	return append(args, containerArgs(p)...)
}

// startArgs start the container that was made, and hold the command's input and output.
func startArgs(p plan) []string {
	args := []string{"start", "--attach", detachKeys(p.engine)}
	if p.stdin {
		args = append(args, "--interactive")
	}
	return append(args, p.name)
}

// podmanArgs returns the arguments with which podman(1) makes the container of p.
func podmanArgs(p plan) []string {
	args := []string{"create"}
	args = append(args, p.args...)
	args = append(args, "--init=false") // our program is the first process, and buries the dead
	// The host's proxy variables may hold a password, and podman hands them on by default.
	// Its configuration may have other namespaces (containers.conf), and docker has no words for these.
	args = append(args, "--http-proxy=false", "--pid=private", "--ipc=private", "--uts=private", "--cgroupns=private")
	if !p.engine.Service { // which has not our environment, nor this option
		args = append(args, "--env-host=false")
	}
	if p.userns != "" {
		args = append(args, "--userns="+p.userns)
	}
	return append(args, containerArgs(p)...)
}

// detachKeys takes the meaning from Ctrl-P Ctrl-Q, which would leave the container behind with nobody to serve it. Some clients cannot
// be told "no keys". The first key is bridge.DetachKey.
func detachKeys(e Engine) string {
	if e.Kind == Podman && !e.Service {
		return "--detach-keys="
	}
	return "--detach-keys=ctrl-^,ctrl-_"
}

// containerArgs is what docker and podman share. It comes after the engine arguments of the user, so that where a second
// value replaces the first, ours holds.
func containerArgs(p plan) []string {
	args := []string{
		"--rm", "--name=" + p.name, "--label=" + runLabel + "=" + p.name,
		"--privileged=false", "--cap-drop=ALL", "--security-opt=no-new-privileges",
		"--user=" + strconv.Itoa(p.uid) + ":" + strconv.Itoa(p.gid),
		// The engine would keep a copy of all output, and that may hold a token.
		"--log-driver=none",
	}
	if p.selinux {
		// A container's domain may not connect to a socket of the user's, whatever its label.
		args = append(args, "--security-opt=label=disable")
	}
	if p.stdin {
		args = append(args, "--interactive")
	}
	if p.terminal {
		args = append(args, "--tty")
	}
	for _, m := range p.containerMounts() {
		args = append(args, "--mount="+mountOption(p.engine.Kind, m))
	}
	word := guest.StartWord
	if p.transport == TransportTLS {
		word = guest.BridgeWord
		// A check that the image brings would run beside our process before that has been told what it is to know.
		args = append(args, "--no-healthcheck")
	}
	if p.workdir != "" {
		args = append(args, "--workdir="+p.workdir)
	}
	args = append(args, "--env="+SocketEnv+"="+p.socket)
	if p.terminal && !slices.ContainsFunc(p.env, func(v EnvVar) bool { return v.Name == "TERM" }) {
		args = append(args, "--env=TERM")
	}
	environment, file := splitEnv(p.engine.Kind, p.env)
	for _, v := range environment {
		args = append(args, "--env="+v.Name)
	}
	if p.engine.Kind == Docker {
		// A name without a value, here or in the client's environment, keeps out what docker's config.json has for it (proxies).
		for _, name := range proxyNames {
			if !slices.ContainsFunc(environment, func(v EnvVar) bool { return v.Name == name }) {
				args = append(args, "--env="+name)
			}
		}
	}
	if file != "" {
		args = append(args, "--env-file="+envFile)
	}
	args = append(args, "--entrypoint="+containerBinary, "--", p.image, word)
	return append(args, p.command...)
}

// containerMounts are all that the container is to have.
func (p plan) containerMounts() []mount {
	mounts := slices.Clone(p.mounts)
	dir := filepath.Dir(p.socket)
	switch {
	case p.transport != TransportTLS:
		mounts = append(mounts, mount{source: p.socket, target: p.socket})
	case !slices.ContainsFunc(p.mounts, func(m mount) bool { return m.target == dir }):
		mounts = append(mounts, mount{kind: tmpfs, target: dir})
	}
	return append(mounts, mount{source: p.binary, target: containerBinary, readOnly: true})
}

// execArgs are the arguments with which our program is run once more in the container, to carry between its first process and us.
func execArgs(p plan) []string {
	// Podman looks for the keys without a terminal, too.
	return []string{"exec", "--interactive", "--workdir=/", detachKeys(p.engine), p.name, containerBinary, guest.CarryWord}
}

// mountOption is the value of --mount: one CSV record, so a path may hold commas and quotes. A tmpfs is small, and for everybody
// inside: it is made by another UID than that of the command.
func mountOption(engine Kind, m mount) string {
	var fields []string
	switch m.kind {
	case tmpfs:
		fields = []string{"type=tmpfs", "dst=" + m.target, "tmpfs-mode=1777", "tmpfs-size=65536"}
		if engine == Podman { // docker has no other
			fields = append(fields, "nosuid", "nodev", "noexec", "notmpcopyup")
		}
	case named:
		fields = []string{"type=volume", "src=" + m.source, "dst=" + m.target}
	default:
		fields = []string{"type=bind", "src=" + m.source, "dst=" + m.target}
	}
	if m.readOnly {
		fields = append(fields, "readonly")
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	_ = w.Write(fields) // to memory
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n")
}
