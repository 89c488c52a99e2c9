package config

import "slices"

// DefaultProfile is the profile that is used when none is named. It is always there.
const DefaultProfile = "default"

// LoginPolicy says what happens when a sandbox begins a login.
type LoginPolicy string

const (
	LoginUnset LoginPolicy = "" // LoginAllow, except that a person who is there anyway is asked: see daemon.Options
	LoginAllow LoginPolicy = "allow"
	LoginAsk   LoginPolicy = "ask" // a person on the host agrees first
	LoginDeny  LoginPolicy = "deny"
)

// String is the policy as one writes it; that of LoginUnset is what it amounts to where nobody is there.
func (p LoginPolicy) String() string {
	if p == LoginUnset {
		p = LoginAllow
	}
	return string(p)
}

// Operations are the groups that a profile may be narrowed to.
var Operations = []string{"get", "refresh", "save", "remove", "list", "login"}

// A Profile is what one sandbox may use. Its Allows methods are called on every request: they allocate nothing and take no lock.
//
// A list holds exact names, or "*" alone for every one.
type Profile struct {
	Name       string
	Keys       []string            // API keys
	Providers  map[string][]string // provider, or "*" for those that have no entry: its buckets
	Operations []string            // nil: all; empty: none
	Login      LoginPolicy
	Image      string // for docker and podman; may be empty

	secretKeys map[string]string // keys that hold a client secret, by name: its provider
}

func builtinProfile() *Profile {
	return &Profile{Name: DefaultProfile, Keys: []string{"*"}, Providers: map[string][]string{"*": {"*"}}, secretKeys: BuiltinSecretKeys}
}

// Nothing is a profile that names nothing: lists are empty, and all else is refused, logins that are under way too.
func Nothing(name string) *Profile {
	return &Profile{Name: name, Operations: []string{"list"}, Login: LoginDeny} // Operations: nil would allow all of them
}

// groupsOf returns the groups that hold an operation of the protocol; "" for one that is not known. has_api_key tells no more than
// either a get or a list would.
func groupsOf(op string) (group, or string) {
	switch op {
	case "get_token", "get_bucket_stats", "get_api_key":
		return "get", ""
	case "has_api_key":
		return "get", "list"
	case "refresh_token":
		return "refresh", ""
	case "save_token":
		return "save", ""
	case "remove_token":
		return "remove", ""
	case "list_providers", "list_buckets", "list_api_keys":
		return "list", ""
	case "oauth_initiate", "oauth_exchange", "oauth_poll", "oauth_cancel":
		return "login", ""
	}
	return "", ""
}

// AllowsOperation takes the name of an operation on the wire. The handshake and cancel touch no credential and are always allowed;
// a name that is not known never is. A login is refused if Login is LoginDeny; to ask, where that is what it says, is for the daemon.
func (p *Profile) AllowsOperation(op string) bool {
	if op == "handshake" || op == "cancel" {
		return true
	}
	group, or := groupsOf(op)
	if group == "" || group == "login" && p.Login == LoginDeny {
		return false
	}
	return p.Operations == nil || slices.Contains(p.Operations, group) || or != "" && slices.Contains(p.Operations, or)
}

// AllowsBucket reports whether provider's bucket may be used; the bucket "" is "default". A provider's own entry replaces that of
// "*": to name a provider is to say all about it.
func (p *Profile) AllowsBucket(provider, bucket string) bool {
	if bucket == "" {
		bucket = "default"
	}
	return allows(p.buckets(provider), bucket)
}

// AllowsProvider reports whether some bucket of provider may be used.
func (p *Profile) AllowsProvider(provider string) bool { return len(p.buckets(provider)) > 0 }

// AllowsKey reports whether the API key called name may be used. One that a provider names as its client_secret_key never may: it is
// stored among the keys, but it is a long-lived secret of the host.
func (p *Profile) AllowsKey(name string) bool {
	_, secret := p.secretKeys[name]
	return !secret && allows(p.Keys, name)
}

func (p *Profile) buckets(provider string) []string {
	if own, ok := p.Providers[provider]; ok && provider != "*" {
		return own
	}
	return p.Providers["*"]
}

func allows(list []string, name string) bool {
	return len(list) == 1 && list[0] == "*" || name != "*" && slices.Contains(list, name)
}
