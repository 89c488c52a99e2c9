package cli

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/credproxy/credproxy/internal/sandbox"
)

// checkBinary returns a line about this program, and its path: "" if nobody knows.
func checkBinary() (check, string) {
	const name = "program"
	path, err := os.Executable()
	if err != nil {
		return warn(name, "sandboxes get this program mounted", "it cannot be found: %v", err), ""
	}
	if loader := sandbox.Interpreter(path); loader != "" {
		return warn(name, "build it with CGO_ENABLED=0", "%s needs %s and may not start inside containers of another system", path, loader), path
	}
	if runtime.GOOS != "linux" {
		return ok(name, "%s", path), path // containers run another, see checkGuests
	}
	return ok(name, "%s, static, runs in any container", path), path
}

// checkEngines has a line for each engine, and one for what of ours runs in its containers. own is the path of this program.
func checkEngines(ctx context.Context, h sandbox.Host, own string) []check {
	var checks []check
	works := false
	statuses := h.Probe(ctx)
	for _, s := range statuses {
		works = works || s.OK
		checks = append(checks, checkEngine(s))
	}
	if own != "" {
		checks = append(checks, checkGuests(statuses, func(e sandbox.Engine) (string, error) { return h.GuestBinary(e, own) }, own)...)
	}
	if !works {
		checks = append(checks, fail("engines", "install one of them: credproxy run needs it (credproxy serve does not)", errors.New("none works")))
	}
	return checks
}

func checkEngine(s sandbox.Status) check {
	name := "engine " + string(s.Kind)
	var notes []string
	for _, n := range []string{s.Version, s.Detail} {
		if n != "" {
			notes = append(notes, n)
		}
	}
	if !s.OK {
		return warn(name, s.Hint, "%s", strings.Join(notes, ", "))
	}
	transport, err := s.Engine.Choose(sandbox.TransportAuto, nil)
	if err != nil {
		return warn(name, "", "%s", strings.Join(append(notes, err.Error()), ", "))
	}
	return ok(name, "%s", strings.Join(append(notes, "transport "+string(transport)), ", "))
}

// checkGuests has a line for each program of ours that containers need: the Linux program for their machine's processor, which on
// Linux is most often this one. Where no engine works yet it takes one of this machine's processor for granted.
func checkGuests(statuses []sandbox.Status, find func(sandbox.Engine) (string, error), own string) []check {
	const name = "guest program"
	var engines []sandbox.Engine
	for _, s := range statuses {
		if s.OK && s.Kind != sandbox.Bwrap {
			engines = append(engines, s.Engine)
		}
	}
	if len(engines) == 0 {
		engines = []sandbox.Engine{{Kind: sandbox.Docker, Arch: runtime.GOARCH}}
	}
	var checks []check
	for _, e := range engines {
		path, err := find(e)
		var c check
		switch {
		case err != nil:
			_, hint := judge(err)
			c = fail(name, hint, err)
		case path == own:
			c = ok(name, "runs inside containers: this program itself")
		default:
			c = ok(name, "runs inside containers: %s", path)
		}
		if !slices.Contains(checks, c) {
			checks = append(checks, c)
		}
	}
	return checks
}
