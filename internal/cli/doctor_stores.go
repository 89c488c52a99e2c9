package cli

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
)

// storeTime is how long a store may take to answer the doctor.
const storeTime = 10 * time.Second

// checkStores checks the store that is in use, and says of the other what could be known.
func (a *app) checkStores(ctx context.Context, c *config.Config, dirs config.Dirs) []check {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	used, err := a.checkStore(ctx, c, dirs)
	if err != nil {
		return []check{fail("store", hintOfStore(used, c), err)}
	}
	checks := []check{ok("store", "store: %s%s", used, wanted(c))}
	for _, name := range []string{"keyring", "file"} {
		if name == used {
			continue
		}
		other := *c
		other.Store = name
		_, err := a.checkStore(ctx, &other, dirs)
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

func wanted(c *config.Config) string {
	if c.Store == "auto" {
		return " (chosen by store = \"auto\")"
	}
	return ""
}

// errNotAsked is the answer to the store when it wants its passphrase from the doctor.
var errNotAsked = errors.New("the passphrase was not asked for")

// checkStore opens the store of c and has it check itself. It returns the name of the one that answered, or was asked for.
func (a *app) checkStore(ctx context.Context, c *config.Config, dirs config.Dirs) (string, error) {
	o := a.vaultOptions(c, dirs, a.log)
	if os.Getenv(passphraseFile) == "" {
		o.Passphrase = func(context.Context, bool) (string, error) { return "", errNotAsked }
	}
	v, err := vault.Open(ctx, o)
	if err != nil {
		return c.Store, err
	}
	defer v.Close()
	if err := v.Check(ctx); err != nil && !errors.Is(err, errNotAsked) {
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
