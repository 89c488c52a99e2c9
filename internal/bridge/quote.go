package bridge

import (
	"errors"
	"io"
)

// What goes to the inside through an engine's exec is quoted. Podman's service looks in it for the keys that detach a terminal, though
// there is no terminal: it ends the pipe where it finds them, and holds back what may be their beginning until more comes. It cannot
// be told "no keys", so they begin with a byte that quoted bytes never have.
const (
	DetachKey = 0x1e // Ctrl-^
	quoteByte = 0x1f
	quoteFlip = 0x40 // what is done to the byte after quoteByte
)

var errQuoted = errors.New("what comes through the pipe is not quoted as it should be")

// QuoteTo returns the host's end of the pipe w. Each of its writes is one of w's, and leaves no copy behind.
func QuoteTo(w io.Writer) io.Writer { return quoting{w} }

type quoting struct{ w io.Writer }

func (q quoting) Write(p []byte) (int, error) {
	b := takeBuffer(2 * len(p))
	defer giveBuffer(b)
	n := 0
	for _, c := range p {
		if c == DetachKey || c == quoteByte {
			b[n] = quoteByte
			n, c = n+1, c^quoteFlip
		}
		b[n] = c
		n++
	}
	if _, err := q.w.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// UnquoteFrom returns the inside's end of the pipe r. It reads no more than it returns, and leaves no copy behind.
func UnquoteFrom(r io.Reader) io.Reader { return &unquoting{r: r} }

type unquoting struct {
	r      io.Reader
	quoted bool // the next byte is
}

func (u *unquoting) Read(p []byte) (int, error) {
	for {
		got, err := u.r.Read(p)
		n := 0
		for _, c := range p[:got] {
			switch {
			case u.quoted:
				if c ^= quoteFlip; c != DetachKey && c != quoteByte {
					clear(p[:got])
					return 0, errQuoted
				}
				u.quoted = false
			case c == quoteByte:
				u.quoted = true
				continue
			}
			p[n] = c
			n++
		}
		clear(p[n:got])
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}
