package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// Handover is what the host tells the first process inside. Whoever has one wipes it: WriteTo does not.
type Handover struct {
	Pin       [32]byte // SHA-256 of the listener's SubjectPublicKeyInfo
	Secret    [32]byte // wiped by Wipe and by Attach
	Addresses []string // "host:port" under which the listener may be reached; empty: through the pipe that brought this
}

const (
	handoverMagic   = "CPHO"
	handoverHead    = len(handoverMagic) + 1 + 32 + secretLen + 1
	maxAddresses    = 8
	maxAddressLen   = 255
	maxHandoverSize = handoverHead + maxAddresses*(1+maxAddressLen)
)

var errHandover = errors.New("handover cannot be read")

// WriteTo writes the handover with a single Write.
func (h *Handover) WriteTo(w io.Writer) (int64, error) {
	if len(h.Addresses) > maxAddresses {
		return 0, fmt.Errorf("handover: %d addresses, and %d are the most", len(h.Addresses), maxAddresses)
	}
	b := make([]byte, 0, maxHandoverSize) // never grows, so that one array is to be wiped
	defer func() { clear(b[:cap(b)]) }()
	b = append(b, handoverMagic...)
	b = append(b, version)
	b = append(b, h.Pin[:]...)
	b = append(b, h.Secret[:]...)
	b = append(b, byte(len(h.Addresses)))
	for _, a := range h.Addresses {
		if err := checkAddress(a); err != nil {
			return 0, fmt.Errorf("handover: %w", err)
		}
		b = append(b, byte(len(a)))
		b = append(b, a...)
	}
	n, err := w.Write(b)
	return int64(n), err
}

// ReadHandover reads a handover and not a byte more. It wipes what it has read of the secret when it returns an error: io.EOF
// when nothing came, io.ErrUnexpectedEOF when not all came, what r returned, or that this is no handover.
func ReadHandover(r io.Reader) (*Handover, error) {
	var head [handoverHead]byte
	defer clear(head[:])
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(head[:], []byte(handoverMagic))
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: it begins otherwise", errHandover)
	case rest[0] != version:
		return nil, fmt.Errorf("%w: version %d, and this is %d", errHandover, rest[0], version)
	}
	n := int(head[handoverHead-1])
	if n > maxAddresses {
		return nil, fmt.Errorf("%w: %d addresses, and %d are the most", errHandover, n, maxAddresses)
	}
	h := new(Handover)
	copy(h.Pin[:], rest[1:])
	copy(h.Secret[:], rest[1+len(h.Pin):])
	for range n {
		a, err := readAddress(r)
		if err != nil {
			h.Wipe()
			return nil, err
		}
		h.Addresses = append(h.Addresses, a)
	}
	return h, nil
}

func readAddress(r io.Reader) (string, error) {
	var b [maxAddressLen]byte
	_, err := io.ReadFull(r, b[:1])
	if err == nil {
		n := b[0]
		if _, err = io.ReadFull(r, b[:n]); err == nil {
			a := string(b[:n])
			if err := checkAddress(a); err != nil {
				return "", fmt.Errorf("%w: %w", errHandover, err)
			}
			return a, nil
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return "", err
}

// checkAddress takes "host:port" with a host of visible ASCII and a port from 1 to 65535 in its usual form.
func checkAddress(a string) error {
	if len(a) > maxAddressLen {
		return fmt.Errorf("an address of %d bytes, and %d are the most", len(a), maxAddressLen)
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		return fmt.Errorf("address %.80q is not host:port", a)
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("address %.80q has a character that no host has", a)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("address %.80q has no port from 1 to 65535", a)
	}
	return nil
}

// Wipe overwrites the secret. It may be called more than once, and of nil.
func (h *Handover) Wipe() {
	if h != nil {
		clear(h.Secret[:])
	}
}
