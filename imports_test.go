package credproxy_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/credproxy/credproxy"

// arrows are the imports that packages of this module may have of each other, as docs/architecture.md draws them. A
// package that is not in here fails the test, so a new room needs its arrows drawn first.
var arrows = map[string][]string{
	"wire":                {},
	"client":              {"wire", "internal/frame"},
	"internal/frame":      {},
	"internal/atomicfile": {},
	"internal/privatedir": {},
	"internal/socket":     {},
	"internal/protect":    {},
	"internal/audit":      {},
	"internal/config":     {},
	"internal/bridge":     {"internal/socket"},
	"internal/guest":      {"wire", "internal/frame", "internal/protect", "internal/bridge"},
	"internal/sandbox":    {"internal/bridge", "internal/guest"},
	"internal/oauthtest":  {},
	"internal/systest":    {}, // and nobody has an arrow to it: it is for tests
	"internal/server":     {"wire", "internal/frame", "internal/audit", "internal/socket"},

	"internal/vault": {
		"wire", "internal/config",
		"internal/vault/internal/secret", "internal/vault/internal/grant", "internal/vault/internal/store",
		"internal/vault/internal/provider", "internal/vault/internal/login",
		"internal/vault/internal/journal", "internal/vault/internal/refresh", "internal/vault/internal/renew",
		"internal/vault/internal/store/backend", "internal/atomicfile", "internal/privatedir",
	},
	"internal/vault/internal/refresh": {
		"internal/vault/internal/secret", "internal/vault/internal/grant", "internal/vault/internal/store",
		"internal/vault/internal/provider", "internal/vault/internal/journal",
	},
	"internal/vault/internal/secret":   {},
	"internal/vault/internal/grant":    {"wire", "internal/vault/internal/secret"},
	"internal/vault/internal/provider": {"wire", "internal/config", "internal/vault/internal/secret", "internal/vault/internal/grant", "internal/vault/internal/provider/…"},
	"internal/vault/internal/login":    {"wire", "internal/vault/internal/secret", "internal/vault/internal/grant", "internal/vault/internal/provider"},
	"internal/vault/internal/renew":    {"internal/vault/internal/store"}, // for store.Item
	"internal/vault/internal/journal":  {"internal/atomicfile", "internal/privatedir", "internal/vault/internal/secret", "internal/vault/internal/store", "internal/vault/internal/store/…"},
	"internal/vault/internal/store":    {"internal/atomicfile", "internal/privatedir", "internal/vault/internal/secret", "internal/vault/internal/store/…"},

	"internal/daemon": {"wire", "internal/audit", "internal/bridge", "internal/config", "internal/privatedir", "internal/server", "internal/socket", "internal/vault"},
	".":               {"client", "wire", "internal/config", "internal/daemon", "internal/vault"},
	"internal/cli": {
		".", "client", "wire", "internal/audit", "internal/config", "internal/daemon", "internal/oauthtest",
		"internal/privatedir", "internal/protect", "internal/sandbox", "internal/socket", "internal/vault",
	},
	"cmd/credproxy": {"internal/cli"},
	"test/bench":    {"wire", "internal/frame", "internal/oauthtest"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
}

func listPackages(t *testing.T, args ...string) []goPackage {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,Standard"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p goPackage
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(path, module+"/")
}

func TestImportsPointOneWay(t *testing.T) {
	const (
		storeRooms = "internal/vault/internal/store"
		vendors    = "internal/vault/internal/provider"
	)
	seen := 0
	for _, goos := range []string{"linux", "darwin"} {
		t.Setenv("GOOS", goos)
		t.Setenv("CGO_ENABLED", "0")
		for _, p := range listPackages(t, "./...") {
			seen++
			from := short(p.ImportPath)
			allowed, drawn := arrows[from]
			switch {
			case strings.HasPrefix(from, storeRooms+"/"):
				allowed, drawn = append(arrows[storeRooms], storeRooms), true
			case strings.HasPrefix(from, vendors+"/"): // a vendor knows the shape of a dialect, and no other vendor
				allowed, drawn = []string{vendors + "/dialect"}, true
			case strings.HasSuffix(from, "test"), strings.HasPrefix(from, "test/"):
				continue // test support may reach what it tests
			}
			if !drawn {
				t.Errorf("%s: no arrows are drawn for this package in imports_test.go", from)
				continue
			}
			for _, imported := range p.Imports {
				if imported != module && !strings.HasPrefix(imported, module+"/") {
					continue
				}
				to := short(imported)
				below := func(rooms string) bool {
					return slices.Contains(allowed, rooms+"/…") && strings.HasPrefix(to, rooms+"/")
				}
				if !slices.Contains(allowed, to) && !below(storeRooms) && !below(vendors) {
					t.Errorf("%s (%s) imports %s: no such arrow", from, goos, to)
				}
			}
		}
	}
	if seen < 2*len(arrows) {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// What reaches the socket must not reach what holds a long-lived secret, not even through a third package.
func TestSocketSideCannotReachTheVault(t *testing.T) {
	for _, p := range listPackages(t, "./wire/...", "./client/...", "./internal/server/...", "./internal/frame/...") {
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, module+"/internal/vault") {
				t.Errorf("%s reaches %s", short(p.ImportPath), short(dep))
			}
		}
	}
}

// Importers of the public packages inherit next to nothing: golang.org/x/sync/semaphore has no dependencies of its own.
func TestPublicPackagesHaveFewDependencies(t *testing.T) {
	for _, p := range listPackages(t, "./wire", "./client") {
		for _, dep := range p.Deps {
			first, _, _ := strings.Cut(dep, "/")
			if strings.Contains(first, ".") && !strings.HasPrefix(dep, module+"/") && dep != "golang.org/x/sync/semaphore" {
				t.Errorf("%s depends on %s", short(p.ImportPath), dep)
			}
		}
	}
}
