package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// The keys that the file may have, by section.
var (
	topKeys       = []string{"store", "file_store", "limits", "profiles", "providers"}
	fileStoreKeys = []string{"key"}
	limitKeys     = []string{"requests_per_second", "connections"}
	profileKeys   = []string{"keys", "providers", "operations", "login", "image"}
	providerKeys  = []string{"dialect", "issuer", "flows", "client_id", "client_secret_key", "authorize_url", "token_url", "device_url",
		"revoke_url", "redirect_url", "scopes", "token_fields", "token_encoding", "authorize_params"}

	// sections is where a key that is known elsewhere belongs.
	sections = []struct {
		name string
		keys []string
	}{{"at the top level", topKeys}, {"in [file_store]", fileStoreKeys}, {"in [limits]", limitKeys}, {"in [profiles.NAME]", profileKeys},
		{"in [providers.NAME]", providerKeys}}
)

// A decoder turns nodes into a Config. It goes on after a mistake, so that the first one in the file is reported whatever the order
// in which it looks.
type decoder struct {
	path string
	errs []*Error
}

func (d *decoder) fail(n *node, format string, args ...any) {
	d.errs = append(d.errs, &Error{Path: d.path, Line: n.line, Problem: fmt.Sprintf(format, args...)})
}

func (d *decoder) first() error {
	if len(d.errs) == 0 {
		return nil
	}
	return slices.MinFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Problem, b.Problem))
	})
}

func (d *decoder) config(root *node) *Config {
	c := Default()
	f := d.section(root, topKeys)
	d.choice(f["store"], &c.Store, "auto", "keyring", "file")
	fs := d.section(f["file_store"], fileStoreKeys)
	d.choice(fs["key"], &c.FileStoreKey, "auto", "keyring", "file", "passphrase")
	lim := d.section(f["limits"], limitKeys)
	d.integer(lim["requests_per_second"], &c.Limits.RequestsPerSecond, 1, 1_000_000)
	d.integer(lim["connections"], &c.Limits.Connections, 1, 65_536)
	for name, n := range d.table(f["providers"]) {
		if d.name(n, name) {
			c.Providers[name] = d.provider(n, name)
		}
	}
	secrets := maps.Clone(BuiltinSecretKeys)
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		if key := c.Providers[name].ClientSecretKey; key != "" {
			secrets[key] = name
		}
	}
	for name, n := range d.table(f["profiles"]) {
		if d.name(n, name) {
			c.Profiles[name] = d.profile(n, name, secrets)
		}
	}
	c.Profiles[DefaultProfile].secretKeys = secrets // also the built-in one
	return c
}

func (d *decoder) profile(n *node, name string, secrets map[string]string) *Profile {
	p := &Profile{Name: name, Providers: map[string][]string{}, secretKeys: secrets}
	f := d.section(n, profileKeys)
	p.Keys = d.patterns(f["keys"], "key")
	if keys := f["keys"]; keys != nil {
		for _, item := range keys.items {
			if owner, ok := secrets[item.text]; ok {
				d.fail(item, "%s is the client secret of provider %s, which never goes into a sandbox; remove it from %s",
					quote(item.text), bare(owner), keys)
			}
		}
	}
	for provider, buckets := range d.table(f["providers"]) {
		switch {
		case provider != "*" && !isName(provider):
			d.fail(buckets, `%s is neither a provider's name (1 to 64 of A-Z a-z 0-9 . _ -) nor "*"`, buckets)
		case buckets.kind != arrayKind && slices.Contains(profileKeys, provider):
			d.fail(buckets, "%s must be an array of bucket names, not %s; if the profile's own key is meant, it goes above the line %s",
				buckets, buckets.kind, buckets.parent.section())
		default:
			p.Providers[provider] = d.patterns(buckets, "bucket")
		}
	}
	if ops := f["operations"]; ops != nil {
		p.Operations = []string{} // "none", other than nil
		for _, item := range d.strings(ops) {
			if d.oneOf(item, Operations) {
				p.Operations = append(p.Operations, item.text)
			}
		}
	}
	login := string(p.Login)
	d.choice(f["login"], &login, string(LoginAllow), string(LoginAsk), string(LoginDeny))
	p.Login = LoginPolicy(login)
	if image := f["image"]; d.str(image, &p.Image) {
		// It becomes an argument of docker or podman.
		if p.Image == "" || len(p.Image) > 512 || p.Image[0] == '-' || !isVisible(p.Image) {
			d.fail(image, "%s must be an image reference, not %s", image, quote(p.Image))
		}
	}
	return p
}

// patterns reads a list that is either ["*"] or exact names.
func (d *decoder) patterns(n *node, what string) []string {
	items := d.strings(n)
	var list []string
	for _, item := range items {
		switch {
		case item.text == "*" && len(items) > 1:
			d.fail(item, `"*" in %s already stands for every %s; remove it or the other names`, item, what)
		case item.text != "*" && !isName(item.text):
			d.fail(item, `%s in %s is neither a name (1 to 64 of A-Z a-z 0-9 . _ -) nor "*"`, quote(item.text), item)
		default:
			list = append(list, item.text)
		}
	}
	return list
}

// section is table for one with a fixed set of keys.
func (d *decoder) section(n *node, known []string) map[string]*node {
	fields := d.table(n)
	for key, child := range fields {
		if !slices.Contains(known, key) {
			d.unknown(child, known)
		}
	}
	return fields
}

func (d *decoder) unknown(n *node, known []string) {
	what := "unknown key " + quote(n.key) + n.parent.in()
	switch n.key {
	case "client_secret":
		d.fail(n, `%s; secrets are not kept in this file: store it with "credproxy key set NAME" and give NAME as "client_secret_key"`, what)
		return
	case "refresh_token", "access_token", "api_key", "token", "password":
		d.fail(n, `%s; secrets are not kept in this file: use "credproxy auth login" or "credproxy key set"`, what)
		return
	}
	if near := nearest(n.key, known); near != "" {
		d.fail(n, "%s; did you mean %q?", what, near)
		return
	}
	for _, s := range sections {
		if slices.Contains(s.keys, n.key) {
			d.fail(n, "%s; it belongs %s", what, s.name)
			return
		}
	}
	d.fail(n, "%s; known are %s", what, strings.Join(known, ", "))
}

// table returns a table's fields; nil, and an error unless n is absent, for anything else.
func (d *decoder) table(n *node) map[string]*node {
	if n == nil {
		return nil
	}
	if n.kind != tableKind {
		d.fail(n, "%s must be a table, not %s", n, n.kind)
		return nil
	}
	return n.fields
}

// name checks a name that the user chose, of a profile or provider.
func (d *decoder) name(n *node, name string) bool {
	if !isName(name) {
		d.fail(n, "%s is not a name: 1 to 64 of A-Z a-z 0-9 . _ -", n)
	}
	return isName(name)
}

// str stores a string's text in *dst and reports whether there was one.
func (d *decoder) str(n *node, dst *string) bool {
	if n == nil {
		return false
	}
	if n.kind != stringKind {
		d.fail(n, "%s must be a string, not %s", n, n.kind)
		return false
	}
	*dst = n.text
	return true
}

// strings returns the elements of an array of different strings; of those that are not, none.
func (d *decoder) strings(n *node) []*node {
	if n == nil {
		return nil
	}
	if n.kind != arrayKind {
		d.fail(n, "%s must be an array of strings, not %s", n, n.kind)
		return nil
	}
	seen := make(map[string]bool, len(n.items))
	var list []*node
	for _, item := range n.items {
		switch {
		case item.kind != stringKind:
			d.fail(item, "%s must be an array of strings, but holds %s", n, item.kind)
		case seen[item.text]:
			d.fail(item, "%s names %s twice", n, quote(item.text))
		default:
			seen[item.text] = true
			list = append(list, item)
		}
	}
	return list
}

func (d *decoder) integer(n *node, dst *int, low, high int64) {
	if n == nil {
		return
	}
	if n.kind != integerKind {
		d.fail(n, "%s must be an integer from %d to %d, not %s", n, low, high, n.kind)
		return
	}
	if n.number < low || n.number > high {
		d.fail(n, "%s must be from %d to %d, not %d", n, low, high, n.number)
		return
	}
	*dst = int(n.number)
}

func (d *decoder) choice(n *node, dst *string, allowed ...string) {
	var s string
	if d.str(n, &s) && d.oneOf(n, allowed) {
		*dst = s
	}
}

func (d *decoder) oneOf(n *node, allowed []string) bool {
	if slices.Contains(allowed, n.text) {
		return true
	}
	if near := nearest(n.text, allowed); near != "" {
		d.fail(n, "unknown value %s of %s; did you mean %q?", quote(n.text), n, near)
	} else {
		d.fail(n, "unknown value %s of %s; known are %s", quote(n.text), n, strings.Join(allowed, ", "))
	}
	return false
}

// nearest returns the candidate that word is most likely a misspelling of, or "".
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	best, least := "", 2+len(word)/3
	for _, c := range candidates {
		if n := levenshtein.ComputeDistance(strings.ToLower(word), strings.ToLower(c)); n < least {
			best, least = c, n
		}
	}
	return best
}

// suggest ends a message about an unknown word.
func suggest(word string, candidates []string) string {
	if near := nearest(word, candidates); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return "; known are " + strings.Join(candidates, ", ")
}

// isVisible reports whether s has only printable ASCII characters and no space.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
