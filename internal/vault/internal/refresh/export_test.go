package refresh

import "time"

// AtStep has f called at every step at which a process may die, on the refresh's own goroutine. It is for a process that
// is not refreshing yet.
func AtStep(f func(step string)) { atStep = f }

// SetLookLimit sets how long a lock has to be held until a refresh is said to be running, and returns what it was before. It is for
// a process that looks at none.
func SetLookLimit(d time.Duration) (before time.Duration) {
	before, lookLimit, resumeLimit = lookLimit, d, d
	return before
}
