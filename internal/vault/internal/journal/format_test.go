package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
)

// twoHalves is a file whose halves have the sequences 5 and 6, and where the JSON of each ends.
func twoHalves(t testing.TB) (data []byte, end0, end1 int) {
	t.Helper()
	for seq := uint64(5); seq <= 6; seq++ {
		payload, err := json.Marshal(entry{Account: "acme:default", Phase: Received, Status: int(seq), Sealed: bytes.Repeat([]byte{1}, 100)})
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, encode(minHalf, seq, payload)...)
	}
	end0 = bytes.LastIndexByte(data[:minHalf], '}') + 1
	end1 = bytes.LastIndexByte(data, '}') + 1
	return data, end0, end1
}

// Whatever single byte of a file changes, the newest record is found, or the one before if the change is in the newest.
func TestEveryByteDamaged(t *testing.T) {
	whole, end0, end1 := twoHalves(t)
	if c := decode(whole); !c.intact || c.newest != 1 || c.seq != 6 || c.entry.Status != 6 {
		t.Fatalf("the whole file: %+v", c)
	}
	data := slices.Clone(whole)
	for i := range data {
		if i%minHalf > end0 && i%64 > 0 {
			continue // of the spaces, some will do
		}
		for _, flip := range []byte{0x01, 0x10, 0x80, 0xff} {
			data[i] ^= flip
			c := decode(data)
			data[i] ^= flip
			want, intact := 6, true
			switch {
			case i < end0:
				intact = false
			case i >= minHalf && i < end1:
				want, intact = 5, false
			}
			if c.entry.Status != want || int(c.seq) != want || c.intact != intact || c.newer || !c.sized {
				t.Fatalf("byte %d changed by %#x: %+v, want number %d", i, flip, c, want)
			}
		}
	}
	for n := range whole {
		c := decode(whole[:n])
		want := 0
		switch {
		case n >= end1:
			want = 6
		case n >= end0:
			want = 5
		}
		if c.entry.Status != want || c.intact {
			t.Fatalf("the first %d bytes: %+v, want number %d", n, c, want)
		}
	}
}

func TestDecode(t *testing.T) {
	payload := []byte(`{"account":"a","status":7}`)
	blank := bytes.Repeat([]byte{' '}, minHalf)
	one := encode(minHalf, 7, payload)
	big := encode(4*minHalf, 9, payload)
	line := func(version, size, seq, length string) []byte {
		b := fmt.Appendf(nil, "%s %s %s %s %s ", magic, version, size, seq, length)
		b = fmt.Appendf(b, "%s\n%s", sumOf(b, payload), payload)
		return append(b, blank[len(b):]...)
	}
	join := func(halves ...[]byte) []byte { return slices.Concat(halves...) }
	for _, tt := range []struct {
		name  string
		data  []byte
		seq   uint64
		sized bool
	}{
		{"nothing", nil, 0, false},
		{"blank", join(blank, blank), 0, false},
		{"the first half", join(one, blank), 7, true},
		{"the second half", join(blank, one), 7, true},
		{"alone", one, 7, false},
		{"the second of large halves", join(bytes.Repeat(blank, 4), big), 9, true},
		{"the second of large halves, not as many", join(bytes.Repeat(blank, 4), big[:1000]), 9, false},
		{"halves of two sizes", join(one, big), 7, false},
		{"something after it", join(one, one, []byte("x")), 7, false},
		{"as documented", join(line("1", "16384", "8", "26"), blank), 8, true},
		{"no version", join(line("0", "16384", "8", "26"), blank), 0, false},
		{"an odd size", join(line("1", "16385", "8", "26"), blank), 0, false},
		{"a small size", join(line("1", "8192", "8", "26"), blank), 0, false},
		{"a large size", join(line("1", "16777216", "8", "26"), blank), 0, false},
		{"an enormous size", join(line("1", "18446744073709551615", "8", "26"), blank), 0, false},
		{"no sequence", join(line("1", "16384", "0", "26"), blank), 0, false},
		{"the last sequence", join(line("1", "16384", "18446744073709551615", "26"), blank), 0, false},
		{"a negative length", join(line("1", "16384", "8", "-1"), blank), 0, false},
		{"a length beyond the half", join(line("1", "16384", "8", "16384"), blank), 0, false},
		{"an enormous length", join(line("1", "16384", "8", "18446744073709551615"), blank), 0, false},
		{"no JSON", join(encode(minHalf, 8, []byte("x")), blank), 0, false},
		{"JSON of another kind", join(encode(minHalf, 8, []byte(`[1]`)), blank), 0, false},
	} {
		if c := decode(tt.data); c.seq != tt.seq || c.sized != tt.sized || c.newer {
			t.Errorf("%s: sequence %d, sized %v, newer %v", tt.name, c.seq, c.sized, c.newer)
		}
	}
	if c := decode(join(line("2", "16384", "8", "26"), one)); !c.newer || c.seq != 8 || c.entry.Account != "" {
		t.Errorf("a newer version: %+v", c)
	}
}

// Any bytes: no panic, and what is found says of itself what it is.
func FuzzDecode(f *testing.F) {
	whole, end0, _ := twoHalves(f)
	f.Add(whole[:end0], []byte(nil))
	f.Add(whole[:end0], whole[minHalf:])
	f.Add([]byte("credproxy-journal 1 16384 7 0 "), []byte("credproxy-journal 2 32768 9 1 e3b0"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		data := append(a, bytes.Repeat([]byte{' '}, max(0, minHalf-len(a)))...)
		data = append(data, b...)
		c := decode(data)
		if c.seq == 0 {
			if c.half != 0 || c.intact || c.sized || c.newer {
				t.Errorf("nothing was found, but %+v", c)
			}
			return
		}
		if c.half < minHalf || c.half > maxHalf || c.newest < 0 || c.newest > 1 || c.sized != (len(data) == 2*c.half) {
			t.Errorf("%+v", c)
		}
		// The half that is not the newest can be written, and then is.
		payload, err := json.Marshal(entry{Account: "a", Status: 1})
		if err != nil {
			t.Fatal(err)
		}
		if c.sized && !c.newer && c.seq < maxSeq {
			copy(data[(1-c.newest)*c.half:], encode(c.half, c.seq+1, payload))
			if n := decode(data); n.seq != c.seq+1 || n.newest != 1-c.newest || n.entry.Status != 1 {
				t.Errorf("after writing: %+v", n)
			}
		}
	})
}
