package zstd

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
)

var update = flag.Bool("update", false, "write the chunks of testdata anew; only after a change of the format")

// golden makes the residual of a golden chunk: pseudo-random (the generator is
// here, so that no library can change it), of up to four units, for one word
// in every.
func golden(every uint32) []uint16 {
	r := make([]uint16, 3000)
	x := uint32(12345)
	next := func() uint32 { x = x*1664525 + 1013904223; return x >> 8 }
	for i := range r {
		if next()%every == 0 {
			r[i] = uint16(next()%(1+next()%8)) - 4
		}
	}
	return r
}

// TestGolden decodes chunks that an earlier version wrote: they must stay
// readable. The bytes that this version writes may differ (see FORMAT.md).
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		file   string
		every  uint32
		layout layout
		method method
		deltas uint32
	}{
		{"testdata/sparse_entropy.chunk", 20, sparse, entropy, 144},
		{"testdata/sparse_matches.chunk", 5, sparse, matches, 560},
		{"testdata/dense_entropy.chunk", 1, dense, entropy, 3000},
		{"testdata/dense_matches.chunk", 1, dense, matches, 3000},
	} {
		want := block(golden(c.every)...)
		if *update {
			e := newEncoder(dtype.BF16, nil, codec.LevelDefault)
			e.layout = c.layout
			for i := range maxPlanes {
				e.sparse[i], e.dense[i] = c.method, c.method
			}
			data, deltas, err := e.Encode(nil, want)
			if err != nil || deltas != c.deltas {
				t.Fatalf("%s: %d deltas (%v), expected %d", c.file, deltas, err, c.deltas)
			}
			if err := os.WriteFile(c.file, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		got := block(make([]uint16, 3000)...)
		if err := (decoder{}).Decode(got, data, c.deltas); err != nil || !bytes.Equal(got.Residual, want.Residual) {
			t.Errorf("%s: not decoded (%v)", c.file, err)
		}
	}
}
