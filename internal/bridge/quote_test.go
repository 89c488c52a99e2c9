package bridge

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestQuote(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	long := make([]byte, 1<<20)
	_, _ = rand.Read(long)
	for name, p := range map[string][]byte{
		"nothing": {}, "every byte": every, "keys": {0x1e, 0x1f, 0x1e, 0x1f}, "at the end": {'x', 0x1e}, "long": long,
	} {
		var pipe bytes.Buffer
		if n, err := QuoteTo(&pipe).Write(p); n != len(p) || err != nil {
			t.Errorf("%s: wrote %d of %d, %v", name, n, len(p), err)
		}
		if bytes.IndexByte(pipe.Bytes(), DetachKey) >= 0 {
			t.Errorf("%s: the first of the keys is in it", name)
		}
		sent := pipe.Bytes()
		for how, r := range map[string]io.Reader{
			"": bytes.NewReader(sent), "in single bytes": iotest.OneByteReader(bytes.NewReader(sent)),
			"with the error": iotest.DataErrReader(bytes.NewReader(sent)),
		} {
			if got, err := io.ReadAll(UnquoteFrom(r)); err != nil || !bytes.Equal(got, p) {
				t.Errorf("%s, read %s: %d bytes of %d, %v", name, how, len(got), len(p), err)
			}
		}
	}
	if got, err := io.ReadAll(UnquoteFrom(bytes.NewReader([]byte{'x', 0x1f, 'y', 'z'}))); !errors.Is(err, errQuoted) || len(got) > 0 {
		t.Errorf("a byte that needs no quoting is quoted: %q, %v", got, err)
	}
	// A handover that is read may be followed by something else.
	pipe := bytes.NewReader([]byte{'a', 0x1f, 0x5e, 'b'})
	if _, err := io.ReadFull(UnquoteFrom(pipe), make([]byte, 2)); err != nil || pipe.Len() != 1 {
		t.Errorf("%d bytes are left, %v", pipe.Len(), err)
	}
	failing := errors.New("no room")
	if _, err := QuoteTo(writer(func([]byte) (int, error) { return 0, failing })).Write(every); !errors.Is(err, failing) {
		t.Errorf("a write that fails: %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
