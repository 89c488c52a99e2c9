package server

import (
	"net"
	"time"
)

// queue is a list of connections by age. The links are in the connections.
type queue struct {
	oldest, newest *conn
	n              int
}

func (q *queue) push(c *conn) {
	c.older = q.newest
	if q.newest != nil {
		q.newest.newer = c
	} else {
		q.oldest = c
	}
	q.newest = c
	c.queued = true
	q.n++
}

func (q *queue) remove(c *conn) {
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		q.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		q.newest = c.older
	}
	c.older, c.newer, c.queued = nil, nil, false
	q.n--
}

// enter starts the goroutine of an accepted connection. While too many connections have not finished their
// handshake, the oldest of them is closed to make room: connections that say nothing never keep out one that does.
// None is closed within graceTime, which is ample for a client that means it; a flood of connections that are all
// younger waits in the system's queue.
func (s *Server) enter(nc net.Conn) {
	c := newConn(s, nc)
	for {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			_ = nc.Close()
			return
		}
		if s.unfinished.n < s.maxUnfinished() {
			s.conns[c] = struct{}{}
			s.unfinished.push(c)
			s.running.Add(1)
			s.mu.Unlock()
			go c.run()
			return
		}
		grace := graceTime - time.Since(s.unfinished.oldest.accepted)
		s.mu.Unlock()
		if grace <= 0 {
			s.evictOldest()
			continue
		}
		timer := time.NewTimer(grace)
		select {
		case <-s.left:
		case <-s.quit:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// maxUnfinished grows with the number of connections that may be open: who may have 500 may also open 500 at once.
func (s *Server) maxUnfinished() int { return max(minUnfinished, s.cfg.Connections) }

// evictOldest closes the connection that has been without a finished handshake for the longest time.
func (s *Server) evictOldest() {
	s.mu.Lock()
	c := s.unfinished.oldest
	if c != nil {
		s.unfinished.remove(c)
	}
	s.mu.Unlock()
	if c != nil {
		s.log.Debug("connection closed: others wait, and it has not finished its handshake")
		c.fail(errEvicted)
	}
}

// verdict is what establish decides.
type verdict int

const (
	welcome verdict = iota
	full            // as many connections are open as may be
	gone            // evicted or shutting down
)

// establish moves a connection from the unfinished ones to the established.
func (s *Server) establish(c *conn) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !c.queued || s.closing:
		return gone
	case s.established >= s.cfg.Connections:
		return full
	}
	s.unqueueLocked(c)
	c.established = true
	s.established++
	return welcome
}

// leave takes a connection, all of whose goroutines but the caller have ended, off the lists.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	if c.queued {
		s.unqueueLocked(c)
	}
	if c.established {
		s.established--
	}
	delete(s.conns, c)
	s.mu.Unlock()
}

func (s *Server) unqueueLocked(c *conn) {
	s.unfinished.remove(c)
	select {
	case s.left <- struct{}{}:
	default:
	}
}
