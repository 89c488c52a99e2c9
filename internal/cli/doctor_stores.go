package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
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
		more = append(more, checkLogins(ctx, v, err)...)
	})
	if err != nil {
		return append([]check{fail("store", hintOfStore(used, c), err)}, more...)
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
			checks = append(checks, warn("store "+name, hintOfStore(name, c), "not in use; %v", err))
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

// checkLogins has a line for each login that somebody has to do something about. storeErr is why the store cannot be used.
func checkLogins(ctx context.Context, v *vault.Vault, storeErr error) []check {
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
		l := login{s.Provider, s.Bucket}
		switch {
		case s.State == vault.StateUnsaved:
			checks = append(checks, warn("login "+l.full(), "mend the store: then every command, and every proxy that runs, stores it by itself", "%s", s.Detail))
		case s.State == vault.StateLoginNeeded && storeErr == nil:
			checks = append(checks, warn("login "+l.full(), loginCommand(l), "%s", s.Detail))
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

func hintOfStore(name string, c *config.Config) string {
	switch {
	case name == "keyring" && c.Store == "keyring":
		return "start or unlock the keyring of your session (GNOME Keyring, KWallet, KeePassXC), or set store = \"file\""
	case name == "keyring":
		return "to have logins in the keyring of your session (GNOME Keyring, KWallet, KeePassXC), start it; set store = \"file\" if files are what you want"
	}
	return "the files and their key must be this user's own, closed to others"
}
