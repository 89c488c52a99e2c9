package sandbox

import (
	"encoding/csv"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

const (
	containerBin    = "/usr/local/bin"
	containerBinary = containerBin + "/credproxy"
	runLabel        = "io.credproxy.run"
)

// dockerArgs returns the arguments of docker(1) for p.
func dockerArgs(p plan) []string {
	args := []string{"run"}
	args = append(args, p.args...)
	if p.engine.Init != "" {
		args = append(args, "--init")
	}
	// Ctrl-P Ctrl-Q would leave the container behind with nobody to serve it; the client cannot be told "no keys".
	args = append(args, "--detach-keys=ctrl-^,ctrl-_")
	return append(args, containerArgs(p, p.command[0])...)
}

// podmanArgs returns the arguments of podman(1) for p.
func podmanArgs(p plan) []string {
	args := []string{"run"}
	args = append(args, p.args...)
	if p.engine.Init != "" {
		args = append(args, "--init")
		if p.engine.Init != defaultInit {
			args = append(args, "--init-path="+p.engine.Init)
		}
	}
	// The host's proxy variables may hold a password, and podman hands them on by default.
	args = append(args, "--detach-keys=", "--http-proxy=false", "--env-host=false")
	if p.engine.Rootless {
		args = append(args, "--userns=keep-id")
	}
	// A plain entrypoint that looks like JSON would be read as JSON.
	entrypoint, _ := json.Marshal(p.command[:1])
	return append(args, containerArgs(p, string(entrypoint))...)
}

// containerArgs is what docker and podman share. It comes after the engine arguments of the user, so that where a second
// value replaces the first, ours holds.
func containerArgs(p plan, entrypoint string) []string {
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
	for _, m := range p.mounts {
		args = append(args, "--mount="+mountOption(m))
	}
	args = append(args,
		"--mount="+mountOption(mount{source: p.socket, target: p.socket}),
		"--mount="+mountOption(mount{source: p.binary, target: containerBinary, readOnly: true}))
	if p.workdir != "" {
		args = append(args, "--workdir="+p.workdir)
	}
	args = append(args, "--env="+SocketEnv+"="+p.socket)
	if p.terminal && !slices.ContainsFunc(p.env, func(v EnvVar) bool { return v.Name == "TERM" }) {
		args = append(args, "--env=TERM")
	}
	environment, file := splitEnv(p.env)
	for _, v := range environment {
		args = append(args, "--env="+v.Name)
	}
	if file != "" {
		args = append(args, "--env-file="+envFile)
	}
	args = append(args, "--entrypoint="+entrypoint, "--", p.image)
	return append(args, p.command[1:]...)
}

// mountOption is the value of --mount: one CSV record, so a path may hold commas and quotes.
func mountOption(m mount) string {
	var fields []string
	switch m.kind {
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

// ownOptions are options of docker and podman that credproxy sets itself or that would open the sandbox, with the reason.
var ownOptions = map[string]string{
	"volume": useVolume, "v": useVolume, "mount": useVolume, "volumes-from": useVolume, "rootfs": opens, "device": opens, "device-cgroup-rule": opens,
	"env": useEnv, "e": useEnv, "env-file": useEnv, "env-host": useEnv, "env-merge": useEnv, "http-proxy": useEnv, "unsetenv-all": useEnv,
	"privileged": opens, "cap-add": opens, "security-opt": opens, "pid": opens, "ipc": opens, "uts": opens, "cgroupns": opens,
	"preserve-fds": opens, "preserve-fd": opens, "pod": opens, "pod-id-file": opens,
	"user": sets, "u": sets, "userns": sets, "uidmap": sets, "gidmap": sets, "subuidname": sets, "subgidname": sets,
	"name": sets, "rm": sets, "detach": sets, "d": sets, "detach-keys": sets, "entrypoint": sets, "init-path": sets, "cidfile": sets,
	"interactive": sets, "i": sets, "tty": sets, "t": sets, "attach": sets, "a": sets, "sig-proxy": sets, "replace": sets,
}

const (
	useVolume = "what is mounted has to be checked: use --volume"
	useEnv    = "a value here can be read in the list of processes: use --env"
	opens     = "it would open the sandbox"
	sets      = "credproxy sets it"
)

// shortOptions take a value, so nothing can hide behind them in one word.
const shortOptions = "mhcpwl"

// bwrapOptions are those of bwrap that can only take something away from the sandbox, or hide something in it.
var bwrapOptions = []string{
	"--unshare-net", "--unshare-cgroup", "--disable-userns", "--new-session", "--hostname", "--chdir", "--tmpfs", "--dir", "--size", "--perms",
}

// checkEngineArgs refuses options that credproxy sets itself or that would weaken the sandbox.
func checkEngineArgs(kind Kind, args []string) error {
	for i, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		why := ""
		switch long, isLong := strings.CutPrefix(name, "--"); {
		case kind == Bwrap:
			if strings.HasPrefix(arg, "-") && !slices.Contains(bwrapOptions, arg) {
				why = "not one of " + strings.Join(bwrapOptions, ", ")
			}
		case isLong && long == "":
			why = "it ends the options"
		case isLong && (long == "network" || long == "net"):
			why = sharedNetwork(value)
		case isLong:
			why = ownOptions[long]
		case len(arg) > 1 && arg[0] == '-':
			if why = ownOptions[arg[1:2]]; why == "" && !strings.Contains(shortOptions, arg[1:2]) {
				why = "a short option: write the long one"
			}
		case i > 0 && (args[i-1] == "--network" || args[i-1] == "--net"):
			why = sharedNetwork(arg)
		}
		if strings.ContainsRune(arg, 0) {
			why = "it has a NUL byte in it"
		}
		if why != "" {
			return refused("engine argument "+strconv.Quote(name), why, "")
		}
	}
	return nil
}

// sharedNetwork refuses the network namespace of the host or of another container: abstract Unix sockets live there, and
// on some systems the session bus, with the keyring behind it, is one of them.
func sharedNetwork(value string) string {
	for field := range strings.SplitSeq(value, ",") { // docker takes name=host,alias=…
		field = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(field)), "name=")
		if field != "host" && !strings.HasPrefix(field, "container:") && !strings.HasPrefix(field, "ns:") {
			continue
		}
		return "the host's abstract sockets would be reachable, among them perhaps the keyring's; to reach a service of the host use --add-host=host.docker.internal:host-gateway"
	}
	return ""
}
