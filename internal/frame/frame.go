// Package frame moves length-prefixed payloads over a connection: four bytes of big-endian length, then as many bytes.
// It knows nothing of what they mean.
//
// [NewReader] and [Reader.Next] read. To write, put the header in front with [Append]; or call [Begin], append the
// payload to what it returned, and [End].
//
//	start := len(buf)
//	buf = frame.Begin(buf)
//	buf = append(buf, payload...)
//	frame.End(buf, start)
package frame

import (
	"encoding/binary"
	"errors"
	"time"
)

// HeaderLen is the length of a frame's header.
const HeaderLen = 4

// PartialTimeout is the longest time between the first byte of a frame and its last.
const PartialTimeout = 5 * time.Second

// Errors of [Reader.Next]. After any of them the stream is of no more use.
var (
	ErrTooLong        = errors.New("frame longer than allowed")
	ErrEmpty          = errors.New("frame of length zero")
	ErrPartialTimeout = errors.New("frame not complete within 5 s")
)

// Append appends a frame with the given payload.
func Append(dst, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// Begin appends the room of a header, for a payload that is appended next.
func Begin(dst []byte) []byte { return append(dst, 0, 0, 0, 0) }

// End completes the frame that [Begin] began at buf[start:]: its payload is all that follows the header.
func End(buf []byte, start int) {
	binary.BigEndian.PutUint32(buf[start:], uint32(len(buf)-start-HeaderLen))
}
