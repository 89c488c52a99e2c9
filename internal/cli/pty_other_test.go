//go:build !linux

package cli

import "github.com/rogpeppe/go-internal/testscript"

func typing(ts *testscript.TestScript, _ bool, _ []string) { ts.Fatalf("typing is for Linux") }
