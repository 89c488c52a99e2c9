//go:build !linux

package cli

// dynamicLoader returns "": only Linux binaries are mounted into containers.
func dynamicLoader(string) (string, error) { return "", nil }
