package bridge

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func sample(addresses ...string) *Handover {
	h := &Handover{Addresses: addresses}
	for i := range h.Pin {
		h.Pin[i], h.Secret[i] = byte(i), byte(0x80+i)
	}
	return h
}

func encode(t testing.TB, h *Handover) []byte {
	t.Helper()
	var b bytes.Buffer
	if n, err := h.WriteTo(&b); err != nil || int(n) != b.Len() {
		t.Fatalf("WriteTo: %d, %v", n, err)
	}
	return b.Bytes()
}

func TestHandover(t *testing.T) {
	longest := strings.Repeat("h", maxAddressLen-len(":65535")) + ":65535"
	for _, addresses := range [][]string{
		nil,
		{"host.docker.internal:40001"},
		{"[::1]:1", "10.0.2.2:65535"},
		slices.Repeat([]string{longest}, maxAddresses),
	} {
		want := sample(addresses...)
		b := encode(t, want)
		r := bytes.NewReader(append(b, "what follows"...))
		got, err := ReadHandover(iotestOneByte{r})
		if err != nil {
			t.Fatalf("%q: %v", addresses, err)
		}
		if got.Pin != want.Pin || got.Secret != want.Secret || !slices.Equal(got.Addresses, want.Addresses) {
			t.Errorf("%q: came out as %q, or another pin or secret", want.Addresses, got.Addresses)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
			t.Errorf("%q: it was read beyond its end: %q is left", addresses, rest)
		}
		for n := range b {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, err := ReadHandover(bytes.NewReader(b[:n])); err != want {
				t.Errorf("%q: of %d bytes: %v, want %v", addresses, n, err, want)
			}
		}
	}
}

// iotestOneByte reads byte by byte.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func TestHandoverRefused(t *testing.T) {
	at := func(i int, v byte) []byte {
		b := encode(t, sample("a:1"))
		b[i] = v
		return b
	}
	for name, b := range map[string][]byte{
		"another magic":       at(0, 'X'),
		"another version":     at(4, 2),
		"too many addresses":  at(handoverHead-1, maxAddresses+1),
		"an empty address":    at(handoverHead, 0),
		"no port":             at(handoverHead+2, 'b'),
		"port 0":              at(handoverHead+3, '0'),
		"port in letters":     at(handoverHead+3, 'z'),
		"no host":             append(at(handoverHead, 2), ":1"...)[:handoverHead+1],
		"a control character": at(handoverHead+1, '\n'),
		"a blank":             at(handoverHead+1, ' '),
	} {
		if h, err := ReadHandover(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: read as %q", name, h.Addresses)
		}
	}
	for _, a := range []string{"", "host", ":1", "host:", "host:0", "host:65536", "host:01", "host:+1", "a b:1", "h\x00:1", "h\u00e9:1", strings.Repeat("h", 254) + ":1"} {
		if n, err := sample(a).WriteTo(io.Discard); err == nil || n != 0 {
			t.Errorf("address %.20q was written", a)
		}
	}
	if _, err := sample(slices.Repeat([]string{"a:1"}, 9)...).WriteTo(io.Discard); err == nil {
		t.Error("nine addresses were written")
	}
}

// keeper keeps the arrays that others read into or write from.
type keeper struct {
	r    io.Reader
	kept [][]byte
	err  error
}

func (k *keeper) Read(p []byte) (int, error)  { k.kept = append(k.kept, p); return k.r.Read(p) }
func (k *keeper) Write(p []byte) (int, error) { k.kept = append(k.kept, p); return len(p), k.err }

func (k *keeper) holds(secret []byte) bool {
	return slices.ContainsFunc(k.kept, func(b []byte) bool { return bytes.Contains(b, secret[:4]) })
}

func TestHandoverLeavesNoCopies(t *testing.T) {
	h := sample("a:1")
	secret := h.Secret
	for _, err := range []error{nil, errors.New("broken pipe")} {
		k := &keeper{err: err}
		if _, got := h.WriteTo(k); got != err {
			t.Errorf("WriteTo: %v, want %v", got, err)
		}
		if len(k.kept) != 1 || k.holds(secret[:]) {
			t.Errorf("WriteTo (%v) wrote %d times, or left the secret in its buffer", err, len(k.kept))
		}
	}
	b := encode(t, h)
	for name, b := range map[string][]byte{"whole": b, "cut off": b[:handoverHead-1], "with a bad address": b[:len(b)-1]} {
		k := &keeper{r: bytes.NewReader(b)}
		got, err := ReadHandover(k)
		if (err == nil) != (name == "whole") {
			t.Errorf("%s: %v", name, err)
		}
		if k.holds(secret[:]) {
			t.Errorf("%s: the secret is still in the buffer", name)
		}
		got.Wipe() // nil, too
		if got != nil && got.Secret != [32]byte{} {
			t.Error("the secret has survived Wipe")
		}
	}
}

// What ReadHandover takes, WriteTo writes just so; and nothing beyond is read.
func FuzzReadHandover(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add(encode(f, sample("host.docker.internal:40001", "[fe80::1%eth0]:2")))
	f.Add([]byte(handoverMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadHandover(r)
		if err != nil {
			if h != nil {
				t.Error("a handover beside an error")
			}
			return
		}
		var again bytes.Buffer
		if _, err := h.WriteTo(&again); err != nil {
			t.Fatalf("it cannot be written: %v", err)
		}
		if !bytes.Equal(again.Bytes(), b[:len(b)-r.Len()]) {
			t.Errorf("%x was read, and is written as %x", b, again.Bytes())
		}
	})
}
