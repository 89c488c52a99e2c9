//go:build !linux

package guest

// Main knows no word: sandboxes run Linux.
func Main([]string) (status int, mine bool) { return 0, false }

// CanScope reports false: there is no Landlock here.
func CanScope() bool { return false }
