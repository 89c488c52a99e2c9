package sandbox

import (
	"path/filepath"
	"slices"
	"strings"
)

// EnvVar is one variable of the command's environment. Its value may be a secret: it never gets into an argument list.
type EnvVar struct{ Name, Value string }

// ParseEnv reads the values of --env: NAME=VALUE, or NAME alone, which takes the value from environ and is left out when it
// is not there. The last of two with one name counts.
func ParseEnv(values, environ []string) ([]EnvVar, error) {
	var vars []EnvVar
	for _, v := range values {
		name, value, given := strings.Cut(v, "=")
		if !given {
			var ok bool
			if value, ok = lookup(environ, name); !ok {
				if err := checkEnv([]EnvVar{{name, ""}}); err != nil {
					return nil, err
				}
				continue
			}
		}
		vars = slices.DeleteFunc(vars, func(e EnvVar) bool { return e.Name == name })
		vars = append(vars, EnvVar{name, value})
	}
	return vars, checkEnv(vars)
}

// checkEnv never puts a value into its error, nor a name that may be one.
func checkEnv(vars []EnvVar) error {
	for _, v := range vars {
		if !isEnvName(v.Name) {
			return refused("env", "not a variable's name", "write NAME=VALUE; names are letters, digits and _")
		}
		if v.Name == SocketEnv {
			return refused("env "+SocketEnv, "credproxy sets it", "leave it out")
		}
		if strings.ContainsRune(v.Value, 0) {
			return refused("env "+v.Name, "its value has a NUL byte in it", "")
		}
		if engineOwned(v.Name) && strings.ContainsAny(v.Value, "\r\n") {
			return refused("env "+v.Name, "its value has more than one line", "")
		}
	}
	return nil
}

func isEnvName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func lookup(environ []string, name string) (string, bool) {
	for _, e := range slices.Backward(environ) {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// engineNames are the variables that docker and podman need to find their configuration, their server and their helpers; with
// proxyNames they download images.
var engineNames = []string{
	"HOME", "USER", "LOGNAME", "TERM", "LANG", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"REGISTRY_AUTH_FILE", "STORAGE_DRIVER", "STORAGE_OPTS",
}

// proxyNames may hold a password. Docker and podman both hand them on to containers unless told not to.
var proxyNames = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy",
}

// loaderNames change how any Go program runs; with the prefixes LD_, GLIBC_ and MALLOC_, any program at all.
var loaderNames = []string{"PATH", "GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOGC", "GOMEMLIMIT"}

// innerNames are what podman tells its own processes, or is told by systemd; the prefixes _CONTAINERS_ and _CONMON are, too.
var innerNames = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "INVOCATION_ID"}

var enginePrefixes = []string{"XDG_", "DOCKER_", "CONTAINER_", "CONTAINERS_", "PODMAN_", "BUILDAH_"}

// engineOwned reports whether the engine's client program itself would obey a variable of this name. Such a variable of the
// command's reaches the engine in a file that only it can read, all others in its environment.
func engineOwned(name string) bool {
	return slices.Contains(slices.Concat(loaderNames, engineNames, proxyNames, innerNames), name) ||
		slices.ContainsFunc(append([]string{"LD_", "GLIBC_", "MALLOC_", "_CONTAINERS_", "_CONMON"}, enginePrefixes...),
			func(p string) bool { return strings.HasPrefix(name, p) })
}

// engineEnv is the environment of an engine's client program: what it needs and no more. PATH holds only what Host.path
// lets through, because podman and docker find helpers of their own there. PODMAN_USERNS would change who the command is behind
// the back of Engine.users.
func (h Host) engineEnv() []string {
	var env []string
	for _, e := range h.Environ {
		name, _, _ := strings.Cut(e, "=")
		if name != "PATH" && name != "PODMAN_USERNS" && (slices.Contains(engineNames, name) || slices.Contains(proxyNames, name) ||
			slices.ContainsFunc(enginePrefixes, func(p string) bool { return strings.HasPrefix(name, p) })) {
			env = append(env, e)
		}
	}
	return append(env, "PATH="+strings.Join(h.path(), string(filepath.ListSeparator)))
}

// makerEnv is the environment of the client that makes a container. Docker's would take the value of a variable that is only named
// from there; it downloads nothing itself.
func (h Host) makerEnv(kind Kind, environment []EnvVar) []string {
	env := h.engineEnv()
	if kind == Docker {
		env = slices.DeleteFunc(env, func(e string) bool {
			name, _, _ := strings.Cut(e, "=")
			return slices.Contains(proxyNames, name)
		})
	}
	for _, v := range environment {
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}

// splitEnv divides the command's variables into those that the engine's client gets in its environment and those that it
// reads from a file, in the form of --env-file. Docker prefers its configuration for proxies to a file, and not to its environment.
func splitEnv(kind Kind, vars []EnvVar) (environment []EnvVar, file string) {
	var b strings.Builder
	for _, v := range vars {
		if engineOwned(v.Name) && (kind != Docker || !slices.Contains(proxyNames, v.Name)) {
			b.WriteString(v.Name + "=" + v.Value + "\n")
		} else {
			environment = append(environment, v)
		}
	}
	return environment, b.String()
}

// bwrapEnv is the whole environment of a command in bwrap.
func bwrapEnv(environ []string, home, socket string, user []EnvVar) []EnvVar {
	path, ok := lookup(environ, "PATH")
	if !ok || path == "" {
		path = "/usr/local/bin:/usr/bin:/bin"
	}
	vars := []EnvVar{{"HOME", home}, {"PATH", path}, {"TMPDIR", "/tmp"}, {SocketEnv, socket}}
	for _, name := range []string{"TERM", "LANG", "USER", "LOGNAME"} {
		if v, ok := lookup(environ, name); ok {
			vars = append(vars, EnvVar{name, v})
		}
	}
	for _, v := range user {
		vars = slices.DeleteFunc(vars, func(e EnvVar) bool { return e.Name == v.Name })
		vars = append(vars, v)
	}
	for i := range vars {
		if vars[i].Name == "PATH" {
			vars[i].Value = filepath.Dir(bwrapBinary) + ":" + vars[i].Value
		}
	}
	return vars
}

// containerEnv is what is added to an image's own environment. PATH is the image's unless the user gives one. Ours is appended to it
// and not put first: no other name may start to mean another program because credproxy is there.
func containerEnv(kind Kind, user []EnvVar, image []string) []EnvVar {
	vars := slices.DeleteFunc(slices.Clone(user), func(v EnvVar) bool { return v.Name == "PATH" })
	imagePath, _ := lookup(image, "PATH")
	path := imagePath
	for _, v := range user {
		if v.Name == "PATH" {
			path = v.Value
		}
	}
	if path != "" && !slices.Contains(filepath.SplitList(path), containerBin) {
		path += ":" + containerBin
	}
	if path != imagePath {
		vars = append(vars, EnvVar{"PATH", path})
	}
	if kind == Docker { // see containerArgs, which would take these away
		for _, name := range proxyNames {
			value, ok := lookup(image, name)
			if ok && !slices.ContainsFunc(user, func(v EnvVar) bool { return v.Name == name }) {
				vars = append(vars, EnvVar{name, value})
			}
		}
	}
	return vars
}
