//go:build !linux

// Package keyringtest runs a real GNOME Keyring for tests, on Linux.
package keyringtest
