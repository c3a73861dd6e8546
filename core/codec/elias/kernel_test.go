package elias

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// TestKernel decodes what the Go encoder wrote with the kernels' code, of every
// word size and from sparse to dense, whole and damaged: the same verdict and
// the same words. Exceptions are applied outside of the lanes.
func TestKernel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	type expectation struct {
		target []byte
		deltas uint32
		good   bool
	}
	var requests []byte
	var want []expectation
	add := func(typ dtype.Type, tables []byte, h head, strings, base, target []byte, deltas uint32, good bool) {
		pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }
		le := binary.LittleEndian
		requests = le.AppendUint32(requests, uint32(typ.WordBytes()))
		requests = le.AppendUint32(requests, uint32(len(base)/typ.WordBytes()))
		requests = le.AppendUint32(requests, uint32(len(strings)))
		requests = append(requests, tables...)
		for _, s := range h.starts {
			requests = le.AppendUint32(requests, uint32(s))
		}
		requests = append(append(requests, pad(base)...), strings...)
		want = append(want, expectation{pad(target), deltas, good})
	}
	for _, typ := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F16, dtype.F32, dtype.F64, dtype.I64} {
		for _, words := range []int{1, 257, 5000} {
			for _, density := range []float64{0, 0.02, 0.5, 1} {
				w := typ.WordBytes()
				base := word.Bytes(make([]uint64, words))[:words*w]
				for i := range base {
					base[i] = byte(rng.Uint32())
				}
				res := word.Bytes(make([]uint64, words))[:words*w]
				for i := range words {
					if rng.Float64() < density {
						for j := range w {
							res[i*w+j] = byte(rng.Uint32() >> rng.IntN(9))
						}
					}
				}
				b := codec.Block{Type: typ, Base: base, Residual: res}
				enc := factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault)
				tables, err := DeviceTables(typ, enc.Tables())
				if err != nil {
					t.Fatal(err)
				}
				data, deltas, err := enc.Encode(nil, b)
				if err != nil {
					t.Fatal(err)
				}
				h, err := parseHead(data)
				if err != nil {
					t.Fatal(err)
				}
				if h.exceptions > 0 {
					continue
				}
				target := bytes.Clone(base)
				residual.Apply(residual.Bit, typ, target, base, res)
				add(typ, tables, h, h.rest, base, target, deltas, true)

				// A flipped bit is found, or decodes to what Go decodes.
				dec, err := factory{}.NewDecoder(typ, enc.Tables())
				if err != nil {
					t.Fatal(err)
				}
				for range 10 {
					strings := bytes.Clone(h.rest)
					strings[rng.IntN(len(strings))] ^= 1 << rng.IntN(8)
					damaged := append(bytes.Clone(data[:len(data)-len(h.rest)]), strings...)
					out := word.Bytes(make([]uint64, words))[:words*w]
					d := dec.(interface {
						check(b codec.Block, data []byte) (deltas uint32, ok bool)
					})
					n, ok := d.check(codec.Block{Type: typ, Base: base, Residual: out}, damaged)
					residual.Apply(residual.Bit, typ, out, base, out)
					add(typ, tables, h, strings, base, out, n, ok)
				}
			}
		}
	}
	for k := range uint(maxGapBits) {
		for i, gap := range append([]uint64{1}, gapsBeyond...) {
			bare, data := oneWord(gap, k)
			tables, err := DeviceTables(dtype.U8, bare)
			if err != nil {
				t.Fatal(err)
			}
			h, err := parseHead(data)
			if err != nil {
				t.Fatal(err)
			}
			add(dtype.U8, tables, h, h.rest, []byte{7}, []byte{7}, 0, i == 0)
		}
	}
	got := codectest.RunKernel(t, requests)
	for i, x := range want {
		good, deltas, target := got[0] == 1, binary.LittleEndian.Uint32(got[4:]), got[8:8+len(x.target)]
		got = got[8+len(x.target):]
		if good != x.good {
			t.Fatalf("request %d: well formed %v, expected %v", i, good, x.good)
		}
		if good && (deltas != x.deltas || !bytes.Equal(target, x.target)) {
			t.Fatalf("request %d: other words or %d deltas, expected %d", i, deltas, x.deltas)
		}
	}
	if len(got) != 0 {
		t.Fatalf("%d bytes are left over", len(got))
	}
}

// check decodes a block that may be damaged. Padding is looked at by the
// decoder alone, not by the kernels' lanes, so it does not count.
func (d *decoder[T]) check(b codec.Block, data []byte) (deltas uint32, ok bool) {
	h, err := parseHead(data)
	if err != nil {
		return 0, false
	}
	base, res := word.View[T](b.Base), word.View[T](b.Residual)
	buf := append(bytes.Clone(h.rest), make([]byte, bitio.Slack)...)
	ok = true
	for l := range lanes {
		end, n, good := d.lane(base, res, l, buf, uint(h.starts[l]))
		ok = ok && good && end == uint(h.starts[l+1])
		deltas += n
	}
	return deltas, ok
}
