package refresh

// AtStep has f called at every step at which a process may die, on the refresh's own goroutine. It is for a process that
// is not refreshing yet.
func AtStep(f func(step string)) { atStep = f }
