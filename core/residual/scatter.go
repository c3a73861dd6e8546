package residual

import (
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// ScatterAdd adds values[i] to word indices[i] of dst in the arithmetic of t,
// one after the other, so that an index may occur more than once. It is
// torch's scatter_add_: unlike Apply it adds a zero, too, which turns -0 into
// +0. Floats add as the add residual does, integers modulo 2^width, Bool by
// "or"; the types that torch cannot add (F8_E8M0, F6, F4) add their bytes
// modulo 256.
//
// dst and values are aligned to the word size, values has one word per index,
// and every index lies in dst: callers check.
func ScatterAdd(t dtype.Type, dst []byte, indices []int64, values []byte) {
	switch t {
	case dtype.F16:
		scatter(dst, indices, values, arithF16.add)
	case dtype.BF16:
		scatter(dst, indices, values, arithBF16.add)
	case dtype.F32, dtype.C64:
		scatter(dst, indices, values, arithF32.add)
	case dtype.F64:
		scatter(dst, indices, values, arithF64.add)
	case dtype.F8E4M3, dtype.F8E5M2, dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ:
		sums := &mustTable8(t).sums
		scatter(dst, indices, values, func(a, b uint8) uint8 { return sums[int(a)<<8|int(b)] })
	case dtype.Bool:
		scatter(dst, indices, values, func(a, b uint8) uint8 { return a | b })
	default:
		switch t.WordBytes() {
		case 1:
			scatter(dst, indices, values, modular[uint8])
		case 2:
			scatter(dst, indices, values, modular[uint16])
		case 4:
			scatter(dst, indices, values, modular[uint32])
		case 8:
			scatter(dst, indices, values, modular[uint64])
		}
	}
}

func scatter[T word.Word](dst []byte, indices []int64, values []byte, add func(a, b T) T) {
	d, v := word.View[T](dst), word.View[T](values)
	for i, at := range indices {
		d[at] = add(d[at], v[i])
	}
}

func modular[T word.Word](a, b T) T { return a + b }
