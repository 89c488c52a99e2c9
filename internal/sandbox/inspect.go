package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// An engine's configuration can add to a container what --engine-arg may not: podman reads containers.conf from four places, and
// answers docker's client, too. So the container is made first, and looked at; it starts only if it is what it was to be.

// inspected is what is needed of what `docker container inspect`, or podman's, prints of one container.
type inspected struct {
	Mounts     []inspectedMount
	HostConfig struct {
		PidMode, IpcMode, UTSMode, NetworkMode string
		CgroupMode                             string // podman only
		Privileged                             bool
		CapAdd, SecurityOpt                    []string
		Devices                                []struct{ PathOnHost string }
		DeviceRequests                         []json.RawMessage // docker only: graphics processors
	}
	EffectiveCaps, BoundingCaps []string // podman only
}

type inspectedMount struct {
	Type, Name, Source, Destination string
	RW                              bool
}

func parseInspected(out string) (inspected, error) {
	var list []inspected
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return inspected{}, err
	}
	if len(list) != 1 {
		return inspected{}, fmt.Errorf("%d containers where one was asked for", len(list))
	}
	return list[0], nil
}

// unnamedVolume is the name of a volume that is made for one container, as an image's VOLUME asks for it.
var unnamedVolume = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })

// differences says in what the container is more open than the plan, or lacks something of it that hides what is below. It is
// empty for the container that was asked for. What a podman service (of this machine's, or in a machine of podman's) mounts by its own
// configuration is not listed; neither are devices of a podman that does not run as root.
func (c inspected) differences(p plan) []string {
	found := c.mountDifferences(p)
	is := func(what, mode string, allowed ...string) {
		if mode != "" && !slices.Contains(allowed, mode) {
			found = append(found, what+" is "+strconv.Quote(mode))
		}
	}
	h := c.HostConfig
	is("its pid namespace", h.PidMode, "private")
	is("its ipc namespace", h.IpcMode, "private", "shareable", "none")
	is("its uts namespace", h.UTSMode, "private")
	is("its cgroup namespace", h.CgroupMode, "private")
	if mode, _, _ := strings.Cut(h.NetworkMode, ":"); mode == "host" || mode == "container" || mode == "ns" {
		found = append(found, "its network is "+strconv.Quote(h.NetworkMode))
	}
	if h.Privileged {
		found = append(found, "it is privileged")
	}
	if caps := slices.Compact(slices.Sorted(slices.Values(slices.Concat(h.CapAdd, c.EffectiveCaps, c.BoundingCaps)))); len(caps) > 0 {
		found = append(found, "it has capabilities: "+strings.Join(caps, ", "))
	}
	for _, d := range h.Devices {
		found = append(found, "it has the device "+d.PathOnHost)
	}
	if len(h.DeviceRequests) > 0 {
		found = append(found, "it has devices")
	}
	limited := false
	for _, o := range h.SecurityOpt {
		limited = limited || strings.HasPrefix(o, "no-new-privileges")
		if strings.Contains(o, "unconfined") || strings.HasPrefix(o, "unmask") {
			found = append(found, "it has the security option "+strconv.Quote(o))
		}
	}
	if !limited {
		found = append(found, "its processes could gain privileges")
	}
	return found
}

func (c inspected) mountDifferences(p plan) []string {
	var found []string
	want := map[string]mount{} // by target
	for _, m := range p.containerMounts() {
		want[m.target] = m
	}
	mounts := slices.Clone(c.Mounts)
	slices.SortFunc(mounts, func(a, b inspectedMount) int { return strings.Compare(a.Destination, b.Destination) })
	for _, m := range mounts {
		target := filepath.Clean(m.Destination)
		w, planned := want[target]
		delete(want, target)
		if m.Type == "tmpfs" && (!planned || w.kind == tmpfs) { // it holds nothing of anybody's
			continue
		}
		what, same := strings.TrimSpace(m.Type+" "+m.Source), false
		switch m.Type {
		case "volume":
			what = "the volume " + m.Name
			same = w.kind == named && m.Name == w.source || !planned && unnamedVolume().MatchString(m.Name)
		case "bind":
			what = m.Source
			// Virtual machines have other names for the directories of the machine that they run on.
			same = w.kind == bind && (p.engine.VM || filepath.Clean(m.Source) == w.source)
		}
		switch {
		case !same || !planned && m.Type != "volume":
			found = append(found, what+" is mounted at "+target)
		case planned && w.readOnly && m.RW:
			found = append(found, target+" can be written")
		}
	}
	for _, target := range slices.Sorted(maps.Keys(want)) {
		if want[target].kind != tmpfs { // not every engine lists those
			found = append(found, "nothing is mounted at "+target)
		}
	}
	return found
}

// inspect compares the container that was made with the plan. The error is an ErrAltered, or says that the engine has no answer.
func (s *Sandbox) inspect(ctx context.Context, p plan) error {
	ctx, cancel := limited(ctx, askLimit)
	defer cancel()
	out, err := s.host.output(ctx, s.engine.Path, "container", "inspect", p.name)
	var c inspected
	if err == nil {
		c, err = parseInspected(out)
	}
	if err != nil {
		return fmt.Errorf("%s container inspect: %w", s.engine.Kind, err)
	}
	found := c.differences(p)
	if len(found) == 0 {
		return nil
	}
	hint := "what answers docker's client adds it by itself: see the configuration of that server"
	if s.engine.Kind == Podman {
		hint = "containers.conf adds it (in /etc/containers, ~/.config/containers or where CONTAINERS_CONF says): take it out there"
		if slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, "its network") }) {
			hint += ", or for the network choose another for this run, such as --engine-arg --network=bridge"
		}
	}
	return &Error{ErrAltered, "the container is not what was asked for, and was not started", printable(strings.Join(found, "; ")), hint}
}

// ErrAltered: the engine has made another container than it was told to.
var ErrAltered = errors.New("altered")
