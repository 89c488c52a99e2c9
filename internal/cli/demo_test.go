package cli

import (
	"testing"

	"github.com/credproxy/credproxy/internal/sandbox"
)

func TestEngineHint(t *testing.T) {
	docker, podman := triedEngine{sandbox.Docker, false, "install docker"}, triedEngine{sandbox.Podman, false, "install podman"}
	bwrap := triedEngine{sandbox.Bwrap, false, "install bubblewrap"}
	stopped, asleep := triedEngine{sandbox.Docker, true, "start docker"}, triedEngine{sandbox.Podman, true, "start its machine"}
	for name, c := range map[string]struct {
		goos  string
		want  sandbox.Kind
		tried []triedEngine
		hint  string
	}{
		"nothing is there":            {"linux", sandbox.Auto, []triedEngine{docker, podman, bwrap}, "install bubblewrap"},
		"a server is stopped":         {"linux", sandbox.Auto, []triedEngine{stopped, podman, bwrap}, "start docker; or install bubblewrap"},
		"no user namespaces":          {"linux", sandbox.Auto, []triedEngine{docker, podman, {sandbox.Bwrap, true, "allow user namespaces"}}, "allow user namespaces"},
		"nobody knows":                {"linux", sandbox.Auto, []triedEngine{{sandbox.Docker, true, ""}, podman, bwrap}, "install bubblewrap"},
		"the one that was asked for":  {"linux", sandbox.Podman, []triedEngine{podman}, "install podman"},
		"a Mac without engines":       {"darwin", sandbox.Auto, []triedEngine{docker, podman}, "install docker; or install podman"},
		"a Mac, docker stopped":       {"darwin", sandbox.Auto, []triedEngine{stopped, podman}, "start docker"},
		"a Mac, both stopped":         {"darwin", sandbox.Auto, []triedEngine{stopped, asleep}, "start docker; or start its machine"},
		"a Mac, bwrap was asked for":  {"darwin", sandbox.Bwrap, []triedEngine{{sandbox.Bwrap, false, "use docker or podman"}}, "use docker or podman"},
		"a Mac, docker was asked for": {"darwin", sandbox.Docker, []triedEngine{docker}, "install docker"},
	} {
		if got := engineHint(c.goos, c.want, c.tried); got != c.hint {
			t.Errorf("%s: %q, want %q", name, got, c.hint)
		}
	}
}
