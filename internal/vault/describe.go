package vault

import (
	"slices"
	"strings"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// ProviderInfo is what there is to know of a provider before a login.
type ProviderInfo struct {
	Name    string
	Builtin bool
	Status  string // StatusOK, StatusRestricted or StatusDiscontinued
	Terms   string // what the vendor says, or what there is to know before a login, in a sentence; may be "" with StatusOK
	Dialect string
	Flows   []string // in the order of preference; nil when the provider's own metadata decides
	Issuer  string   // whose metadata has what the description lacks; "" when it lacks nothing
}

// Describe lists the providers that can be logged in to: those of the configuration, then the built-in ones, each by name.
func Describe(c *config.Config) []ProviderInfo {
	var list []ProviderInfo
	for _, described := range c.Providers {
		p := provider.FromConfig(described)
		list = append(list, ProviderInfo{Name: p.Name, Status: StatusOK, Dialect: p.Dialect, Flows: p.Flows, Issuer: p.Issuer})
	}
	slices.SortFunc(list, func(a, b ProviderInfo) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range slices.Sorted(slices.Values(config.BuiltinProviders)) {
		if p, ok := provider.Builtin(name); ok {
			status, terms := provider.Terms(name)
			list = append(list, ProviderInfo{Name: name, Builtin: true, Status: status, Terms: terms, Dialect: p.Dialect, Flows: p.Flows})
		}
	}
	return list
}
