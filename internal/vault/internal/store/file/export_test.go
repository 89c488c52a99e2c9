package file

// SetWorkFactor makes sealing a new key.age cheap.
func (s *Store) SetWorkFactor(logN int) { s.key.logN = logN }
