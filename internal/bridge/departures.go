package bridge

import "sync"

// yamux's flags that end a stream.
const frameEnds = 1<<2 | 1<<3 // FIN, RST

// maxEarly bounds what is remembered of streams that ended before they were accepted; their number is bounded by the backlog,
// that of frames which a hostile inside makes up is not.
const maxEarly = 4 * backlog

// departures tells connections that the inside has closed them, as soon as that arrives. yamux tells only who reads, behind
// everything that came before; a writer would go on for an answer that nobody waits for any more, where a Unix socket says EPIPE.
type departures struct {
	mu    sync.Mutex
	conns map[uint32]*Conn
	last  uint32 // the newest stream that was accepted; they come in order
	early map[uint32]struct{}
}

// add begins to watch over a connection that was accepted.
func (d *departures) add(c *Conn) {
	id := c.stream.StreamID()
	d.mu.Lock()
	if d.conns == nil {
		d.conns = make(map[uint32]*Conn)
	}
	d.conns[id], d.last = c, max(d.last, id)
	_, left := d.early[id]
	delete(d.early, id)
	d.mu.Unlock()
	if left {
		c.depart()
	}
}

// remove ends that.
func (d *departures) remove(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c.stream.StreamID())
}

// saw is told of the end of a stream by who reads the line.
func (d *departures) saw(id uint32) {
	d.mu.Lock()
	c := d.conns[id]
	if c == nil && id > d.last && len(d.early) < maxEarly {
		if d.early == nil {
			d.early = make(map[uint32]struct{})
		}
		d.early[id] = struct{}{}
	}
	d.mu.Unlock()
	if c != nil {
		c.depart()
	}
}

// depart makes writing fail, also for who waits in it.
func (c *Conn) depart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.departed = true
	if !c.isClosed {
		_ = c.stream.SetWriteDeadline(kick)
	}
}
