package store

// Entries is how many values and lists the cache has a slot for.
func (c *Cache[T]) Entries() int {
	c.values.mu.RLock()
	defer c.values.mu.RUnlock()
	c.lists.mu.RLock()
	defer c.lists.mu.RUnlock()
	return len(c.values.m) + len(c.lists.m)
}

// Held is how many bytes the cache reckons that its values take, and the most that they may.
func (c *Cache[T]) Held() (now, most int64) { return c.values.held.Load(), maxHeld }
