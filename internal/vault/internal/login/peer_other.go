//go:build !linux

package login

// stranger cannot tell here whose a connection is.
func stranger(string, string) bool { return false }
