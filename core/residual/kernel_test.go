package residual_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// TestKernel compares the sums of the kernels with those of this package: all
// pairs of 8-bit floats, and random ones of the others. The bits of a NaN
// differ between processors, and nothing relies on them (add.go): where one
// sum is a NaN, the other must be one.
func TestKernel(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	types := []dtype.Type{
		dtype.F8E4M3, dtype.F8E5M2, dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ, dtype.F16, dtype.BF16, dtype.F32, dtype.F64,
	}
	const words = 1 << 16
	var requests []byte
	bases, residuals := map[dtype.Type][]byte{}, map[dtype.Type][]byte{}
	for _, typ := range types {
		size := typ.WordBytes()
		base, res := word.Bytes(make([]uint64, words*size/8)), word.Bytes(make([]uint64, words*size/8))
		for i := range base {
			if size == 1 {
				base[i], res[i] = byte(i>>8), byte(i)
			} else {
				base[i], res[i] = byte(r.Uint32()), byte(r.Uint32())
			}
		}
		if size > 1 { // sums of like magnitude, where rounding is hard
			for i := 0; i < len(res); i += 2 * size {
				res[i+size-1] = base[i+size-1] ^ byte(r.Uint32()&0x81)
			}
		}
		requests = binary.LittleEndian.AppendUint32(requests, uint32(typ))
		requests = binary.LittleEndian.AppendUint32(requests, words)
		requests = append(append(requests, base...), res...)
		bases[typ], residuals[typ] = base, res
	}
	got := codectest.RunKernel(t, requests)
	for _, typ := range types {
		size := typ.WordBytes()
		want := bytes.Clone(bases[typ])
		residual.Apply(residual.Add, typ, want, bases[typ], residuals[typ])
		for i := 0; i < len(want); i += size {
			zero := bytes.Count(residuals[typ][i:i+size], []byte{0}) == size // "unchanged": kernels do not add it
			x, y := got[i:i+size], want[i:i+size]
			if !zero && !bytes.Equal(x, y) && !(isNaN(typ, x) && isNaN(typ, y)) {
				t.Fatalf("%v: %x + %x = %x, expected %x", typ, bases[typ][i:i+size], residuals[typ][i:i+size], x, y)
			}
		}
		got = got[len(want):]
	}
	if len(got) != 0 {
		t.Errorf("%d bytes are left over", len(got))
	}
}

// isNaN reports whether a little-endian word is a NaN of its type.
func isNaN(t dtype.Type, b []byte) bool {
	var v uint64
	for i, x := range b {
		v |= uint64(x) << (8 * i)
	}
	switch t {
	case dtype.F8E4M3:
		return v&0x7F == 0x7F
	case dtype.F8E5M2:
		return v&0x7F > 0x7C
	case dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ:
		return v == 0x80
	case dtype.F16:
		return v&0x7FFF > 0x7C00
	case dtype.BF16:
		return v&0x7FFF > 0x7F80
	case dtype.F32:
		return math.IsNaN(float64(math.Float32frombits(uint32(v))))
	}
	return math.IsNaN(math.Float64frombits(v))
}
