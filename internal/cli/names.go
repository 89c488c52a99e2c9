package cli

import (
	"errors"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/wire"
)

// login names one stored login.
type login struct{ provider, bucket string }

// String is for messages: as commands take it, without the bucket "default", and without what may be a secret.
func (l login) String() string {
	return login{shown(l.provider, "PROVIDER"), shown(l.bucket, "BUCKET")}.name()
}

// name is the login as commands take it; the bucket "default" goes without saying.
func (l login) name() string {
	if l.bucket == wire.DefaultBucket {
		return l.provider
	}
	return l.full()
}

// full names the bucket in any case.
func (l login) full() string { return l.provider + "/" + l.bucket }

// shown is name as a message may repeat it, before it is known to be one: what is as long as an API key may be one, typed
// in the wrong place. In its stead stands what it should have been.
func shown(name, instead string) string {
	if len(name) > 24 {
		return instead
	}
	return name
}

// parseLogin reads PROVIDER[/BUCKET].
func parseLogin(c *cobra.Command, s string) (login, error) {
	provider, bucket, given := strings.Cut(s, "/")
	if !given {
		bucket = wire.DefaultBucket
	}
	switch {
	case !wire.ValidName(provider):
		return login{}, usage("the provider's name is wrong: %s", nameRule).about(c)
	case !wire.ValidName(bucket):
		return login{}, usage("the bucket's name is wrong: %s", nameRule).about(c)
	}
	return login{provider, bucket}, nil
}

const nameRule = "1 to 64 characters of A-Z a-z 0-9 . _ -"

// parseKeyName reads the NAME of an API key. It is not repeated: it may be the key itself, in the wrong place.
func parseKeyName(c *cobra.Command, s string) (string, error) {
	if !wire.ValidName(s) {
		return "", usage("the key's name is wrong: %s", nameRule).about(c)
	}
	return s, nil
}

// nearest returns the name that was probably meant, or "".
func nearest(name string, names []string) string {
	if len(name) > wire.MaxNameLen {
		return ""
	}
	best, distance := "", 1+max(min(2, len(name)-2), len(name)/3)
	for _, n := range names {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(n)); d < distance && n != name {
			best, distance = n, d
		}
	}
	return best
}

func quote(s string) string { return strconv.QuoteToGraphic(s) }

// listNames are the names of a command's visible subcommands.
func listNames(c *cobra.Command) string {
	var names []string
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return strings.Join(names, ", ")
}

var errNotStored = errors.New("not stored")
