//go:build !linux

package sandbox

import (
	"context"
	"io"
	"syscall"
)

// family is the engine's client alone: on these systems the sandbox is in a virtual machine, behind it.
type family struct{ client *process }

func newFamily(client *process, _ string) *family { return &family{client} }

func (t *family) stop(context.Context, <-chan struct{}) error {
	return t.client.Signal(syscall.SIGSTOP)
}
func (t *family) still() error { return nil }
func (t *family) has(int) bool { return false } // it is in our own group
func (t *family) resume()      { _ = t.client.Signal(syscall.SIGCONT) }

func wakePaused(io.Reader) int { return ExitEngine }
