package bridge

import "sync"

// streams knows the connections of a session, and which of those that nobody has accepted yet have ended already. The zero
// value is the inside's, who accepts none.
type streams struct {
	accepts bool // the host's

	mu    sync.Mutex
	conns map[uint32]*Conn // that are not closed
	early map[uint32]bool  // streams that are not accepted: whether the other end has closed them
}

// opened notes a stream that the other end opens. It reports false when there are too many that wait to be accepted: the inside
// waits when it has opened as many as the backlog holds, and a few may have been accepted a moment ago.
func (s *streams) opened(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.accepts || len(s.early) >= 2*backlog {
		return false
	}
	if s.early == nil {
		s.early = make(map[uint32]bool)
	}
	s.early[id] = false
	return true
}

// ended notes that the other end has closed a stream.
func (s *streams) ended(id uint32) {
	s.mu.Lock()
	c := s.conns[id]
	if _, ok := s.early[id]; ok {
		s.early[id] = true
	}
	s.mu.Unlock()
	if c != nil {
		c.otherClosed()
	}
}

// live reports whether the other end may still send something on a stream that somebody here will read.
func (s *streams) live(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gone, ok := s.early[id]; ok {
		return !gone
	}
	c := s.conns[id]
	return c != nil && !c.ended.Load()
}

func (s *streams) add(c *Conn) {
	s.mu.Lock()
	id := c.stream.StreamID()
	if s.conns == nil {
		s.conns = make(map[uint32]*Conn)
	}
	s.conns[id] = c
	gone := s.early[id]
	delete(s.early, id)
	s.mu.Unlock()
	if gone {
		c.otherClosed()
	}
}

func (s *streams) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c.stream.StreamID())
}

// open returns how many connections are open.
func (s *streams) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
