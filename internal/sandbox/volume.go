package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// volumeInfo is what is needed of what `docker volume inspect`, or podman's, prints of one volume.
type volumeInfo struct {
	Driver  string
	Options map[string]string
}

// behindVolume returns the paths of this machine that a volume of the engine's stands for, as one made with
// `-o type=none -o o=bind -o device=PATH` does. For a volume that does not exist yet there are none. The error is an ErrRefused
// where that cannot be known.
func (h Host) behindVolume(ctx context.Context, e Engine, name string) ([]string, error) {
	ctx, cancel := limited(ctx, askLimit)
	defer cancel()
	out, err := h.output(ctx, e.Path, "volume", "inspect", name)
	if err != nil && strings.Contains(strings.ToLower(err.Error()), "no such volume") {
		return nil, nil
	}
	var list []volumeInfo
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s volume inspect %s: %w", e.Kind, name, err)
	}
	var paths []string
	for _, v := range list {
		some, why := v.behind()
		if why != "" {
			return nil, refused("volume "+name, why, "choose another, or name the directory itself")
		}
		paths = append(paths, some...)
	}
	return paths, nil
}

// behind returns the paths that a volume stands for, or why that cannot be known.
func (v volumeInfo) behind() (paths []string, why string) {
	if v.Driver != "local" && v.Driver != "" { // which knows its own options
		for _, value := range v.Options {
			if filepath.IsAbs(value) {
				paths = append(paths, value)
			}
		}
		slices.Sort(paths)
		return paths, ""
	}
	device := v.Options["device"]
	flags := strings.Split(v.Options["o"], ",")
	isBind := slices.Contains(flags, "bind") || slices.Contains(flags, "rbind") // whatever the type says
	switch kind := v.Options["type"]; {
	case isBind, kind == "", kind == "none", kind == "bind":
		if filepath.IsAbs(device) {
			return []string{device}, ""
		} else if device != "" {
			return nil, "it stands for something that cannot be checked (device)"
		}
		return nil, ""
	case slices.Contains([]string{"tmpfs", "ramfs", "nfs", "nfs4", "cifs", "smb3"}, kind):
		return nil, ""
	}
	return nil, "it stands for a file system of a type that cannot be checked"
}

// volume checks a volume of the engine's as what it stands for, and returns the mounts that cover what is protected in it.
func (g *guard) volume(m mount) ([]mount, error) {
	if g.behind == nil {
		return nil, nil
	}
	paths, err := g.behind(m.source)
	if err != nil {
		return nil, err
	}
	var covers []mount
	for _, path := range paths {
		stands := mount{kind: bind, target: m.target, readOnly: m.readOnly}
		if stands.source, err = filepath.EvalSymlinks(path); err != nil {
			return nil, refused("volume "+m.source, "it stands for "+path+": "+reason(err), "choose another")
		}
		some, err := g.source(stands)
		if e, ok := errors.AsType[*Error](err); ok {
			return nil, refused("volume "+m.source, "it stands for "+path+": "+e.why, mountNone)
		} else if err != nil {
			return nil, err
		}
		covers = append(covers, some...)
	}
	return covers, nil
}
