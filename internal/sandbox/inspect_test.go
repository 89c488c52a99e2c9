package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What podman 4.3 and docker 28 with a server 20.10 print of a container as credproxy makes it, shortened.
const (
	podmanInspected = `[{"Mounts":[
{"Type":"bind","Name":"","Source":"/p","Destination":"/p","RW":true},
{"Type":"volume","Name":"cache","Source":"/var/lib/containers/storage/volumes/cache/_data","Destination":"/cache","RW":true},
{"Type":"bind","Source":"/covers/0","Destination":"/p/home","RW":false},
{"Type":"volume","Name":"af02e7192bb342a5a9f2c4620aceac13574851fa3184bd4d75b59aa0b30f07a9","Source":"/x","Destination":"/image","RW":true},
{"Type":"bind","Source":"/s/one.sock","Destination":"/s/one.sock","RW":true},
{"Type":"bind","Source":"/opt/credproxy","Destination":"/usr/local/bin/credproxy","RW":false}],
"EffectiveCaps":null,"BoundingCaps":[],
"HostConfig":{"PidMode":"private","NetworkMode":"slirp4netns","IpcMode":"private","UTSMode":"private","CgroupMode":"private","UsernsMode":"private",
"CapAdd":[],"Devices":[],"Privileged":false,"SecurityOpt":["no-new-privileges"]}}]`
	dockerInspected = `[{"Mounts":[
{"Type":"volume","Name":"cache","Source":"/var/lib/docker/volumes/cache/_data","Destination":"/cache","Driver":"local","Mode":"z","RW":true},
{"Type":"bind","Source":"/covers/0","Destination":"/p/home","RW":false},
{"Type":"bind","Source":"/p","Destination":"/p","RW":true},
{"Type":"tmpfs","Source":"","Destination":"/tt","RW":true},
{"Type":"bind","Source":"/s/one.sock","Destination":"/s/one.sock","RW":true},
{"Type":"bind","Source":"/opt/credproxy","Destination":"/usr/local/bin/credproxy","RW":false}],
"HostConfig":{"NetworkMode":"default","CapAdd":null,"CapDrop":["ALL"],"CgroupnsMode":"host","IpcMode":"private","PidMode":"","UTSMode":"",
"Privileged":false,"SecurityOpt":["no-new-privileges","label=disable"],"Devices":[],"DeviceRequests":null}}]`
)

func TestInspected(t *testing.T) {
	p := plan{socket: "/s/one.sock", binary: "/opt/credproxy", mounts: []mount{
		{source: "/p", target: "/p"}, {source: "/covers/0", target: "/p/home", readOnly: true}, {kind: named, source: "cache", target: "/cache"},
	}}
	overTLS, inVM := p, p
	overTLS.transport, inVM.engine.VM = TransportTLS, true
	for _, c := range []struct {
		base     string
		plan     plan
		old, new string
		want     string
	}{
		{podmanInspected, p, "", "", ""},
		{dockerInspected, p, "", "", ""},
		{podmanInspected, p, `"Mounts":[`, `"Mounts":[{"Type":"bind","Source":"/etc","Destination":"/hostetc"},`, "/etc is mounted at /hostetc"},
		{podmanInspected, p, `"Mounts":[`, `"Mounts":[{"Type":"volume","Name":"mine","Destination":"/v"},`, "the volume mine is mounted at /v"},
		{podmanInspected, p, `"Mounts":[`, `"Mounts":[{"Type":"image","Source":"x","Destination":"/v"},`, "image x is mounted at /v"},
		{podmanInspected, p, `"Source":"/covers/0"`, `"Source":"/p/home"`, "/p/home is mounted at /p/home"},
		{podmanInspected, inVM, `"Source":"/p"`, `"Source":"/host_mnt/p"`, ""},
		{podmanInspected, inVM, `"Mounts":[`, `"Mounts":[{"Type":"bind","Source":"/etc","Destination":"/hostetc"},`, "/etc is mounted at /hostetc"},
		{podmanInspected, p, `"Name":"cache"`, `"Name":"other"`, "the volume other is mounted at /cache"},
		{podmanInspected, p, `"Destination":"/p/home","RW":false`, `"Destination":"/p/home","RW":true`, "/p/home can be written"},
		{dockerInspected, p, `"Destination":"/p/home"`, `"Destination":"/elsewhere"`, "/covers/0 is mounted at /elsewhere; nothing is mounted at /p/home"},
		{podmanInspected, overTLS, "", "", "/s/one.sock is mounted at /s/one.sock"},
		{podmanInspected, p, `"PidMode":"private"`, `"PidMode":"host"`, `its pid namespace is "host"`},
		{podmanInspected, p, `"IpcMode":"private"`, `"IpcMode":"container:x"`, `its ipc namespace is "container:x"`},
		{podmanInspected, p, `"IpcMode":"private"`, `"IpcMode":"shareable"`, ""},
		{podmanInspected, p, `"UTSMode":"private"`, `"UTSMode":"host"`, `its uts namespace is "host"`},
		{podmanInspected, p, `"CgroupMode":"private"`, `"CgroupMode":"host"`, `its cgroup namespace is "host"`},
		{podmanInspected, p, `"slirp4netns"`, `"host"`, `its network is "host"`},
		{podmanInspected, p, `"slirp4netns"`, `"ns:/proc/1/ns/net"`, `its network is "ns:/proc/1/ns/net"`},
		{podmanInspected, p, `"slirp4netns"`, `"my-host"`, ""},
		{dockerInspected, p, `"Privileged":false`, `"Privileged":true`, "it is privileged"},
		{podmanInspected, p, `"CapAdd":[]`, `"CapAdd":["CAP_SYS_ADMIN"]`, "it has capabilities: CAP_SYS_ADMIN"},
		{podmanInspected, p, `"EffectiveCaps":null`, `"EffectiveCaps":["CAP_B","CAP_A"]`, "it has capabilities: CAP_A, CAP_B"},
		{podmanInspected, p, `"BoundingCaps":[]`, `"BoundingCaps":["CAP_A"]`, "it has capabilities: CAP_A"},
		{podmanInspected, p, `"Devices":[]`, `"Devices":[{"PathOnHost":"/dev/kvm"}]`, "it has the device /dev/kvm"},
		{dockerInspected, p, `"DeviceRequests":null`, `"DeviceRequests":[{"Driver":"nvidia"}]`, "it has devices"},
		{podmanInspected, p, `["no-new-privileges"]`, `[]`, "its processes could gain privileges"},
		{podmanInspected, p, `["no-new-privileges"]`, `["no-new-privileges","seccomp=unconfined"]`, `it has the security option "seccomp=unconfined"`},
	} {
		text := strings.Replace(c.base, c.old, c.new, 1)
		if text == c.base && c.old != "" {
			t.Fatalf("%s is not in it", c.old)
		}
		got, err := parseInspected(text)
		if err != nil {
			t.Fatal(err)
		}
		if found := strings.Join(got.differences(c.plan), "; "); found != c.want {
			t.Errorf("with %s: %s, want %s", c.new, found, c.want)
		}
	}
	for _, text := range []string{"", "[]", "{}", "[{},{}]"} {
		if _, err := parseInspected(text); err == nil {
			t.Errorf("%q is taken for a container", text)
		}
	}
}

func TestBehindVolume(t *testing.T) {
	for _, c := range []struct {
		driver, options string
		want            string // paths, or a part of the reason
		unknown         bool
	}{
		{"local", `null`, "", false},
		{"local", `{"o":"uid=1000","size":"1g"}`, "", false},
		{"local", `{"type":"none","o":"bind","device":"/home/u"}`, "/home/u", false},
		{"", `{"type":"tmpfs","o":"rw,rbind","device":"/home/u"}`, "/home/u", false},
		{"local", `{"device":"/dev/sda1"}`, "/dev/sda1", false},
		{"local", `{"type":"none","o":"bind","device":"home/u"}`, "cannot be checked", true},
		{"local", `{"type":"tmpfs","device":"tmpfs","o":"size=1m"}`, "", false},
		{"local", `{"type":"nfs","device":":/export","o":"addr=192.0.2.1"}`, "", false},
		{"local", `{"type":"cifs","device":"//server/share"}`, "", false},
		{"local", `{"type":"overlay","device":"overlay","o":"lowerdir=/root"}`, "cannot be checked", true},
		{"local", `{"type":"ext4","device":"/dev/sda1"}`, "cannot be checked", true},
		{"local-persist", `{"mountpoint":"/home/u","x":"y"}`, "/home/u", false},
	} {
		v := volumeInfo{Driver: c.driver}
		if err := json.Unmarshal([]byte(c.options), &v.Options); err != nil {
			t.Fatal(err)
		}
		paths, why := v.behind()
		if c.unknown && !strings.Contains(why, c.want) || !c.unknown && (why != "" || strings.Join(paths, " ") != c.want) {
			t.Errorf("%s %s: %q, %q", c.driver, c.options, paths, why)
		}
	}
}

func TestGuardVolume(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(at("home/project"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("home"), at("link")); err != nil {
		t.Fatal(err)
	}
	for stands, want := range map[string]string{
		at("home"):              "volume v: it stands for " + at("home") + ": it is your home directory",
		at("link"):              "volume v: it stands for " + at("link") + ": it is your home directory",
		at("nowhere"):           "volume v: it stands for " + at("nowhere") + ": no such file or directory",
		at("home/project"):      "",
		at("home/project/../."): "volume v: ",
	} {
		g := guard{home: at("home"), behind: func(string) ([]string, error) { return []string{stands}, nil }}
		_, err := g.mounts([]Volume{{Source: "v", Target: "/v"}})
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", stands, err, want)
		}
	}
	g := guard{dirs: []string{at("home/project/own")}, behind: func(string) ([]string, error) { return []string{at("home/project")}, nil }}
	if got, err := g.mounts([]Volume{{Source: "v", Target: "/v"}}); err != nil || len(got) != 2 || got[1] != (mount{kind: tmpfs, target: "/v/own"}) {
		t.Errorf("a directory of ours in it: %v, %v", got, err)
	}
}
