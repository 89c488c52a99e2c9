//go:build !linux && !darwin

package protect

// undumpable does nothing: the core limit is what these systems have in common.
func undumpable() error { return nil }
