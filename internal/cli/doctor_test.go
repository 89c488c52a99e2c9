package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/sandbox"
	"github.com/credproxy/credproxy/internal/vault"
)

func TestCheckLogin(t *testing.T) {
	const none = "none" // no line
	for name, c := range map[string]struct {
		state           vault.State
		outcome, detail string
		store           error
		text, hint      string
	}{
		"well":                     {vault.StateOK, "ok", "", nil, none, ""},
		"expired":                  {vault.StateExpired, "", "", nil, none, ""},
		"no refresh token":         {vault.StateOK, "", "no refresh token: a new login is needed when it expires", nil, none, ""},
		"failed":                   {vault.StateOK, "failed", "the last refresh failed (HTTP 503)", nil, "the last refresh failed (HTTP 503)", "try it again: credproxy auth refresh acme"},
		"failed, nobody knows how": {vault.StateExpired, "failed", "", nil, "the last refresh failed", "try it again: "},
		"needs a login":            {vault.StateLoginNeeded, "refused", "no longer good", nil, "no longer good", "log in: "},
		"needs a store":            {vault.StateLoginNeeded, "failed", "cannot be read", errors.New("locked"), none, ""},
		"unsaved":                  {vault.StateUnsaved, "ok", "the store refuses it", errors.New("full"), "the store refuses it", "mend the store: "},
		"too large":                {vault.StateUnsaved, "ok", "the newest token is too large for the store", nil, "the newest token is too large for the store", ""},
		"client":                   {vault.StateExpired, "refused", "the provider does not accept this client: check …", nil, "the provider does not accept this client", "mend client_id, or the key that client_secret_key names, in [providers.acme] of /c.toml"},
		"unreadable":               {vault.StateOK, "", "the recovery files cannot be read, and …", nil, "the recovery files cannot", "make room"},
	} {
		s := vault.LoginStatus{Provider: "acme", Bucket: "default", State: c.state, LastOutcome: c.outcome, Detail: c.detail}
		got, ok := checkLogin(s, "/c.toml", c.store)
		if ok != (c.text != none) || ok && (!strings.HasPrefix(got.Detail, c.text) || !strings.HasPrefix(got.Hint, c.hint) || c.hint == "" && got.Hint != "" || got.Result != resultWarn) {
			t.Errorf("%s: %v %+v", name, ok, got)
		}
	}
}

func TestHintOfStore(t *testing.T) {
	c := config.Default()
	for want, err := range map[string]error{
		"make room on its disk; ": syscall.ENOSPC, "make room": syscall.EDQUOT, "mount it writable; ": syscall.EROFS,
		"the files and their key must be this user's own": syscall.EACCES,
	} {
		if got := hintOfStore("file", c, fmt.Errorf("file store: %w", err)); !strings.HasPrefix(got, want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

func TestHintForAnUnknownProvider(t *testing.T) {
	for _, c := range []struct {
		name       string
		configured []string
		want       string
	}{
		{"nope", nil, "no provider is configured: describe it in [providers.nope] of /c.toml"},
		{"nope", []string{"acme", "globex"}, "configured: acme, globex (credproxy providers says more); or describe it in [providers.nope] of /c.toml"},
		{"nope", []string{"acme", "globex", "initech", "umbrella"}, "4 providers are configured, and none is called so: credproxy providers lists them; or describe"},
		{"acne", []string{"acme", "globex"}, "did you mean acme? credproxy auth login acme"},
		{"antropic", []string{"acme"}, "did you mean anthropic? credproxy auth login anthropic"},
		{strings.Repeat("x", 40), nil, "no provider is configured: describe it in [providers.NAME] of /c.toml"},
	} {
		described := &config.Config{Path: "/c.toml", Providers: map[string]*config.Provider{}}
		for _, name := range c.configured {
			described.Providers[name] = &config.Provider{Name: name}
		}
		if got := unknownHint(c.name, described); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s of %q: %q", c.name, c.configured, got)
		}
	}
}

func TestCheckEngine(t *testing.T) {
	for _, c := range []struct {
		s    sandbox.Status
		want check
	}{
		{sandbox.Status{Kind: sandbox.Docker, OK: true, Version: "28.2.2", Engine: sandbox.Engine{Kind: sandbox.Docker}}, ok("engine docker", "28.2.2, transport unix")},
		{
			sandbox.Status{Kind: sandbox.Docker, OK: true, Version: "28.3.2", Detail: "Docker Desktop, in a virtual machine", Engine: sandbox.Engine{Kind: sandbox.Docker, VM: true}},
			ok("engine docker", "28.3.2, Docker Desktop, in a virtual machine, transport tls"),
		},
		{
			sandbox.Status{Kind: sandbox.Docker, OK: true, Version: "28.3.2", Detail: "users remapped", Engine: sandbox.Engine{Kind: sandbox.Docker, Remapped: true}},
			ok("engine docker", "28.3.2, users remapped, transport tls"),
		},
		{
			sandbox.Status{Kind: sandbox.Podman, OK: true, Version: "4.3.1", Detail: "rootless", Engine: sandbox.Engine{Kind: sandbox.Podman, Rootless: true}},
			ok("engine podman", "4.3.1, rootless, transport unix"),
		},
		{
			sandbox.Status{Kind: sandbox.Podman, Detail: "it is on another machine (ssh://x)", Hint: "unset CONTAINER_HOST"},
			warn("engine podman", "unset CONTAINER_HOST", "it is on another machine (ssh://x)"),
		},
		{
			sandbox.Status{Kind: sandbox.Podman, Version: "4.3.1", Detail: "no subordinate UIDs are given to you", Hint: "as root: …"},
			warn("engine podman", "as root: …", "4.3.1, no subordinate UIDs are given to you"),
		},
	} {
		if got := checkEngine(c.s); got != c.want {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
	}
}

func TestCheckGuests(t *testing.T) {
	status := func(k sandbox.Kind, arch string) sandbox.Status {
		return sandbox.Status{Kind: k, OK: true, Engine: sandbox.Engine{Kind: k, Arch: arch}}
	}
	missing := errors.New("credproxy-linux-arm64: missing")
	find := func(e sandbox.Engine) (string, error) {
		switch e.Arch {
		case "arm64":
			return "", missing
		case "riscv64":
			return "/x/credproxy-linux-riscv64", nil
		}
		return "/x/credproxy", nil
	}
	itself, other := ok("guest program", "runs inside containers: this program itself"), ok("guest program", "runs inside containers: /x/credproxy-linux-riscv64")
	for name, c := range map[string]struct {
		statuses []sandbox.Status
		want     []check
	}{
		"one line for both":  {[]sandbox.Status{status(sandbox.Docker, "amd64"), status(sandbox.Podman, "amd64")}, []check{itself}},
		"bwrap has no own":   {[]sandbox.Status{status(sandbox.Podman, "amd64"), status(sandbox.Bwrap, "arm64")}, []check{itself}},
		"two machines":       {[]sandbox.Status{status(sandbox.Docker, "amd64"), status(sandbox.Podman, "riscv64")}, []check{itself, other}},
		"missing":            {[]sandbox.Status{status(sandbox.Docker, "arm64")}, []check{fail("guest program", "", missing)}},
		"what does not work": {[]sandbox.Status{{Kind: sandbox.Docker, Engine: sandbox.Engine{Arch: "arm64"}}, status(sandbox.Podman, "amd64")}, []check{itself}},
	} {
		got := checkGuests(c.statuses, find, "/x/credproxy")
		for i := range got {
			got[i].Hint = ""
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
	if got := checkGuests(nil, find, "/x/credproxy"); len(got) != 1 {
		t.Errorf("no engine works: %+v", got)
	}
}
