package sandbox

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

// Transport is how the socket gets inside. A program inside never knows which it is.
type Transport string

// The transports.
const (
	TransportAuto Transport = "auto" // what the engine needs
	TransportUnix Transport = "unix" // the host's own socket, mounted
	TransportTLS  Transport = "tls"  // a socket that our program opens inside, carried over TLS; see package bridge
)

const hintTLS = "use --transport tls, or leave --transport out"

// Choose returns the transport for a run with these engine arguments: the one that is wanted, or with TransportAuto the mounted
// socket, unless that would lead nowhere or not know us. The error is an ErrRefused that says why the wanted one cannot be
// had.
func (e Engine) Choose(want Transport, engineArgs []string) (Transport, error) {
	if !slices.Contains([]Transport{TransportAuto, TransportUnix, TransportTLS}, want) {
		return "", refused("transport", "unknown", "there are auto, unix and tls") // not repeated: it may be a secret in the wrong place
	}
	if e.Kind == Bwrap {
		if want == TransportTLS {
			return "", refused("transport tls", "bwrap's sandbox shares this machine's file system, and with it the socket", "leave --transport out, or choose docker or podman, which need an image (--image)")
		}
		return TransportUnix, nil
	}
	users, err := e.users(engineArgs, 0, 0)
	if err != nil {
		return "", err
	}
	why := users.foreign
	if e.VM {
		why = e.name() + " runs containers in a virtual machine, into which no Unix socket leads"
	}
	switch {
	case want == TransportTLS, want == TransportAuto && why != "":
		return TransportTLS, nil
	case why != "":
		return "", refused("transport unix", why, hintTLS)
	}
	return TransportUnix, nil
}

func (e Engine) name() string {
	if e.Product != "" {
		return e.Product
	}
	return string(e.Kind)
}

// users says who the command is, inside and outside.
type users struct {
	uid, gid int    // inside
	userns   string // the engine's option that makes it so; empty: its own default, or the caller has given one
	foreign  string // why what runs inside is somebody else to this machine; empty: it is us
}

// users returns who the command of a container with these engine arguments is, for a host user with this UID and GID. The error
// is an ErrRefused.
func (e Engine) users(engineArgs []string, uid, gid int) (users, error) {
	as := users{uid: uid, gid: gid}
	mode, given := "", false
	for _, mode = range userNamespaces(engineArgs) {
		given = true
		if why := e.refusedUserns(mode); why != "" {
			return as, refused("engine argument --userns="+strconv.Quote(mode), why, "")
		}
	}
	kind, options, _ := strings.Cut(mode, ":")
	switch {
	case e.Kind == Docker && e.Rootless, e.Kind == Podman && e.Rootless && kind == "host":
		as.uid, as.gid = 0, 0 // which is us, outside
	case e.Kind == Docker && e.Remapped && !given:
		as.foreign = "the docker server maps the users of containers to others (userns-remap)"
	case kind == "auto" || kind == "nomap":
		as.foreign = "--userns=" + kind + " maps the users of the container to others"
	case kind == "keep-id":
		as.uid, as.gid, _ = keptID(options, uid, gid)
	case e.Kind == Podman && e.Rootless && e.VM:
		// Without the numbers it would keep those of the machine's user, who is not us.
		as.userns = "keep-id:uid=" + strconv.Itoa(uid) + ",gid=" + strconv.Itoa(gid)
	case e.Kind == Podman && e.Rootless:
		as.userns = "keep-id"
	}
	return as, nil
}

// refusedUserns says why this engine cannot have this kind of user namespace here, or nothing.
func (e Engine) refusedUserns(mode string) string {
	if e.Kind == Docker {
		if mode == "host" {
			return ""
		}
		return "docker knows host only"
	}
	kind, options, hasOptions := strings.Cut(mode, ":")
	switch {
	case kind == "auto", mode == "host":
		return ""
	case (kind == "keep-id" || mode == "nomap") && !e.Rootless:
		return "only for podman that does not run as root"
	case mode == "nomap":
		return ""
	case kind == "keep-id":
		if _, _, ok := keptID(options, 0, 0); ok || !hasOptions {
			return ""
		}
		return "its options are uid=NUMBER and gid=NUMBER"
	}
	return "there are keep-id, host, auto and nomap"
}

// keptID reads the options of keep-id: as which UID and GID its user appears inside.
func keptID(options string, uid, gid int) (int, int, bool) {
	if options == "" {
		return uid, gid, false
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		n, err := strconv.ParseUint(value, 10, 31)
		switch {
		case err != nil:
			return 0, 0, false
		case name == "uid":
			uid = int(n)
		case name == "gid":
			gid = int(n)
		default:
			return 0, 0, false
		}
	}
	return uid, gid, true
}

// userNamespaces returns the values of --userns.
func userNamespaces(args []string) []string {
	var modes []string
	for i, arg := range args {
		if mode, ok := strings.CutPrefix(arg, "--userns="); ok {
			modes = append(modes, mode)
		} else if arg == "--userns" && i+1 < len(args) {
			modes = append(modes, args[i+1])
		}
	}
	return modes
}

// addresses returns names under which the sandbox may reach a port of this machine's loopback. Where there is none, and where
// none answers, what it says goes through the engine.
func (e Engine) addresses(engineArgs []string, port int) []string {
	var hosts []string
	if e.VM {
		hosts = append(hosts, e.HostNames...)
	}
	for i, arg := range engineArgs {
		name, value, _ := strings.Cut(arg, "=")
		if i > 0 && (engineArgs[i-1] == "--network" || engineArgs[i-1] == "--net") {
			value = arg
		} else if name != "--network" && name != "--net" {
			continue
		}
		if options, ok := strings.CutPrefix(value, "slirp4netns:"); ok && slices.Contains(strings.Split(options, ","), "allow_host_loopback=true") {
			hosts = append(hosts, "10.0.2.2")
		}
	}
	for i, host := range hosts {
		hosts[i] = net.JoinHostPort(host, strconv.Itoa(port))
	}
	return hosts
}
