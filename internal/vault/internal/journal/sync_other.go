//go:build !linux

package journal

import "os"

// syncData makes what was written in place durable; on darwin that includes the disk's own cache.
func syncData(f *os.File) error { return f.Sync() }
