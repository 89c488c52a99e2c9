package sandbox

import (
	"slices"
	"strconv"
	"strings"
)

// What an engine argument may be is a list of what is harmless, not of what is harmful: engines get new options, and one of
// docker's mounts the server's own socket.

// arity says what follows an option.
type arity int

const (
	noValue  arity = iota // nothing, or =true and =false
	anyValue              // =VALUE, or VALUE as the next argument
	attached              // =VALUE only: without it some engines take the next argument for the image
)

// passedOn are the options of docker and podman that limit a container, name something in it, or concern its network and its image.
var passedOn = map[string]arity{
	"read-only": noValue, "read-only-tmpfs": noValue, "quiet": noValue, "publish-all": noValue, "oom-kill-disable": noValue,
	"no-healthcheck": noValue, "no-hosts": noValue, "no-hostname": noValue, "passwd": noValue, "disable-content-trust": noValue, "tls-verify": noValue,

	"blkio-weight": anyValue, "cgroup-parent": anyValue, "cgroups": anyValue, "cpu-period": anyValue, "cpu-quota": anyValue, "cpu-rt-period": anyValue,
	"cpu-rt-runtime": anyValue, "cpu-shares": anyValue, "cpus": anyValue, "cpuset-cpus": anyValue, "cpuset-mems": anyValue, "memory": anyValue,
	"memory-reservation": anyValue, "memory-swap": anyValue, "memory-swappiness": anyValue, "oom-score-adj": anyValue, "pids-limit": anyValue,
	"shm-size": anyValue, "stop-signal": anyValue, "stop-timeout": anyValue, "storage-opt": anyValue, "sysctl": anyValue, "timeout": anyValue,
	"tmpfs": anyValue, "ulimit": anyValue,
	"add-host": anyValue, "dns": anyValue, "dns-opt": anyValue, "dns-option": anyValue, "dns-search": anyValue, "domainname": anyValue, "expose": anyValue,
	"hostname": anyValue, "ip": anyValue, "ip6": anyValue, "link-local-ip": anyValue, "mac-address": anyValue, "net": anyValue, "net-alias": anyValue,
	"network": anyValue, "network-alias": anyValue, "publish": anyValue,
	"group-add": anyValue, "label": anyValue, "tz": anyValue, "umask": anyValue, "userns": anyValue,
	"health-cmd": anyValue, "health-interval": anyValue, "health-retries": anyValue, "health-start-period": anyValue, "health-timeout": anyValue,
	"arch": anyValue, "image-volume": anyValue, "os": anyValue, "platform": anyValue, "runtime": anyValue, "variant": anyValue,
	"pull": attached, "systemd": attached,
}

// shortOptions are short names of some of them. All take a value, so nothing can hide behind them in one word.
var shortOptions = map[byte]string{'m': "memory", 'h': "hostname", 'c': "cpu-shares", 'p': "publish", 'l': "label"}

// notPassedOn are options that people may want all the same, with the reason why they cannot have them so.
var notPassedOn = map[string]string{
	"volume": useVolume, "v": useVolume, "mount": useVolume, "volumes-from": useVolume,
	"env": useEnv, "e": useEnv, "env-file": useEnv, "env-host": useEnv, "env-merge": useEnv, "http-proxy": useEnv, "unsetenv": useEnv,
	"unsetenv-all": useEnv, "secret": useEnv,
	"privileged": opens, "cap-add": opens, "security-opt": opens, "seccomp-policy": opens, "pid": opens, "ipc": opens, "uts": opens,
	"cgroupns": opens, "device": opens, "device-cgroup-rule": opens, "gpus": opens, "rootfs": opens, "pod": opens, "pod-id-file": opens,
	"use-api-socket": opens, "preserve-fds": opens, "preserve-fd": opens, "hooks-dir": opens,
	"user": sets, "u": sets, "uidmap": sets, "gidmap": sets, "subuidname": sets, "subgidname": sets, "cap-drop": sets,
	"name": sets, "rm": sets, "detach": sets, "d": sets, "detach-keys": sets, "entrypoint": sets, "init-path": sets, "cidfile": sets,
	"interactive": sets, "i": sets, "tty": sets, "t": sets, "attach": sets, "a": sets, "sig-proxy": sets, "replace": sets, "restart": sets,
	"workdir": sets, "w": sets, "log-driver": sets, "log-opt": sets, "init": sets,
}

const (
	useVolume = "what is mounted has to be checked: use --volume"
	useEnv    = "a value here can be read in the list of processes: use --env"
	opens     = "it would open the sandbox"
	sets      = "credproxy sets it"
	unknown   = "not an option that credproxy passes on"

	argForm     = "the form is --engine-arg --memory=64m: one option of the engine, with its value"
	listOfWords = "docs/commands.md lists those that are"
)

// bwrapOptions are those of bwrap that can only take something away from the sandbox, or hide something in it.
var bwrapOptions = map[string]arity{
	"--unshare-net": noValue, "--unshare-cgroup": noValue, "--disable-userns": noValue, "--new-session": noValue,
	"--hostname": anyValue, "--chdir": anyValue, "--tmpfs": anyValue, "--dir": anyValue, "--size": anyValue, "--perms": anyValue,
}

// checkEngineArgs refuses all but options that cannot weaken the sandbox, in a form in which the engine cannot read anything else
// in them.
func checkEngineArgs(kind Kind, args []string) error {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if strings.ContainsRune(arg, 0) {
			return refused("engine argument", "it has a NUL byte in it", "")
		}
		if !strings.HasPrefix(arg, "-") {
			// Not repeated: it may be a secret in the wrong place.
			return refused("engine argument", "a word that belongs to no option", argForm)
		}
		var option option
		var err error
		if kind == Bwrap {
			option, err = bwrapOption(arg)
		} else {
			option, err = containerOption(arg)
		}
		if err != nil {
			return err
		}
		if option.open { // the value is the next argument
			if i++; i == len(args) {
				return refused("engine argument "+strconv.Quote(arg), "its value is missing", argForm)
			}
			option.value = args[i]
			if strings.ContainsRune(option.value, 0) || kind == Bwrap && strings.HasPrefix(option.value, "-") {
				return refused("engine argument "+strconv.Quote(arg), "not a value for it", argForm)
			}
		}
		if why := checkValue(option); why != "" {
			return refused("engine argument "+strconv.Quote(arg[:len(arg)-len(option.inline)]), why, "")
		}
	}
	return nil
}

// option is one of an engine's, by its long name without dashes.
type option struct {
	name   string
	value  string
	inline string // what of the argument is not to be repeated
	open   bool   // the value is still to come
}

func bwrapOption(arg string) (option, error) {
	takes, ok := bwrapOptions[arg]
	if !ok {
		names := make([]string, 0, len(bwrapOptions))
		for name := range bwrapOptions {
			names = append(names, name)
		}
		slices.Sort(names)
		name, _, _ := strings.Cut(arg, "=")
		return option{}, refused("engine argument "+strconv.Quote(name), "not one of "+strings.Join(names, ", "), "")
	}
	return option{name: arg, open: takes == anyValue}, nil
}

func containerOption(arg string) (option, error) {
	long, isLong := strings.CutPrefix(arg, "--")
	name, text, given := strings.Cut(long, "=")
	what := "engine argument " + strconv.Quote("--"+name)
	switch {
	case arg == "--" || arg == "-":
		return option{}, refused("engine argument "+arg, "it ends the options", "")
	case !isLong:
		what = "engine argument " + strconv.Quote(arg[:2])
		if why := notPassedOn[arg[1:2]]; why != "" {
			return option{}, refused(what, why, "")
		}
		name, known := shortOptions[arg[1]]
		if !known {
			return option{}, refused(what, "a short option", "write the long one; "+listOfWords)
		}
		text := strings.TrimPrefix(arg[2:], "=")
		return option{name: name, value: text, inline: arg[2:], open: len(arg) == 2}, nil
	case strings.ContainsAny(name, " \t\r\n"):
		return option{}, refused("engine argument", "an option and its value in one word, with a space between", argForm)
	}
	takes, ok := passedOn[name]
	switch {
	case !ok && notPassedOn[name] != "":
		return option{}, refused(what, notPassedOn[name], "")
	case !ok:
		return option{}, refused(what, unknown, listOfWords)
	case takes == noValue && given && text != "true" && text != "false":
		return option{}, refused(what, "it takes =true, =false, or nothing", "")
	case takes == attached && !given:
		return option{}, refused(what, "its value is missing", "write it as --"+name+"=VALUE")
	}
	o := option{name: name, value: text, open: takes == anyValue && !given}
	if given {
		o.inline = "=" + text
	}
	return o, nil
}

// checkValue looks at the values of options that could open the sandbox by them, and says why.
func checkValue(o option) string {
	switch o.name {
	case "network", "net":
		return sharedNetwork(o.value)
	case "runtime":
		if strings.ContainsAny(o.value, "/\\") || o.value == "" {
			return "a runtime is named, not given as a path"
		}
	case "cgroup-parent":
		// Podman joins it to a path and makes what is not there, wherever that is.
		if slices.Contains(strings.Split(o.value, "/"), "..") {
			return "it leads out of the control groups"
		}
	}
	return ""
}

// sharedNetwork refuses the network namespace of the host or of another container: abstract Unix sockets live there, and
// on some systems the session bus, with the keyring behind it, is one of them. Docker reads the value as a CSV record, so only
// what needs no quotes is taken.
func sharedNetwork(value string) string {
	if strings.ContainsFunc(value, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("_.:,=/-", r)
	}) {
		return "not the name of a network: letters, digits and _.:,=/- make one"
	}
	for field := range strings.SplitSeq(value, ",") { // docker takes name=host,alias=…
		field = strings.TrimPrefix(strings.ToLower(field), "name=")
		if field == "host" || strings.HasPrefix(field, "container:") || strings.HasPrefix(field, "ns:") {
			return "the host's abstract sockets would be reachable, among them perhaps the keyring's; to reach a service of the host use --add-host=host.docker.internal:host-gateway"
		}
	}
	return ""
}

// checkHealthArgs refuses checks that a container over TLS cannot have: our process has to be alone in it until it has been told
// what it is to know.
func checkHealthArgs(args []string) error {
	for _, arg := range args {
		if name, _, _ := strings.Cut(arg, "="); strings.HasPrefix(name, "--health-") {
			return refused("engine argument "+strconv.Quote(name), "over TLS nothing of the image may run before the sandbox is connected", "leave it out")
		}
	}
	return nil
}
