package bitio

import (
	"math/rand/v2"
	"testing"
)

// TestRoundTrip writes values of every length in random order and reads them
// back through the reader and through windows.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	type item struct {
		v     uint64
		n     uint
		gamma bool
	}
	var items []item
	var w Writer
	for range 10000 {
		x := item{n: rng.UintN(58), v: rng.Uint64()}
		switch rng.IntN(3) {
		case 0:
			x.gamma, x.n, x.v = true, rng.UintN(20), rng.Uint64N(1<<15)
			w.PutGamma(x.v, x.n)
		case 1:
			x.n = rng.UintN(65)
			w.PutLong(x.v, x.n)
			x.v = x.v << (64 - x.n) >> (64 - x.n)
		default:
			x.v &= 1<<x.n - 1
			w.Put(x.v, x.n)
		}
		items = append(items, x)
	}
	end := w.Pos()
	buf := w.Finish(4)
	if len(buf) != (end+31)/32*4 {
		t.Fatalf("%d bits take %d bytes", end, len(buf))
	}
	if !ZeroFrom(buf, end) {
		t.Error("padding is not zero")
	}
	r := NewReader(buf)
	long := append(append([]byte{}, buf...), make([]byte, Slack)...)
	for i, x := range items {
		pos := r.Pos()
		if x.gamma {
			got, ok := r.Gamma(x.n)
			if got != x.v || !ok || r.Pos()-pos != GammaBits(x.v, x.n) {
				t.Fatalf("item %d: gamma %d of order %d, expected %d, in %d bits", i, got, x.n, x.v, r.Pos()-pos)
			}
			continue
		}
		if got := r.Get(x.n); got != x.v {
			t.Fatalf("item %d: %#x in %d bits, expected %#x", i, got, x.n, x.v)
		}
		if x.n > 0 && x.n <= 57 && Window(long, uint(pos))>>(64-x.n) != x.v {
			t.Fatalf("item %d: the window at bit %d differs", i, pos)
		}
	}
	if !r.OK() || !r.Padded(4) || r.Pos() != end {
		t.Error("the end was not where it was expected")
	}
}

func TestEnd(t *testing.T) {
	r := NewReader([]byte{0, 1})
	if r.Get(16) != 1 || !r.OK() || !r.Padded(1) {
		t.Error("two bytes hold 16 bits")
	}
	if r.Get(3) != 0 || r.OK() || r.Padded(1) {
		t.Error("bits behind the end were accepted")
	}
	for _, buf := range [][]byte{{}, {0}, {0, 0, 0, 0xff}, {1}} {
		if _, ok := NewReader(buf).Gamma(3); ok {
			t.Errorf("%x is not the code of a number", buf)
		}
	}
	if NewReader([]byte{0, 0, 0}).Padded(2) || NewReader([]byte{0, 1}).Padded(4) {
		t.Error("what is no padding was accepted")
	}
	if Window(make([]byte, Slack), 1000) != 0 {
		t.Error("a window behind the end")
	}
}
