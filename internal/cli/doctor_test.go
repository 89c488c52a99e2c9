package cli

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/credproxy/credproxy/internal/config"
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
