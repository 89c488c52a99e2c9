package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
)

// storeTime is how long a store may take to answer the doctor.
const storeTime = 10 * time.Second

// checkStores checks the store that is in use, what is to keep tokens that it refuses, and the logins in it, and says of
// the other store what could be known.
func (a *app) checkStores(ctx context.Context, c *config.Config, dirs config.Dirs) []check {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	var more []check
	used, err := a.checkStore(ctx, c, dirs, func(v *vault.Vault, err error) {
		more = append(more, checkRecovery(ctx, v, dirs))
		more = append(more, checkLogins(ctx, v, c.Path, err)...)
	})
	if err != nil {
		return append([]check{fail("store", hintOfStore(used, c, err), err)}, more...)
	}
	checks := append([]check{ok("store", "store: %s%s", used, wanted(c))}, more...)
	for _, name := range []string{"keyring", "file"} {
		if name == used {
			continue
		}
		other := *c
		other.Store = name
		_, err := a.checkStore(ctx, &other, dirs, func(*vault.Vault, error) {})
		switch {
		case err != nil && c.Store != "auto":
			checks = append(checks, ok("store "+name, "not in use; %v", err))
		case err != nil:
			checks = append(checks, warn("store "+name, hintOfStore(name, c, err), "not in use; %v", err))
		default:
			checks = append(checks, ok("store "+name, "not in use, but could be"))
		}
	}
	return checks
}

// checkRecovery looks for a place where a provider's answer is safe until the store has it.
func checkRecovery(ctx context.Context, v *vault.Vault, dirs config.Dirs) check {
	const name = "recovery files"
	const hint = "make room, or make it a directory of your own that can be written"
	degraded, err := v.CheckRecovery(ctx)
	places := dirs.Recovery(v.StoreName())
	switch {
	case err != nil:
		return fail(name, hint, fmt.Errorf("a new token that the store refuses would be lost: %w", err))
	case degraded != nil:
		return warn(name, hint, "a new token that the store refuses goes to %s and may not survive a restart of this machine: %v", places[len(places)-1], degraded)
	}
	return ok(name, "%s", places[0])
}

// checkLogins has a line for each login that somebody has to do something about, or may want to. storeErr is why the store
// cannot be used, configPath where providers are described.
func checkLogins(ctx context.Context, v *vault.Vault, configPath string, storeErr error) []check {
	const name = "logins"
	if errors.Is(storeErr, errNotAsked) {
		return []check{ok(name, "not looked at: %v", storeErr)}
	}
	list, err := v.Status(ctx)
	var checks []check
	if err != nil && storeErr == nil {
		checks = append(checks, fail(name, "", err))
	}
	for _, s := range list {
		if c, ok := checkLogin(s, configPath, storeErr); ok {
			checks = append(checks, c)
		}
	}
	if err != nil || len(checks) > 0 {
		return checks
	}
	if len(list) == 0 {
		return []check{ok(name, "none are stored")}
	}
	return []check{ok(name, "%s; nothing has to be done", count(len(list), "login"))}
}

// checkLogin returns the line of a login if it has one.
func checkLogin(s vault.LoginStatus, configPath string, storeErr error) (check, bool) {
	l := login{s.Provider, s.Bucket}
	problem := func(hint, detail string) (check, bool) { return warn("login "+l.full(), hint, "%s", detail), true }
	switch {
	case s.State == vault.StateUnsaved && strings.Contains(s.Detail, "too large"):
		return problem("", s.Detail)
	case s.State == vault.StateUnsaved:
		return problem("mend the store: then every command, and every proxy that runs, stores it by itself", s.Detail)
	case s.State == vault.StateLoginNeeded && storeErr == nil:
		return problem(loginCommand(l), s.Detail)
	case s.State == vault.StateLoginNeeded:
		return check{}, false // what is wrong with the store has its own line
	case strings.HasPrefix(s.Detail, saysClient):
		return problem(clientHintIn("[providers."+l.provider+"]", configPath), s.Detail)
	case strings.HasPrefix(s.Detail, saysUnread):
		return problem(recoveryHint, s.Detail)
	case s.LastOutcome == "failed":
		return problem("try it again: credproxy auth refresh "+l.name(), cmp.Or(s.Detail, "the last refresh failed"))
	}
	return check{}, false
}

func wanted(c *config.Config) string {
	if c.Store == "auto" {
		return " (chosen by store = \"auto\")"
	}
	return ""
}

// errNotAsked is the answer to the store when it wants its passphrase from the doctor.
var errNotAsked = errors.New("the passphrase was not asked for")

// checkStore opens the store of c and has it check itself; more gets the open store and what that said. It returns the
// name of the one that answered, or was asked for.
func (a *app) checkStore(ctx context.Context, c *config.Config, dirs config.Dirs, more func(*vault.Vault, error)) (string, error) {
	o := a.vaultOptions(c, dirs, a.log)
	if os.Getenv(passphraseFile) == "" {
		o.Passphrase = func(context.Context, bool) (string, error) { return "", errNotAsked }
	}
	v, err := vault.Open(ctx, o)
	if err != nil {
		return c.Store, err
	}
	defer v.Close()
	err = v.Check(ctx)
	more(v, err)
	if err != nil && !errors.Is(err, errNotAsked) {
		return v.StoreName(), err
	}
	return v.StoreName(), nil
}

// hintOfStore says what to do about a store that answers err.
func hintOfStore(name string, c *config.Config, err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on its disk; new tokens that wait for it are stored by themselves then"
	case errors.Is(err, syscall.EROFS):
		return "mount it writable; new tokens that wait for it are stored by themselves then"
	case name == "keyring" && c.Store == "keyring":
		return "start or unlock the keyring of your session (GNOME Keyring, KWallet, KeePassXC), or set store = \"file\""
	case name == "keyring":
		return "to have logins in the keyring of your session (GNOME Keyring, KWallet, KeePassXC), start it; set store = \"file\" if files are what you want"
	}
	return "the files and their key must be this user's own, closed to others"
}
