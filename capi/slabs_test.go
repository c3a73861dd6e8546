package main

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestSlabs writes pieces of all sizes across slabs, twice, so that the second
// time finds used slabs.
func TestSlabs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2 {
		var s slabs
		var want []byte
		for _, n := range []int{0, 1, slabBytes - 2, 1, 1, 2*slabBytes + 3, 100} {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			want = append(want, p...)
			if got, err := s.Write(p); got != n || err != nil {
				t.Fatalf("wrote %d of %d bytes: %v", got, n, err)
			}
		}
		got := make([]byte, s.size)
		s.copyTo(got)
		if !bytes.Equal(got, want) {
			t.Fatal("what was written does not come out")
		}
		s.free()
		if s.size != 0 || s.list != nil {
			t.Fatal("slabs are left")
		}
	}
}
